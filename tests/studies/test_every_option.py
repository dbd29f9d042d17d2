"""Every option that a --help names is run by a test; here are those that no other file runs."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.voc import DATASET_YEAR_DICT

from analysis import browse, gradcam, hand_in, import_scores, watch
from core import numerics
from core.generation import features
from core.models import conversion_check
from core.models.resnet import resnet
from core.storage.files import read_json
from core.study.options import Options
from tests.studies.test_every_setting import STUDIES
from tests.support import datasets
from tests.support.calls import ROOT, command, silent, table, toy
from tests.support.datasets import served, thing, write

TINY = {
    "norms": "norm=bn n=1 image_size=8 train_images=none val_images=none epochs=1 batch_size=4",
    "adaptation": "corruption=fog severity=1 images=4 num_bn_updates=1 batch_size=2 WEIGHTS",
    "voc": "weights=none image_size=16 train_images=12 val_images=8 batch_size=11 epochs=1",
    "weight_standardization": "variant=A lr=0.005 weights=none image_size=16 train_images=12"
    " val_images=8 batch_size=11 epochs=1",
    "cifar": "variant=all weights=none image_size=8 train_images=none val_images=none epochs=1"
    " batch_size=4",
    "generation": "family=vae width=8 image_size=8 epochs=1 epoch_steps=1 train_images=none"
    " val_images=none batch_size=4 eval_samples=4 neighbours=2",
}
PART = {"adaptation": "severity", "cifar": "resnet18", "generation": "small", "norms": "norms"}


def test_every_option_of_every_command_is_run_by_a_test():
    options = [Options, *(c.Options for c in (browse, gradcam, hand_in, import_scores, watch))]
    fields = [field for kind in options for field in dataclasses.fields(kind)]
    names = {field.name for field in fields if "Positional" not in str(field.type)}
    for study in STUDIES.values():
        names |= {*study.settings.flags, *study.settings.actions}
    texts = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    run = {name.replace("-", "_") for name in re.findall(r"[\"' ]--(?:no-)?([\w-]+)[\"' =]", texts)}
    assert names - run == set()


@pytest.fixture(autouse=True)
def soon(tmp_path_factory, monkeypatch):
    """Measure, train and compare little of what is not looked at here, and keep it apart.

    That is: the digits of two threads, a classifier of pictures, how far conversions agree.
    """
    measured = numerics.fingerprint(1)
    monkeypatch.setattr(numerics, "fingerprint", lambda threads: measured)
    monkeypatch.setattr(features, "_LEAST_STEPS", 2)
    monkeypatch.setattr(features, "_PASSES", 1)
    monkeypatch.setattr(conversion_check, "check", lambda model, photos: [])
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_slot_cores(tmp_path):
    assert toy(tmp_path, "--seeds", "1", "--set", "epochs=1", "--slot-cores", "2") == 0
    assert read_json(tmp_path / "toy" / "demo" / "study.json")["slots"]["cores"] == 2


# --- data of one's own ---


def kit(root: Path, year: str = "VOC2012") -> Path:
    """Write a devkit of two classes: twelve images to train on, eight to validate."""
    lists = {s: [f"{s}{number}" for number in range(n)] for s, n in (("train", 12), ("val", 8))}
    images = {stem: [thing(("cat", "dog")[int(stem[-1]) % 2])] for s in lists for stem in lists[s]}
    write(root / "VOCdevkit" / year, images, lists)
    return root


def call(name: str, folder: Path, *arguments: str, settings: str = "") -> int:
    """Run a study at toy size, without its report; return the exit code."""
    part = ["--part", PART[name]] if name in PART else []
    given = ["--smoke", "--seeds", "1", *part, *arguments]
    given += ["--set", *TINY[name].split(), *settings.split()]
    return command(silent(STUDIES[name]), folder, *given)


def run(name: str, folder: Path, *arguments: str, settings: str = "") -> Path:
    """Return the result folder of a run in which everything finished."""
    assert call(name, folder, *arguments, settings=settings) == 0
    assert set(table(folder / name / "smoke").state) == {"finished"}
    return folder / name / "smoke"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Write weights of a small network for two classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet8.pt"
    torch.save(resnet(8, 2, "torch_bn").state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "adaptation", "cifar", "generation"])
def test_data_dir_and_skip_broken(name, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TINY, name, TINY[name].replace("WEIGHTS", f"checkpoint={weights}"))
    data = datasets.folder(tmp_path / "photos", {"train": 4, "val": 4}, size=(32, 32))
    for split in ("train", "val"):
        (data / split / "Hoopoe" / "-broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    given = ["--data-dir", str(data)]
    assert call(name, tmp_path, *given, "--name", "refused") == 2
    assert "broken.png" in capsys.readouterr().err
    folder = run(name, tmp_path, *given, "--skip-broken")
    assert "broken.png" in (folder / "study.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc", "weight_standardization"])
def test_data_dir_of_a_devkit_and_its_year(name, tmp_path):
    data = kit(kit(tmp_path / "data"), "VOC2007")
    annotation = data / "VOCdevkit" / "VOC2007" / "Annotations" / "train0.xml"
    annotation.write_text("<annotation>")  # cut off
    given = ["--data-dir", str(data), "--weights", "none", "--skip-broken"]
    folder = run(name, tmp_path, *given, settings="year=2007")
    assert "train0" in (folder / "study.json").read_text()
    folder = run(name, tmp_path / "2012", *given, settings="year=2012")
    assert "train0" not in (folder / "study.json").read_text()


# --- downloads, from a server of the test's own ---


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder on loopback; yield it and its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as address:
        yield tmp_path / "served", address


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish_cifar10(folder: Path, address: str, monkeypatch) -> None:
    """Make CIFAR-10's archive with two images of each class in each batch."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    rng = np.random.default_rng(0)
    labels = [*range(10)] * 2
    batch = {"data": rng.integers(0, 255, (20, 3072), dtype=np.uint8), "labels": labels}
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name in names:
        (inside / name).write_bytes(pickle.dumps(batch))
    names_of = "airplane automobile bird cat deer dog frog horse ship truck"
    meta = {"label_names": names_of.split()}
    (inside / "batches.meta").write_bytes(pickle.dumps(meta))
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, inside.name)
    lists = [[name, md5(inside / name)] for name in names]
    monkeypatch.setattr(CIFAR10, "url", address + archive.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", lists[:-1])
    monkeypatch.setattr(CIFAR10, "test_list", lists[-1:])
    known = {"filename": "batches.meta", "key": "label_names", "md5": md5(inside / "batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", known)


def publish_mnist(folder: Path, address: str, monkeypatch) -> None:
    """Make MNIST's four files with three images of each class to train on and one to test."""
    rng = np.random.default_rng(0)
    resources = []
    for split, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = [2048 + array.ndim, *array.shape]  # IDX: unsigned bytes, so many dimensions
            data = np.array(head, dtype=">i4").tobytes() + array.tobytes()
            path = folder / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(data))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", [resources[i] for i in range(4)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "publish"),
    [("cifar", "cifar10", publish_cifar10), ("generation", "mnist", publish_mnist)],
)
def test_download(name, dataset, publish, server, tmp_path, monkeypatch):
    folder, address = server
    publish(folder, address, monkeypatch)
    arguments = ["--data-dir", str(tmp_path / "data")]
    results = run(name, tmp_path, *arguments, settings=f"dataset={dataset} download=true")
    assert read_json(results / "study.json")["data"]["fingerprint"]
    assert list((tmp_path / "data").iterdir())


def test_download_of_voc(server, tmp_path, monkeypatch):
    folder, address = server
    with tarfile.open(folder / "VOC.tar", "w") as tar:
        tar.add(kit(tmp_path / "made") / "VOCdevkit", "VOCdevkit")
    known = {"url": f"{address}VOC.tar", "filename": "VOC.tar", "base_dir": "VOCdevkit/VOC2012"}
    known["md5"] = md5(folder / "VOC.tar")
    monkeypatch.setitem(DATASET_YEAR_DICT, "2012", known)
    given = ["--data-dir", str(tmp_path / "data"), "--download", "--weights", "none"]
    run("voc", tmp_path, *given, settings="year=2012")
    assert (tmp_path / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages" / "val0.jpg").is_file()
