"""How well does a fine-tuned ResNet-18 rank photographs by each of 20 classes?

One setting x 3 seeds, minutes on two CPU cores with the embedded synthetic pictures; with Pascal
VOC (--data-dir) the lab's scale: ImageNet weights, 224 pixels, batch 16, 15 epochs.

    python studies/voc.py                                   embedded pictures, this machine
    python studies/voc.py --data-dir VOCdevkit              your devkit (VOC 2012, 2007, your own)
    python studies/voc.py --data-dir voc --download         fetch VOC 2012 first
    python studies/voc.py --folds 3                         choose the epoch by cross-validation
    python studies/voc.py --search optuna --trials 20       search, bad trials stopped early
"""

from analysis.studies import search, voc
from core.study import Choice, Data, Part, Range, Scale, Search, Settings, Stopping, Study, main
from core.training.recipe import converted_rate
from trainables.voc import Config, check_sizes, describe_images, follow, train_voc

study = Study(
    name="voc",
    question="How well does a fine-tuned ResNet-18 rank photographs by each of their classes?",
    trainable=train_voc,
    config=Config,
    parts={
        "main": Part(grid={}, fixed={"fold": None}),
        "folds": Part(grid={"fold": [0, 1, 2]}, when="folds"),
    },
    scales={
        "demo": Scale(
            seeds=3,
            settings={
                "image_size": 32,
                "epochs": 6,
                "optimizer": "adamw",
                "lr": 7e-4,
                "head_lr": 3e-3,
                "augment": 0.1,
            },
        ),
        "full": Scale(seeds=3),
        "smoke": Scale(
            seeds=1, settings={"image_size": 32, "epochs": 2, "train_images": 60, "val_images": 40}
        ),
    },
    metric="val_map",
    mode="max",
    data=Data(prepare=describe_images, check=check_sizes),
    settings=Settings(
        private=("data_dir", "skip_broken", "download", "weights"),
        flags={"folds": "folds", "weights": "weights", "download": "download"},
        adjust=follow,
        rates=dict.fromkeys(("lr", "head_lr"), converted_rate),
    ),
    search=Search(
        space={
            "lr": Range(1e-3, 1e-1, log=True),
            "weight_decay": Range(1e-6, 1e-2, log=True),
            "optimizer": Choice(["sgd", "adamw"]),
            "augment": Range(0.0, 1.0),
        },
        stopping=Stopping(scheduler="asha", grace=2, reduction_factor=2),
        report=search.report,
    ),
    report=voc.report,
)

if __name__ == "__main__":
    main(study)
