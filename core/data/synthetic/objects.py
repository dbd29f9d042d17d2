"""The twenty kinds of object in the synthetic scenes, as coloured polygons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def _points(*xy: float) -> np.ndarray:
    return np.array(xy).reshape(-1, 2)


def _ring(x: float, y: float, r: float, width: float) -> np.ndarray:
    outer, inner = oval(x, y, r, r), oval(x, y, r - width, r - width)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _legs(xs: Sequence[float], top: float, bottom: float, width: float, colour: str) -> list[Part]:
    return [(rectangle(x - width / 2, top, x + width / 2, bottom), colour) for x in xs]


def _windows(count: int, left: float, right: float, top: float, bottom: float) -> list[Part]:
    step = (right - left) / count
    xs = [left + step * i for i in range(count)]
    return [(rectangle(x, top, x + step * 0.7, bottom), "bfe0f0") for x in xs]


# One function per class: its parts from back to front, about one unit wide, in the colour given.


def _aeroplane(c: str) -> list[Part]:
    return [
        (_points(-0.05, 0, 0.12, 0, -0.12, 0.3, -0.2, 0.3), "8d98a4"),
        (_points(-0.05, 0, 0.1, 0, -0.06, -0.22, -0.12, -0.22), "a4aeb8"),
        (oval(0, 0, 0.5, 0.075), c),
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
        (rectangle(-0.2, -0.18, -0.06, -0.14), "202020"),
        (_line(0.14, -0.22, 0.28, -0.2, 0.035), "202020"),
    ]


def _bird(c: str) -> list[Part]:
    return [
        (_points(-0.25, 0.0, -0.55, 0.08, -0.5, -0.06), c),
        (oval(-0.05, 0.0, 0.28, 0.16), c),
        (oval(0.22, -0.16, 0.12, 0.11), c),
        (_points(0.32, -0.18, 0.48, -0.13, 0.32, -0.1), "f0a020"),
        (_points(-0.2, -0.05, 0.12, -0.04, -0.12, 0.12), "6a5a4a"),
        (oval(0.25, -0.18, 0.025, 0.025), "101010"),
        *_legs((-0.05, 0.05), 0.14, 0.3, 0.025, "b07030"),
    ]


def _boat(c: str) -> list[Part]:
    return [
        (rectangle(-0.02, -0.5, 0.02, 0.1), "6a4a2a"),
        (_points(0.03, -0.48, 0.03, 0.06, 0.38, 0.06), "f4f0e6"),
        (_points(-0.03, -0.38, -0.03, 0.06, -0.28, 0.06), "e6e2d4"),
        (_points(-0.48, 0.12, 0.48, 0.12, 0.32, 0.3, -0.34, 0.3), c),
    ]


def _bottle(c: str) -> list[Part]:
    return [
        (_points(-0.06, -0.5, 0.06, -0.5, 0.06, -0.25, 0.15, -0.1, 0.15, 0.5, -0.15, 0.5, -0.15,
                 -0.1, -0.06, -0.25), c),
        (rectangle(-0.07, -0.54, 0.07, -0.46), "c8a050"),
        (rectangle(-0.15, 0.05, 0.15, 0.3), "f2ecd8"),
    ]  # fmt: skip


def _bus(c: str) -> list[Part]:
    return [
        (rectangle(-0.5, -0.28, 0.5, 0.22), c),
        *_windows(6, -0.46, 0.46, -0.2, -0.02),
        (rectangle(-0.5, 0.05, 0.5, 0.1), "f4f4f0"),
        (oval(-0.3, 0.22, 0.09, 0.09), "181818"),
        (oval(0.3, 0.22, 0.09, 0.09), "181818"),
    ]


def _car(c: str) -> list[Part]:
    return [
        (_points(-0.25, -0.02, -0.14, -0.2, 0.16, -0.2, 0.28, -0.02), c),
        (_points(-0.19, -0.03, -0.11, -0.16, 0.0, -0.16, 0.0, -0.03), "bfe0f0"),
        (_points(0.03, -0.03, 0.03, -0.16, 0.14, -0.16, 0.22, -0.03), "bfe0f0"),
        (_points(-0.5, 0.15, -0.48, 0.0, -0.25, -0.03, 0.3, -0.03, 0.5, 0.04, 0.5, 0.15), c),
        (oval(-0.28, 0.15, 0.1, 0.1), "181818"),
        (oval(0.28, 0.15, 0.1, 0.1), "181818"),
    ]


def _cat(c: str) -> list[Part]:
    return [
        (_line(0.2, 0.4, 0.42, 0.1, 0.07), c),
        (oval(0, 0.22, 0.25, 0.28), c),
        (_points(-0.24, -0.14, -0.22, -0.48, -0.04, -0.3), c),
        (_points(0.24, -0.14, 0.22, -0.48, 0.04, -0.3), c),
        (oval(0, -0.14, 0.25, 0.2), c),
        (oval(-0.1, -0.16, 0.045, 0.06), "d8e040"),
        (oval(0.1, -0.16, 0.045, 0.06), "d8e040"),
        (_points(-0.03, -0.06, 0.03, -0.06, 0, -0.02), "e08080"),
    ]


def _chair(c: str) -> list[Part]:
    return [
        (rectangle(-0.25, -0.5, -0.17, 0.05), c),
        (_points(-0.25, 0.0, 0.22, 0.0, 0.28, 0.09, -0.25, 0.09), c),
        (rectangle(-0.25, 0.05, -0.19, 0.5), c),
        (rectangle(0.2, 0.05, 0.26, 0.5), c),
        (rectangle(-0.17, -0.45, -0.12, -0.1), "3a2a1a"),
    ]


def _four_legs(c: str, legs: str, depth: float) -> list[Part]:
    return [
        *_legs((-0.28, -0.18, 0.16, 0.26), 0.05, 0.42, 0.07, legs),
        (oval(0, 0, 0.36, depth), c),
    ]


def _cow(c: str) -> list[Part]:
    return [
        *_four_legs(c, c, 0.2),
        (oval(-0.12, -0.06, 0.12, 0.09), "201c1a"),
        (oval(0.16, 0.04, 0.09, 0.09), "201c1a"),
        (oval(0.4, -0.14, 0.12, 0.1), c),
        (oval(0.48, -0.1, 0.05, 0.06), "e8a8a0"),
        (_line(0.34, -0.22, 0.3, -0.34, 0.035), "e8dcc0"),
        (_line(0.44, -0.22, 0.48, -0.34, 0.035), "e8dcc0"),
    ]


def _diningtable(c: str) -> list[Part]:
    return [
        *_legs((-0.4, 0.4), 0.0, 0.38, 0.06, c),
        (_points(-0.36, -0.16, 0.36, -0.16, 0.5, 0.02, -0.5, 0.02), c),
        (oval(-0.14, -0.08, 0.1, 0.035), "f4f4f0"),
        (oval(0.16, -0.06, 0.1, 0.035), "f4f4f0"),
    ]


def _dog(c: str) -> list[Part]:
    return [
        (_line(-0.32, -0.02, -0.46, -0.24, 0.06), c),
        *_legs((-0.26, -0.16, 0.12, 0.22), 0.05, 0.36, 0.07, c),
        (oval(-0.03, 0, 0.32, 0.14), c),
        (oval(0.3, -0.2, 0.14, 0.12), c),
        (oval(0.43, -0.16, 0.09, 0.06), c),
        (oval(0.5, -0.18, 0.03, 0.03), "101010"),
        (oval(0.22, -0.16, 0.05, 0.13), "4a3222"),
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
        (oval(-0.3, 0.16, 0.18, 0.18), "181818"),
        (oval(0.3, 0.16, 0.18, 0.18), "181818"),
        (oval(-0.3, 0.16, 0.07, 0.07), "a0a0a0"),
        (oval(0.3, 0.16, 0.07, 0.07), "a0a0a0"),
        (_points(-0.3, 0.12, -0.2, -0.08, 0.2, -0.12, 0.16, 0.16), c),
        (rectangle(-0.34, -0.14, -0.02, -0.06), "2a2a2a"),
        (_line(0.3, 0.16, 0.16, -0.26, 0.05), "8a8a8a"),
        (_line(0.08, -0.26, 0.22, -0.28, 0.04), "202020"),
    ]


def _person(c: str) -> list[Part]:
    return [
        (_line(-0.12, -0.18, -0.24, 0.12, 0.07), "e0b090"),
        (_line(0.12, -0.18, 0.24, 0.12, 0.07), "e0b090"),
        *_legs((-0.07, 0.07), 0.1, 0.5, 0.11, "2c3a5a"),
        (_points(-0.15, -0.24, 0.15, -0.24, 0.13, 0.14, -0.13, 0.14), c),
        (oval(0, -0.36, 0.1, 0.12), "e0b090"),
        (
            _points(-0.1, -0.36, -0.09, -0.46, 0.0, -0.5, 0.09, -0.46, 0.1, -0.36, 0, -0.42),
            "3a2618",
        ),
    ]


def _pottedplant(c: str) -> list[Part]:
    leaves = [(oval(x, y, 0.13, 0.1), c) for x, y in ((-0.16, -0.2), (0.16, -0.22), (0, -0.36),
              (-0.08, -0.1), (0.1, -0.08))]  # fmt: skip
    return [
        (rectangle(-0.02, -0.2, 0.02, 0.12), "4a6a2a"),
        *leaves,
        (_points(-0.2, 0.1, 0.2, 0.1, 0.14, 0.46, -0.14, 0.46), "b8603a"),
    ]


def _sheep(c: str) -> list[Part]:
    curls = [(oval(0.28 * np.cos(t), 0.16 * np.sin(t), 0.12, 0.1), c)
             for t in np.linspace(0, 2 * np.pi, 9)]  # fmt: skip
    return [
        *_legs((-0.2, -0.1, 0.1, 0.2), 0.1, 0.38, 0.05, "2a2622"),
        *curls,
        (oval(0, 0, 0.28, 0.16), c),
        (oval(0.4, -0.08, 0.09, 0.12), "2a2622"),
    ]


def _sofa(c: str) -> list[Part]:
    return [
        (rectangle(-0.42, -0.26, 0.42, 0.1), c),
        (rectangle(-0.4, 0.0, -0.01, 0.12), "e4d8c4"),
        (rectangle(0.01, 0.0, 0.4, 0.12), "e4d8c4"),
        (rectangle(-0.42, 0.12, 0.42, 0.26), c),
        (rectangle(-0.5, -0.08, -0.38, 0.26), c),
        (rectangle(0.38, -0.08, 0.5, 0.26), c),
        *_legs((-0.42, 0.42), 0.26, 0.32, 0.05, "302418"),
    ]


def _train(c: str) -> list[Part]:
    return [
        (_points(-0.5, -0.16, 0.3, -0.16, 0.5, 0.12, 0.5, 0.2, -0.5, 0.2), c),
        (_points(0.26, -0.1, 0.32, -0.1, 0.42, 0.05, 0.26, 0.05), "bfe0f0"),
        *_windows(5, -0.46, 0.2, -0.1, 0.02),
        (rectangle(-0.5, 0.08, 0.5, 0.12), "e8d040"),
        *[(oval(x, 0.23, 0.05, 0.05), "181818") for x in (-0.4, -0.2, 0.0, 0.2, 0.4)],
        (rectangle(-0.56, 0.27, 0.56, 0.3), "6a5a4a"),
    ]


def _tvmonitor(c: str) -> list[Part]:
    return [
        (rectangle(-0.45, -0.34, 0.45, 0.24), "202226"),
        (rectangle(-0.4, -0.29, 0.4, 0.19), c),
        (_points(-0.4, -0.29, -0.1, -0.29, -0.4, 0.05), "dceaf2"),
        (rectangle(-0.05, 0.24, 0.05, 0.34), "202226"),
        (rectangle(-0.2, 0.34, 0.2, 0.39), "202226"),
    ]


class _Kind(NamedTuple):
    draw: Callable[[str], list[Part]]
    colours: str  # of which one is taken for each object


_PAINT = "c03028 2858a8 e0c030 f0f0ec 2a2c30 2f8a4a 8a8f96"
_FUR = "8a5a34 d8b078 2c2622 f0ece4 a8704a 8c8a88"
_WOOD = "8a5a30 b8824a 5a3a22 d0b088 c8c4bc"
KINDS: dict[str, _Kind] = {
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
