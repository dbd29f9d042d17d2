"""The CIFAR-10 lab: a small CNN with and without batch norm, and a ResNet-18 fine-tuned in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from core.choices import Dataset, Form, Stem, Variant
from core.errors import UserError
from core.later import Later
from core.ranges import Amount, Checked, Count, Share
from core.training.recipe import OptimizerName, Precision
from trainables.rules import check_batch
from trainables.rules import weights_of as follow

__all__ = ["Config", "check_batches", "describe_images", "follow", "train_cifar"]

CNN_SIZE = 32  # pixels: the CNN's first linear layer is made for them

train_cifar = Later("trainables.cifar.train:train_cifar")
describe_images = Later("trainables.cifar.data:describe_images")


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial; the defaults are the lab's full scale.

    Attributes:
        model: cnn (the lab's two convolutions and three linear layers) or resnet18.
        bn: of cnn: none, listing (bn3 and bn4 are made but never used) or meant (all four used).
        variant: of resnet18: all (retrained from the weights), layer4 (that and the head), head, or
            scratch (all, from random weights).
        conv1: of resnet18, the new 3x3 first convolution: printed (random, and frozen with the
            rest, as in the lab's snippet), trained (random), averaged (from the 7x7 kernel, and
            frozen with the rest).
        statistics: of batch norms that are frozen: frozen (evaluation mode) or moving.
        maxpool: keep the pool behind the first convolution of resnet18, as the lab does.
        weights: of resnet18: default (torchvision's, of ImageNet), embedded (learnt from drawn
            birds), none (random), or the path of a state dict.
        seed: of weights, order and augmentation.
        dataset: digits, mnist, cifar10, folder, or auto (what --data-dir holds; digits without).
        image_size: pixels; cnn needs 32.
        batch_size: images per step, at least 2; a last batch of one image joins the one before.
        epochs: passes over the training set.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: highest learning rate of cnn (warm-up, then cosine).
        tune_lr: highest learning rate of resnet18.
        momentum: of SGD, in place of the recipe's 0.9.
        weight_decay: in place of the recipe's 0.0005.
        warmup: share of the steps with rising learning rate, in place of the recipe's 0.1.
        max_norm: largest L2 norm of the gradient (0: any), in place of the recipe's 1.
        augment: shift the training images, and mirror them unless they are digits.
        train_images: use this many training images, balanced over classes.
        val_images: use this many validation images, balanced over classes.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        precision: float32, bfloat16 or float16 (mixed precision).
        data_dir: where the data are; none: the embedded digits.
        skip_broken: leave unreadable images out.
        download: fetch mnist or cifar10 with torchvision where they are missing.
    """

    model: Literal["cnn", "resnet18"] = "cnn"
    bn: Form = "meant"
    variant: Variant = "all"
    conv1: Stem = "printed"
    statistics: Literal["frozen", "moving"] = "frozen"
    maxpool: bool = True
    weights: str = "default"
    seed: int = 0
    dataset: Dataset = "auto"
    image_size: Annotated[int, Ge(8)] = CNN_SIZE
    batch_size: Annotated[int, Ge(2)] = 64
    epochs: Count = 30
    optimizer: OptimizerName = "sgd"
    lr: Amount = 0.05
    tune_lr: Amount = 0.02
    momentum: Amount | None = None
    weight_decay: Amount | None = None
    warmup: Share | None = None
    max_norm: Amount | None = None
    augment: bool = True
    train_images: Count | None = None
    val_images: Count | None = None
    train_eval: bool = False
    precision: Precision = "float32"
    data_dir: str | None = None
    skip_broken: bool = False
    download: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.model == "cnn" and self.image_size != CNN_SIZE:
            raise UserError(
                f"--set image_size={self.image_size}: model=cnn is made for {CNN_SIZE} pixels:"
                " leave image_size out, or use --part resnet18"
            )


def check_batches(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training set does not fill, and less than an image for each class."""
    count, classes = sum(described["counts"]["train"].values()), len(described["classes"])
    for config in configs:
        for name in ("train_images", "val_images"):
            if config[name] is not None and config[name] < classes:
                raise UserError(
                    f"--set {name}={config[name]}: at least {classes}, one for each class, are"
                    " needed"
                )
        check_batch(config, min(count, config["train_images"] or count))
