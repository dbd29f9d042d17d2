"""The pictures of a trial: batches, and what samples are held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.data import images as data
from core.data import small
from core.data.images import ImageSet
from core.errors import UserError
from core.generation import families, features
from core.generation.copies import threshold
from core.generation.family import Family, stream
from core.generation.features import Reference, scaled
from core.models import pretrained
from core.training.device import device_here
from trainables.generation import Config

MOST_COMPARED = 2000  # samples for each report, unless `eval_samples` says otherwise
SAMPLES, SHOWS, PATHS = 2, 3, 4  # streams of a trial's seed; 0 and 1 are order and noise


class Pictures(NamedTuple):
    """A data set on the device."""

    train: Tensor  # (N, C, S, S) uint8
    labels: Tensor  # (N,) int64
    names: tuple[str, ...]  # of the classes
    reference: Reference  # what samples are held against


_opened: dict[tuple[Any, ...], Pictures] = {}  # by the trial before: a warm worker keeps its data


def describe_pictures(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the images, train the classifier once, and return what the report says about both.

    Raises UserError: data, weights or settings that cannot be used.
    """
    cfg = Config(**settings)
    weights = ""
    if cfg.inception:
        features.inception(cfg.inception)  # refuses other weights
        weights = f"+inception:{pretrained.digest(cfg.inception)}"
    sets = images(cfg)
    _check_counts(cfg, sets)
    described = small.describe(cfg.dataset, cfg.data_dir, sets)
    pictures = opened(cfg)
    build(cfg, pictures)
    found = pictures.reference
    yardsticks = features.yardsticks(found)
    classifier = {"digest": found.digest, "features": features.FEATURES}
    copies = {"threshold": threshold(found.unseen), "calibrated_on": len(found.unseen)}
    accuracy = yardsticks["held_out"]["class_agreement"]
    return described | {
        "channels": pictures.train.shape[1],
        "fingerprint": f"{described['fingerprint']}+classifier:{found.digest}{weights}",
        "compared": found.count,
        "classifier": classifier | {"held_out_accuracy": accuracy},
        "yardsticks": yardsticks,
        "copy_check": copies | {"found": found.found()},
    }


def opened(cfg: Config) -> Pictures:
    """Return the images of a trial on its device, with what samples are held against."""
    sets = images(cfg)
    grey = is_grey(sets) if cfg.channels == "auto" else cfg.channels == "grey"
    how: dict[str, Any] = {"flip": mirrored(cfg), "count": _compared(cfg, sets)}
    how |= {"neighbours": cfg.neighbours, "fingerprint": data.fingerprint(sets)}
    key = (sets["train"].images.shape, grey, *how.values())
    if key not in _opened:
        _opened.clear()
        train, val = (_tensors(sets[split], grey) for split in ("train", "val"))
        names = sets["train"].classes
        _opened[key] = Pictures(*train, names, Reference(*train, *val, len(names), **how))
    return _opened[key]


def _tensors(images: ImageSet, grey: bool) -> tuple[Tensor, Tensor]:
    """Return pixels and labels on the device."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.images[:, : 1 if grey else 3]))
    labels = torch.from_numpy(np.array(images.labels, dtype=np.int64))
    return pixels.to(device_here()), labels.to(device_here())


def build(cfg: Config, pictures: Pictures) -> Family:
    """Return the family that a config describes for these images, with fresh weights."""
    channels, size, _ = pictures.train.shape[1:]
    options = {name: getattr(cfg, name) for name in families.OPTIONS}
    labels = len(pictures.names) if cfg.conditional else 0
    return families.build(cfg.family, (channels, size, size), cfg.width, labels, **options)


def batches(
    cfg: Config, pictures: Pictures, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the (images in [-1, 1], labels) of one round: shuffled passes, whole batches only.

    A data set smaller than a batch gives batches of all its images.
    """
    count, device = len(pictures.train), pictures.train.device
    size = min(cfg.batch_size, count)
    steps = cfg.epoch_steps or count // size
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < size:
            left = torch.randperm(count, generator=generator)
        index, left = left[:size].to(device), left[size:]
        images = pictures.train[index]
        if mirrored(cfg):
            turned = torch.rand(size, generator=generator).to(device) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        yield scaled(images), pictures.labels[index]


def images(cfg: Config) -> dict[str, ImageSet]:
    """Return the decoded training and held-out images of a trial."""
    limit = {"train": cfg.train_images, "val": cfg.val_images}
    how = {"download": cfg.download, "skip_broken": cfg.skip_broken}
    return small.load(cfg.dataset, cfg.data_dir, side(cfg), limit, **how)


def side(cfg: Config) -> int:
    """Return the side of the images in pixels."""
    digits = small.resolve(cfg.dataset, cfg.data_dir) == "digits"
    return cfg.image_size or (16 if digits else 32)


def mirrored(cfg: Config) -> bool:
    """Return whether training images are mirrored."""
    name = small.resolve(cfg.dataset, cfg.data_dir)
    return small.MIRRORED[name] if cfg.flip is None else cfg.flip


def is_grey(sets: Mapping[str, ImageSet]) -> bool:
    """Return whether every image has three equal channels."""
    return all(
        bool((part[:, :1] == part[:, 1:]).all())
        for s in sets.values()
        for part in np.array_split(s.images, max(1, len(s) // 1000))
    )


def _check_counts(cfg: Config, sets: Mapping[str, ImageSet]) -> None:
    """Refuse comparisons of fewer images than they need neighbours."""
    fewest = min(_compared(cfg, sets), *(len(s) for s in sets.values()))
    if fewest <= cfg.neighbours:
        raise UserError(
            f"--set neighbours={cfg.neighbours}: only {fewest} images are compared: give more"
            " eval_samples, train_images or val_images, or fewer neighbours"
        )


def _compared(cfg: Config, sets: Mapping[str, ImageSet]) -> int:
    """Return how many samples are compared with real images at a time."""
    return cfg.eval_samples or min(MOST_COMPARED, len(sets["val"]))


def generator(cfg: Config, number: int) -> torch.Generator:
    """Return a fresh generator: the same latents after every epoch, whatever was drawn before."""
    return torch.Generator().manual_seed(stream(cfg.seed, number))
