"""How pixels are normalised for a network: known of public weights, else found out on images."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from core.choices import Normalisation
from core.data.augment import MEAN, STD, normalise
from core.errors import UserError
from core.layers import running

# Mean and standard deviation of each channel of the training pixels, in the range 0 to 1.
NORMALISATIONS: Mapping[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (MEAN, STD),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
OWN: Normalisation = "imagenet"  # what every network of labtune is trained with
# The public CIFAR ResNets of akamaster/pytorch_resnet_cifar10 (20, 32, 44, 56, 110 and 1202 layers)
# were trained with ImageNet's; their files are named by the first digits of their SHA-256.
_PUBLIC = ("12fca82f", "d509ac18", "014dd654", "4bfd9763", "1d1ed7c2", "f3b1deed")
_GUESS_IMAGES = 1000  # at most; each candidate's accuracy is then known to 3 points
_BATCH = 125
# Measured on the first batch norm, clean images under the right normalisation and a wrong one (none
# in place of ImageNet's, and the reverse; public ResNet-20 on CIFAR photographs, the embedded model
# on its birds): standard deviations 0.79 to 1.00 against 0.22 to 0.25 and 3.5 to 3.9 times those
# kept, means 0.04 to 0.16 against 0.31 to 1.09 standard deviations away. CIFAR-10's in place of
# ImageNet's is no such difference (0.79, 0.14) and costs a point of accuracy or less.
_FAR_RATIO, _FAR_SHIFT = 2.0, 0.5


@dataclass(frozen=True)
class Settled:
    """The normalisation of a network's input, and why this one."""

    name: Normalisation  # key of `NORMALISATIONS`
    # set by the user, known for the weights, guessed by accuracy, or assumed for want of labels
    how: Literal["set", "known", "guessed", "assumed"]
    # how far the mean of the first batch norm's input on clean images is from the running one, see
    # `core.layers.running.LayerChange`
    shift: float
    ratio: float  # its standard deviation over the running one
    images: int = 0  # that the accuracies are of
    # share of them that the unadapted network tells right under each candidate, where it was
    # guessed
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def far(self) -> bool:
        """Whether the first batch norm sees something else than in training, even when clean."""
        return self.shift > _FAR_SHIFT or not 1 / _FAR_RATIO <= self.ratio <= _FAR_RATIO

    def sentence(self) -> str:
        """Return what was settled, for the terminal and the report."""
        by = f"Pixels are normalised by normalisation={self.name}"
        each = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.accuracy.items())
        text = {
            "set": f"{by}, as set.",
            "known": f"{by}, which these weights are known to have been trained with.",
            "guessed": f"{by}, guessed: no other gives the unadapted model a higher accuracy on"
            f" {self.images:,} clean images ({each}).",
            "assumed": f"{by}, assumed: the weights are not known, and there are no labels to"
            " choose by.",
        }[self.how]
        if self.far:
            text += (
                " Warning: on clean images the input of the first batch norm has"
                f" {self.ratio:.2g} times the standard deviation it was trained with (median over"
                f" channels) and means {self.shift:.2g} standard deviations away: the weights"
                " probably expect another normalisation, or other images."
            )
        return text

    def record(self) -> dict[str, Any]:
        """Return it as `study.json` keeps it."""
        return {**asdict(self), "far": self.far, "sentence": self.sentence()}


def settle(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray | None,
    wanted: Normalisation | Literal["auto"] = "auto",
    known: Normalisation | None = None,
) -> Settled:
    """Return how pixels are normalised for `model`.

    Under "auto" that is what is known, else what makes the unadapted model most accurate (the first
    of `NORMALISATIONS` where several do), else, without labels, ImageNet's.

    Args:
        model: in evaluation mode, with batch norm.
        images: (N, 3, S, S) uint8, clean; 1,000 at most are used, a random but fixed choice, as
            files often come class by class.
        labels: (N,) int64, or None.
        wanted: a normalisation, or "auto".
        known: that of the model's training, where it is known.

    Raises UserError: the model gives values that are not finite.
    """
    accuracy: dict[str, float] = {}
    name, how = OWN, "assumed"
    chosen = np.random.default_rng(0).permutation(len(images))[:_GUESS_IMAGES]
    images, labels = images[chosen], None if labels is None else labels[chosen]
    if wanted != "auto":
        name, how = wanted, "set"
    elif known is not None:
        name, how = known, "known"
    elif labels is not None:
        accuracy = {n: _accuracy(model, images, labels, n) for n in NORMALISATIONS}
        name, how = max(NORMALISATIONS, key=lambda n: accuracy[n]), "guessed"
    shift, ratio = first_norm(model, batch(model, images[:_BATCH], name))
    return Settled(name, how, shift, ratio, len(images) if accuracy else 0, accuracy)


def batch(model: nn.Module, images: np.ndarray, name: Normalisation) -> Tensor:
    """Return (B, 3, S, S) uint8 images as the model takes them, on its device."""
    pixels = torch.from_numpy(np.array(images)).to(next(model.parameters()).device)
    return normalise(pixels, *NORMALISATIONS[name], channels_last=True)


def first_norm(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return how far the statistics of a batch at the first batch norm are from the running ones.

    These are shift and ratio of `core.layers.running.LayerChange`. Raises UserError: the model has
    no batch norm, or gives values that are not finite.

    Args:
        model: in evaluation mode, with batch norm; not changed.
        x: (B, 3, H, W), normalised.
    """
    with torch.inference_mode():
        if not model(x).isfinite().all():
            raise UserError(
                "the model gives logits that are not finite on clean images: its weights are"
                " damaged, or made for another input: give others"
            )
    moved = running.copy_of(model)
    running.update(moved, running.bn_layers(moved), [x], updates=1, momentum=None, cumulative=True)
    first = running.changes(model, moved)[0]
    return first.shift, first.ratio


def of_file(path: str | Path) -> Normalisation | None:
    """Return what the weights in a file were trained with, if it is one that the public shares."""
    digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return "imagenet" if digest[:8] in {*_PUBLIC, *_torchvisions()} else None


@functools.cache
def _torchvisions() -> frozenset[str]:
    """Return the first digits of the SHA-256 of torchvision's ResNets, by which they are named."""
    named = torchvision.models.list_models(module=torchvision.models, include="*resne*")
    urls = [w.url for name in named for w in torchvision.models.get_model_weights(name)]
    found = [re.search(r"-([0-9a-f]{8})\.pth$", url) for url in urls]
    return frozenset(match[1] for match in found if match)


@torch.inference_mode()
def _accuracy(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, name: Normalisation
) -> float:
    right = 0
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        logits = model(batch(model, images[part], name)).float().cpu()
        sure = logits.isfinite().all(1)
        right += int(((logits.argmax(1) == torch.from_numpy(labels[part])) & sure).sum())
    return right / len(images)
