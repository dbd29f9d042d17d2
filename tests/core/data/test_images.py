"""Image folders: what is found, refused, decoded and cached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from core.data import decoding, folders
from core.data import images as data_images
from core.errors import UserError
from tests.support.calls import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Keep each test's cache to itself."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LABTUNE_CACHE", str(folder))
    return folder


def picture(seed: int, width: int = 9, height: int = 7) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def folder(root: Path, counts: dict[str, int], classes=("Hoopoe", "Indian Roller")) -> Path:
    """Make root/<split>/<class>/<k>.png with `counts` pictures of each class, all different."""
    for i, split in enumerate(counts):
        for j, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for k in range(counts[split]):
                picture(100 * i + 10 * j + k).save(root / split / name / f"{k}.png")
    return root


@pytest.fixture
def birds(tmp_path) -> Path:
    return folder(tmp_path / "birds", {"train": 3, "val": 2})


def refusal(root: Path, **options) -> str:
    """Return the one sentence with which the data are refused."""
    with pytest.raises(UserError) as error:
        data_images.load(root, 8, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def decoded(image: Image.Image, path: Path, size: int, **options) -> np.ndarray:
    """Save an image, decode it as part of a data set, and return (3, size, size)."""
    root = folder(path / "root", {"train": 1, "val": 1})
    suffix = options.pop("suffix", ".png")
    save(image, root / "train" / "Hoopoe" / f"x{suffix}", **options)
    train = data_images.load(root, size)["train"]
    return train.images[train.files.index(f"train/Hoopoe/x{suffix}")]


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


def test_images_are_mapped_and_read_only(birds):
    images = data_images.load(birds, 8)["train"].images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0, 0] = 1


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
    assert [path.split("/")[1] for path in sets["val"].files[::2]] == [
        "house_crow",
        "red wattled-lapwing",
        "X",
    ]


@pytest.mark.parametrize(
    "name", ["Red Wattled Lapwing", "red-wattled-lapwing", "RED_WATTLED LAPWING"]
)
def test_match_class(name):
    classes = ("Hoopoe", "Red-Wattled Lapwing", "White-Breasted Waterhen")
    assert folders.match_class(name, classes) == "Red-Wattled Lapwing"
    assert folders.match_class("White Breasted Kingfisher", classes) is None


# --- what is refused ---


def test_missing_root(tmp_path):
    assert f"{tmp_path / 'none'} does not exist" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")


def test_missing_split(birds):
    shutil.rmtree(birds / "val")
    text = refusal(birds)
    assert "no folder val/" in text and "found: train" in text


def test_empty_class_folders_are_all_named(birds):
    for name in ("train/Hoopoe", "val/Indian Roller"):
        shutil.rmtree(birds / name)
        (birds / name).mkdir()
    (birds / "val" / "Indian Roller" / "readme.txt").write_text("no image")
    text = refusal(birds)
    assert "train/Hoopoe" in text and "val/Indian Roller" in text and "train/Indian" not in text


def test_different_classes_list_both_sides(birds):
    (birds / "val" / "Hoopoe").rename(birds / "val" / "Sarus Crane")
    text = refusal(birds)
    assert "only in train: Hoopoe;" in text and "only in val: Sarus Crane)" in text


def test_fewer_than_two_classes(tmp_path):
    root = folder(tmp_path / "birds", {"train": 1, "val": 1}, ("Hoopoe",))
    assert "at least two classes (found: Hoopoe)" in refusal(root)


def test_one_class_spelled_twice(birds):
    save(picture(5), birds / "train" / "indian-roller" / "0.png")
    text = refusal(birds)
    assert "train/Indian Roller and train/indian-roller" in text


BROKEN = {
    "truncated.jpg": ("truncated", lambda jpeg: jpeg[: len(jpeg) // 2]),
    "text.jpg": ("not an image", lambda jpeg: b"<html>404 not found</html>"),
    "zero.jpg": ("empty", lambda jpeg: b""),
    "script.jpg": (
        "not an image",
        lambda jpeg: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ),
}


def break_images(birds: Path) -> None:
    save(picture(9, 90, 70), birds / "whole.jpg")
    jpeg = (birds / "whole.jpg").read_bytes()
    for name, (_, damage) in BROKEN.items():
        (birds / "train" / "Hoopoe" / name).write_bytes(damage(jpeg))
    (birds / "val" / "Hoopoe" / "nowhere.png").symlink_to(birds / "gone.png")


def test_broken_files_are_all_named_at_once(birds):
    break_images(birds)
    text = refusal(birds)
    assert text.startswith("5 of 15 images cannot be read") and "--skip-broken" in text
    for name, (why, _) in BROKEN.items():
        assert f"train/Hoopoe/{name} ({why})" in text
    assert "val/Hoopoe/nowhere.png (No such file" in text


def test_broken_files_can_be_left_out(birds):
    whole = data_images.load(birds, 8)
    break_images(birds)
    sets = data_images.load(birds, 8, skip_broken=True)
    assert set(sets["train"].skipped) == {f"train/Hoopoe/{name}" for name in BROKEN}
    assert sets["val"].skipped == ("val/Hoopoe/nowhere.png",)
    for split in ("train", "val"):
        assert sets[split].files == whole[split].files
        assert np.array_equal(sets[split].images, whole[split].images)
        assert np.array_equal(sets[split].labels, whole[split].labels)
    assert len(data_images.describe(sets)["skipped"]) == 5
    refusal(birds)  # the cache of the last call must not make it pass


def test_a_repaired_file_is_read_again(birds):
    path = birds / "train" / "Hoopoe" / "text.jpg"
    path.write_text("not an image")
    refusal(birds)
    save(picture(3), path)
    assert "train/Hoopoe/text.jpg" in data_images.load(birds, 8)["train"].files


def test_many_broken_files_are_counted(birds):
    for k in range(40):
        (birds / "train" / "Hoopoe" / f"bad{k:02}.jpg").write_text("no")
    text = refusal(birds)
    assert "40 of 50" in text and "bad09.jpg" in text and "and 30 more" in text
    assert "bad10" not in text


def test_a_class_with_broken_files_only(birds):
    for path in (birds / "val" / "Hoopoe").iterdir():
        path.write_text("no")
    assert "no readable image is left in val/Hoopoe" in refusal(birds, skip_broken=True)


def test_too_many_pixels(birds, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(picture(1, 60, 40), birds / "train" / "Hoopoe" / "bomb.png")
    assert "train/Hoopoe/bomb.png (too many pixels)" in refusal(birds)


def test_truncated_files_are_never_filled_up():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert "LOAD_TRUNCATED" not in Path(data_images.__file__).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_file_name_that_is_no_text(birds):
    shutil.copy(birds / "train/Hoopoe/0.png", os.fsencode(birds / "train/Hoopoe") + b"/\xff.png")
    text = refusal(birds)
    assert "not UTF-8" in text and text.encode()
    assert len(data_images.load(birds, 8, skip_broken=True)["train"].skipped) == 1
    for split in ("train", "val"):
        shutil.copytree(birds / split / "Hoopoe", birds / split / "caf\udce9")
    text = refusal(birds, skip_broken=True)
    assert "folders in train/ without a name in UTF-8: rename caf\\udce9" in text


def test_folder_that_cannot_be_read(birds, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the administrator reads every folder")
    (birds / "train" / "Hoopoe").chmod(0)
    try:
        assert "cannot read" in refusal(birds)
    finally:
        (birds / "train" / "Hoopoe").chmod(0o755)


# --- decoding ---


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


def test_limit_tops_up_from_larger_classes(tmp_path):
    root = folder(tmp_path / "birds", {"train": 5, "val": 1}, ("a", "b"))
    for k in range(4):
        (root / "train" / "a" / f"{k}.png").unlink()
    some = data_images.load(root, 8, limit={"train": 5})["train"]
    assert Counter(some.labels.tolist()) == {0: 1, 1: 4}


def test_limit_comes_before_decoding(birds, cache):
    data_images.load(birds, 8, limit={"train": 2, "val": 2})
    sizes = [len(np.load(path)) for path in (cache / "images").glob("*.npy")]
    assert sizes == [2, 2]


def test_limit_below_one_image_of_each_class(birds):
    assert "--set train_images=1: at least 2" in refusal(birds, limit={"train": 1})


# --- cache ---


def test_cache_is_used_and_never_in_the_data_root(birds, cache):
    before = sorted(birds.rglob("*"))
    data_images.load(birds, 8)
    assert sorted(birds.rglob("*")) == before
    arrays = {path: path.stat().st_mtime_ns for path in (cache / "images").glob("*.npy")}
    assert len(arrays) == 2
    decoding._open.cache_clear()
    data_images.load(birds, 8)
    assert {path: path.stat().st_mtime_ns for path in (cache / "images").glob("*.npy")} == arrays
    assert not list(cache.rglob("*.tmp"))


def test_open_once_per_process(birds):
    assert data_images.load(birds, 8)["train"].images is data_images.load(birds, 8)["train"].images


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
    assert "is damaged" in refusal(birds)


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


def test_cache_that_cannot_be_written(birds, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "file" / "cache"))
    text = refusal(birds)
    assert "cannot write the cache" in text and "LABTUNE_CACHE" in text


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
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, birds], capture_output=True, text=True, cwd=ROOT
    )
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
    command = [sys.executable, "-c", SEVERAL, str(birds)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    said = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
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


def test_fingerprint_is_of_the_content(birds, tmp_path):
    first = data_images.fingerprint(data_images.load(birds, 8))
    copy = shutil.copytree(birds, tmp_path / "copy", copy_function=shutil.copy)
    assert data_images.fingerprint(data_images.load(copy, 16)) == first
    save(picture(5), copy / "val" / "Hoopoe" / "0.png")
    assert data_images.fingerprint(data_images.load(copy, 8)) != first


def test_describe(birds):
    said = data_images.describe(data_images.load(birds, 8), synthetic="drawn")
    assert json.loads(json.dumps(said)) == said
    assert said["kind"] == "synthetic" and said["description"] == "drawn"
    assert said["counts"] == {
        "train": {"Hoopoe": 3, "Indian Roller": 3},
        "val": {"Hoopoe": 2, "Indian Roller": 2},
    }
    assert said["classes"] == ["Hoopoe", "Indian Roller"] and said["image_size"] == 8
    assert said["skipped"] == [] and said["duplicates"] == 0


def test_digests_are_of_the_pixels(birds):
    train = data_images.load(birds, 8)["train"]
    for image, digest in zip(train.images, train.digests, strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest().startswith(digest)
        assert len(digest) == 32


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


def test_a_part_of_a_set_reads_the_pixels_it_is_asked_for():
    images = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    names = tuple("abcde")
    whole = data_images.ImageSet(images, np.arange(5), names, names, digests=names, skipped=("x",))
    some = data_images.part(whole, np.array([1, 3, 4]))
    assert len(some) == 3 and some.files == some.digests == ("b", "d", "e")
    assert some.labels.tolist() == [1, 3, 4] and some.classes == names and some.skipped == ("x",)
    assert some.images.shape == (3, 3, 4, 4) and len(some.images) == 3
    assert (some.images[np.array([2, 0])] == images[[4, 1]]).all()
