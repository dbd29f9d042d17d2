"""Convolutions with standardised weights (Qiao et al., arXiv:1903.10520)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-12  # added to the variance of a kernel; the floor of n_c is its root, 1e-6
# Largest |weight| with which a convolution may run in float16: standardised values are some 10 at
# most; only kernels that are nearly constant have larger ones, up to |mean| / sqrt(eps).
LARGEST_HALF = 256.0


class WSConv2d(nn.Conv2d):
    """`nn.Conv2d` that divides each kernel by its standard deviation before it is used.

    y = conv(x, W[c] / n_c) + bias with n_c = sqrt(std(W[c])^2 + eps), std over (in / groups, kh,
    kw). Gradients flow through n_c. `weight` stays what is learned and stored, so states exchange
    with `nn.Conv2d`; all arguments of that layer are taken.

    A kernel without variance has n_c = sqrt(eps), 1e-6 by default: zeros stay zeros, and a constant
    kernel grows a million times, which float32 holds and float16 does not. Standardisation is
    therefore always at least float32, and under float16 autocast a layer whose weights are larger
    than `LARGEST_HALF` runs its convolution in float32.

    Args:
        *args: as `nn.Conv2d`.
        eps: added to the variance.
        unbiased: variance with k - 1 in the denominator, k values per kernel, as `torch.std`; a
            kernel of a single value has none then, so it always takes the biased one, 0.
        center: also subtract the kernel's mean (the full form of the paper). Such a layer does not
            compute the same as any plain convolution with the same weights and a norm.
        **kwargs: as `nn.Conv2d`.
    """

    def __init__(
        self,
        *args: Any,
        eps: float = EPS,
        unbiased: bool = True,
        center: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.eps, self.unbiased, self.center = eps, unbiased, center

    @classmethod
    def of(cls, conv: nn.Conv2d, *, eps: float = EPS, unbiased: bool = True) -> WSConv2d:
        """Return a layer with the parameters (the same objects), options and hooks of `conv`."""
        layer = cls.__new__(cls)
        layer.__dict__.update(_own_state(conv))
        layer.eps, layer.unbiased, layer.center = eps, unbiased, False
        return layer

    def plain(self, weight: Tensor | None = None) -> nn.Conv2d:
        """Return an `nn.Conv2d` with these options and the same parameters, or another weight."""
        layer = nn.Conv2d.__new__(nn.Conv2d)
        state = _own_state(self)
        for name in ("eps", "unbiased", "center"):
            del state[name]
        layer.__dict__.update(state)
        if weight is not None:
            layer.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        return layer

    def standardised(self) -> Tensor:
        """Return W[c] / n_c, or (W[c] - mean) / n_c, of the shape of `weight`."""
        return standardise(self.weight, self.eps, self.unbiased, self.center)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W') as `nn.Conv2d` does."""
        weight = self.standardised()
        kind = input.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if half and bool(weight.detach().abs().amax() > LARGEST_HALF):
            with torch.autocast(kind, enabled=False):
                return self._conv_forward(input.float(), weight, self.bias)
        return self._conv_forward(input, weight, self.bias)

    def extra_repr(self) -> str:
        """Options as `nn.Conv2d` prints them, then those of the standardisation."""
        center = ", center=True" if self.center else ""
        return f"{super().extra_repr()}, eps={self.eps:g}, unbiased={self.unbiased}{center}"


def kernel_scale(weight: Tensor, eps: float = EPS, unbiased: bool = True) -> Tensor:
    """Return n_c = sqrt(var(W[c]) + eps), shape (C_out,), in float32 at least.

    The variance is a sum of squared distances from the mean, so that nothing is lost where the
    mean is large; `torch.var` gives the same and takes four times as long on a CPU.
    """
    return _scale(weight, eps, unbiased)[1]


def standardise(
    weight: Tensor, eps: float = EPS, unbiased: bool = True, center: bool = False
) -> Tensor:
    """Divide each kernel of `weight` (C_out, C_in / groups, kh, kw) by its n_c.

    The gradient is a closed form, so that the backward pass keeps the weight and one number per
    channel and reads it few times. It can be differentiated again.
    """
    return _Standardise.apply(weight, eps, unbiased, center)


def _own_state(layer: nn.Module) -> dict[str, Any]:
    """Return a module's attributes; its dicts (parameters, hooks) are copied, not their content."""
    return {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(layer).items()}


def _scale(weight: Tensor, eps: float, unbiased: bool) -> tuple[Tensor, Tensor, int]:
    """Return mean (C_out,), n_c (C_out,) and what the sum of squares is divided by."""
    flat = weight.flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    count = max(1, flat.shape[1] - unbiased)
    mean = flat.mean(1)
    if torch.is_grad_enabled() and flat.requires_grad:  # a norm has no gradient at 0
        squares = (flat - mean[:, None]).square().sum(1)
    else:
        squares = torch.linalg.vector_norm(flat - mean[:, None], dim=1).square()
    # Not by `sqrt`, which is MKL's: its last digit depends on the maker of the CPU.
    return mean, (squares / count + eps).rsqrt().reciprocal(), count


def _divided(weight: Tensor, mean: Tensor, n: Tensor, center: bool) -> Tensor:
    shape = (-1, *[1] * (weight.dim() - 1))
    values = weight - mean.view(shape) if center else weight
    return (values / n.view(shape)).to(weight.dtype)


class _Standardise(torch.autograd.Function):
    """W / n or (W - mean) / n with the gradient in closed form.

    With h the result, g its gradient, k - 1 (or k) the divisor of the variance d and c = W - mean:
    dW = (g - c / (d n) * sum(g h)) / n, where g loses its mean first if the mean was taken away.
    """

    @staticmethod
    def forward(ctx, weight, eps, unbiased, center):
        mean, n, count = _scale(weight, eps, unbiased)
        ctx.save_for_backward(weight, mean, n)
        ctx.options = (eps, unbiased, center, count)
        return _divided(weight, mean, n, center)

    @staticmethod
    def backward(ctx, *grads):
        weight, mean, n = ctx.saved_tensors
        (grad,) = grads
        eps, unbiased, center, count = ctx.options
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            with torch.enable_grad():
                result = _divided(weight, *_scale(weight, eps, unbiased)[:2], center)
                (found,) = torch.autograd.grad(result, weight, grad, create_graph=True)
            return found, None, None, None
        g, flat = grad.flatten(1), weight.flatten(1)
        g, flat = g.to(n.dtype), flat.to(n.dtype)
        if center:
            g = g - g.mean(1, keepdim=True)  # it sums to 0 then: the mean in h adds nothing below
        factor = (g * flat).sum(1) / (count * n.square())
        # (g - (W - mean) * factor) / n, in two passes over the kernel
        found = torch.addcmul(g + (mean * factor)[:, None], flat, factor[:, None], value=-1)
        return found.div_(n[:, None]).view_as(weight).to(weight.dtype), None, None, None
