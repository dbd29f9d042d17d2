"""Normalisation layers written from their definitions; each is built as `Norm(channels)`.

`NORMS` maps the names used in settings and tables to the constructors. All layers take
(N, C, H, W) of any size in either memory format and keep dtype and format; the statistics are
at least float32, also of half-precision input (autocast).

Why not the textbook's five lines: on a CPU `var` is a scalar loop and each line writes a temporary
of the size of the input, which makes a layer 5 to 12 times slower than torch's and doubles the
memory held for the backward pass. Here a layer

- reads its input in chunks that stay in the cache, so that centring first costs next to nothing.
  The variance is a sum of squared distances unless the mean is small, because otherwise
  E[x^2] - E[x]^2 loses digits;
- keeps its input and the statistics for the backward pass, nothing else, and applies the closed
  form of the gradient;
- makes its passes over the images as plain formulas while it is traced by `torch.compile`, which
  fuses them.

Large sums are float32 over at most some hundred values and float64 above that.

The layers on their own leave two duties to a training loop: `parameter_groups` gives the gates of
Batch-Instance Norm their own learning rate, and a forward pass that is done again (recomputation
of activations) belongs inside `frozen_statistics`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

# What a statistic is taken over: the batch and the pixels of a channel, a group of channels of one
# image, or nothing, because it is a running average.
Over = Literal["batch", "group", "fixed"]

CPU_CHUNK = 1 << 18  # elements; 1 MiB in float32, so that two or three of them stay in the caches
GPU_CHUNK = 1 << 23  # elements; a temporary of 32 MiB at most, little beside a slot of 2 GiB
ORDERED_LIMIT = 1 << 20  # values; 64 images of 32x32 with 16 channels, 4 ms of time per layer
ROW = 1024  # longest run of values that is summed in float32 before float64 takes over
LANES = 128  # values per row of a factor that is spread over an image, or a little more
# E[x^2] - E[x]^2 is used up to this |mean| / standard deviation: it loses a factor of 1 + 16 in
# precision there, of some 1e-8 in a sum of `ROW` values.
MEAN_LIMIT = 4


class _Tracking(nn.Module):
    """Running mean and variance per channel, and how many batches they come from."""

    _version = 2  # as nn.BatchNorm2d: since version 2 a state has num_batches_tracked
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor  # this and the next two are None where nothing is tracked
    running_var: Tensor
    num_batches_tracked: Tensor

    def _add_running_statistics(self, channels: int) -> None:
        track = self.track_running_stats
        self.register_buffer("running_mean", torch.zeros(channels) if track else None)
        self.register_buffer("running_var", torch.ones(channels) if track else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track else None)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Count a batch with these statistics of its channels, (C,) or (1, C), where it counts."""
        if not self.training or not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        dtype = _compute_dtype(self.running_mean)
        mean, var = mean.flatten().to(dtype), unbiased_var.flatten().to(dtype)
        # 0-dimensional tensors: a momentum that depends on the count needs no wait for the GPU
        new = self.num_batches_tracked.double()
        new = new.reciprocal() if self.momentum is None else torch.full_like(new, self.momentum)
        old, new = (1 - new).to(dtype), new.to(dtype)
        # one rounding more for the mean than for the variance, as in torch's compiled code
        self.running_mean.copy_(mean * new + self.running_mean.to(dtype) * old)
        self.running_var.copy_(torch.addcmul(self.running_var.to(dtype) * old, var, new))

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        key, batches = prefix + "num_batches_tracked", self.num_batches_tracked
        if (local_metadata.get("version") or 0) < 2 and batches is not None:
            state_dict.setdefault(key, batches.clone())  # states before torch 0.4.1 have none
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


class BatchNorm(_Tracking):
    """Normalise each channel over the batch and the pixels (Ioffe & Szegedy, arXiv:1502.03167).

    y = (x - mean) / sqrt(var + eps) * weight + bias. In training the statistics come from the
    batch, with the biased variance, and move the running averages, with the unbiased one; in
    evaluation the running averages are used. Options, names and states are those of
    `torch.nn.BatchNorm2d`, so that either loads the other's state dict.

    On an x86 CPU, for contiguous float32 input of up to `ORDERED_LIMIT` values, all results (also
    gradients and running averages) equal that layer's bit for bit: every sum and rounding happens
    in the same order. Curves of the two layers cannot be compared otherwise, because training
    magnifies a difference in the last digit to a visible one within some ten steps (a
    pre-activation changes its sign, and its gradient with it). Larger inputs, where that order
    costs time, agree to rounding.

    Args:
        channels: C, the size of dimension 1.
        eps: added to the variance.
        momentum: weight of the newest batch in the running averages; None for the mean of all
            batches so far.
        affine: learn `weight` and `bias`.
        track_running_stats: keep running averages; without them evaluation uses the batch too.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.track_running_stats = track_running_stats
        _add_affine(self, channels, affine)
        self._add_running_statistics(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape.

        Raises:
            ValueError: x is not (N, C, H, W), or has one value per channel where batch statistics
                are needed.
        """
        x = _checked(self, x)
        weight, bias = _affine_of(self, x)
        if not self.training and self.running_mean is not None:
            mean, var = (
                t[None].to(_compute_dtype(x)) for t in (self.running_mean, self.running_var)
            )
            return _standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "fixed")
        count = _check_count(self, x, x.numel() // self.channels, "per channel")
        if _keeps_order(x):
            return self._ordered_forward(x, weight, bias, count)
        mean, var, centred = _moments(x, self.channels, "batch")
        self._track(mean, var * (count / (count - 1)))
        return _standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "batch", centred)

    def _ordered_forward(self, x: Tensor, weight: Tensor, bias: Tensor, count: int) -> Tensor:
        mean, squares = _rounded_moments(x)
        # torch divides in float32, and adds eps and takes the root in float64
        rstd = ((squares / count).double() + self.eps).rsqrt().to(mean.dtype)
        self._track(mean, squares / (count - 1))
        return _OrderedBatchNorm.apply(x, weight, bias, mean, rstd, "batch", self.channels, True)

    def extra_repr(self) -> str:
        """Options as `nn.BatchNorm2d` prints them."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


class GroupNorm(nn.Module):
    """Normalise groups of channels of one image (Wu & He, arXiv:1803.08494, eq. 7).

    y = (x - mean) / sqrt(var + eps) * weight + bias; mean and biased variance are taken over the
    channels and pixels of each group, weight and bias are per channel. Equals
    `torch.nn.GroupNorm`; training and evaluation are the same.

    Args:
        channels: C, divisible by `groups`.
        groups: G; 8 here, because torch's usual 32 does not divide the 16 channels of the stem.
        eps: added to the variance.
        affine: learn `weight` and `bias`.

    Raises:
        ValueError: `groups` does not divide `channels`.
    """

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(
                f"{type(self).__name__}: {channels} channels do not split into {groups} groups; "
                f"choose groups that divide {channels}"
            )
        self.channels, self.groups, self.eps = channels, groups, eps
        _add_affine(self, channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape.

        Raises:
            ValueError: x is not (N, C, H, W), or has a single value to normalise.
        """
        x = _checked(self, x)
        self._check_size(x)
        weight, bias = _affine_of(self, x)
        mean, var, centred = _moments(x, self.groups, "group")
        return _standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "group", centred)

    def _check_size(self, x: Tensor) -> None:
        # Like torch: a group of one value is let through in a batch (it becomes `bias`).
        _check_count(self, x, x.numel() // self.groups, "per group")

    def extra_repr(self) -> str:
        """Channels, groups and eps."""
        return f"{self.channels}, groups={self.groups}, eps={self.eps}"


class LayerNorm(GroupNorm):
    """Normalise one image over channels and pixels (Ba et al., arXiv:1607.06450).

    The group norm with one group; weight and bias are per channel. `torch.nn.LayerNorm([C, H, W])`
    has one of each per value instead: 16.8 million parameters more in the 14-layer network at
    256x256, and a fixed image size.

    Args:
        channels: C, the size of dimension 1.
        eps: added to the variance.
        affine: learn `weight` and `bias`, one value per channel.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(channels, 1, eps, affine)


class InstanceNorm(GroupNorm):
    """Normalise each channel of one image over its pixels (Ulyanov et al., arXiv:1607.08022).

    The group norm with a group per channel. Equals `torch.nn.InstanceNorm2d` with `affine=True`;
    training and evaluation are the same, there are no running statistics.

    Args:
        channels: C, the size of dimension 1.
        eps: added to the variance.
        affine: learn `weight` and `bias`.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(channels, channels, eps, affine)

    def _check_size(self, x: Tensor) -> None:
        _check_count(self, x, x.shape[2] * x.shape[3], "per channel and image")


class BatchInstanceNorm(_Tracking):
    """Mix batch and instance norm by a learned gate per channel (Nam & Kim, arXiv:1805.07925).

    y = weight * (gate * batch + (1 - gate) * instance) + bias, where batch and
    instance are the input standardised as by `BatchNorm` and `InstanceNorm` without their affine
    parts. The gate starts at 1 and is clipped to [0, 1] after every step of any optimiser that
    holds it (a hook on `torch.optim.Optimizer`); `parameter_groups` gives it the paper's ten times
    larger learning rate. Running averages belong to the batch part.

    Args:
        channels: C, the size of dimension 1.
        eps: added to both variances.
        momentum: weight of the newest batch in the running averages; None for the mean of all
            batches so far.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.track_running_stats = True
        _add_affine(self, channels, True)
        self.gate = nn.Parameter(torch.ones(channels))
        self._add_running_statistics(channels)
        _GATED.add(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape.

        Raises:
            ValueError: x is not (N, C, H, W), or has one value per channel and image.
        """
        x = _checked(self, x)
        count = _check_count(self, x, x.shape[2] * x.shape[3], "per channel and image")
        mean, var, centred = _moments(x, self.channels, "group")
        mean_b, var_b = self._batch_statistics(mean, var, count)
        rstd, rstd_b = (var + self.eps).rsqrt(), (var_b + self.eps).rsqrt()
        return _BatchInstance.apply(
            *(x, self.weight, self.bias, self.gate),
            *(mean, rstd, mean_b, rstd_b, centred, not self.training),
        )

    def _batch_statistics(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Turn instance statistics (N, C) over `count` pixels into the batch part's (1, C)."""
        if not self.training:
            return self.running_mean[None].to(mean.dtype), self.running_var[None].to(mean.dtype)
        mean_b = mean.mean(0, keepdim=True)
        var_b = (var + (mean - mean_b).square()).mean(0, keepdim=True)
        count *= len(mean)
        self._track(mean_b, var_b * (count / (count - 1)))
        return mean_b, var_b

    def __setstate__(self, state: dict) -> None:
        """Restore a copied or unpickled layer, whose gate is clipped as the original's."""
        super().__setstate__(state)
        _GATED.add(self)

    def extra_repr(self) -> str:
        """Channels, eps and momentum."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "torch_bn": nn.BatchNorm2d,
    "bn": BatchNorm,
    "in": InstanceNorm,
    "bin": BatchInstanceNorm,
    "ln": LayerNorm,
    "gn": GroupNorm,
    "none": nn.Identity,  # takes and ignores `channels`
}


# What a training loop needs to know.


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters of `model` for an optimiser: gates of Batch-Instance Norm, and the rest.

    The gates get ten times the learning rate and no weight decay, which would pull them towards
    instance norm (Nam & Kim 2018). A schedule that scales the learning rates of all
    groups keeps the factor of ten.

    Args:
        model: any module; one without such gates gives a single group.
        lr: learning rate of everything but the gates.
        weight_decay: of everything but the gates.

    Returns:
        One or two dicts with `params`, `lr` and `weight_decay`, for any `torch.optim` class.
    """
    gates = [m.gate for m in model.modules() if isinstance(m, BatchInstanceNorm)]
    known = {id(gate) for gate in gates}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": others, "lr": lr, "weight_decay": weight_decay}]
    if gates:
        groups.append({"params": gates, "lr": 10 * lr, "weight_decay": 0.0})
    return groups


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics in `model` as they are while inside; outputs do not change.

    For a forward pass in training mode that is done again, so that no batch counts twice, neither
    in the averages nor in `num_batches_tracked`:

        checkpoint(block, x, use_reentrant=False,
                   context_fn=lambda: (nullcontext(), frozen_statistics(block)))

    Works for every layer with a `num_batches_tracked`, torch's included.
    """
    # Copies take the update. Switching `track_running_stats` off would do for ours, but torch's
    # layers then save fewer tensors, which checkpoint takes for another forward pass.
    buffers = [
        (layer, name, buffer)
        for layer in model.modules()
        if getattr(layer, "num_batches_tracked", None) is not None
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    for layer, name, buffer in buffers:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in buffers:
            setattr(layer, name, buffer)


# Layers, not parameters, are remembered: copying, unpickling, `.to()` and `load_state_dict` may
# each put another parameter object into a layer.
_GATED: weakref.WeakSet[BatchInstanceNorm] = weakref.WeakSet()


def _clip_gates(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Clip the gates among the parameters that `optimizer` has just moved."""
    if not _GATED:
        return
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for layer in tuple(_GATED):
            if id(layer.gate) in moved:
                layer.gate.clamp_(0, 1)


register_optimizer_step_post_hook(_clip_gates)


# Parameters, running averages and checks that layers share.


def _add_affine(layer: nn.Module, channels: int, affine: bool) -> None:
    layer.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
    layer.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)


def _affine_of(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if layer.weight is not None:
        return layer.weight, layer.bias
    return x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])


def _checked(layer: Any, x: Tensor) -> Tensor:
    """Return x in a dense memory format, or say what is wrong with it."""
    if x.dim() != 4 or x.shape[1] != layer.channels or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"{type(layer).__name__}: expected floating-point input of shape "
            f"(N, {layer.channels}, H, W), not empty, got {x.dtype} {tuple(x.shape)}"
        )
    if _is_traced(x) or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _is_traced(x: Tensor) -> bool:
    """Whether x has no memory to look at: under `torch.compile`, or as a fake tensor."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter)


def _check_count(layer: nn.Module, x: Tensor, count: int, where: str) -> int:
    if count == 1:
        raise ValueError(
            f"{type(layer).__name__}: one value {where} cannot be normalised (it would become "
            f"0), got input of shape {tuple(x.shape)}; use larger images or batches"
        )
    return count


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


def _layout(x: Tensor) -> _Layout:
    return _plan(tuple(x.shape), not x.is_contiguous(), CPU_CHUNK if x.is_cpu else GPU_CHUNK)


def _divisor(n: int, limit: int) -> int:
    """Largest divisor of n up to `limit`."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _long_divisor(n: int, limit: int) -> int:
    """Largest divisor of n up to `limit`, or n where all are small (a prime, for example)."""
    divisor = _divisor(n, limit)
    return divisor if divisor >= 32 else n


def _planes(dtype: torch.dtype, *statistics: Tensor) -> tuple[Tensor, ...]:
    """Bring (N, C) or (1, C) to the same (N, C, 1, 1), for the compiler.

    It puts a stack of different tensors into memory. Else it would derive the factors from the
    statistics again for every pixel, and could not fuse sums that differ in their groups.
    """
    zeros = torch.zeros_like(statistics[0])
    stack = torch.stack(torch.broadcast_tensors(*statistics, zeros)).to(dtype)
    return stack[..., None, None].unbind()[:-1]


def _plane_sums(x: Tensor) -> Tensor:
    """Sum (N, C, H, W) to (N, C) in float64, for the compiler.

    Up to 4096 values it adds up as they come, above that with precautions that cost time: rows.
    """
    planes, pixels = x.flatten(2), x.shape[2] * x.shape[3]
    row = pixels if pixels <= 4096 else _long_divisor(pixels, 512)
    return planes.unflatten(2, (-1, row)).sum(3).double().sum(2)


def _like(t: Tensor, x: Tensor) -> Tensor:
    """Bring t into the memory format of the dense x."""
    return t.contiguous(
        memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last
    )


def _widen(chunk: Tensor, buffer: Tensor | None) -> Tensor:
    """Return the chunk in the type of the buffer: itself, or a copy there."""
    if buffer is None or chunk.dtype == buffer.dtype:
        return chunk
    return buffer[: len(chunk)].copy_(chunk)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


# Passes over an image batch. None of them needs more memory than two chunks beside its result.
# Small tensors, (N, C) or (1, C), are float64 and rounded when a pass takes them as factors.


def _moments(x: Tensor, groups: int, over: Over) -> tuple[Tensor, Tensor, bool]:
    """Mean and biased variance for `_standardise`, and whether x must be centred before sums.

    Where means are small against standard deviations, the sums of x and its square need one
    reading and no centring, and so do the sums for the gradient. A GPU would have to wait for
    that decision, so there x is always centred.

    Returns:
        Mean and variance, (N, G) for each image and group of channels or (1, C) over the batch.
    """
    if _is_traced(x):
        return *_fused_moments(x, groups, over), True
    with torch.no_grad():
        layout, dtype = _layout(x), _compute_dtype(x)
        sums, squares = _power_sums(x)
        mean = _pool(layout.fold(sums, groups), over, groups)
        count = x.numel() // mean.numel()
        mean /= count
        if squares:
            var = _pool(layout.fold(squares, groups), over, groups) / count - mean.square()
            if not bool((mean.square() > MEAN_LIMIT**2 * var).any()):
                return mean, var, False
        mean = mean.to(dtype)  # the distances are those from the rounded mean
        squares = _distance_sums(x, _per_channel(mean, x))
        return mean.double(), _pool(layout.fold(squares, groups), over, groups) / count, True


def _rounded_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared distances from it over the batch, (1, C): the nearest float32.

    Every sum is float64, of squares that are rounded to float32 as in torch's batch norm.
    """
    with torch.no_grad():
        layout, channels = _layout(x), x.shape[1]
        wide = layout.buffer(torch.float64, x.device)
        sums = [layout.sum(wide[: len(chunk)].copy_(chunk)) for chunk in layout.chunks(x)]
        mean = layout.fold(sums, channels).sum(0, keepdim=True) / (x.numel() // channels)
        mean = mean.to(x.dtype)
        squares = layout.fold(_distance_sums(x, mean, wide), channels).sum(0, keepdim=True)
        return mean, squares.to(x.dtype)


def _power_sums(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Partial sums of x and, on a CPU, of its square."""
    layout, dtype = _layout(x), _compute_dtype(x)
    buffer, sums, squares = layout.buffer(dtype, x.device), [], []
    for chunk in layout.chunks(x):
        values = _widen(chunk, buffer)
        sums.append(layout.sum(values))
        if x.is_cpu:
            squares.append(layout.dot(values, values, buffer))
    return sums, squares


def _distance_sums(x: Tensor, centre: Tensor, wide: Tensor | None = None) -> list[Tensor]:
    """Partial sums of (x - centre)^2; in float64 if there is a buffer `wide` for it."""
    layout, dtype = _layout(x), _compute_dtype(x)
    buffer, parts = layout.buffer(dtype, x.device), []
    for chunk, c in zip(layout.chunks(x), layout.spread(centre, dtype), strict=True):
        t = torch.sub(_widen(chunk, buffer), c, out=buffer[: len(chunk)])
        if wide is None:
            parts.append(layout.dot(t, t, buffer))
        else:
            parts.append(layout.sum(wide[: len(t)].copy_(t.mul_(t))))
    return parts


def _fused_moments(x: Tensor, groups: int, over: Over) -> tuple[Tensor, Tensor]:
    """`_moments` as a plain formula, for the compiler to fuse.

    In one reading of x: sums of x - s and its square per channel and image, where s is the mean of
    the middle row. It is close to the mean, so that their difference loses no digits.
    """
    with torch.no_grad():
        images, _, height, width = x.shape
        x, pixels = x.to(_compute_dtype(x)), height * width
        shift = x[:, :, height // 2].mean(2)
        distance = x - shift[..., None, None]
        gap = _plane_sums(distance) / pixels
        var = _plane_sums(distance.square()) / pixels - gap.square()
        mean = gap + shift
        if over == "group":
            mean, var = (t.view(images, groups, -1) for t in (mean, var))
        dim = 0 if over == "batch" else 2
        pooled = mean.mean(dim, keepdim=True)
        var = (var + (mean - pooled).square()).mean(dim, keepdim=True)
        if over == "group":
            pooled, var = pooled[..., 0], var[..., 0]
        return pooled, var.clamp_min(0)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute x * scale + shift."""
    dtype = _compute_dtype(x)
    if _is_traced(x):
        scale, shift = _planes(dtype, scale, shift)
        return (x.to(dtype) * scale + shift).to(x.dtype)
    low, y = x.dtype != dtype, torch.empty_like(x)
    layout = _layout(x)
    buffer = layout.buffer(dtype, x.device) if low else None
    factors = layout.spread(scale, dtype), layout.spread(shift, dtype)
    for out, chunk, a, b in zip(layout.chunks(y), layout.chunks(x), *factors, strict=True):
        values = _widen(chunk, buffer)
        torch.addcmul(b, values, a, out=values if low else out)
        if low:
            out.copy_(values)
    return y


def _gradient_sums(
    dy: Tensor, x: Tensor, mean: Tensor, centred: bool, ordered: bool = False
) -> tuple[Tensor, Tensor]:
    """Sum dy and dy * (x - mean) per channel and image, both (N, C).

    Args:
        dy: gradient of the output, in the memory format of x.
        x: the input, dense.
        mean: (N, C) or (1, C).
        centred: subtract the mean before the sums and not from them.
        ordered: add in the order of torch's batch norm, where there is only one.
    """
    dtype, channels = _compute_dtype(x), x.shape[1]
    if _is_traced(x):
        (mean,) = _planes(dtype, mean)
        dy, distance = dy.to(dtype), x.to(dtype) - mean
        return _plane_sums(dy), _plane_sums(dy * distance)
    layout = _layout(x)
    buffer, direct, product = layout.buffer(dtype, x.device), [], []
    other = buffer if dy.dtype == dtype else torch.empty_like(buffer)
    centres = layout.spread(mean, dtype) if centred else layout.chunks(x)
    for grad, chunk, centre in zip(layout.chunks(dy), layout.chunks(x), centres, strict=True):
        grad, values = _widen(grad, other), _widen(chunk, buffer)
        if centred:
            values = torch.sub(values, centre, out=buffer[: len(chunk)])
        if ordered:
            direct.append(_lane_sums(grad.flatten(1)))
            product.append(_lane_sums(values.flatten(1), grad.flatten(1)))
        else:
            direct.append(layout.sum(grad))
            product.append(layout.dot(values, grad, buffer))
    total, dot = layout.fold(direct, channels), layout.fold(product, channels)
    return total, dot if centred else dot.addcmul_(mean, total, value=-1)


def _lane_sums(rows: Tensor, factor: Tensor | None = None) -> Tensor:
    """Sum rows (B', n), or rows * factor, in float32 in the order of torch's batch norm: (B',).

    That loop (pytorch, aten/src/ATen/native/cpu/batch_norm_kernel.cpp, built for AVX2 and used on
    processors with AVX-512 too) adds vectors of eight values one after another, the rest of a row
    to the first lanes with a fused multiply-add, and at last halves to halves. `rows` is
    overwritten where there is a factor.
    """
    lanes, end = 8, rows.shape[1] // 8 * 8
    rest = rows[:, end:].t().contiguous()
    if factor is not None:
        rows.mul_(factor)
    if not end:
        return functools.reduce(torch.add, rows.unbind(1))
    vectors = rows[:, :end].unflatten(1, (-1, 1, lanes)).permute(0, 3, 1, 2)
    # A pooling window is added up strictly in sequence, for all lanes at once; `sum` is not.
    total = F.avg_pool2d(vectors, (end // lanes, 1), divisor_override=1)
    total = total.flatten(1).t().contiguous()  # (lanes, B')
    if len(rest):
        first = total[: len(rest)]
        first.add_(rest) if factor is None else first.addcmul_(rest, factor[:, end:].t())
    for half in (4, 2, 1):
        total = total[:half] + total[half:]
    return total[0]


def _linear_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    centred: bool,
    scale: Tensor,
    slope: Tensor,
    offset: Tensor,
) -> Tensor:
    """Compute dy * scale + (x - mean) * slope + offset; see `_gradient_sums` for `centred`."""
    dtype = _compute_dtype(x)
    if _is_traced(x):
        mean, scale, slope, offset = _planes(dtype, mean, scale, slope, offset)
        return (dy.to(dtype) * scale + (x.to(dtype) - mean) * slope + offset).to(x.dtype)
    layout, dx, low = _layout(x), torch.empty_like(x), x.dtype != dtype
    buffer = layout.buffer(dtype, x.device) if low or centred else None
    other = layout.buffer(dtype, x.device) if low else None
    if not centred:
        offset = torch.addcmul(offset, mean, slope, value=-1)
    centres = layout.spread(mean, dtype) if centred else layout.chunks(x)
    factors = [centres, *(layout.spread(f, dtype) for f in (scale, slope, offset))]
    chunks = zip(layout.chunks(dx), layout.chunks(dy), layout.chunks(x), *factors, strict=True)
    for out, grad, chunk, c, a, b, o in chunks:
        t = _widen(chunk, buffer)
        if buffer is not None and centred:
            t = torch.sub(t, c, out=buffer[: len(chunk)])
        result = t if low else out
        torch.addcmul(o, t, b, out=result).addcmul_(_widen(grad, other), a)
        if low:
            out.copy_(result)
    return dx


def _ordered_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """Compute (dy - offset + (x - mean) * slope) * rstd * weight, rounded as torch does it."""
    layout, dx = _layout(x), torch.empty_like(x)
    buffer = layout.buffer(x.dtype, x.device)
    factors = [layout.spread(f, x.dtype) for f in (mean, offset, slope, rstd, weight)]
    chunks = zip(layout.chunks(dx), layout.chunks(dy), layout.chunks(x), *factors, strict=True)
    for out, grad, chunk, c, o, b, r, w in chunks:
        t = torch.sub(chunk, c, out=buffer[: len(chunk)])
        torch.sub(grad, o, out=out).addcmul_(t, b).mul_(r).mul_(w)
    return dx


# The layers with their gradients in closed form. Each keeps x and the statistics, no more.


def _standardise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    over: Over,
    centred: bool = True,
) -> Tensor:
    """Compute (x - mean) * rstd * weight + bias, differentiable with respect to x, weight, bias.

    Args:
        x: (N, C, H, W).
        weight: (C,).
        bias: (C,).
        mean: of x, (N, G) or (1, C).
        rstd: 1 / sqrt(variance of x + eps), as `mean`.
        over: what they are taken over.
        centred: see `_moments`.
    """
    groups, mean, rstd = mean.shape[1], _per_channel(mean, x), _per_channel(rstd, x)
    return _Standardise.apply(x, weight, bias, mean, rstd, over, groups, centred)


class _Standardise(torch.autograd.Function):
    """`_standardise` with its closed form for the gradient.

    With z = (x - mean) * rstd, u = dy * weight and E the mean over the values that share a
    statistic, the gradient of the input is (u - E[u] - z * E[u * z]) * rstd (Ioffe & Szegedy 2015,
    section 3). Fixed statistics leave u * rstd.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, rstd, over, groups, centred):
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.over, ctx.groups, ctx.centred = over, groups, centred
        # the rounded scale also in the shift, so that a large mean cancels
        scale = (rstd * weight).to(_compute_dtype(x))
        return _affine(x, scale, torch.addcmul(bias, mean, scale, value=-1))

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        dy, over, groups = _like(grad_outputs[0], x), ctx.over, ctx.groups
        need_x, *need_affine = ctx.needs_input_grad[:3]
        dx = d_weight = d_bias = None
        if need_x and over == "fixed":
            scale = (rstd * weight).to(_compute_dtype(x))
            dx = (dy * scale[..., None, None]).to(x.dtype)
        if any(need_affine) or over != "fixed":
            direct, product = _gradient_sums(dy, x, mean, ctx.centred)
            z = product * rstd  # sums of dy * (x - mean) * rstd
            d_weight, d_bias = z.sum(0).to(weight.dtype), direct.sum(0).to(weight.dtype)
            if need_x and over != "fixed":
                count = -x.numel() // (groups * (1 if over == "batch" else len(x)))
                slope = _pool(z * weight, over, groups) * rstd * rstd / count
                offset = _pool(direct * weight, over, groups) * rstd / count
                dx = _linear_gradient(dy, x, mean, ctx.centred, rstd * weight, slope, offset)
        return dx, d_weight, d_bias, *(None,) * 5


class _OrderedBatchNorm(_Standardise):
    """`_Standardise` over the batch, with every operation of the gradient as torch orders it."""

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        dy, dx, count = _like(grad_outputs[0], x), None, x.numel() // mean.numel()
        direct, product = _gradient_sums(dy, x, mean, centred=True, ordered=True)
        direct, product = direct.sum(0, keepdim=True), product.sum(0, keepdim=True)
        if ctx.needs_input_grad[0]:
            slope = -(product.to(x.dtype) * rstd * rstd / count)
            dx = _ordered_gradient(dy, x, mean, rstd, weight[None], direct / count, slope)
        d_weight, d_bias = (product * rstd)[0], direct[0]
        return dx, d_weight.to(weight.dtype), d_bias.to(weight.dtype), *(None,) * 5


class _BatchInstance(torch.autograd.Function):
    """Batch-Instance Norm from the statistics of both parts.

    `mean` and `rstd` (N, C) are the instance statistics, `mean_b` and `rstd_b` (1, C) those of the
    batch, or `fixed` ones. Each part has the gradient of its own norm, and everything follows from
    x - mean_b = (x - mean) + gap.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, gate, mean, rstd, mean_b, rstd_b, centred, fixed):
        ctx.save_for_backward(x, weight, gate, mean, rstd, mean_b, rstd_b)
        ctx.centred, ctx.fixed = centred, fixed
        batch, instance = weight * gate * rstd_b, weight * (1 - gate) * rstd
        scale = (batch + instance).to(_compute_dtype(x))
        return _affine(x, scale, bias + batch * (mean - mean_b) - scale * mean)

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, gate, mean, rstd, mean_b, rstd_b = ctx.saved_tensors
        dy, gap = _like(grad_outputs[0], x), mean - mean_b
        direct, product = _gradient_sums(dy, x, mean, ctx.centred)
        z, z_b = product * rstd, (product + gap * direct) * rstd_b  # sums of dy * standardised x
        dx, total = None, direct.sum(0)
        if ctx.needs_input_grad[0]:
            pixels = x.shape[2] * x.shape[3]
            batch, instance = weight * gate * rstd_b, weight * (1 - gate) * rstd
            scale, factor = batch + instance, instance / -pixels
            slope, offset = factor * rstd * z, factor * direct
            if not ctx.fixed:
                factor = batch / (-pixels * len(x))
                slope_b = factor * rstd_b * z_b.sum(0)
                slope, offset = slope + slope_b, offset + factor * total + slope_b * gap
            dx = _linear_gradient(dy, x, mean, ctx.centred, scale, slope, offset)
        d_weight = (gate * z_b + (1 - gate) * z).sum(0)
        d_gate = weight * (z_b - z).sum(0)
        grads = (g.to(weight.dtype) for g in (d_weight, total, d_gate))
        return dx, *grads, *(None,) * 6


def _keeps_order(x: Tensor) -> bool:
    """Whether batch norm of x follows torch's order of operations."""
    if _is_traced(x) or not x.is_cpu or x.dtype != torch.float32:
        return False
    return x.is_contiguous() and x.numel() <= ORDERED_LIMIT


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    """Repeat (N, G) for the channels of each group: (N, C)."""
    groups, channels = t.shape[1], x.shape[1]
    if groups == channels:
        return t
    return t[..., None].expand(-1, -1, channels // groups).reshape(-1, channels)


def _pool(t: Tensor, over: Over, groups: int) -> Tensor:
    """Add up what shares a statistic: (N, C) over the batch to (1, C), or over groups of channels.

    Groups keep the size (N, C), with the sum in place of each of its parts.
    """
    images, channels = t.shape
    if over == "batch":
        return t.sum(0, keepdim=True)
    if groups == channels:
        return t
    sums = t.view(images, groups, -1).sum(2, keepdim=True)
    return sums.expand(-1, -1, channels // groups).reshape(images, channels)
