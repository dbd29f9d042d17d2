"""Normalisation layers written from their definitions; each is built as `Norm(channels)`.

`NORMS` maps the names used in settings and tables to the constructors. All layers take
(N, C, H, W) of any size in either memory format and keep dtype and format; the statistics are
at least float32, also of half-precision input (autocast). `channels` is C, `eps` is added to the
variance, and `affine` layers learn a `weight` and a `bias` per channel; `momentum` is the weight of
the newest batch in the running averages (None: they are the mean of all batches). A forward pass
raises ValueError where x is not (N, C, H, W), or holds a single value where a statistic is taken.

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

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from core.layers.kernels import (
    BatchInstance,
    OrderedBatchNorm,
    keeps_order,
    moments,
    rounded_moments,
    standardise,
)
from core.layers.planes import compute_dtype, is_traced


class _Tracking(_NormBase):
    """Running mean and variance per channel, and how many batches they come from."""

    running_mean: Any  # a tensor; this and the next two are None where nothing is tracked
    running_var: Any
    num_batches_tracked: Any

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Count a batch with these statistics of its channels, (C,) or (1, C), where it counts."""
        if not self.training or not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        dtype = compute_dtype(self.running_mean)
        mean, var = mean.flatten().to(dtype), unbiased_var.flatten().to(dtype)
        # 0-dimensional tensors: a momentum that depends on the count needs no wait for the GPU
        new = self.num_batches_tracked.double()
        new = new.reciprocal() if self.momentum is None else torch.full_like(new, self.momentum)
        old, new = (1 - new).to(dtype), new.to(dtype)
        # one rounding more for the mean than for the variance, as in torch's compiled code
        self.running_mean.copy_(mean * new + self.running_mean.to(dtype) * old)
        self.running_var.copy_(torch.addcmul(self.running_var.to(dtype) * old, var, new))

    def extra_repr(self) -> str:
        """Options as `nn.BatchNorm2d` prints them."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


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
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        x = _checked(self, x)
        weight, bias = _affine_of(self, x)
        if not self.training and self.running_mean is not None:
            mean, var = (
                t[None].to(compute_dtype(x)) for t in (self.running_mean, self.running_var)
            )
            return standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "fixed")
        count = _check_count(self, x, x.numel() // self.num_features, "per channel")
        if keeps_order(x):
            return self._ordered_forward(x, weight, bias, count)
        mean, var, centred = moments(x, self.num_features, "batch")
        self._track(mean, var * (count / (count - 1)))
        return standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "batch", centred)

    def _ordered_forward(self, x: Tensor, weight: Tensor, bias: Tensor, count: int) -> Tensor:
        mean, squares = rounded_moments(x)
        # torch divides in float32, and adds eps and takes the root in float64
        rstd = ((squares / count).double() + self.eps).rsqrt().to(mean.dtype)
        self._track(mean, squares / (count - 1))
        return OrderedBatchNorm.apply(x, weight, bias, mean, rstd, "batch", self.num_features, True)


class GroupNorm(nn.Module):
    """Normalise groups of channels of one image (Wu & He, arXiv:1803.08494, eq. 7).

    y = (x - mean) / sqrt(var + eps) * weight + bias; mean and biased variance are taken over the
    channels and pixels of each group, weight and bias are per channel. Equals
    `torch.nn.GroupNorm`; training and evaluation are the same.

    Args:
        channels: C, divisible by `groups` (else ValueError).
        groups: G; 8 here, because torch's usual 32 does not divide the 16 channels of the stem.
        eps: added to the variance.
        affine: learn `weight` and `bias`.
    """

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(
                f"{type(self).__name__}: {channels} channels do not split into {groups} groups; "
                f"choose groups that divide {channels}"
            )
        self.num_features, self.num_groups, self.eps = channels, groups, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        x = _checked(self, x)
        self._check_size(x)
        weight, bias = _affine_of(self, x)
        mean, var, centred = moments(x, self.num_groups, "group")
        return standardise(x, weight, bias, mean, (var + self.eps).rsqrt(), "group", centred)

    def _check_size(self, x: Tensor) -> None:
        # Like torch: a group of one value is let through in a batch (it becomes `bias`).
        _check_count(self, x, x.numel() // self.num_groups, "per group")

    def extra_repr(self) -> str:
        """Channels, groups and eps."""
        return f"{self.num_features}, groups={self.num_groups}, eps={self.eps}"


class LayerNorm(GroupNorm):
    """Normalise one image over channels and pixels (Ba et al., arXiv:1607.06450).

    The group norm with one group; weight and bias are per channel. `torch.nn.LayerNorm([C, H, W])`
    has one of each per value instead: 16.8 million parameters more in the 14-layer network at
    256x256, and a fixed image size.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(channels, 1, eps, affine)


class InstanceNorm(GroupNorm):
    """Normalise each channel of one image over its pixels (Ulyanov et al., arXiv:1607.08022).

    The group norm with a group per channel. Equals `torch.nn.InstanceNorm2d` with `affine=True`;
    training and evaluation are the same, there are no running statistics.
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
    larger learning rate. Running averages belong to the batch part; both variances get `eps`.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1):
        super().__init__(channels, eps, momentum)
        self.gate = nn.Parameter(torch.ones(channels))
        _GATED.add(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        x = _checked(self, x)
        count = _check_count(self, x, x.shape[2] * x.shape[3], "per channel and image")
        mean, var, centred = moments(x, self.num_features, "group")
        mean_b, var_b = self._batch_statistics(mean, var, count)
        rstd, rstd_b = (var + self.eps).rsqrt(), (var_b + self.eps).rsqrt()
        return BatchInstance.apply(
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
    groups keeps the factor of ten. `lr` and `weight_decay` are those of the rest. Returns one dict
    (of a model without gates) or two with `params`, `lr` and `weight_decay`, for any `torch.optim`
    class.
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


# Parameters and checks that layers share.


def _affine_of(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if layer.weight is not None:
        return layer.weight, layer.bias
    return x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])


def _checked(layer: Any, x: Tensor) -> Tensor:
    """Return x in a dense memory format, or say what is wrong with it."""
    if (
        x.dim() != 4
        or x.shape[1] != layer.num_features
        or not x.numel()
        or not x.is_floating_point()
    ):
        raise ValueError(
            f"{type(layer).__name__}: expected floating-point input of shape "
            f"(N, {layer.num_features}, H, W), not empty, got {x.dtype} {tuple(x.shape)}"
        )
    if is_traced(x) or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _check_count(layer: nn.Module, x: Tensor, count: int, where: str) -> int:
    if count == 1:
        raise ValueError(
            f"{type(layer).__name__}: one value {where} cannot be normalised (it would become "
            f"0), got input of shape {tuple(x.shape)}; use larger images or batches"
        )
    return count
