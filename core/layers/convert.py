"""Convolutions with standardised weights, and pretrained networks converted to them exactly.

Weight standardisation (Qiao et al., arXiv:1903.10520) divides each output channel's kernel W[c] by
n_c = sqrt(std(W[c])^2 + eps); the full form also takes its mean away. A network that was trained
without it computes something else afterwards, unless the batch norm behind each convolution makes
up for n_c. `convert` does that in one of two ways, exact in evaluation mode:

- mode A changes what the norm subtracts and divides by (running_mean, running_var);
- mode B changes what it multiplies by and adds (weight, bias).

In training only mode A keeps the network: there the norm takes mean and variance from the batch,
which already makes up for n_c, and mode B corrects a second time. The formulas are derived in
docs/weight-standardization.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from core.layers.pairing import Norm, Pair, Run, evaluation, pairs, tensors
from core.layers.std_conv import EPS, WSConv2d, kernel_scale

Mode = Literal["A", "B"]
# Largest difference between the outputs before and after a conversion, as a share of the largest
# output. Formulas that are wrong or miss an eps are off by far more, or by something visible.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did to a network."""

    mode: Mode
    converted: tuple[Pair, ...]  # convolutions replaced, with the norm that makes up for n_c
    left: Mapping[str, str]  # convolutions that were not, with the reason
    difference: float  # largest difference of the outputs, as a share of the largest output


def convert(
    model: nn.Module,
    mode: Mode = "A",
    *,
    inplace: bool = False,
    eps: float = EPS,
    unbiased: bool = True,
    example: Any = None,
) -> nn.Module:
    """Replace every convolution that a batch norm follows by `WSConv2d`, same outputs.

    Mode A: running_mean' = (running_mean - b) / n + b and running_var' = (running_var + e) / n^2 -
    e, with b the convolution's bias (0 without one) and e the norm's eps. running_var' is negative
    where n > sqrt(1 + running_var / e); running_var' + e, which is all that the norm uses, is not.
    Mode B: weight' = n weight and bias' = bias + weight (n - 1) (running_mean - b) /
    sqrt(running_var + e).

    Which norm follows which convolution is found by running the model (`core.layers.pairing`). All
    is checked before anything changes, and the outputs on the example after it; a model that is
    converted already is left as it is. Convolutions without a norm stay plain convolutions; see
    `conversion` for a list. Returns the converted copy, or `model` with `inplace`. Raises
    ValueError: a norm that does not directly follow a convolution, a module that is used twice, a
    norm without weights in mode B, or outputs that differ; the message names the module. Nothing
    has changed then.

    Args:
        model: in any mode, on any device.
        mode: "A" also trains as before; "B" is exact in evaluation only.
        inplace: change `model` itself (its parameters stay the same objects).
        eps: of the standardisation.
        unbiased: of the standardisation.
        example: an input of the model, or a tuple of arguments; None for random images.
    """
    if mode not in ("A", "B"):
        raise ValueError(f"convert: mode must be A or B, got {mode!r}")
    run = pairs(model, example)
    wanted, left = _sorted(model, run, mode)
    earlier = conversion(model)
    if wanted and earlier and earlier.mode != mode:
        raise ValueError(f"convert: {wanted[0].conv} is new in a model converted in the other mode")
    target = model if inplace else copy.deepcopy(model)
    with _undone_on_failure(target, wanted):
        for pair in wanted:
            conv, norm = target.get_submodule(pair.conv), target.get_submodule(pair.norm)
            assert isinstance(conv, nn.Conv2d)
            layer = WSConv2d.of(conv, eps=eps, unbiased=unbiased)
            setbyname2(target, pair.conv, layer)
            _compensate(layer, norm, mode)
        difference = _difference(target, run) if wanted else 0.0
    if wanted or earlier is None:
        converted = (*(earlier.converted if earlier else ()), *wanted)
        target.ws_conversion = cast(Any, Conversion(mode, converted, left, difference))
    return target


def conversion(model: nn.Module) -> Conversion | None:
    """Return what `convert` did to `model`; None for a model that it never saw."""
    return getattr(model, "ws_conversion", None)


def to_plain(
    model: nn.Module,
    weights: Literal["standardised", "original"] = "standardised",
    *,
    inplace: bool = False,
) -> nn.Module:
    """Turn every `WSConv2d` back into `nn.Conv2d`; the outputs stay, also after training.

    Args:
        model: converted by `convert`, or built with `WSConv2d`.
        weights: "standardised" stores W / n as the weight and leaves the norms alone; "original"
            keeps W and takes the compensation out of the norms again, by the mode of the
            conversion (ValueError where `convert` did not make the model). Straight after `convert`
            that gives the numbers of before.
        inplace: change `model` itself.
    """
    known = conversion(model)
    norms = {pair.conv: pair.norm for pair in known.converted} if known else {}
    layers = [name for name, m in model.named_modules() if isinstance(m, WSConv2d)]
    unknown = [name for name in layers if name not in norms]
    if weights == "original" and unknown:
        raise ValueError(
            f"to_plain: {', '.join(unknown)} was not made by convert, so there is no norm to"
            " take a compensation from: use weights='standardised'"
        )
    target = model if inplace else copy.deepcopy(model)
    for name in layers:
        layer = cast(WSConv2d, target.get_submodule(name))
        weight = None if weights == "original" else layer.standardised().detach()
        if known is not None and weights == "original":
            _compensate(layer, target.get_submodule(norms[name]), known.mode, back=True)
        setbyname2(target, name, layer.plain(weight))
    if known is not None:
        del target.ws_conversion
    return target


def setbyname2(targetmodel: nn.Module, name: str, value: nn.Module) -> None:
    """Put `value` in place of the module called `name`, such as "layer1.0.conv1".

    Raises AttributeError: the model has no module of that name.
    """
    targetmodel.set_submodule(name, value, strict=True)


# ---- the parts ----


def _sorted(model: nn.Module, run: Run, mode: Mode) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Return the pairs to convert, and for all other convolutions why they stay."""
    wanted, left = [], dict(run.single)
    for pair in run.pairs:
        conv, norm = model.get_submodule(pair.conv), model.get_submodule(pair.norm)
        assert isinstance(norm, Norm)
        if isinstance(conv, WSConv2d):
            left[pair.conv] = "standardises its weights already"
        elif type(conv) is not nn.Conv2d or "weight" not in conv._parameters:
            left[pair.conv] = f"computes its weight in a way of its own ({type(conv).__name__})"
        elif norm.running_mean is None:
            left[pair.conv] = (
                f"{pair.norm} keeps no running statistics: it takes the batch's own, which follow"
                " the scale of the weights by themselves"
            )
        elif mode == "B" and norm.weight is None:
            raise ValueError(f"{pair.norm}: mode B changes weight and bias, which it has not")
        else:
            wanted.append(pair)
    return tuple(wanted), left


@contextmanager
def _undone_on_failure(model: nn.Module, wanted: tuple[Pair, ...]) -> Iterator[None]:
    """Put back the convolutions and the norms' numbers where what is done inside fails."""
    convs = {pair.conv: model.get_submodule(pair.conv) for pair in wanted}
    norms = [model.get_submodule(pair.norm) for pair in wanted]
    kept = [(t, t.detach().clone()) for m in norms for t in (*m.parameters(), *m.buffers())]
    try:
        yield
    except BaseException:
        for name, conv in convs.items():
            setbyname2(model, name, conv)
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        raise


@torch.no_grad()
def _compensate(conv: WSConv2d, norm: nn.Module, mode: Mode, back: bool = False) -> None:
    """Make the norm take W / n where it took W (or, `back`, the other way round); in float64."""
    assert isinstance(norm, Norm)
    n = kernel_scale(conv.weight.double(), conv.eps, conv.unbiased)
    n = 1 / n if back else n
    running_mean, running_var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    mean, var = running_mean.double(), running_var.double()
    b = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
    if mode == "A":
        running_mean.copy_((mean - b) / n + b)
        # Not clamped: this may be below 0 for a channel that hardly varies, the sum with eps is not
        running_var.copy_((var + norm.eps) / n.square() - norm.eps)
        return
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    shift = weight.double() * (n - 1) * (mean - b) * (var + norm.eps).rsqrt()
    bias.copy_(bias.double() + shift)
    weight.copy_(n * weight.double())


def _difference(model: nn.Module, run: Run) -> float:
    """Return the largest difference to the outputs of before, as a share of the largest of them.

    Raises ValueError: it is larger than rounding explains.
    """
    with evaluation(model):
        outputs = tuple(tensors(model(*run.example)))
    worst = 0.0
    for old, new in zip(run.outputs, outputs, strict=True):
        if not old.is_floating_point() or not old.numel():
            continue
        size = float(old.double().abs().max())
        share = float((new.double() - old.double()).abs().max()) / (size or 1.0)
        if not share <= TOLERANCE.get(old.dtype, math.inf):
            raise ValueError(
                f"convert: the outputs differ by {share:.2g} of the largest, more than rounding"
                f" explains in {old.dtype}; nothing was changed (a norm's variance may be too small"
                " for this precision: convert the model in float64)"
            )
        worst = max(worst, share)
    return worst
