"""Which normalisation layer trains a small ResNet best, and are ours equal to torch's?

7 norms x 3 seeds, 4 to 8 minutes on two CPU cores with the embedded synthetic birds; with the
lab's photographs (--data-dir) 7 norms x 3 seeds x 50 epochs, in two recipes.

    python studies/norms.py                       embedded birds, this machine
    python studies/norms.py --data-dir birds      the lab's own scale, your photographs
    python studies/norms.py --address auto        on a running Ray cluster
    python studies/norms.py --resume              go on with an interrupted study
"""

from analysis import saliency
from analysis.studies import norms
from core.study import Data, Part, Scale, Study, main
from trainables.birds import Config, check_batches, describe_images, share_slot, train_birds

NORMS = ["torch_bn", "bn", "in", "bin", "ln", "gn", "none"]

study = Study(
    name="norms",
    question="Which normalisation layer trains a small ResNet best, and are ours equal to torch's?",
    trainable=train_birds,
    config=Config,
    parts={
        "norms": Part(grid={"norm": NORMS}, fixed={"recipe": "good"}),
        # The lab's own words, to the letter: SGD at 1e-4 hardly learns, and the report shows it.
        "lab-recipe": Part(
            grid={"norm": NORMS},
            fixed={"recipe": "lab", "train_eval": True},
            scales=["full"],
            literal=True,
        ),
    },
    scales={
        "demo": Scale(seeds=3, settings={"image_size": 20, "epochs": 5}),
        "full": Scale(seeds=3),
        "smoke": Scale(
            seeds=1, settings={"image_size": 16, "epochs": 1, "train_images": 100, "val_images": 50}
        ),
    },
    metric="val_accuracy",
    mode="max",
    data=Data(prepare=describe_images, check=check_batches, fit=share_slot),
    report=lambda folder: norms.report(folder, extra=saliency.sections),
)

if __name__ == "__main__":
    main(study)
