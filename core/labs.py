"""The functions of the labs' texts under the names that these give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from core.layers.convert import Mode, conversion, convert
from core.layers.std_conv import WSConv2d
from core.shift.adaptation import adapt

# The names of the lab's text.
wsconv2 = WSConv2d


def update_bn_params(model: nn.Module, loader: Iterable[Any], args: Any) -> nn.Module:
    """Return a copy of `model` after `args.num_bn_updates` batches of `loader`.

    Fewer, if the loader ends before. Batches may hold labels; they are not looked at.
    """
    return adapt(model, loader, "running", num_bn_updates=args.num_bn_updates).model


def bntoWSconverter(model: nn.Module, mode: Mode = "A") -> nn.Module:
    """Convert `model` in place, print each pair, and return it; see `convert`."""
    convert(model, mode, inplace=True)
    known = conversion(model)
    for pair in known.converted if known else ():
        print(f"got one: {pair.norm} after {pair.conv}")
    return model
