"""Pictures of every kind become pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data import decoding, folders
from core.data import images as data_images
from tests.core.data.test_images import refusal
from tests.support.datasets import folder, picture, save

pytestmark = pytest.mark.usefixtures("cache")


def decoded(image: Image.Image, path: Path, size: int, **options) -> np.ndarray:
    """Save an image, decode it as part of a data set, and return (3, size, size)."""
    root = folder(path / "root", {"train": 1, "val": 1})
    suffix = options.pop("suffix", ".png")
    save(image, root / "train" / "Hoopoe" / f"x{suffix}", **options)
    train = data_images.load(root, size)["train"]
    return train.images[train.files.index(f"train/Hoopoe/x{suffix}")]


def test_modes_become_rgb(tmp_path):
    flat = Image.new("RGB", (5, 6), (200, 40, 90))
    expected = np.array([200, 40, 90])[:, None, None]
    for mode, tolerance in (("RGBA", 0), ("P", 0), ("CMYK", 0)):
        image = flat.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else flat
        image = image.convert(mode)
        suffix = ".tif" if mode == "CMYK" else ".png"
        found = decoded(image, tmp_path / mode, 4, suffix=suffix).astype(int)
        assert np.abs(found - expected).max() <= tolerance, mode


def test_cmyk_jpeg(tmp_path):
    image = Image.new("RGB", (16, 16), (250, 250, 250)).convert("CMYK")
    assert decoded(image, tmp_path, 4, suffix=".jpg").min() > 240  # inverted it would be black


def test_grey_and_transparent_palette(tmp_path):
    grey = decoded(Image.new("L", (3, 3), 77), tmp_path / "grey", 4)
    assert (grey == 77).all()
    palette = picture(2).convert("P")
    found = decoded(palette, tmp_path / "p", 9, transparency=b"\x00\x80\xff")
    expected = palette.convert("RGB").resize((9, 9), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = decoded(Image.fromarray(ramp), tmp_path, 8)
    assert np.array_equal(found[0], (ramp >> 8).astype(np.uint8))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_float_pixels_are_refused(birds):
    image = Image.fromarray(np.ones((4, 4), np.float32))
    save(image, birds / "train" / "Hoopoe" / "float.tif")
    assert "float.tif (floating-point" in refusal(birds)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = picture(4, 8, 8)
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(stored, tmp_path, 8, exif=exif)
    assert np.array_equal(found, np.asarray(upright).transpose(2, 0, 1))


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    found = decoded(picture(4, 8, 8), tmp_path, 8, exif=b"Exif\0\0not exif at all")
    assert np.array_equal(found, np.asarray(picture(4, 8, 8)).transpose(2, 0, 1))


def test_one_pixel(tmp_path):
    assert (decoded(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path, 6)[2] == 3).all()


def test_shrinking_averages(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decoded(Image.fromarray(stripes), tmp_path, 8).astype(int)
    assert np.abs(found - 127).max() < 10  # without antialiasing 0 or 255


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (300, 300), (641, 480)])
def test_a_crop_is_that_of_imagenets_validation(tmp_path, width, height):
    """The shorter side to 256, then the middle 224: as torchvision's transforms do it."""
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    file = folders.ImageFile("photo.png", 0, (tmp_path / "photo.png").stat().st_size, 0)
    images, _ = decoding.decoded(tmp_path, [file], 224, "crop")
    theirs = transforms.CenterCrop(224)(transforms.Resize(256)(Image.fromarray(pixels)))
    assert np.array_equal(images[0].transpose(1, 2, 0), np.asarray(theirs))
