"""Species from photographs: a 6n+2 ResNet with a chosen normalisation layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from core.later import Later
from core.ranges import Amount, Checked, Count, Says, Share
from core.training.recipe import OptimizerName, Precision
from trainables.rules import check_batch

Holdout = Annotated[float, Interval(ge=0, le=0.5), Says("{name} is a share of at most 0.5")]

train_birds = Later("trainables.birds.train:train_birds")
share_slot = Later("trainables.birds.train:share_slot")
describe_images = Later("trainables.birds.data:describe_images")


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial; the defaults are the lab's full scale.

    Attributes:
        norm: normalisation layer after each convolution.
        seed: of weights, order and augmentation.
        n: blocks per stage; the network has 6n + 2 weighted layers.
        image_size: pixels; images are resized to image_size x image_size.
        batch_size: images per step.
        epochs: passes over the training set.
        recipe: lab (learning rate 1e-4, as in the lab's text) or good (momentum, warm-up, cosine).
        optimizer: sgd, adam, adamw or rmsprop.
        lr: highest learning rate; none: 1e-4 of recipe lab, of good the optimiser's (sgd 0.1).
        lr_scaling: how lr follows the batch size, from 32 images on: linear, sqrt or none.
        momentum: of SGD, in place of the recipe's.
        weight_decay: in place of the recipe's.
        warmup: share of the steps with rising learning rate, in place of the recipe's.
        max_norm: largest L2 norm of the gradient (0: any), in place of the recipe's.
        augment: mirror and shift the training images.
        train_images: use this many training images, balanced over classes.
        val_images: use this many validation images, balanced over classes.
        holdout: share of the training images that is scored in place of the validation images,
            which are then not read; a search sets it, to 0.1 unless told otherwise.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        precision: float32, bfloat16 or float16 (mixed precision).
        channels_last: memory format of images and weights.
        compile: compile the network with torch.compile.
        recompute: keep few activations and compute the others again (less memory, slower).
        fit: let all trials recompute, then use half precision too, where one would not fit its
            slot otherwise.
        accumulate: run each batch in so many parts (with batch norm another computation).
        data_dir: root of an image folder; none: the embedded synthetic birds.
        skip_broken: leave unreadable images out.
    """

    norm: Literal["torch_bn", "bn", "in", "bin", "ln", "gn", "none"] = "bn"
    seed: int = 0
    n: Count = 2
    image_size: Count = 256
    batch_size: Count = 32
    epochs: Count = 50
    recipe: Literal["lab", "good"] = "good"
    optimizer: OptimizerName = "sgd"
    lr: Amount | None = None
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    momentum: Amount | None = None
    weight_decay: Amount | None = None
    warmup: Share | None = None
    max_norm: Amount | None = None
    augment: bool = True
    train_images: Count | None = None
    val_images: Count | None = None
    holdout: Holdout = 0.0
    train_eval: bool = False
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    fit: bool = True
    accumulate: Count = 1
    data_dir: str | None = None
    skip_broken: bool = False


def check_batches(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training set does not fill, see `trainables.rules.check_batch`."""
    count = sum(described["counts"]["train"].values())
    count = described.get("holdout", {"trained": count})["trained"]
    for config in configs:
        check_batch(config, count)
