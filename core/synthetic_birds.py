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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from core import made_once
from core.data import cache_dir
from core.errors import UserError

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

Band = tuple[float, float, float, str]  # direction in degrees, from, to (-1..1), colour
Shape = tuple[np.ndarray, str]  # polygon (points, 2) in body lengths, colour


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


SPECIES = (
    Species(
        "Asian Green Bee-Eater", body="4fb02c", head="58b52e", wing="3f9a2a", tail="3a8a30",
        beak="151515", legs="3a3030", depth=0.42, tilt=40, beak_length=0.34, beak_depth=0.06,
        beak_curve=0.08, leg_length=0.12, tail_length=0.85, tail_width=0.09,
        body_bands=((0, 0.5, 0.62, "101418"),),
        head_bands=((90, 0.35, 1, "d9902a"), (-70, 0.35, 1, "35b5c0"), (90, -0.05, 0.25, "101010")),
        wing_bands=((180, 0.55, 1, "b5772a"),),
    ),
    Species(
        "Brown-Headed Barbet", body="3fa32d", head="8a6a4a", wing="2f8f22", tail="2a7a3a",
        beak="e0602a", legs="c9a04a", depth=0.62, tilt=45, head_size=0.24, beak_length=0.27,
        beak_depth=0.19, leg_length=0.12, tail_length=0.3, tail_width=0.2,
        body_bands=((0, 0.15, 1, "9a7a58"), (0, 0.35, 0.45, "cbb594"), (0, 0.6, 0.68, "cbb594")),
        eye_ring="f08a24", eye="3a1a10",
    ),
    Species(
        "Cattle Egret", body="fbfaf6", head="f6efe0", wing="fbfaf6", tail="f2f0ea", beak="f0a41a",
        legs="4a4a38", depth=0.44, tilt=25, neck=0.62, head_size=0.14, beak_length=0.32,
        beak_depth=0.09, leg_length=0.62, tail_length=0.18, tail_width=0.2,
        body_bands=((20, 0.6, 1, "f4c888"),), head_bands=((110, 0.1, 1, "eaa85a"),),
    ),
    Species(
        "Common Kingfisher", body="e8792a", head="2478c8", wing="1f86d0", tail="1a62b0",
        beak="181818", legs="d8402a", depth=0.56, tilt=50, head_size=0.25, beak_length=0.5,
        beak_depth=0.09, leg_length=0.08, tail_length=0.2, tail_width=0.18,
        body_bands=((110, 0.35, 1, "38b8ec"),),
        head_bands=((-90, 0.45, 1, "f6f2ea"), (-90, -0.1, 0.3, "e8792a"), (180, 0.62, 1, "f6f2ea")),
        wing_bands=((0, 0.6, 1, "2c9ade"),),
    ),
    Species(
        "Common Myna", body="84502f", head="17130f", wing="6b4026", tail="18120e", beak="f4c21c",
        legs="f2c01e", depth=0.56, tilt=25, head_size=0.2, beak_length=0.2, leg_length=0.36,
        tail_length=0.36, tail_width=0.2,
        body_bands=((0, 0.62, 1, "2a1e16"), (-120, 0.6, 1, "ece4d8")),
        wing_bands=((180, 0.25, 0.5, "ffffff"), (180, 0.5, 1, "1c1410")),
        tail_bands=((180, 0.65, 1, "ffffff"),), eye_ring="f6cc20", eye="70401c",
    ),
    Species(
        "Common Rosefinch", body="d8405a", head="cc1f3c", wing="7c5446", tail="6a4a40",
        beak="6e5a50", legs="7a5a4c", depth=0.6, tilt=35, head_size=0.22, beak_length=0.15,
        beak_depth=0.16, leg_length=0.2, tail_length=0.42, tail_width=0.15,
        body_bands=((-120, 0.1, 1, "f0d6d4"),), wing_bands=((180, -0.2, -0.05, "e8b4ac"),),
    ),
    Species(
        "Common Tailorbird", body="efe6cc", head="c0501e", wing="93a83a", tail="8a9a38",
        beak="7a5a44", legs="dca070", depth=0.6, tilt=28, head_size=0.23, beak_length=0.28,
        beak_depth=0.06, leg_length=0.42, tail_length=0.62, tail_width=0.1, tail_angle=-75,
        body_bands=((100, 0.3, 1, "9cae3e"),), head_bands=((-80, 0.05, 1, "efe6cc"),),
    ),
    Species(
        "Coppersmith Barbet", body="cfe0a0", head="2c7c2a", wing="3c9a2e", tail="2e7c34",
        beak="141414", legs="d84028", depth=0.7, tilt=52, head_size=0.27, beak_length=0.17,
        beak_depth=0.14, leg_length=0.1, tail_length=0.18, tail_width=0.18,
        body_bands=((0, 0.42, 0.66, "d81e24"), (0, 0.66, 1, "f6d424"), (-90, 0.0, 0.14, "4f8a3c"),
                    (-90, 0.34, 0.48, "4f8a3c")),
        head_bands=((0, 0.55, 1, "d81e24"), (-90, 0.4, 1, "f6d424"), (-90, 0.12, 0.4, "141414")),
        eye_ring="f8dc30",
    ),
    Species(
        "Forest Wagtail", body="f4ecd6", head="8c7c5a", wing="2c2822", tail="3a342c", beak="8a6a5a",
        legs="e8a890", depth=0.46, tilt=12, head_size=0.18, beak_length=0.17, beak_depth=0.06,
        leg_length=0.3, tail_length=0.72, tail_width=0.1,
        body_bands=((90, 0.35, 1, "8c7c5a"), (0, 0.42, 0.54, "1c1814"), (0, 0.68, 0.82, "1c1814")),
        head_bands=((90, 0.2, 0.42, "f6f0e0"), (-90, 0.3, 1, "f6f0e0")),
        wing_bands=((180, -0.5, -0.25, "f4e8a8"), (180, 0.1, 0.35, "f4e8a8")),
    ),
    Species(
        "Gray Wagtail", body="f8e02c", head="74828e", wing="5a6670", tail="1c1e20", beak="2a2a2a",
        legs="8a7068", depth=0.44, tilt=10, head_size=0.17, beak_length=0.17, beak_depth=0.05,
        leg_length=0.3, tail_length=0.95, tail_width=0.11,
        body_bands=((90, 0.25, 1, "74828e"),),
        head_bands=((90, 0.15, 0.38, "f4f4f0"), (-80, 0.4, 1, "141414")),
    ),
    Species(
        "Hoopoe", body="e8a468", head="eaa262", wing="161310", tail="161310", beak="3c342e",
        legs="6a5a50", depth=0.46, tilt=18, head_size=0.17, beak_length=0.5, beak_depth=0.06,
        beak_curve=0.14, leg_length=0.22, tail_length=0.45, tail_width=0.17, crest="fan",
        crest_colours=("eb9a50", "141210"), body_bands=((-150, 0.5, 1, "f6ece0"),),
        wing_bands=((180, -0.65, -0.4, "fbf6ee"), (180, -0.12, 0.12, "fbf6ee"),
                    (180, 0.38, 0.6, "fbf6ee")),
        tail_bands=((180, 0.0, 0.35, "fbf6ee"),),
    ),
    Species(
        "House Crow", body="3a3a40", head="0d0d10", wing="111118", tail="0e0e14", beak="0c0c0c",
        legs="141414", depth=0.52, tilt=22, head_size=0.2, beak_length=0.3, beak_depth=0.14,
        beak_curve=0.04, leg_length=0.36, tail_length=0.46, tail_width=0.2,
        body_bands=((25, 0.3, 1, "9c9a9c"), (-120, 0.3, 1, "222228")),
        head_bands=((180, 0.35, 1, "9c9a9c"),),
    ),
    Species(
        "Indian Grey Hornbill", body="a8a49c", head="a29c92", wing="88847c", tail="86827c",
        beak="dcb04c", legs="5a5650", depth=0.46, tilt=42, head_size=0.2, beak_length=0.5,
        beak_depth=0.2, beak_curve=0.2, leg_length=0.14, tail_length=0.85, tail_width=0.17,
        crest="casque", crest_colours=("1c1a18", "1c1a18"), body_bands=((-90, 0.3, 1, "dedad2"),),
        tail_bands=((180, 0.45, 0.72, "1e1c1a"), (180, 0.72, 1, "f6f4f0")),
        head_bands=((-90, -0.1, 0.5, "5c5852"),), eye="b02818",
    ),
    Species(
        "Indian Peacock", body="1a4fc0", head="1846c8", wing="cbb48c", tail="2f8a4a", beak="8a8478",
        legs="8a8070", depth=0.5, tilt=28, neck=0.55, head_size=0.12, beak_length=0.12,
        leg_length=0.42, tail_length=0.5, tail_width=0.34, crest="tuft", train=True,
        crest_colours=("1c3f9a", "2a6ad8"), body_bands=((180, 0.35, 1, "1f8a5a"),),
        head_bands=((90, -0.15, 0.25, "f6f6f4"),),
        wing_bands=((180, -0.5, -0.3, "50402c"), (180, -0.05, 0.15, "50402c"),
                    (180, 0.45, 1, "b4642c")),
    ),
    Species(
        "Indian Pitta", body="ecc27a", head="c98a3c", wing="2f9a5c", tail="1a2a30", beak="b07a5c",
        legs="e8a890", depth=0.62, tilt=38, head_size=0.23, beak_length=0.22, beak_depth=0.1,
        leg_length=0.36, tail_length=0.14, tail_width=0.16,
        body_bands=((-140, 0.35, 1, "dc2434"),),
        head_bands=((90, -0.15, 0.3, "101010"), (-90, 0.4, 1, "fbf6ec")),
        wing_bands=((0, 0.35, 1, "36bdf0"), (180, 0.5, 1, "141a1c")),
    ),
    Species(
        "Indian Roller", body="b07c6c", head="b8846c", wing="1c3fae", tail="1a48a8", beak="1c1a1a",
        legs="b08a50", depth=0.54, tilt=38, head_size=0.23, beak_length=0.25, beak_depth=0.11,
        leg_length=0.14, tail_length=0.38, tail_width=0.18,
        body_bands=((-120, 0.0, 1, "6cc8e8"),), head_bands=((90, 0.35, 1, "2cb0c0"),),
        wing_bands=((0, 0.55, 1, "7c6a4c"), (180, -0.15, 0.3, "5cd0f4")),
        tail_bands=((180, 0.1, 0.6, "4cbcec"),), eye_ring="d88a4c",
    ),
    Species(
        "Jungle Babbler", body="a4865e", head="9a7e5a", wing="7a6044", tail="6e563c", beak="f2d26a",
        legs="e2bc74", depth=0.64, tilt=22, head_size=0.22, beak_length=0.19, beak_depth=0.1,
        leg_length=0.3, tail_length=0.66, tail_width=0.2, tail_angle=15, eye="f4ecc0",
        body_bands=((0, 0.45, 0.52, "846a48"), (0, 0.62, 0.69, "846a48")),
    ),
    Species(
        "Northern Lapwing", body="f8f6f2", head="14181a", wing="1f4a3c", tail="f2f0ec",
        beak="161616", legs="b06a60", depth=0.54, tilt=12, head_size=0.18, beak_length=0.14,
        beak_depth=0.06, leg_length=0.42, tail_length=0.26, tail_width=0.16, crest="wisp",
        body_bands=((0, 0.4, 1, "14181c"), (100, 0.4, 1, "24503f"), (-160, 0.6, 1, "d8742c")),
        head_bands=((200, 0.1, 0.8, "f4f2ee"),), wing_bands=((0, 0.3, 0.8, "6a3f70"),),
        tail_bands=((180, 0.5, 1, "121212"),),
    ),
    Species(
        "Red-Wattled Lapwing", body="faf8f4", head="121214", wing="a8845c", tail="f4f2ee",
        beak="e0261c", legs="f4d21e", depth=0.46, tilt=14, neck=0.14, head_size=0.16,
        beak_length=0.22, beak_depth=0.08, leg_length=0.72, tail_length=0.28, tail_width=0.15,
        body_bands=((20, 0.5, 1, "121214"),),
        head_bands=((180, 0.35, 1, "fbfaf6"), (0, 0.45, 1, "e0261c")),
        wing_bands=((180, 0.55, 1, "141414"),), tail_bands=((180, 0.35, 0.8, "141414"),),
        eye_ring="e0261c",
    ),
    Species(
        "Ruddy Shelduck", body="e07a1e", head="f2cf94", wing="d86c16", tail="14120f", beak="101010",
        legs="1c1a18", depth=0.5, tilt=4, neck=0.26, head_size=0.16, beak_length=0.2,
        beak_depth=0.1, leg_length=0.13, tail_length=0.18, tail_width=0.17,
        head_bands=((0, 0.3, 1, "f8e6c4"),),
        wing_bands=((180, 0.5, 1, "12100e"), (180, 0.25, 0.5, "1e7a4c"), (-90, 0.5, 1, "fbf6ea")),
    ),
    Species(
        "Rufous Treepie", body="d8803a", head="38322e", wing="d4d0ca", tail="b4b0ac", beak="26241f",
        legs="2c2824", depth=0.46, tilt=30, head_size=0.2, beak_length=0.2, beak_depth=0.12,
        leg_length=0.18, tail_length=1.1, tail_width=0.15, body_bands=((0, 0.5, 1, "443a34"),),
        wing_bands=((0, 0.6, 1, "b8642c"), (180, 0.25, 1, "161412")),
        tail_bands=((180, 0.5, 1, "121010"),),
    ),
    Species(
        "Sarus Crane", body="8c9cac", head="dc281c", wing="7c8ea0", tail="a4b2be", beak="a8a078",
        legs="dc6a74", depth=0.48, tilt=18, neck=1.0, head_size=0.12, beak_length=0.3,
        beak_depth=0.07, leg_length=1.0, tail_length=0.2, tail_width=0.26,
        head_bands=((90, 0.35, 1, "c8ccc4"),), wing_bands=((180, 0.6, 1, "4c545c"),),
        eye="e88a24",
    ),
    Species(
        "White Wagtail", body="fafafa", head="fafafa", wing="8c98a4", tail="121214", beak="141414",
        legs="1a1a1a", depth=0.5, tilt=14, head_size=0.2, beak_length=0.15, beak_depth=0.05,
        leg_length=0.34, tail_length=0.8, tail_width=0.13,
        body_bands=((90, 0.4, 1, "98a4b0"), (10, 0.55, 1, "121214")),
        head_bands=((150, 0.3, 1, "101012"), (-80, 0.6, 1, "101012")),
        wing_bands=((180, -0.1, 0.1, "fafafa"), (180, 0.35, 0.55, "fafafa"),
                    (180, 0.55, 1, "26282c")),
        tail_bands=((90, 0.5, 1, "fafafa"),),
    ),
    Species(
        "White-Breasted Kingfisher", body="7a3418", head="7c3214", wing="1c90e0", tail="1c80d4",
        beak="e02c1c", legs="e03a28", depth=0.56, tilt=46, head_size=0.26, beak_length=0.5,
        beak_depth=0.15, leg_length=0.08, tail_length=0.4, tail_width=0.18,
        body_bands=((0, 0.2, 1, "fcfaf6"),), head_bands=((-70, 0.4, 1, "fcfaf6"),),
        wing_bands=((0, 0.4, 0.7, "141820"), (0, 0.7, 1, "74300f"), (180, 0.6, 1, "141820")),
    ),
    Species(
        "White-Breasted Waterhen", body="fbfaf6", head="fbfaf6", wing="3c444c", tail="a8502c",
        beak="c8cc3a", legs="e4cc3c", depth=0.6, tilt=24, neck=0.12, head_size=0.18,
        beak_length=0.2, beak_depth=0.09, leg_length=0.6, tail_length=0.22, tail_width=0.18,
        tail_angle=-35, body_bands=((115, 0.1, 1, "3a4248"), (-165, 0.5, 1, "c0602c")),
        head_bands=((120, 0.25, 1, "3a4248"),),
    ),
)  # fmt: skip
CLASSES = tuple(species.name for species in SPECIES)


_T = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_T), np.sin(_T)], axis=1)


def _egg(a: float, b: float, taper: float = 0.0) -> np.ndarray:
    """Outline (20, 2) of an egg with semi-axes a, b; positive taper makes the front fuller."""
    egg = _CIRCLE * (a, b)
    egg[:, 1] *= 1 + taper * _CIRCLE[:, 0]
    return egg


def _ellipse(at: tuple[float, float], a: float, b: float) -> np.ndarray:
    """Outline (20, 2) of an ellipse around `at`."""
    return np.add(_egg(a, b), at)


def _turn(points: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate points (n, 2) anticlockwise about the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def _banded(outline: np.ndarray, colour: str, bands: tuple[Band, ...]) -> list[Shape]:
    """A part and its bands; the outline must be convex, so that a cut is a projection."""
    shapes: list[Shape] = [(outline, colour)]
    for degrees, low, high, band_colour in bands:
        axis = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        along = outline @ axis
        middle, half = (along.max() + along.min()) / 2, np.ptp(along) / 2
        cut = np.clip(along, middle + low * half, middle + high * half)
        shapes.append((outline + (cut - along)[:, None] * axis, band_colour))
    return shapes


def _moved(shapes: list[Shape], degrees: float, offset: tuple[float, float]) -> list[Shape]:
    """Turn shapes about the origin, then shift them."""
    return [(_turn(points, degrees) + offset, colour) for points, colour in shapes]


def _tail(sp: Species) -> list[Shape]:
    width, length = sp.tail_width / 2, sp.tail_length
    if sp.train:
        return _train(length * 2.2)
    outline = np.array(
        [(0.1, width), (-length, width * 1.25), (-length, -width * 1.25), (0.1, -width)]
    )
    return _banded(outline, sp.tail, sp.tail_bands)


def _train(length: float) -> list[Shape]:
    """A peacock's train, folded: a long green wedge with eyespots."""
    wedge = np.array(
        [(0.1, 0.15), (-length, 0.3), (-length * 1.08, 0), (-length, -0.3), (0.1, -0.15)]
    )
    shapes: list[Shape] = [(wedge, "2f7a3c"), (wedge * (0.97, 0.6), "4f9a3a")]
    for row, x in enumerate(np.linspace(-0.3, -0.97, 5) * length):
        for y in np.linspace(-0.2, 0.2, 2 + row % 2) * (0.6 - x * 0.6):
            shapes += [
                (_ellipse((x, y), 0.075, 0.06), "c8a03c"),
                (_ellipse((x, y), 0.045, 0.035), "1846b8"),
            ]
    return shapes


def _beak(sp: Species) -> list[Shape]:
    """Beak along +x from the origin, bent down quadratically."""
    x = np.linspace(0, 1, 6)
    middle = -sp.beak_curve * x**2
    half = sp.beak_depth / 2 * (1 - x) ** 0.8
    upper = np.stack([x * sp.beak_length, middle + half], axis=1)
    lower = np.stack([x * sp.beak_length, middle - half], axis=1)
    return [(np.concatenate([upper, lower[::-1]]), sp.beak)]


def _crest(sp: Species) -> list[Shape]:
    """Crest on a head of radius 1 at the origin."""
    inner, outer = sp.crest_colours
    if sp.crest == "fan":  # raised feathers, each tipped
        shapes: list[Shape] = []
        for angle in (75, 97, 119, 141, 163):
            feather = np.array([(0.5, -0.2), (2.3, -0.3), (2.6, 0), (2.3, 0.3), (0.5, 0.2)])
            shapes += _banded(_turn(feather, angle), inner, ((angle, 0.62, 1, outer),))
        return shapes
    if sp.crest == "wisp":
        wisp = np.array([(0.2, 0.7), (-1.4, 1.5), (-2.6, 2.6), (-1.2, 1.1), (-0.6, 0.4)])
        return [(wisp, outer)]
    if sp.crest == "tuft":  # bare shafts with a fan of tips
        return [
            shape
            for angle in (80, 98, 116, 134)
            for shape in (
                (_turn(np.array([(0.6, -0.1), (2.6, -0.1), (2.6, 0.1), (0.6, 0.1)]), angle), inner),
                (_turn(_ellipse((2.8, 0), 0.4, 0.32), angle), outer),
            )
        ]
    if sp.crest == "casque":
        return [(np.array([(0.1, 0.5), (0.6, 1.35), (2.0, 0.75), (2.3, 0.1), (0.9, 0.3)]), outer)]
    return []


def _head(sp: Species, nod: float) -> list[Shape]:
    """Head at the origin with crest, beak and eye, turned by `nod` degrees."""
    r = sp.head_size
    beak = _moved(_beak(sp), 0, (r * 0.82, -0.05 * r))
    crest = [(points * r, colour) for points, colour in _crest(sp)]
    eye_at = (0.32 * r, 0.18 * r)
    eye: list[Shape] = [(_ellipse(eye_at, 0.2 * r, 0.2 * r), sp.eye)]
    if sp.eye_ring:
        eye.insert(0, (_ellipse(eye_at, 0.42 * r, 0.36 * r), sp.eye_ring))
    skull = _banded(_egg(r * 1.08, r), sp.head, sp.head_bands)
    front, behind = (crest, []) if sp.crest == "casque" else ([], crest)
    return _moved([*behind, *beak, *skull, *front, *eye], nod, (0.0, 0.0))


def _leg(sp: Species, x: float, stride: float) -> list[Shape]:
    width, length = 0.022, sp.leg_length
    top, foot = (x, 0.0), (x + stride, -sp.depth / 2 - length)
    shin = [(top[0] - width, 0), (top[0] + width, 0), (foot[0] + width, foot[1]),
            (foot[0] - width, foot[1])]  # fmt: skip
    toes = [(foot[0] - 0.06, foot[1] - 0.02), (foot[0] + 0.12, foot[1] - 0.03), foot]
    return [(np.array(shin), sp.legs), (np.array(toes), sp.legs)]


def _pose(sp: Species, rng: np.random.Generator) -> list[Shape]:
    """All shapes of one bird facing right, back to front, in body lengths (y up)."""
    tilt = sp.tilt + rng.uniform(-9, 9)
    half = sp.depth / 2
    body = _banded(_egg(0.5, half, 0.18), sp.body, sp.body_bands)
    tail = _moved(_tail(sp), sp.tail_angle + rng.uniform(-10, 10), (-0.44, 0.02))
    wing = _banded(_egg(0.42, half * 0.6, 0.35), sp.wing, sp.wing_bands)
    raised = rng.uniform(-6, 10) if rng.random() < 0.85 else rng.uniform(-50, -25)
    wing = _moved(wing, raised, (-0.12, half * 0.18))
    shoulder = _turn(np.array([[0.36, half * 0.3]]), tilt)[0]
    reach = sp.neck * rng.uniform(0.8, 1.1)
    lean = np.radians(rng.uniform(50, 85))
    along = (0.08 + reach * np.cos(lean), sp.head_size * 0.6 + reach * np.sin(lean))
    head_at = np.add(shoulder, along)
    stride = rng.uniform(-0.08, 0.08, 2)
    return [
        *_leg(sp, 0.04, stride[0]),
        *_leg(sp, -0.06, stride[1]),
        *_moved(tail, tilt, (0, 0)),
        *_moved(body, tilt, (0, 0)),
        *_neck(sp, shoulder, head_at),
        *((points + head_at, colour) for points, colour in _head(sp, rng.uniform(-15, 15))),
        *_moved(wing, tilt, (0, 0)),
    ]


def _neck(sp: Species, shoulder: np.ndarray, head_at: np.ndarray) -> list[Shape]:
    """A tapered neck from the body to the head: below in the body's colour, above in the head's."""
    if not sp.neck:
        return []
    direction = head_at - shoulder
    side = np.array([-direction[1], direction[0]]) / np.linalg.norm(direction)
    base, top, middle = sp.depth * 0.36, sp.head_size * 0.7, (shoulder + head_at) / 2
    waist = (base + top) / 2.4
    lower = [
        shoulder + side * base,
        middle + side * waist,
        middle - side * waist,
        shoulder - side * base,
    ]
    upper = [
        middle + side * waist,
        head_at + side * top,
        head_at - side * top,
        middle - side * waist,
    ]
    front = sp.body_bands[0][3] if sp.body_bands and sp.body_bands[0][0] < 90 else sp.body
    return [(np.array(lower), front), (np.array(upper), sp.head)]


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
    return (
        np.frombuffer(bytes.fromhex("".join(colours)), np.uint8).reshape(-1, 3).astype(np.float32)
    )


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
    return (_CIRCLE[::2] * axes) @ turn + rng.random((count, 1, 2)) * size


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
    shapes = [(_turn(points, turn) * mirror, colour) for points, colour in shapes]
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
    branch = [
        (0, y - slope),
        (width, y + slope),
        (width, y + slope + thick),
        (0, y - slope + thick),
    ]
    return np.array(branch)


def draw_bird(species: Species, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one picture (RGB, 66 to 140 pixels a side) and the mask of the bird (mode "1")."""
    width, height = _size(rng)
    # drawn at twice the size and averaged down: PIL's polygons have hard edges
    canvas = _background(2 * width, 2 * height, rng)
    mask = Image.new("L", canvas.size, 0)
    shapes = _placed(_pose(species, rng), 2 * width, 2 * height, rng)
    draw, draw_mask = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
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
    for polygon in polygons:
        draw_mask.polygon(polygon.ravel().tolist(), fill=255)
    for leaf in leaves:  # in front of the bird
        draw_mask.polygon(leaf.ravel().tolist(), fill=0)
    bird = mask.reduce(2).point([0] * 128 + [255] * 128)
    return _lit(canvas.reduce(2), rng), bird.convert("1", dither=Image.Dither.NONE)


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
    """Write an image folder of drawn birds, and a mask of each bird.

    Picture k of a class depends on seed, split, class and k alone, whatever else is written.

    Args:
        root: folder to make; it must not hold anything yet.
        classes: take the first of `SPECIES`, 2 to 25.
        train_per_class: pictures in each train/<class>/.
        val_per_class: pictures in each val/<class>/.
        seed: of everything that is drawn at random.

    Returns:
        `root` as a path.

    Raises:
        UserError: `root` is not empty, or a number is out of range.
        OSError: `root` cannot be written.
    """
    root = Path(root)
    if not 2 <= classes <= len(SPECIES):
        raise UserError(f"make_birds: classes must be 2 to {len(SPECIES)}, got {classes}")
    if min(train_per_class, val_per_class) < 1:
        raise UserError("make_birds: at least one picture of each class and split is needed")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"make_birds: {root} is not empty: choose another folder or empty it")
    counts = {"train": train_per_class, "val": val_per_class}
    for index, species in enumerate(SPECIES[:classes]):
        for place, (split, count) in enumerate(counts.items()):
            _write_class(root, split, species, count, (seed, place, index))
    (root / "README.txt").write_text(_README.format(description=SYNTHETIC, seed=seed, **counts))
    made_once.note_contents(root)
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
    """Return the folder of the embedded data set, made on first use in the cache.

    It is made again when this module changes, or when files are missing (caches get tidied up).

    Raises:
        UserError: the cache cannot be written.
    """
    return _default_birds(cache_dir())


@functools.lru_cache(maxsize=4)  # checked once per process: a few thousand files
def _default_birds(cache: Path) -> Path:
    return made_once.folder(cache, "synthetic-birds", Path(__file__), make_birds)
