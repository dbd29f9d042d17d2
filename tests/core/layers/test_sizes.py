"""The formula for output sizes, against torch for random layers and the lab's networks."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.layers.sizes import NEVER, as_text, convolved, expected, layer_sizes
from core.models.small_cnn import SmallCNN


def agrees(layer: nn.Module, size: tuple[int, int]) -> None:
    try:
        made = tuple(layer(torch.zeros(1, 1, *size)).shape[2:])
    except RuntimeError:  # the kernel does not fit
        with pytest.raises(ValueError, match="does not fit"):
            expected(layer, size)
        return
    assert expected(layer, size) == made


def pool(kind: type[nn.Module], kernel: int, stride: int, share: int, ceils: bool) -> nn.Module:
    return kind(kernel, stride, min(share, kernel // 2), ceil_mode=ceils)


def sides(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(*[st.integers(least, most)] * 2)


small, kinds = st.integers(1, 5), st.sampled_from([nn.MaxPool2d, nn.AvgPool2d])
pools = st.builds(pool, kinds, small, small, st.integers(0, 2), st.booleans())
conv = functools.partial(nn.Conv2d, 1, 1)
convolutions = st.builds(conv, sides(1, 5), sides(1, 5), sides(0, 4), sides(1, 3))


@settings(max_examples=200, deadline=None)
@given(convolutions | pools, sides(1, 30))
def test_random_convolutions_and_pools(layer, size):
    agrees(layer, size)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_padding_by_name(padding, kernel):
    agrees(nn.Conv2d(1, 1, kernel, padding=padding, dilation=2), (12, 13))


def test_the_labs_formulas_and_network():
    assert convolved(32, 5) == 32 + 2 * 0 - 5 + 1
    assert convolved(224, 7, 2, 3) == (224 + 6 - 7) // 2 + 1 == 112
    rows = layer_sizes(SmallCNN("listing"), (3, 32, 32))
    shapes = {row.name: row.output for row in rows}
    assert shapes["conv1"] == (6, 28, 28) and shapes["conv2"] == (16, 10, 10)
    assert [row.name for row in rows if row.name == "pool"] == ["pool", "pool"]
    assert [row.name for row in rows if row.formula == NEVER] == ["bn3", "bn4"]
    assert sum(row.parameters for row in rows) == 62_458
    text = as_text(rows)
    assert "floor((32 + 2·0 − 5) / 1) + 1 = 28" in text and "62,458" in text


def test_looking_changes_nothing():
    model = SmallCNN("meant").train()
    model.bn2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_sizes(model, (3, 32, 32))
    assert model.training and model.bn1.training and not model.bn2.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv1._forward_hooks


def test_a_layer_that_does_something_else_is_told():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)[..., 1:]

    with pytest.raises(RuntimeError, match="the formula gives"):
        layer_sizes(nn.Sequential(Odd(1, 1, 3)), (1, 8, 8))
