"""Generated photographs in VOC's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data import annotations, devkit, voc
from core.data.synthetic import scenes
from tests.support.calls import error_of


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    return scenes.make_voc(tmp_path_factory.mktemp("voc") / "set", train=60, val=30)


def test_generated_pictures_are_the_same_each_time(tmp_path):
    first, again = (scenes.make_voc(tmp_path / name, train=6, val=3) for name in ("one", "two"))
    files = [path for path in first.rglob("*") if path.is_file()]
    assert len(files) > 2 * 9
    for path in files:
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes(), path


def test_generated_pictures_are_uneven_and_partly_difficult(generated):
    kit = devkit.read_devkit(generated)
    assert kit.classes == annotations.VOC_CLASSES and not kit.own
    labels = voc.labels_of((*kit.boxes["train"], *kit.boxes["val"]), 20)
    shown = (labels == 1).sum(0)
    person = shown[kit.classes.index("person")]
    assert shown.min() >= 1 and person == shown.max() > 4 * np.median(shown) / 2
    assert (labels == 0).any() and (labels == 1).sum(1).max() > 2
    for split in ("train", "val"):
        for file, boxes in zip(kit.files[split], kit.boxes[split], strict=True):
            with Image.open(kit.root / file.path) as image:
                width, height = image.size
            assert boxes
            for b in boxes:
                assert 1 <= b.box[0] <= b.box[2] <= width and 1 <= b.box[1] <= b.box[3] <= height
    lists = generated / scenes.FOLDER / "ImageSets/Main"
    for name, said in zip(kit.classes, labels[60:].T, strict=True):  # and the lists agree
        lines = (lists / f"{name}_val.txt").read_text().splitlines()
        assert [int(line.split()[1]) for line in lines] == said.tolist()


def test_a_folder_in_use_is_not_written_over(generated):
    assert "not empty" in error_of(scenes.make_voc, generated)
