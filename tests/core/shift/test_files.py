"""Corrupted data in the forms of CIFAR-10-C and ImageNet-C: written, read back, refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core.shift.corruptions import SEVERITIES, corrupt
from core.shift.files import imagenet_c_root, read_cifar_c, write_cifar_c, write_imagenet_c
from tests.support.calls import error_of


def photos(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


def test_an_array_has_the_severities_one_after_the_other(tmp_path):
    images, labels = photos(6), torch.tensor([3, 1, 4, 1, 5, 9])
    made = [corrupt(images, "fog", severity) for severity in SEVERITIES]
    write_cifar_c(tmp_path, "fog", made, labels)
    rows = np.load(tmp_path / "fog.npy")
    assert rows.shape == (30, 32, 32, 3) and rows.dtype == np.uint8
    assert np.array_equal(rows[7], made[1][1].permute(1, 2, 0).numpy())
    for severity, expected in zip(SEVERITIES, made, strict=True):
        read, numbers = read_cifar_c(tmp_path, "fog", severity)
        assert torch.equal(read, expected)
        assert torch.equal(numbers, labels)

    write_cifar_c(tmp_path, "snow", made, labels)
    assert "other labels" in error_of(write_cifar_c, tmp_path, "frost", made, labels.flip(0))


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((9, 32, 32, 3), np.uint8), np.zeros(9, int), "multiple of 5"),
        (np.zeros((10, 32, 32, 3), np.uint8), np.zeros(5, int), "10 rows"),
        (np.zeros((10, 3, 32, 32), np.uint8), np.zeros(10, int), "(5 N, H, W, 3)"),
        (np.zeros((10, 32, 32, 3)), np.zeros(10, int), "uint8"),
        (np.zeros((10, 32, 32, 3), np.uint8), np.zeros(10), "whole numbers"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, rows, labels, message):
    np.save(tmp_path / "fog.npy", rows)
    np.save(tmp_path / "labels.npy", labels)
    assert message in error_of(read_cifar_c, tmp_path, "fog", 1)


def test_a_missing_array_is_named_and_nothing_is_unpickled(tmp_path):
    assert "fog.npy is missing" in error_of(read_cifar_c, tmp_path, "fog", 1)
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "cannot be read" in error_of(read_cifar_c, tmp_path, "fog", 1)


def test_folders_hold_jpeg_files_of_quality_85(tmp_path):
    images = photos(3)
    write_imagenet_c(tmp_path, "snow", 2, images, ["val/a/x.png", "val/a/y.png", "b/x.JPEG"])
    root = imagenet_c_root(tmp_path, "snow", 2)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    assert found == ["a/x.jpg", "a/y.jpg", "b/x.jpg"]
    with Image.open(root / "a" / "y.jpg") as image:
        assert image.format == "JPEG" and image.size == (32, 32)
        # quality 85 quantises the first coefficient of brightness by 16 * 0.3, rounded
        assert image.quantization[0][0] == 5
        read = np.array(image).astype(int)
    assert np.abs(read - images[1].permute(1, 2, 0).numpy()).mean() < 8


def test_names_that_would_collide_are_refused(tmp_path):
    for names, told in ((["a/x.png", "a/x.jpg"], "of its own"), (["../x.png"], "<class>/<file>")):
        assert told in error_of(write_imagenet_c, tmp_path, "snow", 1, photos(len(names)), names)


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "snow" / "1").mkdir(parents=True)
    for severity in (1, 2):
        assert "ImageNet-C" in error_of(imagenet_c_root, tmp_path, "snow", severity)
