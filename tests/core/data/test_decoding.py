"""Pictures of every kind become pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data import decoding, folders
from core.data import images as data_images
from tests.support.calls import error_of
from tests.support.datasets import folder, picture, save


def decoded(image: Image.Image, path: Path, size: int, suffix=".png", **options) -> np.ndarray:
    """Save an image, decode it as part of a data set, and return (3, size, size)."""
    root = folder(path / "root", {"train": 1, "val": 1})
    save(image, root / "train" / "Hoopoe" / f"x{suffix}", **options)
    train = data_images.load(root, size)["train"]
    return train.images[train.files.index(f"train/Hoopoe/x{suffix}")]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


FLAT = Image.new("RGB", (5, 6), (200, 40, 90))
WHITE = Image.new("RGB", (16, 16), (250, 250, 250))
PLAIN = {
    "RGBA": (FLAT.convert("RGBA"), ".png", (200, 40, 90), 0),
    "P": (FLAT.convert("P", palette=Image.Palette.ADAPTIVE), ".png", (200, 40, 90), 0),
    "CMYK": (FLAT.convert("CMYK"), ".tif", (200, 40, 90), 0),
    "CMYK jpeg": (WHITE.convert("CMYK"), ".jpg", (250, 250, 250), 9),  # inverted it would be black
    "grey": (Image.new("L", (3, 3), 77), ".png", (77, 77, 77), 0),
    "one pixel": (Image.new("RGB", (1, 1), (1, 2, 3)), ".png", (1, 2, 3), 0),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_modes_become_rgb(tmp_path, kind):
    image, suffix, colour, tolerance = PLAIN[kind]
    found = decoded(image, tmp_path, 4, suffix).astype(int)
    assert np.abs(found - np.array(colour)[:, None, None]).max() <= tolerance


def test_transparent_palette(tmp_path):
    palette = picture(2).convert("P")
    found = decoded(palette, tmp_path, 9, transparency=b"\x00\x80\xff")
    expected = palette.convert("RGB").resize((9, 9), Image.Resampling.BILINEAR)
    assert np.array_equal(found, pixels(expected))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for channel in decoded(Image.fromarray(ramp), tmp_path, 8):
        assert np.array_equal(channel, (ramp >> 8).astype(np.uint8))


def test_float_pixels_are_refused(birds):
    image = Image.fromarray(np.ones((4, 4), np.float32))
    save(image, birds / "train" / "Hoopoe" / "float.tif")
    assert "float.tif (floating-point" in error_of(data_images.load, birds, 8)


TURNS = (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE",
    "ROTATE_270",
)  # fmt: skip


@pytest.mark.parametrize("orientation", ["damaged", *range(1, 9)])
def test_exif_orientation(tmp_path, orientation):
    stored, exif = picture(4, 8, 8), Image.Exif()
    if orientation == "damaged":
        exif = b"Exif\0\0not exif at all"
    else:
        exif[0x0112] = orientation
        if orientation > 1:
            stored = stored.transpose(Image.Transpose[TURNS[orientation - 2]])
    assert np.array_equal(decoded(stored, tmp_path, 8, exif=exif), pixels(picture(4, 8, 8)))


def test_shrinking_averages(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decoded(Image.fromarray(stripes), tmp_path, 8).astype(int)
    assert np.abs(found - 127).max() < 10  # without antialiasing 0 or 255


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (300, 300), (641, 480)])
def test_a_crop_is_that_of_imagenets_validation(tmp_path, width, height):
    """The shorter side to 256, then the middle 224: as torchvision's transforms do it."""
    from torchvision import transforms

    photo = picture(0, width, height)
    photo.save(tmp_path / "photo.png")
    file = folders.ImageFile("photo.png", 0, (tmp_path / "photo.png").stat().st_size, 0)
    images, _ = decoding.decoded(tmp_path, [file], 224, "crop")
    theirs = transforms.CenterCrop(224)(transforms.Resize(256)(photo))
    assert np.array_equal(images[0], pixels(theirs))
