"""How a pass over (N, C, H, W) is cut into pieces that stay in the caches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# What a statistic is taken over: the batch and the pixels of a channel, a group of channels of one
# image, or nothing, because it is a running average.
Over = Literal["batch", "group", "fixed"]

CPU_CHUNK = 1 << 18  # elements; 1 MiB in float32, so that two or three of them stay in the caches
GPU_CHUNK = 1 << 23  # elements; a temporary of 32 MiB at most, little beside a slot of 2 GiB
ROW = 1024  # longest run of values that is summed in float32 before float64 takes over
LANES = 128  # values per row of a factor that is spread over an image, or a little more


def is_traced(x: Tensor) -> bool:
    """Whether x has no memory to look at: under `torch.compile`, or as a fake tensor."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter)


# Chunks: how a pass over an image batch is cut.


class _Layout(NamedTuple):
    """How (N, C, H, W) is seen as blocks (B, P, L): contiguous memory, L of it without a gap.

    In contiguous format a block is a channel of an image and is summed by rows of its own; in
    channels_last format it is an image or a part of one, L runs over the channels once or more
    often, and the sum is over P. Statistics are (N, C) outside, or (1, C) where images share them.
    """

    shape: tuple[int, int, int, int]
    blocks: tuple[int, int, int]
    channels_last: bool
    row: int  # values that are summed in float32, in contiguous format
    step: int  # blocks per chunk

    def cut(self, dtype: torch.dtype, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield what belongs together of images, by `chunks`, and statistics, by `spread`."""
        cuts = (self.chunks(t) if t.dim() == 4 else self.spread(t, dtype) for t in parts)
        return zip(*cuts, strict=True)

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut (N, C, H, W), dense in this format, into views of (B', P, L)."""
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return self._cut(x.view(self.blocks))

    def _cut(self, blocks: Tensor) -> tuple[Tensor, ...]:
        return (blocks,) if self.step >= len(blocks) else blocks.split(self.step)

    def spread(self, statistic: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Bring (N, C) or (1, C) to (B', 1, L), or (B', 1, 1) where rows are too few to gain."""
        images, channels = self.shape[:2]
        blocks, rows, length = self.blocks
        statistic = statistic.to(dtype)
        if self.channels_last:
            repeats = (blocks // images, length // channels)
            full = statistic[:, None, None].expand(images, *repeats, channels)
            return self._cut(full.reshape(blocks, 1, length))
        full = statistic.expand(images, channels).reshape(blocks, 1, 1)
        if rows >= 4:  # CPU kernels vectorise over L when no operand stands still
            full = full.expand(-1, -1, length).contiguous()
        return self._cut(full)

    def sum(self, chunk: Tensor) -> Tensor:
        """Reduce a chunk (B', P, L) to partial sums for `fold`."""
        return chunk.sum(1) if self.channels_last else chunk.view(-1, self.row).sum(1)

    def dot(self, a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
        """Reduce the product of two chunks likewise; may write it to the buffer."""
        if self.channels_last or not a.is_cpu or torch.get_num_threads() > 1:
            return self.sum(torch.mul(a, b, out=buffer[: len(a)]))
        # torch has no scalar product of rows that reads them once and writes no product
        with np.errstate(all="ignore"):  # a diverging network is reported elsewhere
            rows = np.vecdot(a.view(-1, self.row).numpy(), b.view(-1, self.row).numpy())
        return torch.from_numpy(rows)

    def fold(self, parts: list[Tensor], groups: int) -> Tensor:
        """Add up the partial sums of all chunks per image and group of channels: (N, G)."""
        images = self.shape[0]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.channels_last:
            parts_by_group = whole.view(images, -1, groups, self.shape[1] // groups)
            return parts_by_group.sum((1, 3), dtype=torch.float64)
        return whole.view(images, groups, -1).sum(2, dtype=torch.float64)

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for one chunk, of which the last chunk may use a part."""
        blocks, *rest = self.blocks
        return torch.empty((min(self.step, blocks), *rest), dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def _plan(shape: tuple[int, int, int, int], channels_last: bool, limit: int) -> _Layout:
    """Choose blocks of at most about `limit` values for a shape and format."""
    images, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    if not channels_last:
        row, length = (_long_divisor(pixels, limit) for limit in (ROW, LANES))
        blocks = (images * channels, pixels // length, length)
        return _Layout(shape, blocks, False, row, max(1, limit // pixels))
    repeats = _divisor(pixels, max(1, LANES // channels))
    length, rows = repeats * channels, pixels // repeats
    per_block = _divisor(rows, max(1, limit // length))
    if per_block * length < limit // 8:
        per_block = rows  # too many small blocks are worse than one that leaves the cache
    blocks = (images * rows // per_block, per_block, length)
    return _Layout(shape, blocks, True, 0, max(1, limit // (length * per_block)))


def layout_of(x: Tensor) -> _Layout:
    """Return how a pass over x is cut."""
    return _plan(tuple(x.shape), not x.is_contiguous(), CPU_CHUNK if x.is_cpu else GPU_CHUNK)


def _divisor(n: int, limit: int) -> int:
    """Largest divisor of n up to `limit`."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _long_divisor(n: int, limit: int) -> int:
    """Largest divisor of n up to `limit`, or n where all are small (a prime, for example)."""
    divisor = _divisor(n, limit)
    return divisor if divisor >= 32 else n


def as_planes(dtype: torch.dtype, *statistics: Tensor) -> tuple[Tensor, ...]:
    """Bring (N, C) or (1, C) to the same (N, C, 1, 1), for the compiler.

    It puts a stack of different tensors into memory. Else it would derive the factors from the
    statistics again for every pixel, and could not fuse sums that differ in their groups.
    """
    zeros = torch.zeros_like(statistics[0])
    stack = torch.stack(torch.broadcast_tensors(*statistics, zeros)).to(dtype)
    return stack[..., None, None].unbind()[:-1]


def plane_sums(x: Tensor) -> Tensor:
    """Sum (N, C, H, W) to (N, C) in float64, for the compiler.

    Up to 4096 values it adds up as they come, above that with precautions that cost time: rows.
    """
    planes, pixels = x.flatten(2), x.shape[2] * x.shape[3]
    row = pixels if pixels <= 4096 else _long_divisor(pixels, 512)
    return planes.unflatten(2, (-1, row)).sum(3).double().sum(2)


def like(t: Tensor, x: Tensor) -> Tensor:
    """Bring t into the memory format of the dense x."""
    return t.contiguous(
        memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last
    )


def widen(chunk: Tensor, buffer: Tensor | None) -> Tensor:
    """Return the chunk in the type of the buffer: itself, or a copy there."""
    if buffer is None or chunk.dtype == buffer.dtype:
        return chunk
    return buffer[: len(chunk)].copy_(chunk)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which statistics of x are computed."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
