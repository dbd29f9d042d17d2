"""Frost to lay over photos: a user's pictures, or ice that labtune draws.

The reference's frost photographs are not ours to ship. What labtune draws instead has feathers of
ice in patches of one direction each, and per texture the tint, the spread of brightness and the
share of fine detail (slope of the spectrum) that were measured on such photographs.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from scipy import fft, spatial
from torch import Tensor

from core.data.folders import EXTENSIONS
from core.errors import UserError

COUNT = 5  # textures in use: the reference never draws from its sixth


class _Ice(NamedTuple):
    """How a drawn texture looks."""

    tint: tuple[int, int, int]  # mean red, green and blue, in levels
    contrast: tuple[int, int, int]  # standard deviation of each, in levels
    levels: tuple[int, ...]  # brightness at `_QUANTILES` of the pixels
    slope: float  # of the fine detail's power spectrum over the frequency, both logarithmic
    drift: float  # share of slow changes across the texture in the spread of brightness, 0 to 1
    patches: int  # of one direction each


_SIZE = 480, 720  # height and width of a drawn texture, pixels
_QUANTILES = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
_DIRECTIONS = 8
_ICE = (
    _Ice(
        (78, 149, 166), (27, 16, 15), (75, 97, 109, 118, 129, 142, 155, 177, 215), -1.5, 0.72, 120
    ),
    _Ice(
        (201, 205, 214), (21, 22, 23), (95, 141, 177, 195, 210, 222, 231, 245, 255), -1.3, 0.66, 240
    ),
    _Ice(
        (201, 205, 214), (21, 22, 23), (95, 141, 177, 195, 210, 222, 231, 245, 255), -1.3, 0.62, 360
    ),
    _Ice(
        (138, 153, 165), (28, 28, 30), (45, 82, 116, 134, 152, 169, 186, 234, 255), -1.1, 0.52, 180
    ),
    _Ice((112, 123, 135), (44, 43, 42), (20, 45, 71, 92, 119, 151, 183, 238, 255), -1.5, 0.68, 150),
)


@functools.lru_cache(maxsize=8)
def textures(
    folder: Path | None, thinning: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return five textures (3, h, w) uint8 with h >= height and w >= width, those of the images.

    They are kept for the life of the process. Of the user's `folder` the first five pictures by
    name are taken; None: drawn ones. Smaller pictures are enlarged to 1.1 times what is needed.
    Every so manieth pixel of a row and column is kept as `thinning` says. Raises UserError: the
    folder has fewer than five pictures, or one cannot be read.
    """
    found = drawn() if folder is None else _pictures(folder)
    return tuple(
        torch.from_numpy(_fit(picture, thinning, height, width)).permute(2, 0, 1).contiguous()
        .to(device)
        for picture in found
    )  # fmt: skip


def _fit(picture: np.ndarray, thinning: int, height: int, width: int) -> np.ndarray:
    """Thin a picture (h, w, 3) without averaging, and enlarge it where it is too small."""
    rows, columns = (round(side / thinning) for side in picture.shape[:2])
    middle = slice(thinning // 2, None, thinning)
    picture = picture[middle, middle][:rows, :columns]
    rows, columns = picture.shape[:2]
    if rows >= height and columns >= width:
        return np.ascontiguousarray(picture)
    scale = 1.1 * max(height / rows, width / columns)
    size = int(np.ceil(columns * scale)), int(np.ceil(rows * scale))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _pictures(folder: Path) -> list[np.ndarray]:
    """Read the first five pictures of a folder, (h, w, 3) uint8 each."""
    if not folder.is_dir():
        raise UserError(f"frost_dir {folder} is not a folder: give one with {COUNT} pictures")
    names = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    if len(names) < COUNT:
        raise UserError(
            f"frost_dir {folder} has {len(names)} pictures where {COUNT} are needed: add some"
            " (.png or .jpg) or leave frost_dir out"
        )
    return [_picture(path) for path in names[:COUNT]]


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as e:
        raise UserError(
            f"frost_dir: {path} cannot be read as a picture: replace it or leave frost_dir out"
        ) from e


# --- drawing ---


@functools.cache
def drawn() -> tuple[np.ndarray, ...]:
    """Return labtune's own five textures, (480, 720, 3) uint8 each; the same ones every time."""
    return tuple(_draw(ice, number) for number, ice in enumerate(_ICE))


def _draw(ice: _Ice, number: int) -> np.ndarray:
    """Draw one texture."""
    random = np.random.Generator(np.random.Philox(number))
    fine = _spectrum(_feathers(random, ice.patches), ice.slope)
    slow = _spectrum(random.standard_normal(_SIZE), -5)
    field = ice.drift * slow + (1 - ice.drift**2) ** 0.5 * fine
    order = field.ravel().argsort(kind="stable")
    places = np.empty(order.size)
    places[order] = (np.arange(order.size) + 0.5) / order.size
    grey = np.interp(places, _QUANTILES, ice.levels).reshape(field.shape)
    grey = (grey - grey.mean()) / grey.std()
    colour = grey[..., None] * np.array(ice.contrast) + np.array(ice.tint)
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _feathers(random: np.random.Generator, patches: int) -> np.ndarray:
    """Return a field of ridges whose direction changes from patch to patch."""
    down, right = (fft.fftfreq(side) for side in _SIZE)
    down, right = down[:, None], right[None, : _SIZE[1] // 2 + 1]
    noise = fft.rfft2(random.standard_normal(_SIZE).astype(np.float32))
    centres = random.uniform(0, _SIZE, (patches, 2))
    direction = random.integers(_DIRECTIONS, size=patches)
    grid = np.indices(_SIZE).reshape(2, -1).T
    # borders of the patches are frayed, as crystals grow into each other
    _, nearest = spatial.KDTree(centres).query(grid + 12 * random.standard_normal(grid.shape))
    chosen = direction[nearest].reshape(_SIZE)
    field = np.zeros(_SIZE)
    for turn in range(_DIRECTIONS):
        angle = np.pi * (turn + random.uniform(-0.4, 0.4)) / _DIRECTIONS
        along = np.cos(angle) * right + np.sin(angle) * down
        across = np.cos(angle) * down - np.sin(angle) * right
        needles = np.exp(-((along * 30) ** 2) - (across * 2) ** 2)
        layer = fft.irfft2(noise * needles.astype(np.float32), _SIZE)
        layer = -np.abs(layer / layer.std())  # ridges: thin bright lines
        field = np.where(chosen == turn, layer, field)
    return field


def _spectrum(field: np.ndarray, slope: float) -> np.ndarray:
    """Return a field of deviation one whose power falls as the frequency to the power `slope`."""
    waves = fft.rfft2(field - field.mean())
    frequency = np.hypot(
        fft.fftfreq(_SIZE[0])[:, None], fft.fftfreq(_SIZE[1])[None, : waves.shape[1]]
    )
    ring = (frequency * _SIZE[0]).astype(int)
    power = np.bincount(ring.ravel(), (np.abs(waves) ** 2).ravel())
    power = np.sqrt(power / np.bincount(ring.ravel()))[ring]
    wanted = np.maximum(frequency, 1 / _SIZE[0]) ** (slope / 2)
    field = fft.irfft2(waves * wanted / np.maximum(power, power.max() * 1e-9), _SIZE)
    return field / field.std()
