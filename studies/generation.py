"""Which small network makes the best images of a data set, and does it make them or copy them?

A VAE, a DCGAN and flow matching x 2 widths x 3 seeds, minutes on two CPU cores with the
embedded handwritten digits; photographs and full scale with --data-dir.

    python studies/generation.py                                     embedded digits, this machine
    python studies/generation.py --data-dir cifar10                  32x32 colour, full scale
    python studies/generation.py --data-dir mnist --set dataset=mnist download=true
    python studies/generation.py --set guidance=2 conditional=true   stronger labels
    python studies/generation.py --samples 1000                      PNG files and .npz of the best
"""

from analysis.studies import generation
from core.study import Data, Part, Scale, Settings, Study, main
from trainables.generation import Config, describe_pictures, train_generator

FAMILIES = ["vae", "dcgan", "flow"]

study = Study(
    name="generation",
    question="Which small network makes the best images of a data set, and does it make or copy?",
    trainable=train_generator,
    config=Config,
    parts={
        "small": Part(
            grid={"family": FAMILIES, "width": [16, 32]}, scales=["demo", "smoke"]
        ),
        "large": Part(grid={"family": FAMILIES, "width": [32, 64]}, scales=["full"]),
    },
    scales={
        # As many steps as fit: the families get the same number, not the same time.
        "demo": Scale(
            seeds=3,
            settings={
                "epochs": 4, "epoch_steps": 65, "batch_size": 64, "ema": 0.99, "patch": 2,
                "sampler_steps": 5,
            },
        ),
        "full": Scale(seeds=3),
        "smoke": Scale(
            seeds=1,
            settings={
                "epochs": 2, "epoch_steps": 2, "batch_size": 16, "patch": 2, "sampler_steps": 2,
                "train_images": 200, "val_images": 60,
            },
        ),
    },
    metric="frechet",
    mode="min",
    data=Data(prepare=describe_pictures),
    settings=Settings(
        private=("data_dir", "skip_broken", "inception", "download"), flags={"samples": "samples"}
    ),
    report=generation.report,
)  # fmt: skip

if __name__ == "__main__":
    main(study)
