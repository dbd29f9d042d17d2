"""Small pictures through one interface, and both ways from bytes to what a network takes."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms import ToTensor

from core.data import small
from core.data.small import SmallImages, describe, for_display, load, resolve, to_tensor
from tests.support.calls import error_of
from tests.support.datasets import picture, save

NAMES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")


@pytest.fixture
def cifar_binary(tmp_path):
    """Random records in CIFAR-10's binary layout, 4 in each of the six files."""
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (24, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(24) % 10
    for name, part in zip(NAMES, np.split(records, 6), strict=True):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    return tmp_path / "data", records


def test_embedded_digits_are_scikit_learns():
    sets = load("digits", None, 8)
    train, val = sets["train"], sets["val"]
    assert len(train) + len(val) == 1797 and train.classes == tuple("0123456789")
    assert set(np.bincount(val.labels)) <= {34, 35, 36}
    known = {tuple((x * (255 / 16)).round().astype(int).ravel()) for x in load_digits().images}
    for images in (train, val):
        assert images.images.dtype == np.uint8 and images.images.shape[1:] == (3, 8, 8)
        assert (images.images[:, :1] == images.images).all()
        assert {tuple(x[0].astype(int).ravel()) for x in images.images} <= known
    assert not set(train.digests) & set(val.digests)
    large = load("auto", None, 32)["train"].images  # in a black frame
    assert large.shape[1:] == (3, 32, 32)
    assert not large[..., :2, :].any() and not large[..., -2:].any()
    assert large[..., 2, :].any()
    described = describe("auto", None, sets)
    assert described["kind"] == "embedded" and "real handwritten digits" in described["description"]
    assert sum(described["counts"]["train"].values()) == len(train)
    assert described["duplicates"] == 0


def test_a_limit_is_balanced_and_the_same_each_time():
    some = load("digits", None, 8, {"train": 55, "val": 10})
    assert sorted(np.bincount(some["train"].labels)) == [5] * 5 + [6] * 5
    assert list(np.bincount(some["val"].labels)) == [1] * 10
    assert load("digits", None, 8, {"train": 55})["train"].files == some["train"].files


def test_the_cache_gives_the_same_as_a_fresh_one(tmp_path, monkeypatch):
    first = load("digits", None, 16)["val"]
    assert isinstance(first.images, np.memmap)
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "other"))
    second = load("digits", None, 16)["val"]
    assert first.digests == second.digests and (first.labels == second.labels).all()
    small._opened.cache_clear()
    [array] = (tmp_path / "other" / "small").glob("*/train.npy")
    array.write_bytes(array.read_bytes()[:50])
    told = error_of(load, "digits", None, 16)
    assert "damaged" in told and "delete it" in told


def test_cifars_binary_version(cifar_binary):
    root, records = cifar_binary
    assert resolve("auto", str(root)) == "cifar10"
    sets = load("auto", str(root), 32)
    assert len(sets["train"]) == 20 and len(sets["val"]) == 4
    assert (sets["train"].images.reshape(20, -1) == records[:20, 1:]).all()
    assert (sets["val"].labels == records[20:, 0]).all()
    assert sets["train"].classes[3] == "cat"
    assert load("cifar10", str(root), 16)["val"].images.shape == (4, 3, 16, 16)
    changed = records[20:].copy()
    changed[:, 1:] = 7
    (root / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(changed[:3].tobytes())
    assert (load("cifar10", str(root), 32)["val"].images == 7).all()  # read anew
    (root / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"x" * 100)
    assert "damaged" in error_of(load, "cifar10", str(root), 32)


def batches_of_torchvision(folder: Path, batch: dict) -> list[list[str]]:
    """Write CIFAR-10's Python version; return the names and digests torchvision checks."""
    folder.mkdir(parents=True)
    content = dict.fromkeys(NAMES, batch) | {"batches.meta": {"label_names": list("abcdefghij")}}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
    return [[n, hashlib.md5((folder / n).read_bytes()).hexdigest()] for n in content]


def test_torchvisions_version_is_read_only_if_it_is_the_published_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
    content = {"data": pixels, "labels": list(range(10))}
    listed = batches_of_torchvision(tmp_path / "data" / "cifar-10-batches-py", content)
    told = error_of(load, "auto", str(tmp_path / "data"), 32)  # other digests than those published
    assert "not the published data set" in told
    # Digests of these stand-ins, as the published files cannot be had in a test.
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[5:6])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": listed[6][1]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    sets = load("auto", str(tmp_path / "data"), 32)
    assert len(sets["train"]) == 50 and len(sets["val"]) == 10
    assert (sets["val"].images.reshape(10, -1) == pixels).all()


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        made[prefix] = rng.integers(1, 256, (count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(made[prefix]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
        with gzip.open(raw / f"{prefix}-labels-idx1-ubyte.gz", "wb") as packed:
            packed.write(b"as torchvision leaves it")
    assert resolve("auto", str(tmp_path)) == "mnist"
    plain = load("mnist", str(tmp_path), 28)
    assert (plain["train"].images == made["train"][:, None]).all()
    framed = load("mnist", str(tmp_path), 32)["val"].images
    assert framed.shape == (10, 3, 32, 32)
    assert (framed[..., 2:-2, 2:-2] == made["t10k"][:, None]).all() and not framed[..., :2].any()


@pytest.mark.parametrize("modes", [("L",), ("L", "RGB"), ("RGB",)])
@pytest.mark.parametrize("dataset", ["auto", "folder"])
def test_grey_jpgs_have_three_equal_channels_and_coloured_ones_their_own(tmp_path, modes, dataset):
    root = tmp_path / "data"
    for number in range(12):
        place = ("train" if number < 6 else "test", ("ant", "bee")[number % 2], f"{number}.jpg")
        image = picture(number, 20, 20)
        for mode in modes:
            image = image.convert(mode)
        save(image, root.joinpath(*place))
    sets = load(dataset, str(root), 16, {"train": 4})
    images = sets["val"].images
    assert images.shape == (6, 3, 16, 16) and images.std() > 10
    assert (images[:, :1] == images).all() == ("L" in modes)
    assert len(sets["train"]) == 4 and sets["val"].classes == ("ant", "bee")
    described = describe(dataset, str(root), sets)
    assert described["kind"] == "folder" and described["dataset"] == "folder"


def test_both_conversions_give_the_same_bits():
    images = load("digits", None, 16, {"train": 30, "val": 10})["train"]
    by_hand, by_transform = SmallImages(images), SmallImages(images, ToTensor())
    assert len(by_hand) == 30
    for index in range(len(images)):
        (x, label), (y, same) = by_hand[index], by_transform[index]
        assert x.dtype == torch.float32 and x.shape == (3, 16, 16) and x.is_contiguous()
        assert torch.equal(x, y) and label == same == images.labels[index]
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert torch.equal(to_tensor(every), ToTensor()(every))
    assert to_tensor(every).max() == 1 and to_tensor(every).min() == 0


def test_to_tensor_of_torchvision_does_not_rescale_floats_and_ours_refuses_them():
    image = np.full((4, 4, 3), 255.0, dtype=np.float32)
    assert ToTensor()(image).max() == 255
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(image)
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(np.zeros((4, 4), dtype=np.uint8))


def test_display_and_network_order_are_inverse():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(3, 2, 3)
    assert for_display(image).shape == (2, 3, 3)
    assert (for_display(image)[1, 2] == image[:, 1, 2]).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("imagenet", None, 32), "dataset=imagenet: give one of auto, digits"),
        (("folder", None, 32), "--data-dir PATH"),
        (("digits", "/tmp", 32), "built in"),
        (("cifar10", None, 32), "download=true"),
        (("mnist", None, 32), "MNIST/raw"),
        (("cifar10", "/nowhere/at/all", 32), "/nowhere/at/all does not exist"),
        (("auto", "/nowhere/at/all", 32), "/nowhere/at/all does not exist"),
        (("digits", None, 0), "image_size=0"),
        (("digits", None, 8, {"train": 3}), "train_images=3: at least 10"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(arguments, sentence):
    assert sentence in error_of(load, *arguments)
