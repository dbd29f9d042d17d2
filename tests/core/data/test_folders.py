"""What an image folder may not be: each fault is one sentence."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data import images as data_images
from tests.support.calls import error_of
from tests.support.datasets import folder, picture, save


def refused(root: Path, **options) -> str:
    return error_of(data_images.load, root, 8, **options)


def test_missing_roots_and_splits(birds, tmp_path):
    assert f"{tmp_path / 'none'} does not exist" in refused(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file")
    shutil.rmtree(birds / "val")
    text = refused(birds)
    assert "no folder val/" in text and "found: train" in text


def test_empty_class_folders_are_all_named(birds):
    for name in ("train/Hoopoe", "val/Indian Roller"):
        shutil.rmtree(birds / name)
        (birds / name).mkdir()
    (birds / "val" / "Indian Roller" / "readme.txt").write_text("no image")
    text = refused(birds)
    assert "train/Hoopoe" in text and "val/Indian Roller" in text and "train/Indian" not in text


def test_classes_that_cannot_be_told_apart(birds, tmp_path):
    one = folder(tmp_path / "one", {"train": 1, "val": 1}, ("Hoopoe",))
    assert "at least two classes (found: Hoopoe)" in refused(one)
    twice = shutil.copytree(birds, tmp_path / "twice")
    save(picture(5), twice / "train" / "indian-roller" / "0.png")
    assert "train/Indian Roller and train/indian-roller" in refused(twice)
    (birds / "val" / "Hoopoe").rename(birds / "val" / "Sarus Crane")
    text = refused(birds)  # lists both sides
    assert "only in train: Hoopoe;" in text and "only in val: Sarus Crane)" in text


BROKEN = {
    "truncated.jpg": ("truncated", lambda jpeg: jpeg[: len(jpeg) // 2]),
    "text.jpg": ("not an image", lambda jpeg: b"<html>404 not found</html>"),
    "zero.jpg": ("empty", lambda jpeg: b""),
    "script.jpg": ("not an image", lambda jpeg: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"),
}


def test_broken_files_are_all_named_at_once_or_left_out(birds):
    whole = data_images.load(birds, 8)
    save(picture(9, 90, 70), birds / "whole.jpg")
    jpeg = (birds / "whole.jpg").read_bytes()
    for name, (_, damage) in BROKEN.items():
        (birds / "train" / "Hoopoe" / name).write_bytes(damage(jpeg))
    (birds / "val" / "Hoopoe" / "nowhere.png").symlink_to(birds / "gone.png")
    text = refused(birds)
    assert text.startswith("5 of 15 images cannot be read") and "--skip-broken" in text
    for name, (why, _) in BROKEN.items():
        assert f"train/Hoopoe/{name} ({why})" in text
    assert "val/Hoopoe/nowhere.png (No such file" in text
    sets = data_images.load(birds, 8, skip_broken=True)
    assert set(sets["train"].skipped) == {f"train/Hoopoe/{name}" for name in BROKEN}
    assert sets["val"].skipped == ("val/Hoopoe/nowhere.png",)
    for split in ("train", "val"):
        assert sets[split].files == whole[split].files
        assert np.array_equal(sets[split].images, whole[split].images)
        assert np.array_equal(sets[split].labels, whole[split].labels)
    assert len(data_images.describe(sets)["skipped"]) == 5
    refused(birds)  # the cache of the last call must not make it pass


def test_many_broken_files_are_counted_and_a_repaired_one_is_read_again(birds):
    paths = [birds / "train" / "Hoopoe" / f"bad{k:02}.jpg" for k in range(40)]
    for path in paths:
        path.write_text("no")
    text = refused(birds)
    assert "40 of 50" in text and "bad09.jpg" in text and "and 30 more" in text
    assert "bad10" not in text
    for path in paths:
        save(picture(3), path)
    assert "train/Hoopoe/bad39.jpg" in data_images.load(birds, 8)["train"].files


def test_a_class_with_broken_files_only(birds):
    for path in (birds / "val" / "Hoopoe").iterdir():
        path.write_text("no")
    assert "no readable image is left in val/Hoopoe" in refused(birds, skip_broken=True)


def test_too_many_pixels(birds, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(picture(1, 60, 40), birds / "train" / "Hoopoe" / "bomb.png")
    assert "train/Hoopoe/bomb.png (too many pixels)" in refused(birds)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_file_name_that_is_no_text(birds):
    shutil.copy(birds / "train/Hoopoe/0.png", os.fsencode(birds / "train/Hoopoe") + b"/\xff.png")
    text = refused(birds)
    assert "not UTF-8" in text and text.encode()
    assert len(data_images.load(birds, 8, skip_broken=True)["train"].skipped) == 1
    for split in ("train", "val"):
        shutil.copytree(birds / split / "Hoopoe", birds / split / "caf\udce9")
    text = refused(birds, skip_broken=True)
    assert "folders in train/ without a name in UTF-8: rename caf\\udce9" in text


def test_folder_that_cannot_be_read(birds, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the administrator reads every folder")
    (birds / "train" / "Hoopoe").chmod(0)
    try:
        assert "cannot read" in refused(birds)
    finally:
        (birds / "train" / "Hoopoe").chmod(0o755)
