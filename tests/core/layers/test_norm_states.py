"""Norm layers' states: exchanged with torch, copied, gated, frozen, counted once."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from benchmarks.norms import Composition
from core.layers import norms
from core.layers.norms import (
    NORMS,
    BatchInstanceNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    frozen_statistics,
    parameter_groups,
)
from tests.core.layers.test_norms import assert_same


def test_states_are_exchanged_with_torch():
    x = torch.randn(4, 8, 5, 5)
    for source, target in ((BatchNorm, nn.BatchNorm2d), (nn.BatchNorm2d, BatchNorm)):
        one, two = source(8), target(8)
        nn.init.normal_(one.weight)
        for _ in range(3):
            one(x + torch.randn(1))
        two.load_state_dict(one.state_dict())
        assert list(one.state_dict()) == list(two.state_dict())
        assert two.num_batches_tracked == 3
        torch.testing.assert_close(two.eval()(x), one.eval()(x))
        torch.testing.assert_close(two.train()(x), one.train()(x))


def test_states_from_before_batches_were_counted():
    state = {k: v for k, v in BatchNorm(8).state_dict().items() if k != "num_batches_tracked"}
    for layer in (BatchNorm(8), nn.BatchNorm2d(8)):
        layer.load_state_dict(state)
        assert layer.num_batches_tracked == 0
    layer.load_state_dict(state)
    versioned = OrderedDict(state)
    versioned._metadata = {"": {"version": 2}}
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        BatchNorm(8).load_state_dict(versioned)


@pytest.mark.parametrize("momentum", [0.1, 0.37, None, 0.0])
def test_running_averages(momentum):
    ours, torchs = BatchNorm(8, momentum=momentum), nn.BatchNorm2d(8, momentum=momentum)
    mixed, composed = BatchInstanceNorm(8, momentum=momentum), Composition(8)
    composed.batch.momentum = momentum
    for _ in range(4):
        x = torch.randn(4, 8, 5, 5) * 3 + torch.randn(1)
        for layer in (ours, torchs, mixed, composed):
            layer(x)
    for layer, other in ((ours, torchs), (mixed, composed.batch)):
        for name, buffer in other.named_buffers():
            torch.testing.assert_close(layer.get_buffer(name), buffer, atol=1e-6, rtol=1e-6)
    assert ours.num_batches_tracked == 4


def test_options():
    x, options = torch.randn(4, 8, 5, 5), {"affine": False, "track_running_stats": False}
    ours, torchs = BatchNorm(8, **options), nn.BatchNorm2d(8, **options)
    assert not ours.state_dict()
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), torchs.train(training)(x))
    for ours, torchs in (
        (GroupNorm(8, 4, affine=False), nn.GroupNorm(4, 8, affine=False)),
        (InstanceNorm(8, affine=False), nn.InstanceNorm2d(8)),
        (BatchNorm(8, eps=0.5), nn.BatchNorm2d(8, eps=0.5)),
    ):
        torch.testing.assert_close(ours(x), torchs(x))


def through_pickle(layer: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(layer))


def through_torch_save(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state(layer: nn.Module) -> nn.Module:
    new = NORMS["bin" if isinstance(layer, BatchInstanceNorm) else "bn"](layer.num_features)
    new.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return new


COPIES = [copy.deepcopy, through_pickle, through_torch_save, through_state, lambda m: m.double()]


@pytest.mark.parametrize("make_copy", COPIES)
def test_copies_behave_alike_and_apart(make_copy):
    for norm in ("bn", "bin"):
        layer = NORMS[norm](8)
        layer(torch.randn(4, 8, 5, 5))
        x = torch.randn(4, 8, 5, 5)
        expected = copy.deepcopy(layer).eval()(x)
        twin = make_copy(layer).eval()
        torch.testing.assert_close(twin(x.to(twin.weight.dtype)), expected.to(twin.weight.dtype))
        assert torch.equal(layer.num_batches_tracked, torch.tensor(1))


class OwnOptimizer(torch.optim.Optimizer):
    """Gradient descent that torch does not know."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
        return loss


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
    "foreach": functools.partial(torch.optim.Adam, foreach=True), "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad, "lbfgs": torch.optim.LBFGS, "own": OwnOptimizer,
}  # fmt: skip


def push_gates(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Push the first half of the gates up and the rest down, in one step."""
    direction = torch.ones_like(layer.gate)
    direction[: len(direction) // 2] = -1

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer.gate * direction).sum() + sum(p.sum() for p in layer.parameters())
        (loss - layer.gate.sum()).backward()
        return loss

    closure()
    optimizer.step(closure)


@pytest.mark.parametrize("make_copy", [lambda m: m, *COPIES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gates_stay_between_0_and_1(optimizer, make_copy):
    layer = BatchInstanceNorm(8)
    assert torch.equal(layer.gate, torch.ones(8))
    layer = make_copy(layer)
    push_gates(layer, OPTIMIZERS[optimizer](layer.parameters(), lr=5.0))
    assert torch.equal(layer.gate.float(), torch.tensor([1.0] * 4 + [0.0] * 4))
    assert (layer.weight - 1).abs().min() > 1  # the step was long, and nothing else is clipped


def test_gates_of_others_are_left_alone_and_forgotten_layers_are_not_kept_alive():
    layer, other = BatchInstanceNorm(8), BatchInstanceNorm(8)
    with torch.no_grad():
        other.gate.fill_(2.0)
    push_gates(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    assert torch.equal(other.gate, torch.full((8,), 2.0))
    before = len(norms._GATED)
    BatchInstanceNorm(8)
    assert len(norms._GATED) == before


def test_parameter_groups():
    convolutions = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    model = nn.Sequential(convolutions[0], BatchInstanceNorm(8), convolutions[1], BatchNorm(8))
    rest, gates = parameter_groups(model, lr=0.1, weight_decay=1e-4)
    assert gates["params"] == [model[1].gate]
    assert (gates["lr"], gates["weight_decay"]) == (pytest.approx(1.0), 0.0)
    assert (rest["lr"], rest["weight_decay"]) == (0.1, 1e-4)
    grouped = [id(p) for g in (rest, gates) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    (only,) = parameter_groups(model[2:], 0.1, 0.0)
    assert len(only["params"]) == 4
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1, 1e-4), momentum=0.9)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, pytest.approx(1.0)]


@pytest.mark.parametrize("norm", ["torch_bn", "bn", "bin"])
def test_frozen_statistics(norm):
    layer, x = NORMS[norm](8), torch.randn(4, 8, 5, 5)
    for training in (True, False):
        layer.train(training)
        expected = copy.deepcopy(layer)(x)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(KeyError), frozen_statistics(nn.Sequential(layer)):
            with frozen_statistics(layer):
                pass
            torch.testing.assert_close(layer(x), expected)
            raise KeyError
        assert_same(dict(layer.state_dict()), before, 0)
    layer.train()(x)
    assert layer.num_batches_tracked == 1
