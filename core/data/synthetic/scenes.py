"""A generated data set in Pascal VOC's layout, for when no data is given.

Its classes are VOC's twenty. Each picture holds drawn objects of one to four classes, in other
sizes, places, turns and colours, on a cluttered ground; persons are frequent, cows and sheep are
rare, and some objects are small, pale and marked difficult. A small network can learn them, none
ranks them without mistakes. How well it does says nothing about photographs: `SYNTHETIC` says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from PIL import Image, ImageDraw

from core.data import folders
from core.data.annotations import VOC_CLASSES
from core.data.synthetic.objects import KINDS, oval, rectangle
from core.errors import UserError
from core.storage import cache

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
    noise = rng.standard_normal(pixels.shape, np.float32)
    pixels = pixels + noise * np.float32(rng.uniform(*_GRAIN))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Drawn(image, [(o.name, _bounds(o, width, height), o.difficult) for o in objects])


def _choose(rng: np.random.Generator) -> list[tuple[str, bool]]:
    """Choose what a picture shows: (class, difficult) of each object."""
    chances = np.array([FREQUENCY[name] for name in VOC_CLASSES])
    shown = np.flatnonzero(rng.random(len(chances)) < chances)
    if len(shown) == 0:
        shown = rng.choice(len(chances), 1, p=chances / chances.sum())
    return [
        (VOC_CLASSES[label], bool(rng.random() < _DIFFICULT))
        for label in rng.permutation(shown)[:_MOST_CLASSES]
        for _ in range(1 + int(rng.random() < _AGAIN))
    ]


def _place(name: str, difficult: bool, canvas: Image.Image, rng: np.random.Generator) -> _Placed:
    """Scale, turn, mirror, colour and place an object in a canvas."""
    kind = KINDS[name]
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
    pale = _PALE if difficult else 0.0
    ground = np.asarray(canvas, np.float32).mean((0, 1)) * pale
    seen = [(p - low + centre, (_rgb(c) + tint) * (1 - pale) + ground) for p, c in moved]
    return _Placed(name, seen, difficult)


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
    palette = [c for kind in KINDS.values() for c in kind.colours.split()]
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.random(2) * image.size
        rx, ry = rng.uniform(0.015, 0.09, 2) * max(image.size)
        shape = (oval if rng.random() < 0.5 else _blot)(x, y, rx, ry)
        fill = np.clip(_rgb(palette[rng.integers(len(palette))]) + rng.normal(0, 20, 3), 0, 255)
        draw.polygon(shape.ravel().tolist(), fill=tuple(fill.astype(int).tolist()))
    return image


def _blot(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return rectangle(x - rx, y - ry, x + rx, y + ry)


# --- folders ---


def make_voc(
    root: str | os.PathLike[str], train: int = TRAIN, val: int = VAL, seed: int = 0
) -> Path:
    """Write a generated devkit and return its path.

    Picture k of a list depends on seed, list and k alone. Raises UserError: `root` is not empty, or
    a number is below 1; OSError: `root` cannot be written.

    Args:
        root: folder to make; it must not hold anything yet.
        train: pictures in train.txt.
        val: pictures in val.txt.
        seed: of everything that is drawn at random.
    """
    if min(train, val) < 1:
        raise UserError("make_voc: at least one picture in each list is needed")
    root = folders.new(root, "make_voc")
    folder = root / FOLDER
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    labels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "val": {}}
    for place, (split, count) in enumerate((("train", train), ("val", val))):
        for k in range(count):
            name = f"synthetic_{place * train + k + 1:06}"
            rng = np.random.default_rng((seed, place, k))
            labels[split][name] = _write_picture(folder, name, rng)
    _write_lists(folder / "ImageSets/Main", labels)
    about = {"description": SYNTHETIC, "seed": seed, "folder": FOLDER, "train": train, "val": val}
    (root / "README.txt").write_text(_README.format(**about))
    cache.note_contents(root)
    return root


def _write_picture(folder: Path, name: str, rng: np.random.Generator) -> dict[str, int]:
    """Draw and write a picture; return class -> 1 or 0 (only difficult ones) of what it shows."""
    drawn = draw_scene(rng)
    drawn.image.save(folder / "JPEGImages" / f"{name}.jpg", quality=int(rng.integers(70, 95)))
    _write_annotation(folder, name, drawn)
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
    """Return the root of the embedded data set, made on first use; see `cache.folder`."""
    return _default_voc(cache.cache_dir())


@functools.lru_cache(maxsize=4)  # checked once per process: two thousand files
def _default_voc(place: Path) -> Path:
    parts = ("scenes.py", "objects.py", "objects.toml")
    sources = [Path(__file__).with_name(part) for part in parts]
    return cache.folder(place, "synthetic-voc", 1, sources, make_voc)
