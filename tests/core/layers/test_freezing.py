"""Freezing a part of a ResNet-18: counts, and tensors that stay bit for bit the same."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from core.layers.freezing import (
    PartlyFrozen,
    averaged_kernel,
    counts,
    freeze,
    frozen_norms,
    small_stem,
    statistics_digest,
    trained_part,
    weights_digest,
)
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import Recipe


@functools.cache
def fresh() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=10)


def network(variant="layer4", stem="printed", train_stem=False) -> nn.Module:
    model = copy.deepcopy(fresh())
    torch.manual_seed(0)
    small_stem(model, stem)
    freeze(model, variant, train_stem=train_stem)
    return model


def trained(model: nn.Module, statistics="frozen") -> nn.Module:
    """Three steps with momentum and strong weight decay."""
    torch.manual_seed(1)
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(3)]
    recipe = Recipe(lr=0.05, weight_decay=0.1)
    optimizer, schedule = optimizer_and_schedule(trained_part(model), recipe, 3)
    network = PartlyFrozen(model, statistics)
    Learner(network, optimizer, schedule, cross_entropy(10)).train_epoch(batches, 1)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("variant", "train_stem", "trainable"),
    [
        ("all", False, 11_173_962), ("scratch", False, 11_173_962), ("layer4", False, 8_398_858),
        ("layer4", True, 8_398_858 + 64 * 3 * 9), ("head", False, 5_130),
    ],
)  # fmt: skip
def test_parameters(variant, train_stem, trainable):
    model = network(variant, train_stem=train_stem)
    found = counts(model)
    assert found["parameters"] == 11_173_962
    assert found["trainable_parameters"] == trainable
    assert found["frozen_parameters"] == 11_173_962 - trainable
    assert sum(p.numel() for p in trained_part(model).parameters()) == trainable


@pytest.mark.parametrize(("variant", "wanted"), [("layer4", ("layer4.", "fc.")), ("head", "fc.")])
def test_what_is_frozen_stays_bit_for_bit(variant, wanted):
    model = network(variant)
    before, digests = state(model), (weights_digest(model), statistics_digest(model))
    after = state(trained(model))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # every trained parameter has moved, every running statistic of a trained layer, and no other
    assert {n for n in after if n.startswith(wanted)} == moved != set()
    assert (weights_digest(model), statistics_digest(model)) == digests


def test_statistics_move_when_asked_to():
    model = network("layer4")
    before, weights, moving = state(model), weights_digest(model), statistics_digest(model)
    after = state(trained(model, "moving"))
    assert weights_digest(model) == weights and statistics_digest(model) != moving
    assert not torch.equal(after["layer1.0.bn1.running_mean"], before["layer1.0.bn1.running_mean"])
    assert torch.equal(after["layer1.0.bn1.weight"], before["layer1.0.bn1.weight"])


def test_a_digest_sees_one_flipped_bit():
    model = network("layer4")
    weights, moving = weights_digest(model), statistics_digest(model)
    with torch.no_grad():
        model.layer1[0].conv1.weight.view(torch.int32).view(-1)[7] ^= 1
    assert weights_digest(model) != weights and statistics_digest(model) == moving
    model.bn1.num_batches_tracked += 1
    assert statistics_digest(model) != moving
    model = network("all")  # nothing is frozen
    assert weights_digest(model) == statistics_digest(model) == ""
    assert not frozen_norms(model)


def test_frozen_norms_are_in_evaluation_mode_and_trained_ones_are_not():
    model = network("layer4")
    partly = PartlyFrozen(model).train()
    assert not model.bn1.training and not model.layer3[1].bn2.training
    assert model.layer4[0].bn1.training and model.training
    assert set(frozen_norms(model)) == {
        n for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and not n.startswith("layer4")
    }  # fmt: skip
    partly.eval()
    assert not model.layer4[0].bn1.training


def test_the_order_of_freezing_and_replacing_matters():
    model = copy.deepcopy(fresh())
    freeze(model, "layer4")
    small_stem(model, "printed")
    assert model.conv1.weight.requires_grad
    assert not network("layer4").conv1.weight.requires_grad


def test_the_averaged_kernel_answers_as_the_large_one_on_an_enlarged_image():
    torch.manual_seed(0)
    large = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    small = averaged_kernel(large)
    assert small.shape == (4, 3, 3, 3)
    assert small.sum((2, 3)) == pytest.approx(large.sum((2, 3)), abs=1e-12)
    patch = torch.randn(1, 3, 3, 3, dtype=torch.float64)

    def repeated(x, times):
        return x.repeat_interleave(times, 2).repeat_interleave(times, 3)

    # On 21 x 21 squares both are exact: a pixel is 7 of them wide, a weight of the kernel 3.
    wanted = F.conv2d(repeated(patch, 7), repeated(large, 3)) / 9
    assert F.conv2d(patch, small) == pytest.approx(wanted, abs=1e-10)


def test_stems():
    model = copy.deepcopy(fresh())
    small_stem(model, "averaged", maxpool=False)
    assert torch.equal(model.conv1.weight, averaged_kernel(fresh().conv1.weight.detach()))
    assert isinstance(model.maxpool, nn.Identity)
    assert model.conv1.stride == (1, 1) and model.conv1.padding == (1, 1)
    assert model.conv1.bias is None
    printed = network(stem="printed")
    assert not torch.equal(printed.conv1.weight, model.conv1.weight)
    assert torch.equal(printed.fc.weight, model.fc.weight)  # comparisons share the rest
