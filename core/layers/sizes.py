"""What size each layer of a network puts out, by formula, held against what it really does.

A convolution of kernel k, stride s, padding p (on each side) and dilation d turns a width x into
floor((x + 2p - d(k - 1) - 1) / s) + 1. With s = d = 1 that is x + 2p - k + 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.layers.pairing import evaluation

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
NEVER = "never used"


@dataclass(frozen=True)
class LayerSize:
    """One layer as it was called."""

    name: str  # its path in the network; a layer that is called twice appears twice
    kind: str  # its class
    output: tuple[int, ...]  # shape of one image's output; empty for a layer never called
    formula: str  # how its width follows from the one it was given; empty if nothing is computed
    parameters: int  # its own, without those of layers inside


def convolved(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int | Literal["same"] = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Return the width that a convolution or pool leaves of `size`; it must fit (ValueError).

    Args:
        size: width or height before.
        kernel: k.
        stride: s.
        padding: p on each side, or the mean of both sides; "same", which torch allows with stride 1
            only, keeps the width.
        dilation: d.
        ceil_mode: of a pool: a last window may hang over the right edge, if it starts before
            that (so one window may also be larger than all there is).
    """
    if padding == "same":
        return size
    span = dilation * (kernel - 1) + 1
    room = size + 2 * padding - span
    steps = math.ceil(room / stride) if ceil_mode else math.floor(room / stride)
    if ceil_mode and steps * stride >= size + padding:
        steps -= 1
    if steps < 0:
        raise ValueError(f"a kernel that spans {span} does not fit {size} + 2 * {padding}")
    return steps + 1


def expected(layer: nn.Module, size: Sequence[int]) -> tuple[int, ...] | None:
    """Return what a convolution or pool makes of `size` (one number per axis); None for others."""
    if not isinstance(layer, _CONVOLUTIONS + _POOLS):
        return None
    return tuple(convolved(width, *_settings(layer, axis)) for axis, width in enumerate(size))


def layer_sizes(model: nn.Module, shape: Sequence[int]) -> list[LayerSize]:
    """Run one blank image through `model` and return its layers in the order of their calls.

    Layers that were never called come last. Mode and running statistics of `model` stay as they
    are; `shape` is that of one image, such as (3, 32, 32). Raises RuntimeError: the formula and
    torch disagree about a layer.
    """
    rows: list[LayerSize] = []
    called: set[int] = set()
    leaves = {name: m for name, m in model.named_modules() if not list(m.children())}

    def watch(name: str):
        def hook(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            called.add(id(layer))
            rows.append(_row(name, layer, given[0], output))

        return hook

    with ExitStack() as hooks:
        for name, m in leaves.items():
            hooks.enter_context(m.register_forward_hook(watch(name)))
        hooks.enter_context(evaluation(model))
        like = next(model.parameters())
        model(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    unused = [(name, m) for name, m in leaves.items() if id(m) not in called]
    return rows + [LayerSize(n, type(m).__name__, (), NEVER, _parameters(m)) for n, m in unused]


def as_text(rows: Sequence[LayerSize]) -> str:
    """Return the layers as a table for a terminal, with the sum of the parameters."""
    shown = [("layer", "kind", "output", "parameters", "width by formula")]
    shown += [(r.name, r.kind, times(r.output), f"{r.parameters:,}", r.formula) for r in rows]
    total = sum({r.name: r.parameters for r in rows}.values())
    shown.append(("sum", "", "", f"{total:,}", ""))
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    line = "{:{}}  {:{}}  {:{}}  {:>{}}  {:{}}"
    cells = (itertools.chain(*zip(row, widths, strict=True)) for row in shown)
    return "\n".join(line.format(*row).rstrip() for row in cells)


def times(shape: Sequence[int]) -> str:
    """Return a shape as "16 x 5 x 5"; "-" for none."""
    return " x ".join(map(str, shape)) or "-"


def _row(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> LayerSize:
    before, after = tuple(given.shape[2:]), tuple(output.shape[2:])
    wanted = expected(layer, before)
    if wanted is not None and wanted != after:
        raise RuntimeError(f"{name}: the formula gives {wanted}, torch {after}")
    formula = "" if wanted is None else _formula(layer, before, after)
    return LayerSize(
        name, type(layer).__name__, tuple(output.shape[1:]), formula, _parameters(layer)
    )


def _formula(layer: nn.Module, before: Sequence[int], after: Sequence[int]) -> str:
    """Write the formula out for the last axis."""
    kernel, stride, padding, dilation, ceils = _settings(layer, len(before) - 1)
    if padding == "same":
        return f"padding 'same' keeps {before[-1]}"
    spread = f"{dilation}·({kernel} − 1) − 1" if dilation > 1 else f"{kernel}"
    bound = "ceil" if ceils else "floor"
    return f"{bound}(({before[-1]} + 2·{padding} − {spread}) / {stride}) + 1 = {after[-1]}"


def _settings(layer: nn.Module, axis: int) -> tuple[int, int, Any, int, bool]:
    """Return kernel, stride, padding ("same" or a number), dilation and ceil_mode of one axis."""

    def of(name: str) -> Any:
        value = getattr(layer, name, 1)
        return value[axis] if isinstance(value, tuple | list) else value

    padding = {"same": "same", "valid": 0}.get(str(layer.padding), of("padding"))
    ceils = bool(getattr(layer, "ceil_mode", False))
    return of("kernel_size"), of("stride"), padding, of("dilation"), ceils


def _parameters(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters(recurse=False))
