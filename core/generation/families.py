"""The families of generators by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from core import choices
from core.errors import UserError
from core.generation.dcgan import DCGAN
from core.generation.family import Family, Options, Shape
from core.generation.flow_matching import FlowMatching
from core.generation.vae import VAE

_FAMILIES = {"vae": VAE, "dcgan": DCGAN, "flow": FlowMatching}
NAMES: tuple[str, ...] = tuple(_FAMILIES)
OPTIONS = tuple(field.name for field in fields(Options))


def build(family: choices.Family, shape: Shape, width: int, classes: int, **options: Any) -> Family:
    """Build a family with fresh weights (from torch's global generator).

    `shape` (S one of `SIZES`) and `classes` are those of `core.generation.family.Family`, `options`
    of its `Options`; `width` is the channels of the widest-resolution layer, a multiple of 8.
    Raises UserError: a size, width or combination that the family cannot have.
    """
    if width % 8 or width < 8:
        raise UserError(f"--set width={width}: width must be a multiple of 8")
    return _FAMILIES[family](shape, width, classes, Options(**options))
