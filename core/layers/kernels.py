"""The passes of the norm layers over their input, forward and backward."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.layers.planes import (
    Over,
    as_planes,
    compute_dtype,
    is_traced,
    layout_of,
    like,
    plane_sums,
    widen,
)

ORDERED_LIMIT = 1 << 20  # values; 64 images of 32x32 with 16 channels, 4 ms of time per layer
# E[x^2] - E[x]^2 is used up to this |mean| / standard deviation: it loses a factor of 1 + 16 in
# precision there, of some 1e-8 in a sum of `ROW` values.
MEAN_LIMIT = 4


# Passes over an image batch. None of them needs more memory than two chunks beside its result.
# Small tensors, (N, C) or (1, C), are float64 and rounded when a pass takes them as factors.


def moments(x: Tensor, groups: int, over: Over) -> tuple[Tensor, Tensor, bool]:
    """Mean and biased variance for `standardise`, and whether x must be centred before sums.

    Where means are small against standard deviations, the sums of x and its square need one
    reading and no centring, and so do the sums for the gradient. A GPU would have to wait for
    that decision, so there x is always centred. Mean and variance are (N, G) for each image and
    group of channels or (1, C) over the batch.
    """
    if is_traced(x):
        return *_fused_moments(x, groups, over), True
    with torch.no_grad():
        layout, dtype = layout_of(x), compute_dtype(x)
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


def rounded_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared distances from it over the batch, (1, C): the nearest float32.

    Every sum is float64, of squares that are rounded to float32 as in torch's batch norm.
    """
    with torch.no_grad():
        layout, channels = layout_of(x), x.shape[1]
        wide = layout.buffer(torch.float64, x.device)
        sums = [layout.sum(wide[: len(chunk)].copy_(chunk)) for chunk in layout.chunks(x)]
        mean = layout.fold(sums, channels).sum(0, keepdim=True) / (x.numel() // channels)
        mean = mean.to(x.dtype)
        squares = layout.fold(_distance_sums(x, mean, wide), channels).sum(0, keepdim=True)
        return mean, squares.to(x.dtype)


def _power_sums(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Partial sums of x and, on a CPU, of its square."""
    layout, dtype = layout_of(x), compute_dtype(x)
    buffer, sums, squares = layout.buffer(dtype, x.device), [], []
    for chunk in layout.chunks(x):
        values = widen(chunk, buffer)
        sums.append(layout.sum(values))
        if x.is_cpu:
            squares.append(layout.dot(values, values, buffer))
    return sums, squares


def _distance_sums(x: Tensor, centre: Tensor, wide: Tensor | None = None) -> list[Tensor]:
    """Partial sums of (x - centre)^2; in float64 if there is a buffer `wide` for it."""
    layout, dtype = layout_of(x), compute_dtype(x)
    buffer, parts = layout.buffer(dtype, x.device), []
    for chunk, c in layout.cut(dtype, x, centre):
        t = torch.sub(widen(chunk, buffer), c, out=buffer[: len(chunk)])
        if wide is None:
            parts.append(layout.dot(t, t, buffer))
        else:
            parts.append(layout.sum(wide[: len(t)].copy_(t.mul_(t))))
    return parts


def _fused_moments(x: Tensor, groups: int, over: Over) -> tuple[Tensor, Tensor]:
    """`moments` as a plain formula, for the compiler to fuse.

    In one reading of x: sums of x - s and its square per channel and image, where s is the mean of
    the middle row. It is close to the mean, so that their difference loses no digits.
    """
    with torch.no_grad():
        images, _, height, width = x.shape
        x, pixels = x.to(compute_dtype(x)), height * width
        shift = x[:, :, height // 2].mean(2)
        distance = x - shift[..., None, None]
        gap = plane_sums(distance) / pixels
        var = plane_sums(distance.square()) / pixels - gap.square()
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
    dtype = compute_dtype(x)
    if is_traced(x):
        scale, shift = as_planes(dtype, scale, shift)
        return (x.to(dtype) * scale + shift).to(x.dtype)
    low, y = x.dtype != dtype, torch.empty_like(x)
    layout = layout_of(x)
    buffer = layout.buffer(dtype, x.device) if low else None
    for out, chunk, a, b in layout.cut(dtype, y, x, scale, shift):
        values = widen(chunk, buffer)
        torch.addcmul(b, values, a, out=values if low else out)
        if low:
            out.copy_(values)
    return y


def _gradient_sums(
    dy: Tensor, x: Tensor, mean: Tensor, centred: bool, ordered: bool = False
) -> tuple[Tensor, Tensor]:
    """Sum dy and dy * (x - mean) per channel and image, both (N, C).

    x is dense and dy in its memory format. `centred` subtracts the mean, (N, C) or (1, C), before
    the sums and not from them; `ordered` adds in the order of torch's batch norm.
    """
    dtype, channels = compute_dtype(x), x.shape[1]
    if is_traced(x):
        (mean,) = as_planes(dtype, mean)
        dy, distance = dy.to(dtype), x.to(dtype) - mean
        return plane_sums(dy), plane_sums(dy * distance)
    layout = layout_of(x)
    buffer, direct, product = layout.buffer(dtype, x.device), [], []
    other = buffer if dy.dtype == dtype else torch.empty_like(buffer)
    for grad, chunk, centre in layout.cut(dtype, dy, x, mean if centred else x):
        grad, values = widen(grad, other), widen(chunk, buffer)
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
    dy: Tensor, x: Tensor, mean: Tensor, centred: bool, scale: Tensor, slope: Tensor, offset: Tensor
) -> Tensor:
    """Compute dy * scale + (x - mean) * slope + offset; see `_gradient_sums` for `centred`."""
    dtype = compute_dtype(x)
    if is_traced(x):
        mean, scale, slope, offset = as_planes(dtype, mean, scale, slope, offset)
        return (dy.to(dtype) * scale + (x.to(dtype) - mean) * slope + offset).to(x.dtype)
    layout, dx, low = layout_of(x), torch.empty_like(x), x.dtype != dtype
    buffer = layout.buffer(dtype, x.device) if low or centred else None
    other = layout.buffer(dtype, x.device) if low else None
    if not centred:
        offset = torch.addcmul(offset, mean, slope, value=-1)
    factors = (mean if centred else x, scale, slope, offset)
    for out, grad, chunk, c, a, b, o in layout.cut(dtype, dx, dy, x, *factors):
        t = widen(chunk, buffer)
        if buffer is not None and centred:
            t = torch.sub(t, c, out=buffer[: len(chunk)])
        result = t if low else out
        torch.addcmul(o, t, b, out=result).addcmul_(widen(grad, other), a)
        if low:
            out.copy_(result)
    return dx


def _ordered_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """Compute (dy - offset + (x - mean) * slope) * rstd * weight, rounded as torch does it."""
    layout, dx = layout_of(x), torch.empty_like(x)
    buffer = layout.buffer(x.dtype, x.device)
    factors = (mean, offset, slope, rstd, weight)
    for out, grad, chunk, c, o, b, r, w in layout.cut(x.dtype, dx, dy, x, *factors):
        t = torch.sub(chunk, c, out=buffer[: len(chunk)])
        torch.sub(grad, o, out=out).addcmul_(t, b).mul_(r).mul_(w)
    return dx


# The layers with their gradients in closed form. Each keeps x and the statistics, no more.


def standardise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    over: Over,
    centred: bool = True,
) -> Tensor:
    """Compute (x - mean) * rstd * weight + bias, differentiable with respect to x, weight, bias.

    x is (N, C, H, W), weight and bias are (C,). The mean of x, (N, G) or (1, C), and rstd, 1 /
    sqrt(variance of x + eps), are taken `over` something; see `moments` for `centred`.
    """
    groups, mean, rstd = mean.shape[1], _per_channel(mean, x), _per_channel(rstd, x)
    return _Standardise.apply(x, weight, bias, mean, rstd, over, groups, centred)


class _Standardise(torch.autograd.Function):
    """`standardise` with its closed form for the gradient.

    With z = (x - mean) * rstd, u = dy * weight and E the mean over the values that share a
    statistic, the gradient of the input is (u - E[u] - z * E[u * z]) * rstd (Ioffe & Szegedy 2015,
    section 3). Fixed statistics leave u * rstd.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, rstd, over, groups, centred):
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.over, ctx.groups, ctx.centred = over, groups, centred
        # the rounded scale also in the shift, so that a large mean cancels
        scale = (rstd * weight).to(compute_dtype(x))
        return _affine(x, scale, torch.addcmul(bias, mean, scale, value=-1))

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        dy, over, groups = like(grad_outputs[0], x), ctx.over, ctx.groups
        need_x, *need_affine = ctx.needs_input_grad[:3]
        dx = d_weight = d_bias = None
        if need_x and over == "fixed":
            scale = (rstd * weight).to(compute_dtype(x))
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


class OrderedBatchNorm(_Standardise):
    """`_Standardise` over the batch, with every operation of the gradient as torch orders it."""

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        dy, dx, count = like(grad_outputs[0], x), None, x.numel() // mean.numel()
        direct, product = _gradient_sums(dy, x, mean, centred=True, ordered=True)
        direct, product = direct.sum(0, keepdim=True), product.sum(0, keepdim=True)
        if ctx.needs_input_grad[0]:
            slope = -(product.to(x.dtype) * rstd * rstd / count)
            dx = _ordered_gradient(dy, x, mean, rstd, weight[None], direct / count, slope)
        d_weight, d_bias = (product * rstd)[0], direct[0]
        return dx, d_weight.to(weight.dtype), d_bias.to(weight.dtype), *(None,) * 5


class BatchInstance(torch.autograd.Function):
    """Batch-Instance Norm from the statistics of both parts.

    `mean` and `rstd` (N, C) are the instance statistics, `mean_b` and `rstd_b` (1, C) those of the
    batch, or `fixed` ones. Each part has the gradient of its own norm, and everything follows from
    x - mean_b = (x - mean) + gap.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, gate, mean, rstd, mean_b, rstd_b, centred, fixed):
        """Return the normalised x, (N, C, H, W)."""
        ctx.save_for_backward(x, weight, gate, mean, rstd, mean_b, rstd_b)
        ctx.centred, ctx.fixed = centred, fixed
        batch, instance = weight * gate * rstd_b, weight * (1 - gate) * rstd
        scale = (batch + instance).to(compute_dtype(x))
        return _affine(x, scale, bias + batch * (mean - mean_b) - scale * mean)

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]  (the decorator hides the names of the arguments)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradients of x, weight, bias and gate."""
        x, weight, gate, mean, rstd, mean_b, rstd_b = ctx.saved_tensors
        dy, gap = like(grad_outputs[0], x), mean - mean_b
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


def keeps_order(x: Tensor) -> bool:
    """Whether batch norm of x follows torch's order of operations."""
    if is_traced(x) or not x.is_cpu or x.dtype != torch.float32:
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
    if over == "batch":
        return t.sum(0, keepdim=True)
    if groups == t.shape[1]:
        return t
    return _per_channel(t.view(len(t), groups, -1).sum(2), t)
