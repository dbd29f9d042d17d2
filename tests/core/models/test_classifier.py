"""Classifiers from files: architecture from names, weights that fit or are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from core.models.classifier import digest_of, load_classifier, load_fitting
from core.models.resnet import resnet
from core.storage.files import write_json
from tests.support.calls import error_of


def saved(model: torch.nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return path


def same_output(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        return torch.equal(one.eval()(x), other.eval()(x))


@pytest.fixture
def result_folder(tmp_path) -> Path:
    """A finished study's folder, as far as weights go."""
    model = resnet(1, 4, "bin")
    saved(model, tmp_path / "checkpoints" / "best.pt")
    config = {"norm": "bin", "n": 1, "image_size": 48}
    write_json(tmp_path / "checkpoints" / "best.json", {"trial": "t", "config": config})
    return tmp_path


def test_a_result_folder_gives_its_best_network(result_folder):
    inside = result_folder / "checkpoints"
    found = [load_classifier(str(p), 4) for p in (result_folder, inside, inside / "best.pt")]
    assert {f.digest for f in found} == {found[0].digest}
    assert found[0].image_size == 48 and found[0].fit == "squash"
    assert found[0].normalisation == "imagenet"
    assert "ResNet-8" in found[0].name and "bin" in found[0].name
    original = resnet(1, 4, "bin")
    original.load_state_dict(torch.load(inside / "best.pt", weights_only=True))
    assert same_output(found[0].model, original)


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_weights_without_a_note_tell_their_norm(tmp_path, norm):
    model = resnet(2, 3, norm)
    found = load_classifier(str(saved(model, tmp_path / "weights.pt")), 3)
    assert found.name == "ResNet-14" and found.image_size is found.normalisation is None
    assert digest_of(found.model) == digest_of(model)


@pytest.mark.parametrize(
    ("name", "prefixes"), [("resnet18", ("", "resnet18:")), ("resnet50", [""])]
)
def test_torchvisions_networks_are_known_by_their_names_in_the_file(tmp_path, name, prefixes):
    model = torchvision.models.get_model(name, weights=None, num_classes=7)
    path = saved(model, tmp_path / "weights.pt")
    for prefix in prefixes:
        before = torch.get_rng_state()
        found = load_classifier(f"{prefix}{path}", 7)
        assert torch.equal(torch.get_rng_state(), before)  # the caller's draws are its own
        assert found.name == f"{name} (torchvision)" and found.fit == "crop"
        assert same_output(found.model, model)


@pytest.mark.parametrize("noted", [{}, {"maxpool": False}, {"maxpool": True}], ids=str)
def test_a_stem_for_small_images_is_rebuilt_with_the_pool_that_a_note_names(tmp_path, noted):
    model = torchvision.models.resnet18(num_classes=3)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if not noted.get("maxpool"):
        model.maxpool = torch.nn.Identity()
    if noted:
        write_json(tmp_path / "best.json", {"config": noted | {"image_size": 64}})
    found = load_classifier(str(saved(model, tmp_path / "best.pt")), 3)
    assert found.image_size == (64 if noted else 32) and same_output(found.model, model)


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = torchvision.models.resnet18(num_classes=3)
    state = model.state_dict()
    del state["layer2.0.conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(4)
    torch.save(state, tmp_path / "w.pt")
    sentence = error_of(load_classifier, f"resnet18:{tmp_path / 'w.pt'}", 3)
    for name in ("ResNet-18", "layer2.0.conv1.weight", "extra.weight", "fc.bias is (4,)"):
        assert name in sentence
    path = saved(model, tmp_path / "v.pt")
    assert "ResNet-50" in error_of(load_classifier, f"resnet50:{path}", 3)


def test_counters_of_batches_may_be_missing():
    model = resnet(1, 4, "torch_bn")
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    other = resnet(1, 4, "torch_bn")
    load_fitting(other, state, "old")
    assert torch.equal(other.conv.weight, model.conv.weight)


def test_what_is_no_checkpoint_of_the_data_s_classes_is_refused_in_a_sentence(tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"encoder.weight": torch.zeros(2)}, other)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04nonsense")
    small = saved(resnet(1, 4, "bn"), tmp_path / "w.pt")
    cases = {
        str(small): "w.pt: it tells 4 classes apart and the data have 10",
        str(tmp_path / "nowhere.pt"): "no such file", str(tmp_path): "holds no checkpoints/best.pt",
        str(other): "encoder.weight", str(tmp_path / "broken.pt"): "not a file of tensors",
        "resnet19": "resnet18", f"resnet18:{tmp_path / 'nowhere.pt'}": "no weights at",
    }  # fmt: skip
    for checkpoint, words in cases.items():
        sentence = error_of(load_classifier, checkpoint, 10)
        assert "--set checkpoint=" in sentence and words in sentence, checkpoint


def test_a_damaged_note_beside_the_weights_is_named(result_folder):
    (result_folder / "checkpoints" / "best.json").write_text("{")
    assert "best.json cannot be read" in error_of(load_classifier, str(result_folder), 4)


def test_missing_default_weights_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    told = error_of(load_classifier, "resnet50", 1000)
    assert all(words in told for words in ("resnet50-", ".pth cannot be fetched", "resnet50:PATH"))


def test_the_public_cifar_weights_load(shared_data):
    path = shared_data / "weights" / "cifar10-resnet20.th"
    found = load_classifier(str(path), 10)
    assert found.name == "ResNet-20" and found.num_classes == 10
    assert found.digest.startswith("sha256:")
