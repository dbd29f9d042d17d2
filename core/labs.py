"""The functions of the labs' texts under the names that these give them."""

from __future__ import annotations

from torch import nn

from core.layers.convert import Mode, conversion, convert
from core.layers.std_conv import WSConv2d

# The names of the lab's text.
wsconv2 = WSConv2d


def bntoWSconverter(model: nn.Module, mode: Mode = "A") -> nn.Module:
    """Convert `model` in place, print each pair, and return it; see `convert`."""
    convert(model, mode, inplace=True)
    known = conversion(model)
    for pair in known.converted if known else ():
        print(f"got one: {pair.norm} after {pair.conv}")
    return model
