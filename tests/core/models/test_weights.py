"""State dicts as training programs leave them, and ResNet-18 with weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.models import resnet18 as build

from core.generation import features
from core.models import conversion_check, pretrained
from core.models.classifier import load_classifier
from core.models.resnet import load_weights, resnet
from core.models.weights import load_state
from tests.support.calls import error_of

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(1)
    return build(num_classes=10).state_dict()


def save(content: object, folder: Path, name: str = "w.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRITTEN: dict[str, Callable[[State], object]] = {
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "_orig_mod.module._orig_mod.": prefixed("_orig_mod.module._orig_mod."),
    "model.": prefixed("model."),
    "a compiled part": lambda state: {
        name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()
    },
    "net": lambda state: {"net": state, "acc": 0.9, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": prefixed("module.")(state)},
    "model in state_dict": lambda state: {"model": {"state_dict": state}, "optimizer": {}},
    "float64": lambda state: {name: value.double() for name, value in state.items()},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_state_dict_is_found_wherever_programs_put_it(tmp_path, state, kind):
    state = {name: value for name, value in state.items() if name < "layer2"}  # the first 30
    found = load_state(save(WRITTEN[kind](state), tmp_path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_bfloat16_serves_every_study(tmp_path, state):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    path = save(half, tmp_path)
    assert pretrained.digest(path).startswith("sha256:")
    for model in (pretrained.resnet18(path, 10), load_classifier(path, 10).model):
        assert model.get_parameter("conv1.weight").dtype == torch.float32
        rounded = state["conv1.weight"].bfloat16().float()
        assert torch.equal(model.get_parameter("conv1.weight"), rounded)
    assert conversion_check.network(path)[1] == 224


def test_a_head_may_be_missing_where_it_is_replaced(tmp_path, state):
    path = save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path)
    model = pretrained.resnet18(path, 7)
    assert torch.equal(model.get_parameter("conv1.weight"), state["conv1.weight"])
    heads = [conversion_check.network(path)[0].get_parameter("fc.weight") for _ in range(2)]
    assert torch.equal(*heads)
    assert "missing from the file: fc.bias, fc.weight" in error_of(load_classifier, path, 10)


def test_numbers_that_are_not_finite_are_refused_with_their_tensor(tmp_path, state):
    spoilt = torch.full_like(state["layer2.0.bn1.running_var"], torch.nan)
    path = save({"conv1.weight": torch.ones(1), "layer2.0.bn1.running_var": spoilt}, tmp_path)
    doors: tuple[tuple, ...] = (
        (pretrained.resnet18, path, 3),  # voc and cifar
        (pretrained.digest, path),
        (load_classifier, path, 10),  # adaptation
        (load_classifier, f"resnet18:{path}", 10),
        (conversion_check.network, path),  # weight standardisation
        (features.inception, path),  # generation
    )
    for door in doors:
        assert f"{path}: layer2.0.bn1.running_var holds numbers" in error_of(*door), door
    small = {"model": resnet(1, 5).state_dict() | {"head.bias": torch.full((5,), -torch.inf)}}
    other = save(small, tmp_path, "small.pth")
    for door in ((load_weights, resnet(1, 5), other), (load_classifier, other, 5)):
        assert "small.pth: head.bias holds numbers that are not f" in error_of(*door)


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(tmp_path, state, kind):
    """Copied into floats, those of a quantised network would be other weights, mostly 0."""
    others = {name: torch.zeros(1) for name in state}  # of other shapes, which is told too
    path = save(others | {"conv1.weight": state["conv1.weight"].to(kind)}, tmp_path)
    for door, classes in ((pretrained.resnet18, 3), (load_classifier, 10)):
        told = f"conv1.weight is {kind} in the file, torch.float32"
        assert told in error_of(door, path, classes)


def test_what_holds_no_state_dict_says_what_it_holds(tmp_path, state):
    none = save({"epoch": 3, "generator": {"a": torch.zeros(1), "b": 2}}, tmp_path)
    assert "no state dict (it holds epoch, generator): save" in error_of(load_state, none)
    twice = {"conv1.weight": torch.zeros(1), "module.conv1.weight": torch.ones(1)}
    assert "conv1.weight twice" in error_of(load_state, save(twice, tmp_path))


# --- pretrained networks ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put torch's cache of downloads in a folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens: no network
    pretrained._state.cache_clear()
    yield tmp_path / "hub" / "hub" / "checkpoints"
    pretrained._state.cache_clear()


def test_a_file_fills_all_but_a_head_of_another_size(state, tmp_path):
    path = save({"state_dict": prefixed("module.")(state)}, tmp_path)
    model = pretrained.resnet18(path, 7)
    assert model.fc.out_features == 7
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, state[name]), name
    whole = pretrained.resnet18(path, 10)
    assert torch.equal(whole.fc.weight, state["fc.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    path = save({"conv1.weight": torch.zeros(64, 3, 7, 7), "odd": torch.zeros(1)}, tmp_path)
    for door in ((pretrained.resnet18, path, 3), (load_weights, resnet(1, 5), path)):
        told = error_of(*door)
        assert "missing from the file: " in told and "not in the model: odd" in told
    assert "conv.weight is (64, 3, 7, 7) in the file, (16, 3, 3, 3) in the model" in told
    assert "no weights at" in error_of(pretrained.resnet18, str(tmp_path / "none.pt"), 3)


def test_torchvisions_weights_are_taken_from_its_cache_or_asked_for(hub, state, tmp_path):
    name = ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    assert name in error_of(pretrained.resnet18, "default", 3)
    torch.save(state, hub / name)
    assert torch.equal(pretrained.resnet18("default", 3).conv1.weight, state["conv1.weight"])
    assert pretrained.digest("default") == pretrained.digest(save(state, tmp_path))


@pytest.mark.slow
def test_the_embedded_weights_know_more_than_random_ones(tmp_path, monkeypatch):
    """After a short lesson, in a cache of its own."""
    monkeypatch.setattr(pretrained, "cache_dir", lambda: tmp_path)
    for name, value in (("_IMAGES", 200), ("_EPOCHS", 1), ("_THREADS", 1)):
        monkeypatch.setattr(pretrained, name, value)
    pretrained._state.cache_clear()
    model = pretrained.resnet18("embedded", 25)
    assert pretrained.digest("embedded").startswith("sha256:")
    random = pretrained.resnet18("none", 25)
    moved = (model.bn1.running_mean - random.bn1.running_mean).abs().mean()
    assert moved > 0.005 and not torch.equal(model.fc.weight, random.fc.weight)
    pretrained._state.cache_clear()
