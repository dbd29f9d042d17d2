"""The batches of an epoch, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.data.augment import augment, normalise
from core.data.images import ImageSet

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batches:
    """An `ImageSet` as normalised float batches on a device."""

    data: ImageSet  # decoded images and labels
    batch_size: int  # images per batch; the last batch holds the rest
    device: torch.device  # where batches are put; augmentation and normalisation run there
    seed: int = 0  # fixes order and augmentation of each epoch
    train: bool = False  # shuffle and augment
    flip: bool = True  # augment by mirroring left-right
    shift: int = -1  # augment by moving up to this many pixels; -1 means an eighth of the width
    channels_last: bool = False  # memory format of the batches

    @functools.cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(np.array(self.data.labels, dtype=np.int64))

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield (images (B, 3, H, W) float32, labels (B,) int64) of one pass.

        The order and the augmentation depend on `seed` and `epoch` alone, so that a resumed trial
        sees what an unbroken one would have seen.
        """
        count = len(self._labels)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(count, generator=generator) if self.train else torch.arange(count)
        shift = self.data.images.shape[-1] // 8 if self.shift < 0 else self.shift
        for index in order.split(self.batch_size):
            # A sorted gather reads the memory map forwards; order within a batch does not matter.
            chosen = index.sort().values if self.train else index
            images = torch.from_numpy(self.data.images[chosen.numpy()]).to(self.device)
            if self.train:
                images = augment(images, generator, flip=self.flip, padding=shift)
            x = normalise(images, channels_last=self.channels_last)
            yield x, self._labels[chosen].to(self.device)
