"""The drawn birds: a real image folder, the same each time, hard for linear models only."""

from __future__ import annotations

import errno
import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data import folders, images
from core.data.synthetic import birds as synthetic_birds
from core.data.synthetic.birds import SYNTHETIC, default_birds, draw_bird, make_birds
from core.data.synthetic.scenes import draw_scene
from core.data.synthetic.species import CLASSES, SPECIES
from core.errors import StorageError
from tests.support.calls import error_of
from tests.support.faults import fail_reads

LAB_CLASSES = (  # as the lab's text writes them
    "Cattle Egret", "Coppersmith Barbet", "Indian Peacock", "Red Wattled Lapwing",
    "Ruddy Shelduck", "White Breasted Kingfisher", "White Breasted Waterhen",
)  # fmt: skip
PIXELS = [  # pictures and masks of three birds, three scenes
    "583effc9", "d1738b65", "91db4e8a", "45912c55", "ad3f9836", "dd7ddf36", "185820e2", "3cb901cd",
    "fe2bfbfa",
]  # fmt: skip


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    return make_birds(tmp_path_factory.mktemp("birds") / "root", train_per_class=3, val_per_class=2)


@pytest.fixture
def few(cache, monkeypatch) -> Path:
    """Make few pictures in the test's cache."""
    few = functools.partial(make_birds, classes=2, train_per_class=2, val_per_class=1)
    monkeypatch.setattr(synthetic_birds, "make_birds", few)
    synthetic_birds._default_birds.cache_clear()
    yield cache
    synthetic_birds._default_birds.cache_clear()


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_25_species_with_the_lab_s_seven():
    assert len(set(CLASSES)) == 25 and list(CLASSES) == sorted(CLASSES)
    matched = {folders.match_class(name, CLASSES) for name in LAB_CLASSES}
    assert None not in matched and len(matched) == 7


def test_is_an_image_folder_that_says_that_it_is_generated(birds):
    listing = folders.scan(birds)
    assert listing.classes == CLASSES
    assert {split: len(files) for split, files in listing.files.items()} == {"train": 75, "val": 50}
    assert not any("masks" in file.path for files in listing.files.values() for file in files)
    sets = images.load(birds, 16)
    assert images.duplicates(sets["train"], sets["val"]) == []
    assert len(set(sets["train"].digests + sets["val"].digests)) == 125
    assert images.describe(sets, synthetic=SYNTHETIC)["kind"] == "synthetic"
    text = (birds / "README.txt").read_text()
    assert SYNTHETIC in text and "photograph" in text and "synthetic" in SYNTHETIC.lower()


def test_pictures_are_jpeg_files_of_many_sizes_and_qualities_with_masks_of_their_birds(birds):
    sizes, tables, shares = set(), set(), []
    for file in birds.glob("[tv]*/*/*.jpg"):
        mask = birds / "masks" / file.relative_to(birds).with_suffix(".png")
        with Image.open(file) as image, Image.open(mask) as bird:
            assert image.format == "JPEG" and image.mode == "RGB"
            assert min(image.size) >= 60 and max(image.size) <= 140
            sizes.add(image.size)
            tables.add(tuple(image.quantization[0]))
            assert bird.mode == "1" and bird.size == image.size
            shares.append(np.asarray(bird).mean())
    assert len(sizes) > 40 and len(tables) > 10
    assert {width > height for width, height in sizes} == {True, False}
    assert len(shares) == 125 and len(list(birds.glob("masks/*/*/*.png"))) == 125
    assert min(shares) > 0.02 and max(shares) < 0.9 and 0.15 < np.mean(shares) < 0.5


def test_masks_hold_the_plumage():
    """Inside its mask a Ruddy Shelduck is orange, outside it the scene is not."""
    duck = next(species for species in SPECIES if species.name == "Ruddy Shelduck")
    inside, outside = [], []
    for k in range(20):
        picture, mask = synthetic_birds.draw_bird(duck, np.random.default_rng(k))
        red, _, blue = np.asarray(picture, np.float64).transpose(2, 0, 1)
        bird = np.asarray(mask)
        inside.append((red - blue)[bird].mean())
        outside.append((red - blue)[~bird].mean())
    assert np.mean(inside) > np.mean(outside) + 40


def test_same_seed_same_files_and_counts_do_not_matter(birds, tmp_path):
    again = hashes(make_birds(tmp_path / "again", 3, train_per_class=2, val_per_class=2))
    first = hashes(birds)
    pictures = {name for name in again if name.endswith((".jpg", ".png"))}
    assert len(pictures) == 2 * 3 * 4
    assert all(first[name] == again[name] for name in pictures)
    other = hashes(make_birds(tmp_path / "other", 3, train_per_class=2, val_per_class=2, seed=1))
    assert not any(other[name] == again[name] for name in pictures if name.endswith(".jpg"))


def test_refusals(birds, tmp_path, monkeypatch):
    assert "is not empty" in error_of(make_birds, birds)
    told = error_of(make_birds, birds / "new", classes=26)
    assert "classes must be 2 to 25, got 26" in told
    assert "at least one picture" in error_of(make_birds, birds / "new", val_per_class=0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "file" / "cache"))  # cannot be written
    told = error_of(default_birds)
    assert "cannot write the cache" in told and "LABTUNE_CACHE" in told


def test_the_drawn_pixels_are_those_that_results_rest_on():
    """Where they move on purpose, raise the rule of `default_birds` or `default_voc`."""
    drawn = [
        *(draw_bird(SPECIES[k], np.random.default_rng((0, 0, k, 0))) for k in (0, 9, 17)),
        *((draw_scene(np.random.default_rng((0, 0, k))).image,) for k in range(3)),
    ]
    digests = [hashlib.sha256(np.asarray(i).tobytes()).hexdigest()[:8] for d in drawn for i in d]
    assert digests == PIXELS


def test_default_birds_are_made_once(few):
    folder = default_birds()
    assert folder.parent == few
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    synthetic_birds._default_birds.cache_clear()  # as in another process
    assert default_birds() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert folders.scan(folder).classes == CLASSES[:2]
    assert not list(few.glob(".*"))


def test_default_birds_are_made_again_when_files_are_gone_but_not_when_unreadable(few):
    folder = default_birds()
    before = hashes(folder)
    synthetic_birds._default_birds.cache_clear()
    told = pytest.raises(StorageError, match=r"contents\.json \(Input/output error\)")
    with fail_reads("contents.json", errno.EIO), told:
        default_birds()
    assert hashes(folder) == before
    (folder / "train" / CLASSES[0] / "0001.jpg").unlink()
    assert hashes(default_birds()) == before


def test_an_interrupted_making_leaves_no_folder(few, monkeypatch):
    draw, calls = synthetic_birds.draw_bird, []

    def interrupted(species, rng):
        calls.append(species)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return draw(species, rng)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_birds, "draw_bird", interrupted)
        with pytest.raises(KeyboardInterrupt):
            default_birds()
    assert not list(few.glob("synthetic-birds-*/"))
    assert len(hashes(default_birds())) == 2 * 2 * 3 + 2
    assert not list(few.glob(".*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_linear_model_on_the_pixels_stays_under_50_percent(monkeypatch):
    """On the shipped pictures, at the demo's size, for several strengths of regularisation."""
    monkeypatch.undo()  # these pictures are kept in the user's cache
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from threadpoolctl import threadpool_limits

    sets = images.load(default_birds(), 20)
    x, v = (np.float32(sets[split].images).reshape(len(sets[split]), -1) for split in sets)
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, v = (x - mean) / std, (v - mean) / std
    y, t = sets["train"].labels, sets["val"].labels
    models = [RidgeClassifier(alpha=alpha) for alpha in (100, 1000, 10000)]
    models += [LogisticRegression(C=C, max_iter=60, tol=1e-3) for C in (0.001, 0.01)]
    with threadpool_limits(1):  # several threads would wait for each other on a busy machine
        accuracies = [model.fit(x, y).score(v, t) for model in models]
    assert 0.15 < max(accuracies) < 0.5
