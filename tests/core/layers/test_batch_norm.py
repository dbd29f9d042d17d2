"""Batch norm bit for bit as torch computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.layers import kernels
from core.layers.norms import BatchNorm
from tests.core.layers.test_norms import assert_same, make_input, results

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


def random_batch_norms(channels: int) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's in float32 with the same random parameters."""
    torchs, ours = nn.BatchNorm2d(channels), BatchNorm(channels)
    nn.init.normal_(torchs.weight)
    nn.init.normal_(torchs.bias)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("mean", [0.5, 1000.0])
@pytest.mark.parametrize(
    "shape", [(50, 16, 24, 24), (50, 64, 6, 6), (7, 5, 13, 11), (6, 4, 2, 3), (1, 3, 5, 5)], ids=str
)
def test_batch_norm_is_torchs_bit_for_bit(shape, mean):
    ours, torchs = random_batch_norms(shape[1])
    for training in (True, True, False):
        ours.train(training)
        torchs.train(training)
        x, dy = (make_input(shape, mean=m).detach().float() for m in (mean, 0.0))
        got, expected = (results(n, x.requires_grad_(), dy) for n in (ours, torchs))
        if not AVX2:  # another order of summation: nothing but rounding may differ
            assert_same(got, expected, 1e-3 if mean > 1 else 1e-5)
            continue
        if not training:  # not trained in this mode: values only
            got, expected = ({k: v for k, v in r.items() if "d_" not in k} for r in (got, expected))
        assert_same(got, expected, 0)


def test_large_batch_norm_agrees_to_rounding():
    torch.manual_seed(0)  # whatever ran before: a sum near 0 has few digits
    ours, torchs = random_batch_norms(4)
    shape = (5, 4, 256, 256)
    assert torch.Size(shape).numel() > kernels.ORDERED_LIMIT
    x, dy = (make_input(shape, mean=m).detach().float() for m in (1.0, 0.0))
    expected = results(torchs.double(), x.double().requires_grad_(), dy.double())
    got = results(ours, x.requires_grad_(), dy)
    assert_same({k: v.double() if v.is_floating_point() else v for k, v in got.items()}, expected,
                2e-6)  # fmt: skip
