"""A generated image folder of 25 bird species: what a study runs on when no data is given.

The species are those of the "25 Indian bird species" set that the normalisation lab uses (Kaggle,
arjunbasandrai/25-indian-bird-species-with-226-images), so that everything which names a class works
on both. The pictures are drawn, not photographed: each species has its own silhouette and plumage,
and each picture its own pose, scale, place, light, background and distractors in other birds'
colours. A linear model on the pixels cannot do much with them; a small convolutional network can.
Results on them say how methods compare, nothing about real birds: `SYNTHETIC` says so in reports.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from core.data import folders
from core.data.synthetic.poses import CIRCLE, Shape, pose, turned
from core.data.synthetic.species import SPECIES, Species
from core.errors import UserError
from core.storage import cache

SYNTHETIC = "Synthetic pictures of Indian bird species, drawn by labtune: no photographs"
TRAIN_PER_CLASS = 80
VAL_PER_CLASS = 40

_README = """{description}.

Nothing here is a photograph: labtune drew these pictures (seed {seed}) as a stand-in for a real
data set, so that a study runs without one. The class names are those of the Kaggle data set
"25 Indian bird species". How well a network tells these drawings apart says nothing about birds.

train/<class>/*.jpg         {train} pictures of each class
val/<class>/*.jpg           {val} pictures of each class
masks/<split>/<class>/*.png the visible pixels of the bird in the picture of that name, white
"""

# How much pictures of one species differ. Set so that the demo network learns the species in a few
# epochs while a linear model does not: it loses most by place and scale, the network least.
_LONGER_SIDE = (80, 140)  # pixels
_ASPECT = 1.2  # longer over shorter side, at most
_FILL = (0.75, 1.2)  # the bird's longer side over the frame's
_CUT = 0.4  # largest part of the frame by which the bird may be off the centre when it fills it
_TURN = 18  # degrees
_SCENE_SHIFT = 12  # standard deviations of colours, of 255: of a whole background,
_COAT = 3  # of a whole bird,
_PART = 3  # and of each of its parts
_DECOYS = (0, 3)  # blobs in birds' colours
_GAIN = (0.8, 1.05)  # exposure
_CAST = 0.03  # of each colour channel, relative
_SLOPE = 0.16  # light falls off by this share towards a side
_GRAIN = (1, 5)  # standard deviation of the noise of pixels, of 255
_LEAVES = (0, 3)  # in front of the bird


# far and near colours of a background, then the colours of what lies about in it
_SCENES = (
    ("a9cdea", "dfe9f0", "c4d8e6", "eef2f4", "8fb4d4", "6c8c50"),  # sky
    ("2f5a22", "6d9a44", "3f7a2c", "7fae4e", "27481c", "a3b860"),  # leaves
    ("4c7d94", "9fbfc4", "6b97a6", "b9d0d0", "3c6678", "7d8a5c"),  # water
    ("7d9148", "c2b878", "93a850", "d0c48a", "5c7434", "a08a52"),  # grass
    ("6a5440", "a48e70", "7c644a", "b8a284", "4c3c2c", "5f7440"),  # bark
    ("8d7f86", "d8bfae", "a8969a", "e4d2c2", "6c5f6a", "bda47c"),  # dusk
    ("1c2a20", "3c4c38", "24382a", "4c5c40", "141c16", "5a5a3c"),  # shade
    ("c88a4c", "e8c890", "b87438", "f0d8a8", "8c5a30", "d8a868"),  # dry grass at sunset
)
_BRANCHES = ("5a4632", "7a6a58", "4c5a34")


def _rgb(colours: Iterable[str]) -> np.ndarray:
    """Colours (n, 3), 0 to 255, of hexadecimal ones."""
    raw = bytes.fromhex("".join(colours))
    return np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.float32)


_SCENE_RGB = np.stack([_rgb(scene) for scene in _SCENES])
_PLUMAGE = _rgb(
    sorted(
        {colour for sp in SPECIES for colour in (sp.body, sp.head, sp.wing, sp.tail)}
        | {band[3] for sp in SPECIES for band in (*sp.body_bands, *sp.wing_bands)}
    )
)


def _paint(draw: ImageDraw.ImageDraw, polygons: Iterable[np.ndarray], colours: np.ndarray) -> None:
    """Fill polygons with colours (n, 3)."""
    fills = np.clip(colours, 0, 255).astype(np.uint8).tolist()
    for polygon, fill in zip(polygons, fills, strict=True):
        draw.polygon(polygon.ravel().tolist(), fill=tuple(fill))


def _blobs(
    rng: np.random.Generator, count: int, size: tuple[int, int], smallest: float, largest: float
) -> np.ndarray:
    """Leaves or pebbles (count, 10, 2) anywhere in a frame of `size` pixels."""
    axes = rng.uniform(smallest, largest, (count, 1, 2)) * min(size)
    angle = rng.uniform(0, np.pi, count)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]]).transpose(2, 0, 1)
    return (CIRCLE[::2] * axes) @ turn + rng.random((count, 1, 2)) * size


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A cluttered scene with blobs, some of them in the colours of birds."""
    scene = _SCENE_RGB[rng.integers(len(_SCENES))] + rng.normal(0, _SCENE_SHIFT, 3)
    coarse = rng.random((6, 6, 1)) * 0.7 + np.linspace(0, 0.5, 6)[:, None, None]
    tones = np.clip(scene[0] * (1 - coarse) + scene[1] * coarse, 0, 255).astype(np.uint8)
    image = Image.fromarray(tones).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    litter = rng.integers(2, len(scene), rng.integers(8, 20))
    blobs = _blobs(rng, len(litter), image.size, 0.03, 0.16)
    _paint(draw, blobs, scene[litter] + rng.normal(0, 10, (len(litter), 3)))
    decoys = _PLUMAGE[rng.integers(len(_PLUMAGE), size=rng.integers(*_DECOYS))]
    blobs = _blobs(rng, len(decoys), image.size, 0.03, 0.11)
    _paint(draw, blobs, decoys + rng.normal(0, 10, decoys.shape))
    return image


def _placed(shapes: list[Shape], width: int, height: int, rng: np.random.Generator) -> list[Shape]:
    """Scale, turn, mirror and place a bird in a frame of `width` x `height` pixels (y down)."""
    mirror = np.array([rng.choice((-1.0, 1.0)), -1.0]) * rng.uniform(0.92, 1.08, 2)
    turn = rng.uniform(-_TURN, _TURN)
    shapes = [(turned(points, turn) * mirror, colour) for points, colour in shapes]
    every = np.concatenate([points for points, _ in shapes])
    low, high = every.min(axis=0), every.max(axis=0)
    frame = np.array([width, height], dtype=float)
    scale = (frame / (high - low)).min() * rng.uniform(*_FILL)
    free = frame - (high - low) * scale
    offset = -low * scale + free / 2 + rng.uniform(-0.5, 0.5, 2) * np.maximum(free, _CUT * frame)
    return [(points * scale + offset, colour) for points, colour in shapes]


def _branch(shapes: list[Shape], width: int, rng: np.random.Generator) -> np.ndarray:
    """A branch under the feet, which are the lowest points of the first four shapes."""
    y = max(points[:, 1].max() for points, _ in shapes[:4])
    thick = rng.uniform(0.015, 0.04) * width
    slope = rng.uniform(-0.06, 0.06) * width
    left, right = y - slope, y + slope
    return np.array([(0, left), (width, right), (width, right + thick), (0, left + thick)])


def draw_bird(species: Species, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one picture (RGB, 66 to 140 pixels a side) and the mask of the bird (mode "1")."""
    width, height = _size(rng)
    # drawn at twice the size and averaged down: PIL's polygons have hard edges
    canvas = _background(2 * width, 2 * height, rng)
    shapes = _placed(pose(species, rng), 2 * width, 2 * height, rng)
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.6:
        branch = _rgb([_BRANCHES[rng.integers(len(_BRANCHES))]]) + rng.normal(0, 8, 3)
        _paint(draw, [_branch(shapes, 2 * width, rng)], branch)
    polygons = [points for points, _ in shapes]
    plumage = _rgb([colour for _, colour in shapes])
    coat = rng.normal(0, _COAT, 3) + rng.normal(0, _PART, plumage.shape)
    _paint(draw, polygons, plumage + coat)
    leaves = _blobs(rng, int(rng.integers(*_LEAVES)), canvas.size, 0.02, 0.08)
    greens = _SCENE_RGB[1][rng.integers(6, size=len(leaves))]
    _paint(draw, leaves, greens + rng.normal(0, 10, greens.shape))
    return _lit(canvas.reduce(2), rng), _mask(canvas.size, polygons, leaves)


def _mask(size: tuple[int, int], bird: list[np.ndarray], leaves: np.ndarray) -> Image.Image:
    """The pixels of a bird, at half the size, but for those of the leaves in front of it."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for polygons, fill in ((bird, 255), (leaves, 0)):
        for polygon in polygons:
            draw.polygon(polygon.ravel().tolist(), fill=fill)
    seen = mask.reduce(2).point([0] * 128 + [255] * 128)
    return seen.convert("1", dither=Image.Dither.NONE)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height, upright or across."""
    longer = rng.uniform(*_LONGER_SIDE)
    shorter = longer * rng.uniform(1 / _ASPECT, 1)
    sides = round(longer), round(shorter)
    return sides if rng.random() < 0.5 else sides[::-1]


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, a colour cast, exposure and sensor noise."""
    width, height = image.size
    across, down = rng.uniform(-_SLOPE, _SLOPE, 2)
    light = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, None]
    gain = rng.uniform(*_GAIN) * rng.uniform(1 - _CAST, 1 + _CAST, 3)
    pixels = np.asarray(image, np.float32) * light[:, :, None].astype(np.float32)
    pixels *= gain.astype(np.float32)
    pixels += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(*_GRAIN))
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


# --- folders ---


def make_birds(
    root: str | os.PathLike[str],
    classes: int = len(SPECIES),
    train_per_class: int = TRAIN_PER_CLASS,
    val_per_class: int = VAL_PER_CLASS,
    seed: int = 0,
) -> Path:
    """Write an image folder of drawn birds, and a mask of each bird; return its path.

    Picture k of a class depends on seed, split, class and k alone, whatever else is written. Raises
    UserError: `root` is not empty, or a number is out of range; OSError: `root` cannot be written.

    Args:
        root: folder to make; it must not hold anything yet.
        classes: take the first of `SPECIES`, 2 to 25.
        train_per_class: pictures in each train/<class>/.
        val_per_class: pictures in each val/<class>/.
        seed: of everything that is drawn at random.
    """
    if not 2 <= classes <= len(SPECIES):
        raise UserError(f"make_birds: classes must be 2 to {len(SPECIES)}, got {classes}")
    if min(train_per_class, val_per_class) < 1:
        raise UserError("make_birds: at least one picture of each class and split is needed")
    root = folders.new(root, "make_birds")
    counts = {"train": train_per_class, "val": val_per_class}
    for index, species in enumerate(SPECIES[:classes]):
        for place, (split, count) in enumerate(counts.items()):
            _write_class(root, split, species, count, (seed, place, index))
    (root / "README.txt").write_text(_README.format(description=SYNTHETIC, seed=seed, **counts))
    cache.note_contents(root)
    return root


def _write_class(
    root: Path, split: str, species: Species, count: int, seed: tuple[int, int, int]
) -> None:
    """Write `count` pictures and masks of one species."""
    pictures, masks = root / split / species.name, root / "masks" / split / species.name
    pictures.mkdir(parents=True)
    masks.mkdir(parents=True)
    for k in range(count):
        rng = np.random.default_rng((*seed, k))
        picture, mask = draw_bird(species, rng)
        picture.save(pictures / f"{k:04}.jpg", quality=int(rng.integers(60, 93)))
        mask.save(masks / f"{k:04}.png")


def default_birds() -> Path:
    """Return the folder of the embedded data set, made on first use; see `cache.folder`."""
    return _default_birds(cache.cache_dir())


@functools.lru_cache(maxsize=4)  # checked once per process: a few thousand files
def _default_birds(place: Path) -> Path:
    parts = ("birds.py", "poses.py", "species.py", "species.toml")
    sources = [Path(__file__).with_name(part) for part in parts]
    return cache.folder(place, "synthetic-birds", 1, sources, make_birds)
