"""Image folders: what is found, refused, decoded and cached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from core.data import decoding, folders
from core.data import images as data_images
from tests.support.calls import error_of, python, start
from tests.support.datasets import folder, picture, save

# --- what comes out ---


def test_pixels_labels_and_order(birds):
    sets = data_images.load(birds, 8)
    train = sets["train"]
    assert train.classes == sets["val"].classes == ("Hoopoe", "Indian Roller")
    assert train.files == (
        *(f"train/Hoopoe/{k}.png" for k in range(3)),
        *(f"train/Indian Roller/{k}.png" for k in range(3)),
    )
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and train.labels.dtype == np.int64
    assert train.images.shape == (6, 3, 8, 8) and train.images.dtype == np.uint8
    assert len(sets["val"]) == 4
    for path, image in zip(train.files, train.images, strict=True):
        with Image.open(birds / path) as original:
            expected = original.resize((8, 8), Image.Resampling.BILINEAR)
        assert np.array_equal(image, np.asarray(expected).transpose(2, 0, 1))
    for image, digest in zip(train.images, train.digests, strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest()[:32] == digest
    assert isinstance(train.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        train.images[0, 0, 0, 0] = 1


def test_real_photos_with_test_in_place_of_val(shared_data):
    sets = data_images.load(shared_data / "cifar10", 32, limit={"train": 40, "val": 25})
    assert len(sets["train"].classes) == 10
    assert Counter(sets["train"].labels.tolist()) == dict.fromkeys(range(10), 4)
    assert sorted(Counter(sets["val"].labels.tolist()).values()) == [2] * 5 + [3] * 5
    assert sets["val"].folder == "test"
    assert all(path.startswith("test/") for path in sets["val"].files)
    for path, image in zip(sets["val"].files, sets["val"].images, strict=True):
        with Image.open(shared_data / "cifar10" / path) as original:
            assert np.array_equal(image, np.asarray(original.convert("RGB")).transpose(2, 0, 1))
    said = data_images.describe(sets)
    assert said["kind"] == "folder" and "test/ serves as val" in said["description"]
    assert str(shared_data) not in json.dumps(said)


def test_val_is_preferred_to_test(tmp_path):
    root = folder(tmp_path / "birds", {"train": 1, "test": 3, "val": 2})
    assert folders.scan(root).folders == {"train": "train", "val": "val"}
    sets = data_images.load(root, 8, splits=("train", "val", "test"))
    assert [len(s) for s in sets.values()] == [2, 4, 6]


def test_junk_is_passed_over(birds):
    before = folders.scan(birds)
    for junk in (".DS_Store", "Thumbs.db", "imageNotFound.gif", "._0.png", "notes.txt", "0"):
        (birds / "train" / "Hoopoe" / junk).write_bytes(b"junk")
    (birds / "train" / "README.md").write_text("junk")
    (birds / "train" / ".ipynb_checkpoints").mkdir()
    (birds / "val" / "__MACOSX").mkdir()
    after = folders.scan(birds)
    assert after.files == before.files
    expected = {".gif": 1, ".txt": 1, "without extension": 1}
    assert after.left_out == {"train": expected, "val": {}}


def test_files_that_are_left_out_are_named_by_extension(birds):
    for name in ("a.GIF", "b.gif", "c.heic"):
        (birds / "train" / "Hoopoe" / name).write_bytes(b"a picture")
    for name in ("x.png", "y.JPG", "._x.png", "readme.md"):
        (birds / "val" / name).write_bytes(b"beside the class folders")
    (told,) = data_images.describe(data_images.load(birds, 8))["notes"]
    assert told == (
        "files that count as no images are left out: 2 .gif, 1 .heic, 1 .jpg in no class folder,"
        " 1 .png in no class folder"
    )


def test_linked_folders_count_each_once_and_loops_end(birds, tmp_path):
    away = tmp_path / "away"
    for k in range(3):
        save(picture(50 + k), away / "deep" / f"{k}.png")
    inside = birds / "train" / "Hoopoe"
    (inside / "more").symlink_to(away)
    (inside / "again").symlink_to(inside / "more")  # the same folder: sorted before it
    (away / "deep" / "back").symlink_to(inside)
    (away / "loop").symlink_to(away)
    (inside / "up").symlink_to(birds / "train")  # would make a Hoopoe of each Roller
    (inside / "nowhere").symlink_to(tmp_path / "gone")
    listing = folders.scan(birds)
    found = [f.path.removeprefix("train/Hoopoe/") for f in listing.files["train"] if f.label == 0]
    linked = [f"again/deep/{k}.png" for k in range(3)]
    assert found == [*(f"{k}.png" for k in range(3)), *linked]
    assert Counter(f.label for f in listing.files["train"]) == {0: 6, 1: 3}
    assert listing.left_out["train"] == {"without extension": 1}  # the link to nowhere
    assert len(data_images.load(birds, 8)["train"]) == 9


def test_names_that_trip_programs(tmp_path):
    classes = ("=SUM(A1)", "-dash", "Élan, été", "a'b\"c", "चिड़िया")
    root = folder(tmp_path / "birds with space", {"train": 1, "val": 1}, classes)
    for name in ("Upper.JPG", "new\nline.png", "comma,semi;.Jpeg", "x" * 200 + ".png", "-rf.png"):
        save(picture(7), root / "train" / "-dash" / name, format="PNG")
    save(picture(8), root / "train" / "-dash" / "inner folder" / "deep.png")
    sets = data_images.load(root, 8)
    assert sets["train"].classes == tuple(sorted(classes))
    assert "train/-dash/inner folder/deep.png" in sets["train"].files
    assert len(sets["train"]) == 5 + 6
    assert json.loads(json.dumps(data_images.describe(sets)))["counts"]["train"]["-dash"] == 7


def test_class_names_match_across_splits(tmp_path):
    root = folder(tmp_path / "birds", {"train": 1}, ("House Crow", "Red-Wattled Lapwing", "x"))
    folder(root, {"val": 2}, ("X", "house_crow", "red wattled-lapwing"))
    sets = data_images.load(root, 8)
    assert sets["val"].classes == ("House Crow", "Red-Wattled Lapwing", "x")
    assert sets["val"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    found = [path.split("/")[1] for path in sets["val"].files[::2]]
    assert found == ["house_crow", "red wattled-lapwing", "X"]
    classes = ("Hoopoe", "Red-Wattled Lapwing", "White-Breasted Waterhen")
    for name in ("Red Wattled Lapwing", "red-wattled-lapwing", "RED_WATTLED LAPWING"):
        assert folders.match_class(name, classes) == "Red-Wattled Lapwing"
    assert folders.match_class("White Breasted Kingfisher", classes) is None


# --- limit ---


def test_limit_is_balanced_and_deterministic(tmp_path):
    root = folder(tmp_path / "birds", {"train": 6, "val": 1}, ("a", "b", "c"))
    some = data_images.load(root, 8, limit={"train": 10})["train"]
    assert sorted(Counter(some.labels.tolist()).values()) == [3, 3, 4]
    assert some.files == data_images.load(root, 8, limit={"train": 10})["train"].files
    fewer = data_images.load(root, 8, limit={"train": 4})["train"]
    assert set(fewer.files) < set(some.files)
    assert list(some.files) == sorted(some.files)
    assert len(data_images.load(root, 8, limit={"train": 99, "val": None})["train"]) == 18
    for k in range(5):
        (root / "train" / "a" / f"{k}.png").unlink()
    some = data_images.load(root, 8, limit={"train": 9})["train"]  # topped up from larger classes
    assert Counter(some.labels.tolist()) == {0: 1, 1: 4, 2: 4}


def test_limit_comes_before_decoding_and_is_an_image_of_each_class(birds, cache):
    data_images.load(birds, 8, limit={"train": 2, "val": 2})
    assert [len(np.load(path)) for path in (cache / "images").glob("*.npy")] == [2, 2]
    told = error_of(data_images.load, birds, 8, limit={"train": 1})
    assert "--set train_images=1: at least 2" in told


# --- cache ---


def test_cache_is_used_and_never_in_the_data_root(birds, cache):
    before = sorted(birds.rglob("*"))
    first = data_images.load(birds, 8)["train"].images
    assert data_images.load(birds, 8)["train"].images is first  # opened once per process
    assert sorted(birds.rglob("*")) == before
    arrays = {path: path.stat().st_mtime_ns for path in (cache / "images").glob("*.npy")}
    assert len(arrays) == 2
    decoding._open.cache_clear()
    data_images.load(birds, 8)
    assert {path: path.stat().st_mtime_ns for path in (cache / "images").glob("*.npy")} == arrays
    assert not list(cache.rglob("*.tmp"))


def test_cache_key_follows_content_time_size_and_root(birds, tmp_path):
    first = data_images.load(birds, 8)["train"]
    assert data_images.load(birds, 9)["train"].images.shape[-1] == 9
    path = birds / "train" / "Hoopoe" / "0.png"
    save(picture(77), path)
    changed = data_images.load(birds, 8)["train"]
    assert not np.array_equal(first.images[0], changed.images[0])
    other = shutil.copytree(birds, tmp_path / "other", copy_function=shutil.copy2)
    save(picture(78), other / "train" / "Hoopoe" / "0.png")
    times = path.stat()
    os.utime(other / "train" / "Hoopoe" / "0.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not np.array_equal(data_images.load(other, 8)["train"].images[0], changed.images[0])


def test_damaged_cache_is_named(birds, cache):
    data_images.load(birds, 8)
    decoding._open.cache_clear()
    for path in (cache / "images").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-10])
    assert "is damaged" in error_of(data_images.load, birds, 8)


def test_interrupted_build_leaves_nothing_behind(birds, cache, monkeypatch):
    decode = decoding._decode

    def interrupted(root, path, size, fit):
        if path == "train/Indian Roller/2.png":
            raise KeyboardInterrupt
        return decode(root, path, size, fit)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data_images.load(birds, 8)
    assert not list(cache.rglob("*.npy")) and not list(cache.rglob("*.tmp"))
    assert len(data_images.load(birds, 8)["train"]) == 6


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from core.data import images
from core.errors import UserError
try:
    images.load(sys.argv[1], 64)
except UserError as e:
    print(e)
"""


def test_full_disk(birds, cache):
    done = python("-c", LIMITED, birds)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write the cache") and "disk full" in done.stdout
    assert not list(cache.rglob("*.tmp")) and not list(cache.rglob("*.npy"))


SEVERAL = """
import sys
from core.data import images
sets = images.load(sys.argv[1], 16)
print(images.fingerprint(sets), int(sets["train"].images.sum(dtype="uint64")))
"""


def test_processes_that_build_at_once_agree(birds):
    running = [start("-c", SEVERAL, birds) for _ in range(2)]
    said = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(said) == 1 and said.pop().startswith("sha256:")


# --- what the report says ---


def test_duplicates_between_train_and_val(birds):
    assert data_images.duplicates(*data_images.load(birds, 8).values()) == []
    with Image.open(birds / "train" / "Hoopoe" / "1.png") as image:
        save(image, birds / "val" / "Indian Roller" / "copy.bmp")  # other bytes, same pixels
    sets = data_images.load(birds, 8)
    pair = ("train/Hoopoe/1.png", "val/Indian Roller/copy.bmp")
    assert data_images.duplicates(sets["train"], sets["val"]) == [pair]
    said = data_images.describe(sets)
    assert said["duplicates"] == 1 and said["duplicate_examples"] == [list(pair)]


def test_a_description_holds_counts_and_a_fingerprint_of_the_content(birds, tmp_path):
    said = data_images.describe(data_images.load(birds, 8), synthetic="drawn")
    assert json.loads(json.dumps(said)) == said
    assert said["kind"] == "synthetic" and said["description"] == "drawn"
    counts = {
        s: dict.fromkeys(("Hoopoe", "Indian Roller"), n) for s, n in (("train", 3), ("val", 2))
    }
    assert said["counts"] == counts
    assert said["classes"] == ["Hoopoe", "Indian Roller"] and said["image_size"] == 8
    assert said["skipped"] == [] and said["duplicates"] == 0
    first = said["fingerprint"]
    copy = shutil.copytree(birds, tmp_path / "copy", copy_function=shutil.copy)
    assert data_images.fingerprint(data_images.load(copy, 16)) == first
    save(picture(5), copy / "val" / "Hoopoe" / "0.png")
    assert data_images.fingerprint(data_images.load(copy, 8)) != first


def test_a_part_of_a_set_reads_the_pixels_it_is_asked_for():
    images = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    names = tuple("abcde")
    whole = data_images.ImageSet(images, np.arange(5), names, names, digests=names, skipped=("x",))
    some = data_images.part(whole, np.array([1, 3, 4]))
    assert len(some) == 3 and some.files == some.digests == ("b", "d", "e")
    assert some.labels.tolist() == [1, 3, 4] and some.classes == names and some.skipped == ("x",)
    assert some.images.shape == (3, 3, 4, 4) and len(some.images) == 3
    assert (some.images[np.array([2, 0])] == images[[4, 1]]).all()
