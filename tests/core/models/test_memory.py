"""The estimate of a training step's memory, and the way in which all trials fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.models.memory import WORKSPACE, Step, counted, measure, share, step_bytes
from core.models.resnet import resnet
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES, Precision
from tests.support.calls import error_of

MIB, GIB = 2**20, 2**30


def step(batch: int, size: int = 64, **settings) -> Step:
    return Step(resnet, (2, 25, "bn"), size, batch, **settings)


def needs(batch: int, size: int = 64, **settings) -> int:
    return step(batch, size, **settings).estimate()[0]


def test_the_peak_of_a_step_is_counted_by_hand():
    """One linear layer: at the end there are the images, the gradients of logits and weight."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000, bias=False))
    found = step_bytes(model, 8, 64, "float32")
    images, logits, weight = 64 * 192 * 4, 64 * 1000 * 4, 192 * 1000 * 4
    assert images + logits + weight <= found <= images + logits + weight + 1000  # labels, loss


def test_steps_of_a_trial_are_counted_by_hand_and_only_its_own():
    """In the second step weight, momentum, images, logits and gradients are alive together."""
    lasting = torch.ones(10_000_000)  # another trial's, in the same process
    model = torch.nn.Linear(192, 1000, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    found: list[int] = []
    for steps in (3, 2, 1):
        optimizer.state.clear()
        made = (torch.ones(64, 192) + 0 for _ in range(steps))
        for x in counted(made, found.append, model):
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.zeros(64, dtype=torch.int64)).backward()
            optimizer.step()
    weight, images, logits = 192 * 1000 * 4, 64 * 192 * 4, 64 * 1000 * 4
    least = 3 * weight + images + logits
    assert found[0] == found[1] and least <= found[0] <= least + 2 * images + 2 * logits + 2000
    assert 2 * weight + images + logits <= found[2] <= found[0]
    assert lasting.nbytes > found[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counting_changes_no_number(precision):
    """Losses, weights and running statistics of three counted steps, bit for bit."""

    def trained(count: bool):
        torch.manual_seed(0)
        model = resnet(1, 5, "bin")
        optimizer, schedule = optimizer_and_schedule(model, RECIPES["good"], 3)
        x, y = torch.randn(3, 6, 3, 16, 16), torch.randint(0, 5, (3, 6))
        batches = list(zip(x, y, strict=True))
        if count:
            batches = counted(batches, lambda size: None, model)
        learner = Learner(model, optimizer, schedule, cross_entropy(5), precision, max_norm=1.0)
        told = learner.train_epoch(batches, 1)
        return told, model.state_dict(), torch.rand(1)

    (plain, weights, after), (told, again, also) = trained(False), trained(True)
    assert plain == told and torch.equal(after, also)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.slow
def test_batch_128_at_256_pixels_fits_a_slot_of_2_gib():
    """66 MiB of saved activations per image in float32 (measured apart), so 8 GiB as it stands.

    Four times as many images of half the side are as many pixels, and faster to measure.
    """
    assert 8.0 * GIB < needs(4 * 128, 128) < 8.7 * GIB
    found = needs(4 * 128, 128, precision="bfloat16", recompute=True)
    assert found + WORKSPACE < 1.85 * GIB


def test_the_largest_trial_decides_for_all_and_rounding_comes_last():
    steps = {f"batch {batch}": step(batch) for batch in (8, 32, 16)}
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
    told = error_of(way, 0.3 * again)
    assert told.startswith("batch 32 needs about 0.1 GiB even in bfloat16 and with")


def test_the_estimate_changes_neither_a_trials_random_numbers_nor_a_model():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measure.__wrapped__(resnet, (2, 25, "bn"), 16, False)
    assert torch.equal(torch.rand(3), expected)
