"""Generated photographs in VOC's layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from core.data import annotations, devkit, voc
from core.data.synthetic import scenes
from core.errors import UserError


def label(name: str) -> int:
    return annotations.VOC_CLASSES.index(name)


def test_generated_pictures_are_the_same_each_time(generated, tmp_path):
    again = scenes.make_voc(tmp_path / "again", train=60, val=30)
    for path in generated.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(generated)).read_bytes(), path


def test_generated_pictures_are_uneven_and_partly_difficult(generated):
    kit = devkit.read_devkit(generated)
    assert kit.classes == annotations.VOC_CLASSES and not kit.own
    labels = voc.labels_of((*kit.boxes["train"], *kit.boxes["val"]), 20)
    shown = (labels == 1).sum(0)
    assert shown.min() >= 1 and shown[label("person")] == shown.max() > 4 * np.median(shown) / 2
    assert (labels == 0).any() and (labels == 1).sum(1).max() > 2
    for split in ("train", "val"):
        for file, boxes in zip(kit.files[split], kit.boxes[split], strict=True):
            with Image.open(kit.root / file.path) as image:
                width, height = image.size
            assert boxes
            for b in boxes:
                assert 1 <= b.box[0] <= b.box[2] <= width and 1 <= b.box[1] <= b.box[3] <= height


def test_generated_lists_say_what_the_annotations_say(generated):
    kit = devkit.read_devkit(generated)
    main = generated / scenes.FOLDER / "ImageSets/Main"
    labels = voc.labels_of(kit.boxes["val"], 20)
    for c, name in enumerate(kit.classes):
        told = [
            int(line.split()[1]) for line in (main / f"{name}_val.txt").read_text().splitlines()
        ]
        assert told == labels[:, c].tolist()


def test_a_folder_in_use_is_not_written_over(generated):
    with pytest.raises(UserError, match="not empty"):
        scenes.make_voc(generated)
