"""Several labels per photograph: a pretrained ResNet-18 with one output per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Lt

from core.data.decoding import Fit
from core.data.voc import Difficult
from core.errors import UserError
from core.later import Later
from core.ranges import Amount, Checked, Count, Says
from core.training.recipe import OptimizerName, Precision, Shape
from trainables.rules import check_batch, weights_of

Below1 = Annotated[Amount, Lt(1), Says("{name} must be below 1")]
Strength = Annotated[float, Interval(ge=0, le=1), Says("{name} must be 0 to 1")]

train_voc = Later("trainables.voc.train:train_voc")
describe_images = Later("trainables.voc.data:describe_images")


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial; the defaults are the full scale.

    Attributes:
        seed: of the head, the order and the augmentation.
        weights: of the body before training: default (torchvision's, learnt on ImageNet), embedded
            (learnt on synthetic birds), none (random), or a file.
        image_size: pixels; images are made image_size x image_size.
        fit: squash the whole image into the square, or crop its middle.
        batch_size: images per step.
        epochs: passes over the training images.
        optimizer: sgd (with Nesterov momentum), adam, adamw or rmsprop.
        lr: highest learning rate of the body.
        head_lr: highest learning rate of the head; none: ten times lr.
        momentum: of sgd.
        weight_decay: L2 penalty (decoupled for adamw).
        schedule: of the learning rates: cosine, step (a tenth after each third) or constant.
        warmup: share of the steps with rising learning rates.
        max_norm: largest L2 norm of the gradient (0: any).
        augment: strength of zoom, shift and recolouring, 0 (mirroring only) to 1.
        loss: bce (binary cross-entropy) or asymmetric (Ridnik et al. 2021).
        class_weights: none, or balanced (present pairs weigh absent over present).
        difficult: a class with difficult objects only is left out (ignore), absent or present.
        folds: K of a K-fold cross-validation; 0: none.
        fold: train without this fold and score it; none: train on all training images.
        holdout: share of the training images that is scored in place of the validation images,
            which are then not read; a search sets it, to 0.1 unless told otherwise.
        train_images: use this many training images.
        val_images: use this many validation images.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        untrained: refuse or keep classes without training example; none: keep VOC's own only.
        year: which year's folder of a root with several.
        precision: float32, bfloat16 or float16 (mixed precision).
        channels_last: memory format of images and weights.
        data_dir: root of a data set in VOC's layout, or its archive; none: the embedded one.
        download: fetch VOC into data_dir first.
        skip_broken: leave unreadable images out.
    """

    seed: int = 0
    weights: str = "default"
    image_size: Count = 224
    fit: Fit = "squash"
    batch_size: Count = 16
    epochs: Count = 15
    optimizer: OptimizerName = "sgd"
    lr: Amount = 0.01
    head_lr: Amount | None = None
    momentum: Below1 = 0.9
    weight_decay: Amount = 1e-4
    schedule: Shape = "cosine"
    warmup: Below1 = 0.05
    max_norm: Amount = 0.0
    augment: Strength = 0.5
    loss: Literal["bce", "asymmetric"] = "bce"
    class_weights: Literal["none", "balanced"] = "none"
    difficult: Difficult = "ignore"
    folds: int = 0
    fold: int | None = None
    holdout: float = 0.0
    train_images: Count | None = None
    val_images: Count | None = None
    train_eval: bool = False
    untrained: Literal["refuse", "keep"] | None = None
    year: str | None = None
    precision: Precision = "float32"
    channels_last: bool = False
    data_dir: str | None = None
    download: bool = False
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"--folds {self.folds}: give at least 2, or 0 for none")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise UserError(f"--set fold={self.fold}: there are --folds {self.folds}, from 0 on")
        if not 0 <= self.holdout <= (0.5 if self.fold is None else 0):
            raise UserError(
                f"--set holdout={self.holdout}: holdout is a share of at most 0.5, without a fold"
            )


def check_sizes(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that a trial's images do not fill, see `trainables.rules.check_batch`."""
    for config in configs:
        count = described["images"]["train"]
        count = described.get("holdout", {"trained": count})["trained"]
        if config["fold"] is not None:
            count -= described["folds"]["sizes"][config["fold"]]
        check_batch(config, count)


def follow(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return what follows from a user's settings: the folds of --folds, a demo's weights."""
    asked = settings.get("folds", 0)
    followed: dict[str, Any] = {"fold": list(range(asked))} if asked >= 2 else {}
    return followed | weights_of(settings, scale)
