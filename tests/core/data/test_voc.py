"""Data in Pascal VOC's layout: the real photographs, a generated devkit, and what goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core.data import annotations, devkit, voc
from core.data.synthetic import scenes
from core.errors import UserError
from tests.support.datasets import BOX, pack, thing, write


def label(name: str) -> int:
    return annotations.VOC_CLASSES.index(name)


# --- what is read ---


def test_labels_of_the_real_photographs(shared_data):
    expected = pd.read_csv(shared_data.parent / "reference" / "voc-labels.csv", index_col="image")
    sets = voc.load(shared_data / "VOCdevkit", 16)
    assert tuple(expected.columns) == sets["train"].classes == annotations.VOC_CLASSES
    seen = []
    for s in sets.values():
        for file, row in zip(s.files, s.labels, strict=True):
            seen.append(Path(file).stem)
            assert row.tolist() == expected.loc[seen[-1]].tolist(), file
            assert (shared_data / "VOCdevkit" / file).is_file()
    assert sorted(seen) == sorted(expected.index)  # each image once


def test_labels_of_the_real_photographs_are_those_of_their_lists(shared_data):
    folder = shared_data / "VOCdevkit" / "VOC2012"
    kit = devkit.read_devkit(folder)
    for split in ("train", "val"):
        labels = voc.labels_of(kit.boxes[split], 20)
        for c, name in enumerate(kit.classes):
            lines = (folder / "ImageSets/Main" / f"{name}_{split}.txt").read_text().split()
            told = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
            assert labels[:, c].tolist() == [told[Path(f.path).stem] for f in kit.files[split]]


@pytest.mark.parametrize(
    ("difficult", "dogs"), [("ignore", [0, 1]), ("negative", [-1, 1]), ("positive", [1, 1])]
)
def test_difficult_objects_by_option(small, difficult, dogs):
    sets = voc.load(small, 8, difficult=difficult)
    assert sets["train"].labels[:, label("dog")].tolist() == dogs
    assert sets["train"].labels[:, label("cat")].tolist() == [1, -1]
    assert sets["val"].labels[0, label("cat")] == 1  # without the field: not difficult
    assert sets["train"].labels.dtype == np.int8


def test_boxes_are_kept(small):
    box = voc.load(small, 8)["train"].boxes[0][1]
    assert box == devkit.Box(label("dog"), (1, 2, 9, 8), True)


def test_an_image_listed_twice_is_there_once(small):
    (small / "ImageSets/Main/train.txt").write_text("b\r\na\r\nb\r\n\r\n")
    assert voc.load(small, 8)["train"].files == ("JPEGImages/a.jpg", "JPEGImages/b.jpg")


def test_a_root_may_lie_above(small):
    for root, inside in (
        (small, ""),
        (small.parent, "VOC2012/"),
        (small.parents[1], "kit/VOC2012/"),
    ):
        s = voc.load(root, 8)["train"]
        assert s.files[0] == f"{inside}JPEGImages/a.jpg" and (root / s.files[0]).is_file()


def test_of_two_years_one_must_be_named(small):
    shutil.copytree(small, small.parent / "VOC2007")
    with pytest.raises(UserError, match=r"VOC2007, VOC2012.*--set year="):
        voc.load(small.parent, 8)
    assert voc.load(small.parent, 8, year="2007")["val"].files == ("VOC2007/JPEGImages/c.jpg",)
    with pytest.raises(UserError, match=r"year=2010.*VOC2007, VOC2012"):
        voc.load(small.parent, 8, year="2010")


def test_of_two_devkits_one_must_be_given(small):
    shutil.copytree(small.parent, small.parents[1] / "copy")
    with pytest.raises(UserError, match=r"2 devkits \(copy/VOC2012, kit/VOC2012\): give one"):
        voc.load(small.parents[1], 8)
    with pytest.raises(UserError, match="2 devkits"):
        voc.load(small.parents[1], 8, year="2012")


def test_a_data_set_with_classes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    images = {
        "a": [thing("helmet"), thing("vest")],
        "b": [thing("helmet", 1)],
        "c": [thing("vest")],
    }
    kit = write(tmp_path / "site", images, {"train": ["a", "b"], "val": ["c"]})
    sets = voc.load(kit, 8)
    assert sets["train"].classes == ("helmet", "vest")
    assert sets["train"].labels.tolist() == [[1, 1], [0, -1]]
    (kit / "classes.txt").write_text("vest\nhelmet\n")
    devkit._read_devkit.cache_clear()
    assert voc.load(kit, 8)["train"].labels.tolist() == [[1, 1], [-1, 0]]


def test_lists_per_class_name_the_classes(small):
    for name in ("cat", "dog", "cow"):
        for split in ("train", "val"):
            (small / "ImageSets/Main" / f"{name}_{split}.txt").write_text("")
    with pytest.raises(UserError, match=r"no training example of cow in train\.txt"):
        voc.load(small, 8)
    assert voc.load(small, 8, untrained="keep")["train"].classes == ("cat", "cow", "dog")


def test_vocs_own_classes_may_lack_examples(small):
    sets = voc.load(small, 8)
    assert sets["train"].classes == annotations.VOC_CLASSES
    described = voc.describe(sets, devkit.read_devkit(small), None)
    assert "aeroplane" in described["untrained"] and "aeroplane" in described["notes"][0]
    with pytest.raises(UserError, match="no training example of aeroplane"):
        voc.load(small, 8, untrained="refuse")


def test_nothing_is_written_into_the_root(small):
    before = sorted((p, p.stat().st_mtime_ns) for p in small.rglob("*"))
    voc.load(small, 8)
    assert sorted((p, p.stat().st_mtime_ns) for p in small.rglob("*")) == before


def test_a_description_holds_no_path_and_tells_labels_apart(small):
    kit = devkit.read_devkit(small)
    described = [
        voc.describe(voc.load(small, 8, difficult=d), kit, None) for d in ("ignore", "positive")
    ]
    assert described[0]["fingerprint"] != described[1]["fingerprint"]
    assert str(small.parent) not in str(described)
    assert described[0]["counts"]["train"]["dog"] == 1
    assert described[0]["difficult_counts"]["train"]["dog"] == 1


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
def test_a_bad_annotation_is_one_sentence_with_its_path(generated, tmp_path, kind):
    root = shutil.copytree(generated, tmp_path / "set")
    content, told = BAD[kind]
    path = root / scenes.FOLDER / "Annotations" / "synthetic_000003.xml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        devkit.read_devkit(root)
    text = str(error.value)
    assert str(path) in text and told in text and "\n" not in text


def test_all_bad_annotations_are_told_at_once(small):
    (small / "Annotations/a.xml").write_text("")
    (small / "Annotations/c.xml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.xml \(empty\).*c\.xml \(.*--skip-broken"):
        devkit.read_devkit(small)


def test_a_listed_image_that_is_missing(small):
    (small / "ImageSets/Main/val.txt").write_text("c\nnowhere\n")
    with pytest.raises(UserError, match=r"val\.txt names nowhere: no such image"):
        devkit.read_devkit(small)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("../../secret\n", "without folder and ending"),
        ("a\nc\n", "c in both train.txt and val.txt"),
        ("\x00\n", "without folder and ending"),
    ],
)
def test_a_list_that_cannot_be_used(small, content, told):
    (small / "ImageSets/Main/train.txt").write_text(content)
    with pytest.raises(UserError, match=told):
        devkit.read_devkit(small)


def test_folders_and_lists_that_are_missing(small, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        voc.load(tmp_path / "nowhere", 8)
    with pytest.raises(UserError, match="neither a folder nor a tar archive"):
        voc.load(small / "JPEGImages/a.jpg", 8)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="no ImageSets/Main/"):
        voc.load(tmp_path / "void", 8)
    (small / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt is missing"):
        voc.load(small, 8)
    shutil.rmtree(small / "Annotations")
    with pytest.raises(UserError, match="no folder Annotations"):
        voc.load(small, 8)


def test_nothing_to_score_is_refused(small):
    (small / "Annotations/c.xml").write_text(f"<annotation>{thing('dog', 1)}</annotation>")
    with pytest.raises(UserError, match=r"no image in val\.txt has an object that counts"):
        voc.load(small, 8)


def test_broken_photographs_are_named_or_left_out(small):
    (small / "JPEGImages/b.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 of 3 images cannot be read: JPEGImages/b\.jpg"):
        voc.load(small, 8)
    left = voc.load(small, 8, skip_broken=True)["train"]
    assert left.files == ("JPEGImages/a.jpg",) and left.skipped == ("JPEGImages/b.jpg",)
    assert left.labels[0, label("cat")] == 1 and len(left.labels) == len(left.boxes) == 1


# --- as programs write them ---


def test_apple_double_files_are_no_lists(small, tmp_path):
    for split in ("train", "val"):
        (small / f"ImageSets/Main/._{split}.txt").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (small / "JPEGImages/._a.jpg").write_bytes(b"\0\5\x16\7")
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
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_as_programs_write_them(small, kind):
    for split, text in zip(("train", "val"), LISTS[kind], strict=True):
        (small / f"ImageSets/Main/{split}.txt").write_text(text)
    kit = devkit.read_devkit(small)
    assert [[f.path for f in kit.files[s]] for s in ("train", "val")] == [
        ["JPEGImages/a.jpg", "JPEGImages/b.jpg"],
        ["JPEGImages/c.jpg"],
    ]
    assert [len(boxes) for boxes in kit.boxes["train"]] == [2, 3] and not kit.notes


@pytest.mark.parametrize("text", ["a\nb 1\n", "a\nb 7\n"])
def test_a_missing_image_is_not_taken_for_another(small, text):
    (small / "ImageSets/Main/train.txt").write_text(text)
    with pytest.raises(UserError, match=r"train\.txt names b \d: no such image"):
        devkit.read_devkit(small)


def test_an_image_in_both_lists_is_found_however_they_write_it(small):
    (small / "ImageSets/Main/train.txt").write_text("a\nb\n'c.jpg'\n")
    with pytest.raises(UserError, match=r"c in both train\.txt and val\.txt"):
        devkit.read_devkit(small)


def test_names_with_accents_and_spaces(tmp_path):
    composed, split = "caf\u00e9", "cafe\u0301"  # NFC, as most write; NFD, as macOS's files are
    images = {split: [thing(f"{split} au lait")], "my photo 1": [thing(f"{composed} au lait")]}
    images |= {"v.1": [thing("tea"), thing(f"{composed} au lait")], "w": [thing("tea")]}
    lists = {"train": [composed, "my photo 1", "w"], "val": ["v.1"]}
    kit = devkit.read_devkit(write(tmp_path / "kit", images, lists))
    assert kit.classes == (f"{composed} au lait", "tea")
    files = [f"JPEGImages/{split}.jpg", "JPEGImages/my photo 1.jpg", "JPEGImages/w.jpg"]
    assert [f.path for f in kit.files["train"]] == files
    assert [len(boxes) for boxes in kit.boxes["train"]] == [1, 1, 1]


def test_other_lists_name_no_classes(small):
    main = small / "ImageSets/Main"
    for split, names in (("train", "a\nb\n"), ("val", "c\n")):
        signed = "".join(f"{n} -1\n" for n in names.split())
        (main / f"fold1_{split}.txt").write_text(names)
        (main / f"background_{split}.txt").write_text(signed)
    kit = devkit.read_devkit(small)
    assert kit.classes == annotations.VOC_CLASSES
    assert kit.notes == ("background is listed as a class, but no object is called so: it is none",)
    for split, names in (("train", "a b"), ("val", "c")):
        for name in ("cat", "dog"):
            (main / f"{name}_{split}.txt").write_text("".join(f"{n}  1\n" for n in names.split()))
    devkit._read_devkit.cache_clear()
    assert devkit.read_devkit(small).classes == ("cat", "dog")


FLAGS = {
    False: ("0", "False", "false", "0.0", "Unspecified", "no", "", "None"),
    True: ("1", "True", "TRUE", "1.0", "yes"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "difficult"), [(t, d) for d, ts in FLAGS.items() for t in ts])
def test_difficult_as_programs_write_it(small, text, difficult):
    content = f"<annotation>{thing('cat')}{thing('dog', text)}</annotation>"
    (small / "Annotations/a.xml").write_text(content)
    box = devkit.read_devkit(small).boxes["train"][0][1]
    assert box == devkit.Box(label("dog"), (1, 2, 9, 8), difficult)


def test_boxes_the_wrong_way_round_are_turned_and_counted(small):
    box = BOX.replace("1", "19").replace("2", "18")
    (small / "Annotations/a.xml").write_text(f"<annotation>{thing('cat', 0, box)}</annotation>")
    kit = devkit.read_devkit(small)
    assert kit.boxes["train"][0] == (devkit.Box(label("cat"), (9, 8, 19, 18), False),)
    assert kit.notes == ("boxes that ended before they started were turned round: 1 (a.xml)",)


def test_images_without_annotation_show_nothing_and_are_counted(small):
    (small / "Annotations/a.xml").unlink()
    sets, kit = voc.load(small, 8), devkit.read_devkit(small)
    assert (sets["train"].labels[0] == -1).all() and len(sets["train"]) == 2
    told = "images without annotation count as showing none of the classes: 1 of 3 (a)"
    assert told in voc.describe(sets, kit, None)["notes"]
    for name in ("cat", "dog"):  # a part of the annotations was lost: the lists know better
        (small / f"ImageSets/Main/{name}_train.txt").write_text("a  1\nb -1\n")
        (small / f"ImageSets/Main/{name}_val.txt").write_text("c -1\n")
    devkit._read_devkit.cache_clear()
    with pytest.raises(UserError, match=r"a\.xml \(missing, though the list of a class"):
        devkit.read_devkit(small)
    for path in (small / "Annotations").iterdir():
        path.rename(small / path.name)
    for path in (small / "ImageSets/Main").glob("*_*"):
        path.unlink()
    devkit._read_devkit.cache_clear()
    with pytest.raises(UserError, match="no annotation of any listed image in it"):
        devkit.read_devkit(small)


def test_what_cannot_be_read_is_left_out_on_request(small):
    (small / "Annotations/a.xml").write_text("")
    (small / "ImageSets/Main/val.txt").write_text("c\nnowhere\n")
    for _ in range(2):
        with pytest.raises(UserError):
            voc.load(small, 8)
        sets = voc.load(small, 8, skip_broken=True)
    assert sets["train"].files == ("JPEGImages/b.jpg",)
    assert sets["train"].skipped == ("Annotations/a.xml",)
    assert sets["val"].skipped == ("JPEGImages/nowhere",)
    skipped = voc.describe(sets, devkit.read_devkit(small, None, True), None)["skipped"]
    assert skipped == ["Annotations/a.xml", "JPEGImages/nowhere"]


def test_of_several_files_with_one_name_the_photograph_counts(small):
    Image.new("RGB", (12, 10)).save(small / "JPEGImages/a.bmp")
    (small / "JPEGImages/b.jpg").rename(small / "JPEGImages/b.JPEG")
    Image.new("RGB", (12, 10)).save(small / "JPEGImages/b.PNG")
    kit = devkit.read_devkit(small)
    assert [f.path for f in kit.files["train"]] == ["JPEGImages/a.jpg", "JPEGImages/b.JPEG"]
    (told,) = kit.notes
    assert told.endswith("counts: a.jpg (not a.bmp), b.JPEG (not b.PNG)")


def test_an_image_with_another_ending_is_told_so(small):
    (small / "JPEGImages/b.jpg").rename(small / "JPEGImages/b.gif")
    with pytest.raises(UserError, match=r"names b \(there is b\.gif, no image by its ending\)"):
        devkit.read_devkit(small)


@pytest.mark.parametrize("names", [("raccoon", "Raccoon"), ("tree frog", "tree-frog")])
def test_two_spellings_of_a_class_are_refused(tmp_path, names):
    images = {"a": [thing(names[0])], "b": [thing(names[1])], "c": [thing(names[0])]}
    kit = write(tmp_path / "kit", images, {"train": ["a", "b"], "val": ["c"]})
    with pytest.raises(
        UserError, match=r"Annotations/\w\.xml \(.*are the same class name"
    ) as error:
        devkit.read_devkit(kit)
    assert all(name in str(error.value) for name in names)
    (kit / "classes.txt").write_text("\n".join(names))
    devkit._read_devkit.cache_clear()
    with pytest.raises(UserError, match="are the same class name but for case"):
        devkit.read_devkit(kit)


def test_a_class_on_every_image_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    images = {name: [thing("raccoon", int(name == "b"))] for name in "abcd"}
    kit = write(tmp_path / "kit", images, {"train": ["a", "b"], "val": ["c", "d"]})
    notes = voc.describe(voc.load(kit, 8), devkit.read_devkit(kit), None)["notes"]
    assert notes[0].startswith("every image of train.txt that counts shows raccoon: there is no im")
    assert notes[1].endswith("shows raccoon: whatever the network says, its average precision is "
                             "100 %")  # fmt: skip
