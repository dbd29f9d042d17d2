"""The images of a trial, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from core.data import small
from core.data.batches import Batch, Batches
from core.data.images import ImageSet
from core.models import pretrained
from trainables.cifar import Config

WEIGHTS = {
    "default": "torchvision's ImageNet weights",
    "embedded": "weights that labtune learnt from drawn birds (not ImageNet's)",
    "none": "random weights",
    "file": "weights in a file of the user's",
}


def images(cfg: Config) -> dict[str, ImageSet]:
    """Return the decoded images of a trial, "train" and "val"."""
    limit = {"train": cfg.train_images, "val": cfg.val_images}
    how = {"download": cfg.download, "skip_broken": cfg.skip_broken}
    return small.load(cfg.dataset, cfg.data_dir, cfg.image_size, limit, **how)


def batches(
    cfg: Config, sets: Mapping[str, ImageSet], device: torch.device
) -> tuple[Batches, Batches, Batches]:
    """Return the training batches, augmented as the data allow, those as they are, and val's."""
    mirrored = small.MIRRORED[small.resolve(cfg.dataset, cfg.data_dir)]
    flip, shift = cfg.augment and mirrored, -1 if cfg.augment else 0
    shared = {"device": device, "seed": cfg.seed}
    train = Batches(sets["train"], cfg.batch_size, train=True, flip=flip, shift=shift, **shared)
    seen, val = (Batches(sets[split], cfg.batch_size, **shared) for split in ("train", "val"))
    return train, seen, val


def merge_single(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join a last batch of one image to the one before it.

    Batch norm over one number per feature is undefined, and torch refuses it in training mode.
    """
    held: Batch | None = None
    for x, y in batches:
        if held is not None and len(y) == 1:
            x, y = torch.cat([held[0], x]), torch.cat([held[1], y])
        elif held is not None:
            yield held
        held = x, y
    if held is not None:
        yield held


def steps_of(images: int, batch_size: int) -> int:
    """Return how many batches `merge_single` makes of an epoch."""
    whole, rest = divmod(images, batch_size)
    return max(1, whole + (rest > 1))


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode all images once, and return what the report says about them.

    Where the first trial starts from weights, they are made or fetched here too, and belong to the
    fingerprint. Raises UserError: data or weights that cannot be used.
    """
    cfg = dataclasses.replace(Config(**settings), train_images=None, val_images=None)
    described = small.describe(cfg.dataset, cfg.data_dir, images(cfg))
    if cfg.model == "resnet18" and cfg.variant != "scratch":
        pretrained.resnet18(cfg.weights, len(described["classes"]))  # refuses what does not fit
        named = cfg.weights if cfg.weights in pretrained.NAMES else "file"
        described["weights"] = named
        described["description"] += f"; ResNet-18 starts from {WEIGHTS[named]}"
        described["fingerprint"] += f", weights {pretrained.digest(cfg.weights)}"
    return described
