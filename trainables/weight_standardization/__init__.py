"""Fine-tuning of a network as it is, and of the same network with standardised weights.

The task, its images, loss and metrics are those of `trainables.voc`. A trial also watches its
first steps: how large each norm's output, its parameters and the gradient of its convolution are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.later import Later
from core.ranges import Checked, Count, borrows
from trainables import voc
from trainables.rules import weights_of as follow

__all__ = ["Config", "check_sizes", "describe_images", "follow", "train_converted"]

train_converted = Later("trainables.weight_standardization.train:train_converted")
describe_images = Later("trainables.weight_standardization.train:describe_images")


@dataclass(frozen=True)
@borrows(
    voc.Config,
    "variant seed weights image_size fit batch_size epochs optimizer lr head_lr momentum"
    " weight_decay schedule warmup max_norm augment difficult watch_steps train_images val_images"
    " train_eval year precision channels_last data_dir skip_broken",
)
class Config(Checked):
    """Settings of one trial; the defaults are the full scale. Most are those of the VOC task.

    Attributes:
        variant: original, or weights standardised with the norms compensated in mode A or B.
        weights: of the body before training: default (torchvision's, learnt on ImageNet), embedded
            (learnt on synthetic birds), none (random), or a file; for --check any ResNet's file.
        watch_steps: steps at the start whose layers are recorded.
        val_images: use this many validation images, or images of --check.
    """

    variant: Literal["original", "A", "B"] = "original"
    epochs: Count = 3
    watch_steps: Count = 10
    channels_last: bool = True

    def task(self) -> voc.Config:
        """Return the settings of the VOC task that this one consists of."""
        known = {field.name for field in dataclasses.fields(voc.Config)}
        return voc.Config(**{k: v for k, v in vars(self).items() if k in known})


def check_sizes(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training images do not fill; see `trainables.voc.check_sizes`."""
    voc.check_sizes([{**config, "fold": None} for config in configs], described)
