"""Data in Pascal VOC's layout: the real photographs, small devkits, and what goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core.data import annotations, devkit, voc
from tests.support.calls import error_of
from tests.support.datasets import BOX, pack, thing, write

CAT, DOG = (annotations.VOC_CLASSES.index(name) for name in ("cat", "dog"))


def read(root: Path) -> devkit.Devkit:
    """Read a devkit, whatever this process has read in its place before."""
    devkit._read_devkit.cache_clear()
    return devkit.read_devkit(root)


def listed(kit: Path, **lists: str) -> None:
    """Write lists: `train` of train.txt, `cat_val` of a class's list."""
    for name, text in lists.items():
        (kit / f"ImageSets/Main/{name}.txt").write_text(text)


def annotate(kit: Path, image: str, *objects: str) -> None:
    (kit / f"Annotations/{image}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")


def paths(kit: devkit.Devkit, split: str = "train") -> list[str]:
    return [file.path.removeprefix("JPEGImages/") for file in kit.files[split]]


# --- what is read ---


def test_labels_of_the_real_photographs(shared_data):
    expected = pd.read_csv(shared_data.parent / "reference" / "voc-labels.csv", index_col="image")
    folder = shared_data / "VOCdevkit" / "VOC2012"
    sets = voc.load(shared_data / "VOCdevkit", 16)
    assert tuple(expected.columns) == sets["train"].classes == annotations.VOC_CLASSES
    seen = []
    for split, s in sets.items():
        names = [Path(file).stem for file in s.files]
        assert s.labels.tolist() == expected.loc[names].to_numpy().tolist()
        assert all((shared_data / "VOCdevkit" / file).is_file() for file in s.files)
        for name, labels in zip(s.classes, s.labels.T, strict=True):  # as their own lists say
            lines = (folder / "ImageSets/Main" / f"{name}_{split}.txt").read_text().split()
            told = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
            assert labels.tolist() == [told[n] for n in names]
        seen += names
    assert sorted(seen) == sorted(expected.index)  # each image once


@pytest.mark.parametrize(
    ("difficult", "dogs"), [("ignore", [0, 1]), ("negative", [-1, 1]), ("positive", [1, 1])]
)
def test_difficult_objects_by_option(small, difficult, dogs):
    sets = voc.load(small, 8, difficult=difficult)
    assert sets["train"].labels[:, DOG].tolist() == dogs
    assert sets["train"].labels[:, CAT].tolist() == [1, -1]
    assert sets["val"].labels[0, CAT] == 1  # without the field: not difficult
    assert sets["train"].labels.dtype == np.int8
    assert sets["train"].boxes[0][1] == devkit.Box(DOG, (1, 2, 9, 8), True)


def test_a_root_may_lie_above_and_nothing_is_written_into_it(small):
    before = sorted((p, p.stat().st_mtime_ns) for p in small.rglob("*"))
    for root, inside in zip(
        (small, *small.parents[:2]), ("", "VOC2012/", "kit/VOC2012/"), strict=True
    ):
        s = voc.load(root, 8)["train"]
        assert s.files[0] == f"{inside}JPEGImages/a.jpg" and (root / s.files[0]).is_file()
    assert sorted((p, p.stat().st_mtime_ns) for p in small.rglob("*")) == before


def test_of_two_years_or_devkits_one_must_be_named(small):
    above, root = small.parents[:2]
    shutil.copytree(above, root / "copy")
    two = "2 devkits (copy/VOC2012, kit/VOC2012): give one"
    assert two in error_of(voc.load, root, 8)
    assert "2 devkits" in error_of(voc.load, root, 8, year="2012")
    shutil.copytree(small, above / "VOC2007")
    told = error_of(voc.load, above, 8)
    assert "VOC2007, VOC2012" in told and "--set year=" in told
    assert voc.load(above, 8, year="2007")["val"].files == ("VOC2007/JPEGImages/c.jpg",)
    told = error_of(voc.load, above, 8, year="2010")
    assert "year=2010" in told and "VOC2007, VOC2012" in told


def test_a_data_set_with_classes_of_its_own(tmp_path):
    helmet, vest = thing("helmet"), thing("vest")
    images = {"a": [helmet, vest], "b": [thing("helmet", 1)], "c": [vest]}
    kit = write(tmp_path / "site", images, {"train": ["a", "b"], "val": ["c"]})
    train = voc.load(kit, 8)["train"]
    assert train.classes == ("helmet", "vest") and train.labels.tolist() == [[1, 1], [0, -1]]
    (kit / "classes.txt").write_text("vest\nhelmet\n")
    assert read(kit).classes == ("vest", "helmet")
    assert voc.load(kit, 8)["train"].labels.tolist() == [[1, 1], [-1, 0]]


def test_lists_per_class_name_the_classes(small):
    listed(small, **{f"{c}_{s}": "" for c in ("cat", "dog", "cow") for s in ("train", "val")})
    assert "no training example of cow in train.txt" in error_of(voc.load, small, 8)
    assert voc.load(small, 8, untrained="keep")["train"].classes == ("cat", "cow", "dog")


def test_vocs_own_classes_may_lack_examples(small):
    sets = voc.load(small, 8)
    assert sets["train"].classes == annotations.VOC_CLASSES
    described = voc.describe(sets, read(small), None)
    assert "aeroplane" in described["untrained"] and "aeroplane" in described["notes"][0]
    told = error_of(voc.load, small, 8, untrained="refuse")
    assert "no training example of aeroplane" in told


def test_a_description_holds_no_path_and_tells_labels_apart(small):
    first, second = (
        voc.describe(voc.load(small, 8, difficult=d), read(small), None)
        for d in ("ignore", "positive")
    )
    assert first["fingerprint"] != second["fingerprint"]
    assert str(small.parent) not in str((first, second))
    assert first["counts"]["train"]["dog"] == first["difficult_counts"]["train"]["dog"] == 1


# --- what is refused ---

BOMB = """<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
BAD = {
    "bomb": (BOMB, "DOCTYPE or entities"),
    "doctype": ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "DOCTYPE or entities"),
    "empty": ("", "empty"),
    "blank": ("  \n", "empty"),
    "text": ("cat 1 2 3", "no whole XML"),
    "cut": (f"<annotation>{thing('cat')}<object><na", "no whole XML"),
    "other": ("<html></html>", "not annotation"),
    "large": (f"<annotation>{'<a/>' * 300_000}</annotation>", "larger than 1 MB"),
    "encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding"),
    "nameless": (f"<annotation><object>{BOX}</object></annotation>", "without a name"),
    "boxless": ("<annotation><object><name>cat</name></object></annotation>", "xmin is missing"),
    "nobox": (f"<annotation>{thing('cat', box=BOX.replace('9', 'x'))}</annotation>", "no number"),
    "infinite": (f"<annotation>{thing('cat', box=BOX.replace('9', 'inf'))}</annotation>", "no num"),
    "flag": (f"<annotation>{thing('cat', 7)}</annotation>", "difficult is 7"),
    "class": (f"<annotation>{thing('cat')}{thing('unicorn')}</annotation>", "unicorn"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_annotation_is_one_sentence_with_its_path(small, kind):
    listed(small, **{f"{c}_{s}": "" for c in ("cat", "dog") for s in ("train", "val")})
    content, told = BAD[kind]
    (small / "Annotations/a.xml").write_text(content)
    text = error_of(devkit.read_devkit, small)
    assert f"{small / 'Annotations/a.xml'} (" in text and told in text


def test_all_bad_annotations_are_told_at_once(small):
    (small / "Annotations/a.xml").write_text("")
    (small / "Annotations/c.xml").write_bytes(b"\xff\xfe\x00")
    text = error_of(devkit.read_devkit, small)
    assert all(words in text for words in ("a.xml (empty)", "c.xml (", "--skip-broken"))


@pytest.mark.parametrize(
    ("split", "content", "told"),
    [
        ("train", "", "is empty"),
        ("train", "../../secret\n", "without folder and ending"),
        ("train", "\x00\n", "without folder and ending"),
        ("train", "a\nc\n", "c in both train.txt and val.txt"),
        ("train", "a\nb\n'c.jpg'\n", "c in both train.txt and val.txt"),
        ("val", "c\nnowhere\n", "val.txt names nowhere: no such image"),
        ("train", "a\nb 1\n", "train.txt names b 1: no such image"),  # and not b
        ("train", "a\nb 7\n", "train.txt names b 7: no such image"),
    ],
)
def test_a_list_that_cannot_be_used(small, split, content, told):
    listed(small, **{split: content})
    assert told in error_of(devkit.read_devkit, small)


def test_folders_and_lists_that_are_missing(small, tmp_path):
    (tmp_path / "void").mkdir()
    for root, told in (
        (tmp_path / "nowhere", "does not exist"),
        (small / "JPEGImages/a.jpg", "neither a folder nor a tar archive"),
        (tmp_path / "void", "no ImageSets/Main/"),
    ):
        assert told in error_of(voc.load, root, 8)
    (small / "ImageSets/Main/val.txt").unlink()
    assert "val.txt is missing" in error_of(voc.load, small, 8)
    shutil.rmtree(small / "Annotations")
    assert "no folder Annotations" in error_of(voc.load, small, 8)


def test_nothing_to_score_is_refused(small):
    annotate(small, "c", thing("dog", 1))
    assert "no image in val.txt has an object that counts" in error_of(voc.load, small, 8)


def test_broken_photographs_are_named_or_left_out(small):
    (small / "JPEGImages/b.jpg").write_bytes(b"nothing")
    told = error_of(voc.load, small, 8)
    assert "1 of 3 images cannot be read: JPEGImages/b.jpg" in told
    left = voc.load(small, 8, skip_broken=True)["train"]
    assert left.files == ("JPEGImages/a.jpg",) and left.skipped == ("JPEGImages/b.jpg",)
    assert left.labels[0, CAT] == 1 and len(left.labels) == len(left.boxes) == 1


def test_what_cannot_be_read_is_left_out_on_request(small):
    (small / "Annotations/a.xml").write_text("")
    listed(small, val="c\nnowhere\n")
    for _ in range(2):
        error_of(voc.load, small, 8)
        sets = voc.load(small, 8, skip_broken=True)
    assert sets["train"].files == ("JPEGImages/b.jpg",)
    assert sets["train"].skipped == ("Annotations/a.xml",)
    assert sets["val"].skipped == ("JPEGImages/nowhere",)
    skipped = voc.describe(sets, devkit.read_devkit(small, None, True), None)["skipped"]
    assert skipped == ["Annotations/a.xml", "JPEGImages/nowhere"]


# --- as programs write them ---


def test_apple_double_files_are_no_lists(small, tmp_path):
    double = b"\0\5\x16\7\0\2\0\0Mac OS X"
    for name in ("ImageSets/Main/._train.txt", "ImageSets/Main/._val.txt", "JPEGImages/._a.jpg"):
        (small / name).write_bytes(double)
    (small.parent / "__MACOSX/VOC2012/ImageSets/Main").mkdir(parents=True)
    for root in (small.parent, pack(small, tmp_path / "mac.tar")):
        assert voc.load(root, 8)["train"].classes == annotations.VOC_CLASSES


LISTS = {
    "ending": ("a.jpg\nb.JPG\n", "c.jpg\n"),
    "folder": ("JPEGImages/a.jpg\n./JPEGImages/b\n", "VOC2012\\JPEGImages\\c.jpg\n"),
    "signs": ("a 1\nb -1\n", "c  0\n"),
    "quotes": ("\"a\"\n'b'\n", '"c.jpg" 1\n'),
    "columns": ("a,1\nb;0\n", '"c","d"\n'),
    "annotations beside": ("JPEGImages/a.jpg Annotations/a.xml\nb\tx\n", "c.jpg c.xml\n"),
    "mark": ("\ufeffa\r\nb\r\n", "c\r\n\r\n"),
    "twice": ("b\r\na\r\nb\r\n\r\n", "c\nc"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_as_programs_write_them(small, kind):
    listed(small, **dict(zip(("train", "val"), LISTS[kind], strict=True)))
    kit = devkit.read_devkit(small)
    assert (paths(kit), paths(kit, "val")) == (["a.jpg", "b.jpg"], ["c.jpg"])
    assert [len(boxes) for boxes in kit.boxes["train"]] == [2, 3] and not kit.notes


def test_names_with_accents_and_spaces(tmp_path):
    composed, split = "caf\u00e9", "cafe\u0301"  # NFC, as most write; NFD, as macOS's files are
    images = {split: [thing(f"{split} au lait")], "my photo 1": [thing(f"{composed} au lait")]}
    images |= {"v.1": [thing("tea"), thing(f"{composed} au lait")], "w": [thing("tea")]}
    lists = {"train": [composed, "my photo 1", "w"], "val": ["v.1"]}
    kit = devkit.read_devkit(write(tmp_path / "kit", images, lists))
    assert kit.classes == (f"{composed} au lait", "tea")
    assert paths(kit) == [f"{split}.jpg", "my photo 1.jpg", "w.jpg"]
    assert [len(boxes) for boxes in kit.boxes["train"]] == [1, 1, 1]


def test_other_lists_name_no_classes(small):
    listed(small, fold1_train="a\nb\n", fold1_val="c\n")
    listed(small, background_train="a -1\nb -1\n", background_val="c -1\n")
    kit = devkit.read_devkit(small)
    assert kit.classes == annotations.VOC_CLASSES
    assert kit.notes == ("background is listed as a class, but no object is called so: it is none",)
    for name in ("cat", "dog"):
        listed(small, **{f"{name}_train": "a  1\nb  1\n", f"{name}_val": "c  1\n"})
    assert read(small).classes == ("cat", "dog")


FLAGS = {
    False: ("0", "False", "false", "0.0", "Unspecified", "no", "", "None"),
    True: ("1", "True", "TRUE", "1.0", "yes"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "difficult"), [(t, d) for d, ts in FLAGS.items() for t in ts])
def test_difficult_as_programs_write_it(small, text, difficult):
    annotate(small, "a", thing("cat"), thing("dog", text))
    box = devkit.read_devkit(small).boxes["train"][0][1]
    assert box == devkit.Box(DOG, (1, 2, 9, 8), difficult)


def test_boxes_the_wrong_way_round_are_turned_and_counted(small):
    annotate(small, "a", thing("cat", 0, BOX.replace("1", "19").replace("2", "18")))
    kit = devkit.read_devkit(small)
    assert kit.boxes["train"][0] == (devkit.Box(CAT, (9, 8, 19, 18), False),)
    assert kit.notes == ("boxes that ended before they started were turned round: 1 (a.xml)",)


def test_images_without_annotation_show_nothing_and_are_counted(small):
    (small / "Annotations/a.xml").unlink()
    sets, kit = voc.load(small, 8), devkit.read_devkit(small)
    assert (sets["train"].labels[0] == -1).all() and len(sets["train"]) == 2
    told = "images without annotation count as showing none of the classes: 1 of 3 (a)"
    assert told in voc.describe(sets, kit, None)["notes"]
    for name in ("cat", "dog"):  # a part of the annotations was lost: the lists know better
        listed(small, **{f"{name}_train": "a  1\nb -1\n", f"{name}_val": "c -1\n"})
    assert "a.xml (missing, though the list of a class" in error_of(read, small)
    for path in (small / "Annotations").iterdir():
        path.rename(small / path.name)
    for path in (small / "ImageSets/Main").glob("*_*"):
        path.unlink()
    assert "no annotation of any listed image in it" in error_of(read, small)


def test_of_several_files_with_one_name_the_photograph_counts(small):
    (small / "JPEGImages/b.jpg").rename(small / "JPEGImages/b.JPEG")
    for name in ("a.bmp", "b.PNG"):
        Image.new("RGB", (12, 10)).save(small / "JPEGImages" / name)
    kit = devkit.read_devkit(small)
    assert paths(kit) == ["a.jpg", "b.JPEG"]
    (told,) = kit.notes
    assert told.endswith("counts: a.jpg (not a.bmp), b.JPEG (not b.PNG)")


def test_an_image_with_another_ending_is_told_so(small):
    (small / "JPEGImages/b.jpg").rename(small / "JPEGImages/b.gif")
    told = error_of(devkit.read_devkit, small)
    assert "names b (there is b.gif, no image by its ending)" in told


@pytest.mark.parametrize("names", [("raccoon", "Raccoon"), ("tree frog", "tree-frog")])
def test_two_spellings_of_a_class_are_refused(tmp_path, names):
    images = {image: [thing(names[image == "b"])] for image in "abc"}
    kit = write(tmp_path / "kit", images, {"train": ["a", "b"], "val": ["c"]})
    told = error_of(read, kit)
    assert "Annotations/" in told and "are the same class name" in told
    assert all(name in told for name in names)
    (kit / "classes.txt").write_text("\n".join(names))
    assert "are the same class name but for case" in error_of(read, kit)


def test_a_class_on_every_image_is_told(tmp_path):
    images = {name: [thing("raccoon", int(name == "b"))] for name in "abcd"}
    kit = write(tmp_path / "kit", images, {"train": ["a", "b"], "val": ["c", "d"]})
    notes = voc.describe(voc.load(kit, 8), devkit.read_devkit(kit), None)["notes"]
    assert notes[0].startswith("every image of train.txt that counts shows raccoon: there is no im")
    assert notes[1].endswith("shows raccoon: whatever the network says, its average precision is "
                             "100 %")  # fmt: skip
