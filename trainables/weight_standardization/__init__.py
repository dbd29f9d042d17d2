"""Fine-tuning of a network as it is, and of the same network with standardised weights.

The task, its images, loss and metrics are those of `trainables.voc`. A trial also watches its
first steps: how large each norm's output, its parameters and the gradient of its convolution are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.data.decoding import Fit
from core.data.voc import Difficult
from core.later import Later
from core.ranges import Amount, Checked, Count
from core.training.recipe import OptimizerName, Precision, Shape
from trainables import voc
from trainables.rules import weights_of as follow
from trainables.voc import Below1, Strength

__all__ = ["Config", "check_sizes", "describe_images", "follow", "train_converted"]

train_converted = Later("trainables.weight_standardization.train:train_converted")
describe_images = Later("trainables.weight_standardization.train:describe_images")


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial; the defaults are the full scale. Most are those of the VOC task.

    Attributes:
        variant: original, or weights standardised with the norms compensated in mode A or B.
        seed: of the head, the order and the augmentation.
        weights: of the body before training: default (torchvision's, learnt on ImageNet), embedded
            (learnt on synthetic birds), none (random), or a file; for --check any ResNet's file.
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
        difficult: a class with difficult objects only is left out (ignore), absent or present.
        watch_steps: steps at the start whose layers are recorded.
        train_images: use this many training images.
        val_images: use this many validation images, or images of --check.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        year: which year's folder of a root with several.
        precision: float32, bfloat16 or float16 (mixed precision).
        channels_last: memory format of images and weights.
        data_dir: root of a data set in VOC's layout, or its archive; none: the embedded one.
        skip_broken: leave unreadable images out.
    """

    variant: Literal["original", "A", "B"] = "original"
    seed: int = 0
    weights: str = "default"
    image_size: Count = 224
    fit: Fit = "squash"
    batch_size: Count = 16
    epochs: Count = 3
    optimizer: OptimizerName = "sgd"
    lr: Amount = 0.01
    head_lr: Amount | None = None
    momentum: Below1 = 0.9
    weight_decay: Amount = 1e-4
    schedule: Shape = "cosine"
    warmup: Below1 = 0.05
    max_norm: Amount = 0.0
    augment: Strength = 0.5
    difficult: Difficult = "ignore"
    watch_steps: Count = 10
    train_images: Count | None = None
    val_images: Count | None = None
    train_eval: bool = False
    year: str | None = None
    precision: Precision = "float32"
    channels_last: bool = True
    data_dir: str | None = None
    skip_broken: bool = False

    def task(self) -> voc.Config:
        """Return the settings of the VOC task that this one consists of."""
        known = {field.name for field in dataclasses.fields(voc.Config)}
        return voc.Config(**{k: v for k, v in vars(self).items() if k in known})


def check_sizes(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training images do not fill; see `trainables.voc.check_sizes`."""
    voc.check_sizes([{**config, "fold": None} for config in configs], described)
