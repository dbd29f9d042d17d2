"""State dicts as training programs leave them: place, names and types of numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18 as build

from core.errors import UserError
from core.generation import features
from core.models import conversion_check, pretrained
from core.models.classifier import load_classifier
from core.models.resnet import load_weights, resnet
from core.models.weights import load_state

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(1)
    return build(num_classes=10).state_dict()


def save(content: object, folder: Path) -> str:
    torch.save(content, folder / "w.pth")
    return str(folder / "w.pth")


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
    found = load_state(save(WRITTEN[kind](state), tmp_path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_bfloat16_serves_every_study(tmp_path, state):
    path = save(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}, tmp_path
    )
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
    with pytest.raises(UserError, match=r"missing from the file: fc\.bias, fc\.weight"):
        load_classifier(path, 10)


def test_numbers_that_are_not_finite_are_refused_with_their_tensor(tmp_path, state):
    spoilt = {name: tensor.clone() for name, tensor in state.items()}
    spoilt["layer2.0.bn1.running_var"][3] = torch.nan
    path = save(spoilt, tmp_path)
    small = {"model": resnet(1, 5).state_dict() | {"head.bias": torch.full((5,), -torch.inf)}}
    other = tmp_path / "small.pth"
    torch.save(small, other)
    doors: dict[str, Callable[[], object]] = {
        "voc and cifar": lambda: pretrained.resnet18(path, 3),
        "their digest": lambda: pretrained.digest(path),
        "adaptation": lambda: load_classifier(path, 10),
        "adaptation, named": lambda: load_classifier(f"resnet18:{path}", 10),
        "weight standardisation": lambda: conversion_check.network(path),
        "generation": lambda: features.inception(path),
    }
    for name, door in doors.items():
        with pytest.raises(UserError) as refused:
            door()
        assert f"{path}: layer2.0.bn1.running_var holds numbers" in str(refused.value), name
    for door in (lambda: load_weights(resnet(1, 5), other), lambda: load_classifier(str(other), 5)):
        with pytest.raises(UserError, match=r"small\.pth: head\.bias holds numbers that are not f"):
            door()


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(tmp_path, state, kind):
    """Copied into floats, those of a quantised network would be other weights, mostly 0."""
    path = save(state | {"conv1.weight": state["conv1.weight"].to(kind)}, tmp_path)
    told = rf"conv1\.weight is {kind} in the file, torch\.float32"
    for door in (lambda: pretrained.resnet18(path, 3), lambda: load_classifier(path, 10)):
        with pytest.raises(UserError, match=told):
            door()


def test_what_holds_no_state_dict_says_what_it_holds(tmp_path, state):
    with pytest.raises(UserError, match=r"no state dict \(it holds epoch, generator\): save"):
        load_state(save({"epoch": 3, "generator": {"a": torch.zeros(1), "b": 2}}, tmp_path))
    twice = {"conv1.weight": torch.zeros(1), "module.conv1.weight": torch.ones(1)}
    with pytest.raises(UserError, match=r"conv1\.weight twice"):
        load_state(save(twice, tmp_path))
