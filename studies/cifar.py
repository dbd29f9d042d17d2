"""What does batch norm bring a small CNN, and what does retraining only a part of a ResNet-18 cost?

30 trials of the CNN and 35 of ResNet-18, about 6 minutes on two CPU cores with scikit-learn's
digits; with CIFAR-10 (--data-dir) the lab's scale: all photographs, 30 epochs, ImageNet weights.

    python studies/cifar.py                               embedded digits, this machine
    python studies/cifar.py --data-dir cifar10            torchvision's folder, or train/<class>/*
    python studies/cifar.py --set dataset=mnist --download    fetch MNIST (or cifar10) first
    python studies/cifar.py --part cnn --set lr=0.003,0.03    one part, other learning rates
    python studies/cifar.py --layers                      only print the networks' layer sizes
"""

from analysis.studies import cifar
from core.study import Data, Part, Scale, Settings, Study, main
from core.training.recipe import converted_rate
from trainables.cifar import Config, check_batches, describe_images, follow, train_cifar

RESNET = {"model": "resnet18"}
# A fine-tune is for few images; a ResNet-18 also takes 300 times the CNN's arithmetic.
SMALL = {
    "demo": {"image_size": 16, "epochs": 6, "batch_size": 20, "train_images": 240},
    "smoke": {"image_size": 16, "train_images": 20, "val_images": 20},
}

study = Study(
    name="cifar",
    question="What does batch norm bring a small CNN, and what does retraining only a part of a "
    "ResNet-18 cost?",
    trainable=train_cifar,
    config=Config,
    parts={
        "resnet18": Part(
            grid={"variant": ["all", "layer4", "head", "scratch"]},
            fixed=RESNET | {"conv1": "printed"},
            at=SMALL,
        ),
        # The lab's snippet freezes a first convolution that is no longer pretrained.
        "conv1": Part(
            grid={"conv1": ["trained", "averaged"]}, fixed=RESNET | {"variant": "layer4"}, at=SMALL
        ),
        # As the snippet runs: frozen weights, but statistics that follow the batches.
        "statistics": Part(
            grid={"statistics": ["moving"]},
            fixed=RESNET | {"variant": "layer4", "conv1": "printed"},
            at=SMALL,
        ),
        "cnn": Part(
            grid={"bn": ["none", "listing", "meant"], "lr": [0.01, 0.1]}, fixed={"model": "cnn"}
        ),
    },
    scales={
        # Five seeds: an interval of half the width that three give.
        "demo": Scale(seeds=5, settings={"epochs": 6, "batch_size": 32}),
        "full": Scale(seeds=3),
        "smoke": Scale(
            seeds=1, settings={"epochs": 1, "batch_size": 10, "train_images": 100, "val_images": 50}
        ),
    },
    metric="val_accuracy",
    mode="max",
    data=Data(prepare=describe_images, check=check_batches),
    settings=Settings(
        private=("data_dir", "skip_broken", "download", "weights"),
        flags={"weights": "weights", "download": "download"},
        adjust=follow,
        rates=dict.fromkeys(("lr", "tune_lr"), converted_rate),
        actions={"layers": cifar.print_layers},
    ),
    report=cifar.report,
)

if __name__ == "__main__":
    main(study)
