"""Augmentation and normalisation against a reference that treats one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.data.augment import MEAN, STD, augment, normalise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n=6, h=9, w=12, seed=1) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=generator(seed))


def reference(x: torch.Tensor, seed: int, flip: bool, padding: int) -> torch.Tensor:
    """Pad, crop and mirror image by image, with the same draws."""
    draws = torch.rand(3, len(x), generator=generator(seed))
    out = []
    for image, (mirror, down, right) in zip(x, draws.T.tolist(), strict=True):
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        padded = F.pad(image[None].double(), (padding,) * 4, mode="reflect")[0]
        crop = padded[:, top : top + x.shape[2], left : left + x.shape[3]]
        out.append(crop.flip(2) if flip and mirror < 0.5 else crop)
    return torch.stack(out).to(x.dtype)


@pytest.mark.parametrize("padding", [0, 1, 4, 8])
@pytest.mark.parametrize("flip", [True, False])
def test_equals_the_reference(flip, padding):
    x = images(n=40)
    for seed in range(2):
        found = augment(x, generator(seed), flip=flip, padding=padding)
        assert torch.equal(found, reference(x, seed, flip, padding))


def test_input_stays_and_nothing_to_do_is_free():
    x = images()
    augment(x, generator(), padding=3)
    normalise(x)
    assert torch.equal(x, images())
    assert augment(x, generator(), flip=False, padding=0) is x


def test_draws_of_flips_and_shifts_are_independent():
    """Switching one off leaves the other and the generator's later numbers alone."""
    states = []
    for flip, padding in ((True, 4), (False, 4), (True, 0), (False, 0)):
        g = generator(5)
        augment(images(), g, flip=flip, padding=padding)
        states.append(g.get_state())
    assert all(torch.equal(states[0], state) for state in states)
    assert not torch.equal(states[0], generator(5).get_state())  # the next batch has other draws


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_any_type_and_memory_format(dtype):
    x = images().to(dtype)
    expected = augment(x, generator())
    assert expected.dtype == dtype
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(strided, generator()), expected)


@pytest.mark.parametrize("padding", [-1, 9])
def test_padding_out_of_range(padding):
    with pytest.raises(ValueError, match=f"padding must be 0 to 8, got {padding}"):
        augment(images(), generator(), padding=padding)


def test_normalise_equals_the_formula():
    x = images()
    mean, std = (np.array(value)[:, None, None] for value in (MEAN, STD))
    found = normalise(x)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert np.abs(found.double().numpy() - (x.double().numpy() / 255 - mean) / std).max() < 1e-6
    own = normalise(x, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(own, x.float() / 255, rtol=1e-6, atol=0)
    last = normalise(x, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_the_gpu():
    x = images(n=64)
    found = augment(x.cuda(), generator(2), padding=4)
    assert torch.equal(found.cpu(), augment(x, generator(2), padding=4))
    assert torch.allclose(normalise(x.cuda()).cpu(), normalise(x), rtol=0, atol=1e-6)
