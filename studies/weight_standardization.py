"""Does a pretrained network survive standardised weights, in evaluation and in training?

3 variants (as it is; norms compensated in mode A, in mode B) x 2 learning rates x 3 seeds, minutes
on two CPU cores with the embedded synthetic pictures; with Pascal VOC (--data-dir) the lab's scale:
ImageNet weights, 224 pixels, batch 16, 3 epochs.

    python studies/weight_standardization.py                          embedded pictures
    python studies/weight_standardization.py --data-dir VOCdevkit     your devkit
    python studies/weight_standardization.py --set epochs=5           the lab's deliverable
    python studies/weight_standardization.py --check                  logits before and after
    python studies/weight_standardization.py --check --data-dir PHOTOS [--weights FILE]
"""

from analysis.studies import weight_standardization
from core.study import Data, Part, Scale, Settings, Study, main
from core.training.recipe import converted_rate
from trainables.weight_standardization import (
    Config,
    check_sizes,
    describe_images,
    follow,
    train_converted,
)

study = Study(
    name="weight_standardization",
    question="Does a pretrained ResNet-18 with standardised weights still predict and train as"
    " before, if its norms are compensated in mode A (running mean and variance) or in mode B"
    " (weight and bias)?",
    trainable=train_converted,
    config=Config,
    parts={"main": Part(grid={"variant": ["original", "A", "B"], "lr": [0.005, 0.02]})},
    scales={
        "demo": Scale(
            seeds=3,
            settings={"image_size": 32, "batch_size": 32, "train_images": 300, "val_images": 200},
        ),
        "full": Scale(seeds=3),
        "smoke": Scale(
            seeds=1, settings={"image_size": 32, "epochs": 2, "train_images": 48, "val_images": 32}
        ),
    },
    metric="val_map",
    mode="max",
    data=Data(prepare=describe_images, check=check_sizes),
    settings=Settings(
        private=("data_dir", "skip_broken", "weights"),
        flags={"weights": "weights"},
        adjust=follow,
        rates=dict.fromkeys(("lr", "head_lr"), converted_rate),
        actions={"check": weight_standardization.check},
    ),
    report=weight_standardization.report,
)

if __name__ == "__main__":
    main(study)
