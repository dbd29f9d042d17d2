"""The estimate of a training step's memory, and the way in which all trials fit."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from core.memory import WORKSPACE, fit, measure, share, step_bytes
from core.resnet import resnet
from core.training import Precision

MIB, GIB = 2**20, 2**30


@functools.cache
def measured(recompute: bool, size: int = 64):
    return measure(lambda: resnet(2, 25, "bn"), size, recompute)


def needs(batch: int, size: int = 64, **settings) -> int:
    at = functools.partial(measured, size=size)
    return fit(at, size, batch, **settings).estimate


def test_the_peak_of_a_step_is_counted_by_hand():
    """One linear layer: at the end there are the images, the gradients of logits and weight."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000, bias=False))
    found = step_bytes(model, 8, 64, "float32")
    images, logits, weight = 64 * 192 * 4, 64 * 1000 * 4, 192 * 1000 * 4
    assert images + logits + weight <= found <= images + logits + weight + 1000  # labels, loss


def test_batch_128_at_256_pixels_fits_a_slot_of_2_gib():
    """66 MiB of saved activations per image in float32 (measured apart), so 8 GiB as it stands."""
    assert 8.0 * GIB < needs(128, 256) < 8.7 * GIB
    found = needs(128, 256, precision="bfloat16", recompute=True)
    assert found + WORKSPACE < 1.85 * GIB


def test_the_largest_trial_decides_for_all_and_rounding_comes_last():
    steps = {
        f"batch {batch}": lambda settings, batch=batch: needs(batch, **settings)
        for batch in (8, 32, 16)
    }
    whole, again = needs(32), needs(32, recompute=True)
    assert again < 0.45 * whole

    def way(slot: float, half: Precision = "bfloat16") -> dict:
        settings, needed = share(steps, int(slot) + WORKSPACE, half)
        assert needed == needs(32, **settings) + WORKSPACE <= int(slot) + WORKSPACE
        return settings

    assert way(whole) == {}
    assert way(whole - MIB) == {"recompute": True}
    assert way(again) == {"recompute": True}
    assert way(again - MIB) == {"recompute": True, "precision": "bfloat16"}
    assert way(again - MIB, "float16") == {"recompute": True, "precision": "float16"}
    assert share(steps, None, "bfloat16") == ({}, whole + WORKSPACE)
    with pytest.raises(
        UserError, match=r"^batch 32 needs about 0\.1 GiB even in bfloat16 and with"
    ):
        way(0.3 * again)


def test_the_estimate_changes_neither_a_trials_random_numbers_nor_a_model():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measure(lambda: resnet(2, 25, "bn"), 16, False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("norm", ["torch_bn", "bn", "in", "bin", "ln", "gn", "none"])
@pytest.mark.parametrize("n", [1, 2])
def test_recomputation_changes_no_number(norm, n):
    """Outputs, gradients and running statistics after two steps equal those of the plain step."""
    torch.manual_seed(0)
    plain, again = resnet(n, 5, norm), resnet(n, 5, norm)
    again.load_state_dict(plain.state_dict())
    again.recompute = True
    x, y = torch.randn(2, 6, 3, 16, 16), torch.randint(0, 5, (2, 6))
    for model in (plain, again):
        model.train()
        for step in range(2):
            F.cross_entropy(model(x[step]), y[step]).backward()
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("num_batches_tracked"):
            assert a == 2


def test_hooks_see_every_stage_when_nothing_is_recomputed():
    model, seen = resnet(2, 5, "bn"), []
    for name in ("stage1", "stage2", "stage3"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model(torch.zeros(2, 3, 16, 16))
    assert seen == ["stage1", "stage2", "stage3"]
