"""What the corruptions share: a batch, its rounding, its cut into blocks, its enlargement."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGE = 128  # shorter side from which the ImageNet constants apply

ONE = 2**16  # weights are whole multiples of 1/ONE: 255 * ONE < 2**24, exact in float32
_JUST_BELOW = 2e-3  # levels: results this close below a whole number count as the number
# Pixels worked on at once: as many as stay in the cache of a CPU core, or fill a GPU.
_BLOCK = {"cpu": 2**16, "cuda": 2**22}


class Batch(NamedTuple):
    """Images (B, 3, H, W) uint8, a key (B,) int64 for each one's draws, and where textures are."""

    images: Tensor
    keys: Tensor
    frost_dir: Path | None


def block_size(images: Tensor) -> int:
    """Return how many images are worked on at once."""
    return max(1, _BLOCK.get(images.device.type, 2**22) // (images.shape[2] * images.shape[3]))


# --- sums of weighted pixels ---


def whole_numbers(weights: np.ndarray) -> np.ndarray:
    """Scale weights to whole numbers with the same sum; the largest takes what rounding left.

    The last axis sums to about one; the result to exactly the nearest whole number of 1/ONE.
    """
    whole = np.rint(weights * ONE)
    rest = np.rint(weights.sum(-1, keepdims=True) * ONE) - whole.sum(-1, keepdims=True)
    largest = whole.argmax(-1, keepdims=True)
    np.put_along_axis(whole, largest, np.take_along_axis(whole, largest, -1) + rest, -1)
    return whole


def to_uint8(levels: Tensor, just_below: float = _JUST_BELOW) -> Tensor:
    """Clip float levels to 0..255 and cut the fraction; overwrites its argument."""
    # by way of int16, which is three times faster
    return levels.add_(just_below).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def crop(side: int, factor: float) -> tuple[int, int]:
    """Return start and length of the middle that fills `side` pixels after a zoom."""
    length = math.ceil(side / factor)
    return (side - length) // 2, length


def places_of(side: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each pixel of a zoomed side, the pixel before it in the crop and the way past it.

    The crop's first and last pixels fall on those of the zoomed side (scipy's `zoom`, order 1),
    which is then trimmed evenly to `side` pixels.
    """
    _, length = crop(side, factor)
    zoomed = round(length * factor)
    places = (np.arange(side) + (zoomed - side) // 2) * ((length - 1) / (zoomed - 1))
    before = np.minimum(places.astype(int), length - 2)
    return before, places - before


def stretch(noise: Tensor, side: int, factor: float, dim: int) -> Tensor:
    """Zoom one axis of a cropped (B, h, w) field to `side` pixels, linearly."""
    if factor == 1:
        return noise
    before, past = places_of(side, factor)
    index = torch.from_numpy(before).to(noise.device)
    share = torch.from_numpy(past.astype(np.float32)).to(noise.device)
    share = share if dim == 2 else share[:, None]
    near, far = noise.index_select(dim, index), noise.index_select(dim, index + 1)
    return near.mul_(1 - share).add_(far.mul_(share))
