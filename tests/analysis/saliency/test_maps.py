"""Grad-CAM maps against autograd, and how deleting and inserting pixels rates them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.saliency import maps as gradcam_maps
from analysis.saliency import page as gradcam_page
from core.models.resnet import resnet
from tests.support.results import NORMS


def by_autograd(model, x: torch.Tensor, labels: list[int]) -> list[np.ndarray]:
    """Equations 1 and 2 of the paper, written out: the forward pass, image by image."""
    maps = []
    for image, label in zip(x, labels, strict=True):
        y = model.norm(model.conv(image[None])).relu()
        y = model.stage2(model.stage1(y))
        layers = []
        for block in model.stage3:
            shortcut = y
            if block.stride == 2:
                p = block.padding
                shortcut = F.pad(y[..., ::2, ::2], (0, 0, 0, 0, p, p))
            first = block.norm1(block.conv1(y))
            second = block.norm2(block.conv2(first.relu()))
            layers += [first, second]
            y = (second + shortcut).relu()
        logit = model.head(y.mean((2, 3)))[0, label]
        of_image = []
        for layer, grad in zip(layers, torch.autograd.grad(logit, layers), strict=True):
            one = (grad.mean((2, 3), keepdim=True) * layer).sum(1)[0].relu()
            one = one - one.min()
            of_image.append((one / (one.max() + 1e-7)).detach().numpy())
        maps.append(np.stack(of_image))
    return maps


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "size"), [(1, 20), (2, 18)])
def test_maps_are_those_of_the_formula(norm, n, size):
    torch.manual_seed(3)
    model = resnet(n, 4, norm)
    with torch.no_grad():  # running statistics and biases that are not those of a new network
        model(torch.randn(16, 3, size, size) * 2 + 1)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval()
    x, labels = torch.randn(5, 3, size, size), [0, 3, 2, 2, 1]
    layers = gradcam_maps.layer_maps(model, x, np.array(labels))
    assert layers.shape == (5, 2 * n, -(-size // 4), -(-size // 4))
    expected = np.stack(by_autograd(model, x, labels))
    np.testing.assert_allclose(layers, expected, atol=1e-5)
    mean = expected.mean(axis=1)
    mean -= mean.min(axis=(1, 2), keepdims=True)
    mean /= mean.max(axis=(1, 2), keepdims=True) + 1e-7
    np.testing.assert_allclose(gradcam_maps.aggregate(layers), mean, atol=1e-5)


def test_frozen_early_stages_and_a_second_call_change_nothing():
    torch.manual_seed(0)
    model = resnet(1, 3, "bn").eval()
    x, labels = torch.randn(2, 3, 16, 16), np.array([1, 2])
    before = gradcam_maps.layer_maps(model, x, labels)
    model.requires_grad_(False)
    model.stage3.requires_grad_(True)
    np.testing.assert_array_equal(gradcam_maps.layer_maps(model, x, labels), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_before_an_instance_norm_the_weights_would_be_rounding_noise():
    """Why a layer is read after its norm: the norm takes every constant out of its input."""
    torch.manual_seed(0)
    model = resnet(1, 4, "in").eval()
    grads = []

    def keep(layer, inputs, output):
        output.register_hook(grads.append)

    for layer in (model.stage3[0].conv1, model.stage3[0].norm1):
        layer.register_forward_hook(keep)
    model(torch.randn(8, 3, 32, 32))[:, 0].sum().backward()
    after, before = (grad.mean((2, 3)).abs().max() / grad.abs().max() for grad in grads)
    assert before < 1e-6 < 1e-2 < after


def test_enlarging_is_bilinear_and_shares_by_hand():
    maps = np.random.default_rng(0).random((3, 5, 5), dtype=np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[:, None], 23, mode="bilinear")[:, 0]
    np.testing.assert_allclose(gradcam_page.enlarge(maps, 23), expected, atol=1e-6)
    maps = np.array([[[3, 1], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]], dtype=np.float32)
    mask = np.array([[1.0, 0.5], [0, 0]])
    found = gradcam_maps.shares(maps, [mask, None, mask], 2)
    np.testing.assert_allclose(found["inside"], [3.5 / 4, np.nan, np.nan])
    np.testing.assert_allclose(found["area"], [3 / 8, np.nan, 3 / 8])
    np.testing.assert_allclose(found["half"], [1 / 4, 1 / 2, np.nan])


class Counts(torch.nn.Module):
    """The probability of class 1 is the mean of the first channel, between 0 and 1."""

    def forward(self, x):
        p = x[:, 0].mean((1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.log(1 - p), torch.log(p)], 1)


def test_deletion_and_insertion_by_hand():
    image = torch.zeros(3, 10, 10)
    image[0, :5] = 1.0  # the upper half counts
    right = np.zeros((10, 10), dtype=np.float32)
    right[:5] = 1.0
    found = gradcam_maps.perturbed(Counts(), image, 1, right)
    # deletion: 0.5 falls to 0 over the first half of the pixels, then stays there
    assert found["deletion"] == pytest.approx(0.5 * 0.5 / 2, abs=1e-4)
    wrong = gradcam_maps.perturbed(Counts(), image, 1, -right)
    assert wrong["deletion"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.5 / 2, abs=1e-4)
    assert wrong["insertion"] < found["insertion"]
    even = gradcam_maps.perturbed(Counts(), torch.ones(3, 10, 10), 1, right)
    assert even["insertion"] == pytest.approx(1.0, abs=1e-4)  # a blurred even image is itself
