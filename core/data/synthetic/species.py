"""The 25 species of the synthetic birds: colours, shapes and what covers them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Band = tuple[float, float, float, str]  # direction in degrees, from, to (-1..1), colour


@dataclass(frozen=True)
class Species:
    """Plumage and silhouette of one species; lengths in body lengths, angles in degrees.

    Bands lie across a part: (direction, from, to, colour) colours the points whose coordinate along
    `direction` (0 = towards the beak, 90 = up) is between `from` and `to`, where -1 and 1 are the
    part's own ends.
    """

    name: str
    body: str
    head: str
    wing: str
    tail: str
    beak: str
    legs: str
    body_bands: tuple[Band, ...] = ()
    head_bands: tuple[Band, ...] = ()
    wing_bands: tuple[Band, ...] = ()
    tail_bands: tuple[Band, ...] = ()
    eye: str = "101010"
    eye_ring: str = ""
    depth: float = 0.56  # height of the body over its length
    tilt: float = 20  # of the body axis above the horizontal
    neck: float = 0.0
    head_size: float = 0.19  # radius
    beak_length: float = 0.2
    beak_depth: float = 0.09
    beak_curve: float = 0.0  # how far the tip is bent down
    leg_length: float = 0.25
    tail_length: float = 0.45
    tail_width: float = 0.16
    tail_angle: float = 0.0  # against the body axis
    crest: str = ""  # fan | wisp | tuft | casque
    crest_colours: tuple[str, str] = ("101010", "101010")
    train: bool = False  # a peacock's


def _read() -> tuple[Species, ...]:
    """Return the species of the table; a list there is a tuple of bands or of colours here."""
    found = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return tuple(
        Species(name, **{k: _fixed(v) for k, v in row.items()}) for name, row in found.items()
    )


def _fixed(value: Any) -> Any:
    return tuple(map(_fixed, value)) if isinstance(value, list) else value


SPECIES = _read()
CLASSES = tuple(species.name for species in SPECIES)
