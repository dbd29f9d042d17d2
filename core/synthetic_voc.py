"""A generated data set in Pascal VOC's layout, for when no data is given.

Its classes are VOC's twenty. Each picture holds drawn objects of one to four classes, in other
sizes, places, turns and colours, on a cluttered ground; persons are frequent, cows and sheep are
rare, and some objects are small, pale and marked difficult. A small network can learn them, none
ranks them without mistakes. How well it does says nothing about photographs: `SYNTHETIC` says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from PIL import Image, ImageDraw

from core import made_once
from core.data import cache_dir
from core.errors import UserError
from core.voc import VOC_CLASSES

SYNTHETIC = "Synthetic pictures of Pascal VOC's 20 classes, drawn by labtune: no photographs"
TRAIN, VAL = 600, 400  # pictures
FOLDER = "VOCdevkit/Synthetic"  # the year's folder in the root

_README = """{description}.

Nothing here is a photograph: labtune drew these pictures (seed {seed}) as a stand-in for Pascal
VOC, so that a study runs without it. How well a network ranks them says nothing about VOC.

{folder}/JPEGImages, Annotations, ImageSets/Main: {train} pictures in train.txt, {val} in val.txt
"""

# Probability that a picture shows a class. VOC is as uneven: most pictures have persons.
FREQUENCY = {
    "person": 0.40, "car": 0.16, "chair": 0.15, "dog": 0.12, "cat": 0.11, "bird": 0.11,
    "bottle": 0.10, "pottedplant": 0.09, "diningtable": 0.08, "sofa": 0.08, "tvmonitor": 0.08,
    "horse": 0.08, "bicycle": 0.08, "aeroplane": 0.08, "motorbike": 0.07, "boat": 0.07,
    "train": 0.06, "bus": 0.06, "sheep": 0.05, "cow": 0.05,
}  # fmt: skip
_MOST_CLASSES = 3  # in one picture
_LONGER_SIDE = (88, 112)  # pixels
_ASPECT = 1.4  # longer over shorter side, at most
_SIZE = (0.45, 0.75)  # of an object, over the picture's longer side
_AGAIN = 0.25  # probability of one more object of the same class
_TURN = 6  # degrees
_DIFFICULT = 0.10  # probability that an object is one that people would not be asked to find:
_DIFFICULT_SIZE = (0.10, 0.17)  # small,
_PALE = 0.55  # and mixed with this much of the ground's colour
_TINT = 10  # standard deviation of an object's colours, of 255
_GRAIN = (1, 4)  # standard deviation of the noise of pixels, of 255

Part = tuple[np.ndarray, str]  # polygon (points, 2) with x to the right and y down; its colour


def _oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _line(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    side = np.array([y0 - y1, x1 - x0]) / np.hypot(x1 - x0, y1 - y0) * width / 2
    a, b = np.array([x0, y0]), np.array([x1, y1])
    return np.array([a + side, b + side, b - side, a - side])


def _points(*xy: float) -> np.ndarray:
    return np.array(xy).reshape(-1, 2)


def _ring(x: float, y: float, r: float, width: float) -> np.ndarray:
    outer, inner = _oval(x, y, r, r), _oval(x, y, r - width, r - width)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _legs(xs: Sequence[float], top: float, bottom: float, width: float, colour: str) -> list[Part]:
    return [(_box(x - width / 2, top, x + width / 2, bottom), colour) for x in xs]


def _windows(count: int, left: float, right: float, top: float, bottom: float) -> list[Part]:
    step = (right - left) / count
    xs = [left + step * i for i in range(count)]
    return [(_box(x, top, x + step * 0.7, bottom), "bfe0f0") for x in xs]


# One function per class: its parts from back to front, about one unit wide, in the colour given.


def _aeroplane(c: str) -> list[Part]:
    return [
        (_points(-0.05, 0, 0.12, 0, -0.12, 0.3, -0.2, 0.3), "8d98a4"),
        (_points(-0.05, 0, 0.1, 0, -0.06, -0.22, -0.12, -0.22), "a4aeb8"),
        (_oval(0, 0, 0.5, 0.075), c),
        (_points(-0.48, 0, -0.34, 0, -0.42, -0.2, -0.5, -0.2), c),
        *_windows(6, -0.25, 0.35, -0.035, 0.0),
    ]


def _bicycle(c: str) -> list[Part]:
    return [
        (_ring(-0.3, 0.15, 0.2, 0.035), "202020"),
        (_ring(0.3, 0.15, 0.2, 0.035), "202020"),
        (_line(-0.3, 0.15, 0.0, 0.15, 0.035), c),
        (_line(0.0, 0.15, 0.22, -0.12, 0.035), c),
        (_line(-0.12, -0.12, 0.22, -0.12, 0.035), c),
        (_line(-0.12, -0.12, 0.0, 0.15, 0.035), c),
        (_line(-0.3, 0.15, -0.12, -0.12, 0.03), c),
        (_line(0.3, 0.15, 0.2, -0.2, 0.035), c),
        (_box(-0.2, -0.18, -0.06, -0.14), "202020"),
        (_line(0.14, -0.22, 0.28, -0.2, 0.035), "202020"),
    ]


def _bird(c: str) -> list[Part]:
    return [
        (_points(-0.25, 0.0, -0.55, 0.08, -0.5, -0.06), c),
        (_oval(-0.05, 0.0, 0.28, 0.16), c),
        (_oval(0.22, -0.16, 0.12, 0.11), c),
        (_points(0.32, -0.18, 0.48, -0.13, 0.32, -0.1), "f0a020"),
        (_points(-0.2, -0.05, 0.12, -0.04, -0.12, 0.12), "6a5a4a"),
        (_oval(0.25, -0.18, 0.025, 0.025), "101010"),
        *_legs((-0.05, 0.05), 0.14, 0.3, 0.025, "b07030"),
    ]


def _boat(c: str) -> list[Part]:
    return [
        (_box(-0.02, -0.5, 0.02, 0.1), "6a4a2a"),
        (_points(0.03, -0.48, 0.03, 0.06, 0.38, 0.06), "f4f0e6"),
        (_points(-0.03, -0.38, -0.03, 0.06, -0.28, 0.06), "e6e2d4"),
        (_points(-0.48, 0.12, 0.48, 0.12, 0.32, 0.3, -0.34, 0.3), c),
    ]


def _bottle(c: str) -> list[Part]:
    return [
        (_points(-0.06, -0.5, 0.06, -0.5, 0.06, -0.25, 0.15, -0.1, 0.15, 0.5, -0.15, 0.5, -0.15,
                 -0.1, -0.06, -0.25), c),
        (_box(-0.07, -0.54, 0.07, -0.46), "c8a050"),
        (_box(-0.15, 0.05, 0.15, 0.3), "f2ecd8"),
    ]  # fmt: skip


def _bus(c: str) -> list[Part]:
    return [
        (_box(-0.5, -0.28, 0.5, 0.22), c),
        *_windows(6, -0.46, 0.46, -0.2, -0.02),
        (_box(-0.5, 0.05, 0.5, 0.1), "f4f4f0"),
        (_oval(-0.3, 0.22, 0.09, 0.09), "181818"),
        (_oval(0.3, 0.22, 0.09, 0.09), "181818"),
    ]


def _car(c: str) -> list[Part]:
    return [
        (_points(-0.25, -0.02, -0.14, -0.2, 0.16, -0.2, 0.28, -0.02), c),
        (_points(-0.19, -0.03, -0.11, -0.16, 0.0, -0.16, 0.0, -0.03), "bfe0f0"),
        (_points(0.03, -0.03, 0.03, -0.16, 0.14, -0.16, 0.22, -0.03), "bfe0f0"),
        (_points(-0.5, 0.15, -0.48, 0.0, -0.25, -0.03, 0.3, -0.03, 0.5, 0.04, 0.5, 0.15), c),
        (_oval(-0.28, 0.15, 0.1, 0.1), "181818"),
        (_oval(0.28, 0.15, 0.1, 0.1), "181818"),
    ]


def _cat(c: str) -> list[Part]:
    return [
        (_line(0.2, 0.4, 0.42, 0.1, 0.07), c),
        (_oval(0, 0.22, 0.25, 0.28), c),
        (_points(-0.24, -0.14, -0.22, -0.48, -0.04, -0.3), c),
        (_points(0.24, -0.14, 0.22, -0.48, 0.04, -0.3), c),
        (_oval(0, -0.14, 0.25, 0.2), c),
        (_oval(-0.1, -0.16, 0.045, 0.06), "d8e040"),
        (_oval(0.1, -0.16, 0.045, 0.06), "d8e040"),
        (_points(-0.03, -0.06, 0.03, -0.06, 0, -0.02), "e08080"),
    ]


def _chair(c: str) -> list[Part]:
    return [
        (_box(-0.25, -0.5, -0.17, 0.05), c),
        (_points(-0.25, 0.0, 0.22, 0.0, 0.28, 0.09, -0.25, 0.09), c),
        (_box(-0.25, 0.05, -0.19, 0.5), c),
        (_box(0.2, 0.05, 0.26, 0.5), c),
        (_box(-0.17, -0.45, -0.12, -0.1), "3a2a1a"),
    ]


def _four_legs(c: str, legs: str, depth: float) -> list[Part]:
    return [
        *_legs((-0.28, -0.18, 0.16, 0.26), 0.05, 0.42, 0.07, legs),
        (_oval(0, 0, 0.36, depth), c),
    ]


def _cow(c: str) -> list[Part]:
    return [
        *_four_legs(c, c, 0.2),
        (_oval(-0.12, -0.06, 0.12, 0.09), "201c1a"),
        (_oval(0.16, 0.04, 0.09, 0.09), "201c1a"),
        (_oval(0.4, -0.14, 0.12, 0.1), c),
        (_oval(0.48, -0.1, 0.05, 0.06), "e8a8a0"),
        (_line(0.34, -0.22, 0.3, -0.34, 0.035), "e8dcc0"),
        (_line(0.44, -0.22, 0.48, -0.34, 0.035), "e8dcc0"),
    ]


def _diningtable(c: str) -> list[Part]:
    return [
        *_legs((-0.4, 0.4), 0.0, 0.38, 0.06, c),
        (_points(-0.36, -0.16, 0.36, -0.16, 0.5, 0.02, -0.5, 0.02), c),
        (_oval(-0.14, -0.08, 0.1, 0.035), "f4f4f0"),
        (_oval(0.16, -0.06, 0.1, 0.035), "f4f4f0"),
    ]


def _dog(c: str) -> list[Part]:
    return [
        (_line(-0.32, -0.02, -0.46, -0.24, 0.06), c),
        *_legs((-0.26, -0.16, 0.12, 0.22), 0.05, 0.36, 0.07, c),
        (_oval(-0.03, 0, 0.32, 0.14), c),
        (_oval(0.3, -0.2, 0.14, 0.12), c),
        (_oval(0.43, -0.16, 0.09, 0.06), c),
        (_oval(0.5, -0.18, 0.03, 0.03), "101010"),
        (_oval(0.22, -0.16, 0.05, 0.13), "4a3222"),
    ]


def _horse(c: str) -> list[Part]:
    return [
        (_line(-0.32, -0.06, -0.44, 0.24, 0.07), "2a1c12"),
        *_four_legs(c, c, 0.15),
        (_points(0.2, -0.06, 0.36, 0.02, 0.48, -0.32, 0.34, -0.38), c),
        (_points(0.34, -0.4, 0.48, -0.36, 0.6, -0.2, 0.52, -0.16, 0.4, -0.24), c),
        (_points(0.16, -0.1, 0.24, -0.04, 0.4, -0.4, 0.32, -0.4), "2a1c12"),
    ]


def _motorbike(c: str) -> list[Part]:
    return [
        (_oval(-0.3, 0.16, 0.18, 0.18), "181818"),
        (_oval(0.3, 0.16, 0.18, 0.18), "181818"),
        (_oval(-0.3, 0.16, 0.07, 0.07), "a0a0a0"),
        (_oval(0.3, 0.16, 0.07, 0.07), "a0a0a0"),
        (_points(-0.3, 0.12, -0.2, -0.08, 0.2, -0.12, 0.16, 0.16), c),
        (_box(-0.34, -0.14, -0.02, -0.06), "2a2a2a"),
        (_line(0.3, 0.16, 0.16, -0.26, 0.05), "8a8a8a"),
        (_line(0.08, -0.26, 0.22, -0.28, 0.04), "202020"),
    ]


def _person(c: str) -> list[Part]:
    return [
        (_line(-0.12, -0.18, -0.24, 0.12, 0.07), "e0b090"),
        (_line(0.12, -0.18, 0.24, 0.12, 0.07), "e0b090"),
        *_legs((-0.07, 0.07), 0.1, 0.5, 0.11, "2c3a5a"),
        (_points(-0.15, -0.24, 0.15, -0.24, 0.13, 0.14, -0.13, 0.14), c),
        (_oval(0, -0.36, 0.1, 0.12), "e0b090"),
        (
            _points(-0.1, -0.36, -0.09, -0.46, 0.0, -0.5, 0.09, -0.46, 0.1, -0.36, 0, -0.42),
            "3a2618",
        ),
    ]


def _pottedplant(c: str) -> list[Part]:
    leaves = [(_oval(x, y, 0.13, 0.1), c) for x, y in ((-0.16, -0.2), (0.16, -0.22), (0, -0.36),
              (-0.08, -0.1), (0.1, -0.08))]  # fmt: skip
    return [
        (_box(-0.02, -0.2, 0.02, 0.12), "4a6a2a"),
        *leaves,
        (_points(-0.2, 0.1, 0.2, 0.1, 0.14, 0.46, -0.14, 0.46), "b8603a"),
    ]


def _sheep(c: str) -> list[Part]:
    curls = [(_oval(0.28 * np.cos(t), 0.16 * np.sin(t), 0.12, 0.1), c)
             for t in np.linspace(0, 2 * np.pi, 9)]  # fmt: skip
    return [
        *_legs((-0.2, -0.1, 0.1, 0.2), 0.1, 0.38, 0.05, "2a2622"),
        *curls,
        (_oval(0, 0, 0.28, 0.16), c),
        (_oval(0.4, -0.08, 0.09, 0.12), "2a2622"),
    ]


def _sofa(c: str) -> list[Part]:
    return [
        (_box(-0.42, -0.26, 0.42, 0.1), c),
        (_box(-0.4, 0.0, -0.01, 0.12), "e4d8c4"),
        (_box(0.01, 0.0, 0.4, 0.12), "e4d8c4"),
        (_box(-0.42, 0.12, 0.42, 0.26), c),
        (_box(-0.5, -0.08, -0.38, 0.26), c),
        (_box(0.38, -0.08, 0.5, 0.26), c),
        *_legs((-0.42, 0.42), 0.26, 0.32, 0.05, "302418"),
    ]


def _train(c: str) -> list[Part]:
    return [
        (_points(-0.5, -0.16, 0.3, -0.16, 0.5, 0.12, 0.5, 0.2, -0.5, 0.2), c),
        (_points(0.26, -0.1, 0.32, -0.1, 0.42, 0.05, 0.26, 0.05), "bfe0f0"),
        *_windows(5, -0.46, 0.2, -0.1, 0.02),
        (_box(-0.5, 0.08, 0.5, 0.12), "e8d040"),
        *[(_oval(x, 0.23, 0.05, 0.05), "181818") for x in (-0.4, -0.2, 0.0, 0.2, 0.4)],
        (_box(-0.56, 0.27, 0.56, 0.3), "6a5a4a"),
    ]


def _tvmonitor(c: str) -> list[Part]:
    return [
        (_box(-0.45, -0.34, 0.45, 0.24), "202226"),
        (_box(-0.4, -0.29, 0.4, 0.19), c),
        (_points(-0.4, -0.29, -0.1, -0.29, -0.4, 0.05), "dceaf2"),
        (_box(-0.05, 0.24, 0.05, 0.34), "202226"),
        (_box(-0.2, 0.34, 0.2, 0.39), "202226"),
    ]


class _Kind(NamedTuple):
    draw: Callable[[str], list[Part]]
    colours: str  # of which one is taken for each object


_PAINT = "c03028 2858a8 e0c030 f0f0ec 2a2c30 2f8a4a 8a8f96"
_FUR = "8a5a34 d8b078 2c2622 f0ece4 a8704a 8c8a88"
_WOOD = "8a5a30 b8824a 5a3a22 d0b088 c8c4bc"
_KINDS: dict[str, _Kind] = {
    "aeroplane": _Kind(_aeroplane, "e8ecf0 c8d0d8 f4f4f4 d84038"),
    "bicycle": _Kind(_bicycle, _PAINT),
    "bird": _Kind(_bird, "3a78c0 c84030 f0c830 5a4634 e8e4dc 303438"),
    "boat": _Kind(_boat, "8a3a2a f0f0ec 2a4a7a 5a3a22 2f7a6a"),
    "bottle": _Kind(_bottle, "1f6a3a 5a3218 88b8c8 2a4a3a c8dce0"),
    "bus": _Kind(_bus, "d03028 e8b020 2f6ab0 2f8a4a f0f0ec"),
    "car": _Kind(_car, _PAINT),
    "cat": _Kind(_cat, _FUR + " e0903a"),
    "chair": _Kind(_chair, _WOOD + " 2858a8 c03028"),
    "cow": _Kind(_cow, "f0ece4 8a5a34 c89868"),
    "diningtable": _Kind(_diningtable, _WOOD),
    "dog": _Kind(_dog, _FUR),
    "horse": _Kind(_horse, "8a5028 5a3420 c89060 f0ece4 302824"),
    "motorbike": _Kind(_motorbike, _PAINT),
    "person": _Kind(_person, _PAINT + " c060a0 e08030"),
    "pottedplant": _Kind(_pottedplant, "2f8a3a 5aa040 1f6a3a 88b040"),
    "sheep": _Kind(_sheep, "f4f0e6 e0d8c8 cfc8ba"),
    "sofa": _Kind(_sofa, "8a2f2a 2f4a7a 5a4a3a 6a7a4a 7a6a8a 303438"),
    "train": _Kind(_train, "c03028 2f5a9a 2f7a4a 8a8f96 e08030"),
    "tvmonitor": _Kind(_tvmonitor, "3a6a9a 2a3a4a 60a0a0 8a6a9a 101418"),
}
_GROUNDS = (
    ("a9cdea", "7d9148"), ("6d9a44", "2f5a22"), ("9fbfc4", "4c7d94"), ("c2b878", "8a7a4a"),
    ("d8cfc0", "8a6a4a"), ("c8ccd0", "6a6e74"), ("e0d4c4", "a89080"), ("8d7f86", "4a444c"),
)  # fmt: skip


class _Placed(NamedTuple):
    name: str
    parts: list[tuple[np.ndarray, np.ndarray]]  # polygon in pixels, colour (3,)
    difficult: bool


class Drawn(NamedTuple):
    """A picture and what is in it: (name, (xmin, ymin, xmax, ymax), difficult) of each object."""

    image: Image.Image
    objects: list[tuple[str, tuple[int, int, int, int], bool]]


def draw_scene(rng: np.random.Generator) -> Drawn:
    """Draw one picture (RGB, 62 to 112 pixels a side)."""
    longer = rng.uniform(*_LONGER_SIDE)
    sides = [round(longer), round(longer / rng.uniform(1.05, _ASPECT))]
    width, height = sides if rng.random() < 0.7 else sides[::-1]
    canvas = _ground(2 * width, 2 * height, rng)  # drawn at twice the size: averaging smooths edges
    objects = [_place(name, hard, canvas, rng) for name, hard in _choose(rng)]
    # Large ones lie behind small ones, so that nothing is hidden as a whole.
    objects.sort(key=lambda o: -float(np.ptp(np.concatenate([p for p, _ in o.parts]), 0).max()))
    draw = ImageDraw.Draw(canvas)
    for placed in objects:
        for polygon, colour in placed.parts:
            fill = tuple(np.clip(colour, 0, 255).astype(int).tolist())
            draw.polygon(polygon.ravel().tolist(), fill=fill)
    pixels = np.asarray(canvas.reduce(2), np.float32) * np.float32(rng.uniform(0.75, 1.15))
    pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(
        rng.uniform(*_GRAIN)
    )
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Drawn(image, [(o.name, _bounds(o, width, height), o.difficult) for o in objects])


def _choose(rng: np.random.Generator) -> list[tuple[str, bool]]:
    """Choose what a picture shows: (class, difficult) of each object."""
    chances = np.array([FREQUENCY[name] for name in VOC_CLASSES])
    shown = np.flatnonzero(rng.random(len(chances)) < chances)
    if len(shown) == 0:
        shown = rng.choice(len(chances), 1, p=chances / chances.sum())
    shown = rng.permutation(shown)[:_MOST_CLASSES]
    chosen = []
    for label in shown:
        for _ in range(1 + int(rng.random() < _AGAIN)):
            chosen.append((VOC_CLASSES[label], bool(rng.random() < _DIFFICULT)))
    return chosen


def _place(name: str, difficult: bool, canvas: Image.Image, rng: np.random.Generator) -> _Placed:
    """Scale, turn, mirror, colour and place an object in a canvas."""
    kind = _KINDS[name]
    colours = kind.colours.split()
    parts = kind.draw(colours[rng.integers(len(colours))])
    frame = np.array(canvas.size, dtype=float)
    angle = np.radians(rng.uniform(-_TURN, _TURN))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shape = np.array([rng.choice((-1.0, 1.0)), 1.0]) * rng.uniform(0.85, 1.15, 2)
    scale = rng.uniform(*(_DIFFICULT_SIZE if difficult else _SIZE)) * frame.max()
    moved = [(points * shape @ turn * scale, colour) for points, colour in parts]
    every = np.concatenate([points for points, _ in moved])
    low, high = every.min(0), every.max(0)
    centre = rng.uniform(0.0, 1.0, 2) * np.maximum(frame - (high - low), 0)
    tint = rng.normal(0, _TINT, 3)
    ground = np.asarray(canvas, np.float32).mean((0, 1))
    pale = _PALE if difficult else 0.0
    return _Placed(
        name,
        [(p - low + centre, (_rgb(c) + tint) * (1 - pale) + ground * pale) for p, c in moved],
        difficult,
    )


def _bounds(placed: _Placed, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the object's box in pixels of the picture, counted from 1 as VOC does."""
    every = np.concatenate([points for points, _ in placed.parts]) / 2
    low, high = np.floor(every.min(0)).astype(int), np.ceil(every.max(0)).astype(int)
    left, top = max(1, int(low[0]) + 1), max(1, int(low[1]) + 1)
    return left, top, max(left, min(width, int(high[0]))), max(top, min(height, int(high[1])))


def _rgb(colour: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colour), np.uint8).astype(np.float32)


def _ground(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Two colours that flow into each other, with blots and strokes of any class's colours."""
    upper, lower = (_rgb(c) + rng.normal(0, 14, 3) for c in _GROUNDS[rng.integers(len(_GROUNDS))])
    mix = np.clip(np.linspace(0, 1, 6)[:, None, None] + rng.normal(0, 0.2, (6, 6, 1)), 0, 1)
    tones = np.clip(upper * (1 - mix) + lower * mix, 0, 255).astype(np.uint8)
    image = Image.fromarray(tones).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    palette = [c for kind in _KINDS.values() for c in kind.colours.split()]
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.random(2) * image.size
        rx, ry = rng.uniform(0.015, 0.09, 2) * max(image.size)
        shape = (_oval if rng.random() < 0.5 else _blot)(x, y, rx, ry)
        fill = np.clip(_rgb(palette[rng.integers(len(palette))]) + rng.normal(0, 20, 3), 0, 255)
        draw.polygon(shape.ravel().tolist(), fill=tuple(fill.astype(int).tolist()))
    return image


def _blot(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _box(x - rx, y - ry, x + rx, y + ry)


# --- folders ---


def make_voc(
    root: str | os.PathLike[str], train: int = TRAIN, val: int = VAL, seed: int = 0
) -> Path:
    """Write a generated devkit; picture k of a list depends on seed, list and k alone.

    Args:
        root: folder to make; it must not hold anything yet.
        train: pictures in train.txt.
        val: pictures in val.txt.
        seed: of everything that is drawn at random.

    Returns:
        `root` as a path.

    Raises:
        UserError: `root` is not empty, or a number is below 1.
        OSError: `root` cannot be written.
    """
    root = Path(root)
    if min(train, val) < 1:
        raise UserError("make_voc: at least one picture in each list is needed")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"make_voc: {root} is not empty: choose another folder or empty it")
    folder = root / FOLDER
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    labels: dict[str, dict[str, dict[str, int]]] = {}
    number = 0
    for place, (split, count) in enumerate((("train", train), ("val", val))):
        labels[split] = {}
        for k in range(count):
            number += 1
            rng = np.random.default_rng((seed, place, k))
            drawn = draw_scene(rng)
            name = f"synthetic_{number:06}"
            drawn.image.save(
                folder / "JPEGImages" / f"{name}.jpg", quality=int(rng.integers(70, 95))
            )
            _write_annotation(folder, name, drawn)
            labels[split][name] = _labels(drawn)
    _write_lists(folder / "ImageSets/Main", labels)
    about = {"description": SYNTHETIC, "seed": seed, "folder": FOLDER, "train": train, "val": val}
    (root / "README.txt").write_text(_README.format(**about))
    made_once.note_contents(root)
    return root


def _labels(drawn: Drawn) -> dict[str, int]:
    """Return class -> 1 or 0 (only difficult objects) of what a picture shows."""
    found: dict[str, int] = {}
    for name, _, difficult in drawn.objects:
        found[name] = max(found.get(name, 0), int(not difficult))
    return found


def _write_annotation(folder: Path, name: str, drawn: Drawn) -> None:
    """Write a picture's XML, as VOC's are."""
    top = Element("annotation")
    SubElement(top, "folder").text = folder.name
    SubElement(top, "filename").text = f"{name}.jpg"
    SubElement(SubElement(top, "source"), "database").text = SYNTHETIC
    size = SubElement(top, "size")
    for field, value in zip(("width", "height", "depth"), (*drawn.image.size, 3), strict=True):
        SubElement(size, field).text = str(value)
    SubElement(top, "segmented").text = "0"
    for label, box, difficult in drawn.objects:
        node = SubElement(top, "object")
        fields = {"name": label, "pose": "Unspecified", "truncated": "0"}
        for field, value in (fields | {"difficult": str(int(difficult))}).items():
            SubElement(node, field).text = value
        bounds = SubElement(node, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            SubElement(bounds, side).text = str(value)
    indent(top, "\t")
    ElementTree(top).write(folder / "Annotations" / f"{name}.xml", encoding="unicode")


def _write_lists(folder: Path, labels: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Write the lists of images and, per class, of labels."""
    whole = {**labels, "trainval": {k: v for split in labels.values() for k, v in split.items()}}
    for split, images in whole.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for label in VOC_CLASSES:
            lines = [f"{name} {found.get(label, -1):2}\n" for name, found in images.items()]
            (folder / f"{label}_{split}.txt").write_text("".join(lines))


def default_voc() -> Path:
    """Return the root of the embedded data set, made on first use in the cache.

    It is made again when this module changes, or when files are missing (caches get tidied up).

    Raises:
        UserError: the cache cannot be written.
    """
    return _default_voc(cache_dir())


@functools.lru_cache(maxsize=4)  # checked once per process: two thousand files
def _default_voc(cache: Path) -> Path:
    return made_once.folder(cache, "synthetic-voc", Path(__file__), make_voc)
