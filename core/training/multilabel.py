"""Training with several labels per image: batches, losses, metrics.

Labels are (N, C): 1 present, -1 absent, 0 ignored; what is ignored enters no loss and no metric.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.augment import distort, normalise
from core.data.batches import Batch
from core.errors import Diverged
from core.training.epoch import Task
from core.training.metrics import mean_average_precision

# Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", section 3.1: focusing of
# present and absent pairs, and the shift of the probability of absent ones.
FOCUS_PRESENT, FOCUS_ABSENT, MARGIN = 0.0, 4.0, 0.05
Loss = Callable[[Tensor, Tensor], Tensor]  # logits and labels (B, C) -> losses of pairs (B, C)


@dataclass(frozen=True)
class LabelledImages:
    """Some images of a set as normalised float batches on a device."""

    images: np.ndarray  # (N, 3, H, W) uint8, of the whole set
    labels: np.ndarray  # (N, C) int8, of the whole set
    chosen: np.ndarray  # (M,) indices of the images that are used
    # images per batch; the last batch holds the rest, but never a single image where there are
    # others (batch norm has no variance of one)
    batch_size: int
    device: torch.device  # where batches are put; augmentation and normalisation run there
    seed: int = 0  # fixes order and augmentation of each epoch
    # strength (see `core.data.augment.distort`); None neither shuffles nor augments
    augment: float | None = None
    channels_last: bool = False  # memory format of the batches

    def __len__(self) -> int:
        return len(self._split(torch.arange(len(self.chosen))))

    def _split(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield (images (B, 3, H, W) float32, labels (B, C) int8) of one pass.

        What happens to an image depends on `seed`, `epoch` and its place in `chosen` alone.
        """
        count = len(self.chosen)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.arange(count)
        draws = torch.empty(0)
        if self.augment is not None:
            order = torch.randperm(count, generator=generator)
            draws = torch.rand(count, 8, generator=generator)
        for part in self._split(order):
            part = part.sort().values  # reads the memory map forwards
            index = self.chosen[part.numpy()]
            images = torch.from_numpy(self.images[index]).to(self.device)
            if self.augment is not None:
                images = distort(images, draws[part], self.augment)
            x = normalise(images, channels_last=self.channels_last)
            yield x, torch.from_numpy(self.labels[index]).to(self.device)


def binary_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return -w y log s - (1 - y) log(1 - s) of each pair, s the logistic function of the logit.

    Args:
        logits: (B, C).
        labels: (B, C); those of ignored pairs count as absent here and are left out later.
        weight: (C,), w: how much more an image with the class counts.
    """
    present = (labels == 1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, present, pos_weight=weight, reduction="none")


def asymmetric_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the loss of Ridnik et al. 2021 of each pair: easy absent pairs hardly count.

    y (1 - s)^g+ log s + (1 - y) m^g- log(1 - m), negated, with m = max(s - margin, 0). Args as of
    `binary_cross_entropy`.
    """
    s = torch.sigmoid(logits)
    shifted = (s - MARGIN).clamp(min=0)
    found = (1 - s) ** FOCUS_PRESENT * F.logsigmoid(logits)
    if weight is not None:
        found = found * weight
    refused = shifted**FOCUS_ABSENT * torch.log1p(-shifted)
    return -torch.where(labels == 1, found, refused)


def balance(labels: np.ndarray) -> np.ndarray:
    """Return, per class, absent over present images (C,) float32: 1 where there are none of either.

    A class on every image would have the weight 0 and train nothing.
    """
    present, absent = (labels == 1).sum(0), (labels == -1).sum(0)
    both = (present > 0) & (absent > 0)
    return np.where(both, absent / np.maximum(present, 1), 1).astype(np.float32)


def make_loss(
    kind: Literal["bce", "asymmetric"], weight: np.ndarray | None, device: torch.device
) -> Loss:
    """Return the loss of pairs under that name, with these class weights."""
    each = {"bce": binary_cross_entropy, "asymmetric": asymmetric_loss}[kind]
    w = None if weight is None else torch.from_numpy(weight).to(device)
    return lambda logits, labels: each(logits, labels, w)


class PairLoss:
    """The mean loss of the pairs of image and class that count, in nats per pair; mAP and accuracy.

    `each` returns the losses of pairs.
    """

    def __init__(self, each: Loss, device: torch.device):
        self._each = each
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._total = torch.zeros((), dtype=torch.float64, device=device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch in training, or of a part of it."""
        counted = labels != 0
        total = (self._each(logits, labels) * counted).sum()
        self._total += total.detach()
        return total / counted.sum().clamp(min=1)

    def add(self, logits: Tensor, labels: Tensor, mean: Tensor | None = None) -> None:
        """Count a batch in: rankings need the scores of all."""
        self._logits.append(logits)
        self._labels.append(labels)
        if mean is None:
            self.loss(logits, labels)

    def metrics(self) -> dict[str, float]:
        """Return loss per pair that counts, mean average precision, share of right decisions."""
        scores, labels = torch.cat(self._logits).cpu(), torch.cat(self._labels).cpu()
        if not scores.isfinite().all():
            raise Diverged("a score is not finite: lower lr or set max_norm")
        counted = labels != 0
        number = max(1, int(counted.sum()))
        right = (((scores > 0) == (labels == 1)) & counted).sum()
        return {
            "loss": self._total.item() / number,
            "map": mean_average_precision(scores.numpy(), labels.numpy())[0],
            "accuracy": int(right) / number,
        }


def pair_loss(each: Loss) -> Task:
    """Return the task of telling which of several classes an image shows."""
    return functools.partial(PairLoss, each)
