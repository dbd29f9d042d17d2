"""Random numbers of a corruption: a function of image, seed and place, whatever the batch."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from core.errors import UserError

# --- random draws ---


def keys_of(
    seed: int,
    index: Tensor | np.ndarray | Sequence[int] | None,
    count: int,
    name: str,
    severity: int,
) -> Tensor:
    """Return a 64-bit key (N,) for each image."""
    numbers = torch.arange(count) if index is None else torch.as_tensor(index).cpu()
    if numbers.shape != (count,) or numbers.dtype.is_floating_point:
        raise UserError(
            f"index must be {count} whole numbers, one per image, got {numbers.dtype} of shape"
            f" {tuple(numbers.shape)}"
        )
    cell = zlib.crc32(f"{name} {severity}".encode())
    key = _mix(torch.tensor([_signed(seed)]) + cell)
    return _mix(_mix(numbers.long() + _GOLDEN) ^ key)


def _signed(number: int) -> int:
    """Wrap a whole number into 64 bits with sign, as torch counts."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(words: Tensor) -> Tensor:
    """Scramble int64 words: the output function of SplitMix64 (Steele et al., OOPSLA 2014)."""
    words = (words ^ ((words >> 30) & (2**34 - 1))).mul_(_FIRST)
    words = words.bitwise_xor_((words >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return words.bitwise_xor_((words >> 31).bitwise_and_(2**33 - 1))


def field(keys: Tensor, count: int, first: int = 0) -> Tensor:
    """Draw (B, count) uniform int16 numbers, four from each word of the counter past `first`."""
    steps = torch.arange(first + 1, first + -(-count // 4) + 1, device=keys.device) * _GOLDEN
    return _mix(keys[:, None] + steps).view(torch.int16)[:, :count]


def uniforms(keys: Tensor, count: int) -> np.ndarray:
    """Draw (B, count) float64 uniform in [0, 1), from counters that no field reaches."""
    steps = torch.arange(2**40, 2**40 + count, device=keys.device) * _GOLDEN
    words = _mix(keys[:, None] + steps).cpu().numpy()
    return (words.view(np.uint64) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=4)
def normal_table(device: torch.device) -> Tensor:
    """Return the 65,536 normal quantiles that an int16 draw stands for, from -32768 on."""
    return torch.from_numpy(ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)).to(device)
