"""The twenty kinds of object in the synthetic scenes, as coloured polygons."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Part = tuple[np.ndarray, str]  # polygon (points, 2) with x to the right and y down; its colour


def oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Return an ellipse about (x, y), (20, 2)."""
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return a rectangle, (4, 2)."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _line(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    side = np.array([y0 - y1, x1 - x0]) / np.hypot(x1 - x0, y1 - y0) * width / 2
    a, b = np.array([x0, y0]), np.array([x1, y1])
    return np.array([a + side, b + side, b - side, a - side])


def _polygon(*xy: float) -> np.ndarray:
    return np.array(xy).reshape(-1, 2)


def _ring(x: float, y: float, r: float, width: float) -> np.ndarray:
    outer, inner = oval(x, y, r, r), oval(x, y, r - width, r - width)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _legs(xs: Sequence[float], top: float, bottom: float, width: float) -> np.ndarray:
    return np.array([rectangle(x - width / 2, top, x + width / 2, bottom) for x in xs])


def _windows(count: int, left: float, right: float, top: float, bottom: float) -> np.ndarray:
    step = (right - left) / count
    xs = [left + step * i for i in range(count)]
    return np.array([rectangle(x, top, x + step * 0.7, bottom) for x in xs])


def _curls(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    around = np.linspace(0, 2 * np.pi, 9)
    return np.array([oval(x * np.cos(t), y * np.sin(t), rx, ry) for t in around])


# Of the table's words: one polygon (points, 2), or several (polygons, points, 2).
_SHAPES = {
    "oval": oval, "rectangle": rectangle, "line": _line, "polygon": _polygon, "ring": _ring,
    "legs": _legs, "windows": _windows, "curls": _curls,
}  # fmt: skip


class _Kind(NamedTuple):
    colours: str  # of which one is taken for each object
    parts: list[list]  # see objects.toml

    def draw(self, own: str) -> list[Part]:
        """Return the parts from back to front, about one unit wide, in the colour given."""
        drawn = [(_SHAPES[shape](*numbers), colour) for shape, *numbers, colour in self.parts]
        return [
            (polygon, own if colour == "own" else colour)
            for polygons, colour in drawn
            for polygon in polygons.reshape(-1, *polygons.shape[-2:])
        ]


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
KINDS = {name: _Kind(**row) for name, row in _TABLE.items()}
