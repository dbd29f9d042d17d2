"""The 6n+2 network: its size, its shapes, public weights, recomputation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.layers.norms import NORMS
from core.models.classifier import load_classifier
from core.models.resnet import load_weights, resnet
from tests.support.calls import error_of
from tests.support.datasets import photographs


@pytest.mark.parametrize(("n", "count"), [(1, 76_265), (2, 173_481), (3, 270_697), (5, 465_129)])
@pytest.mark.parametrize("norm", ["bn", "torch_bn"])
def test_number_of_parameters(n, count, norm):
    model = resnet(n, 25, norm)
    assert sum(p.numel() for p in model.parameters()) == count
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 6 * n + 2


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_follows_every_convolution_and_one_seed_gives_all_norms_the_same_ones(norm):
    torch.manual_seed(3)
    model = resnet(2, 25, norm)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if type(m) is type(NORMS[norm](16))]
    assert len(norms) == len(convolutions) == 13
    assert all((m.bias is not None) == (norm == "none") for m in convolutions)
    torch.manual_seed(3)
    assert torch.equal(model.stage2[1].conv2.weight, resnet(2, 25, "bn").stage2[1].conv2.weight)


def test_stages_halve_the_image():
    model, sizes = resnet(2, 25, "bn"), []
    for stage in (model.stage1, model.stage2, model.stage3):
        stage.register_forward_hook(lambda m, x, y: sizes.append(tuple(y.shape[1:])))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 25)
    assert sizes == [(16, 64, 64), (32, 32, 32), (64, 16, 16)]
    for size in (17, 23), (32, 32), (33, 8):
        assert resnet(1, 5, "gn")(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 25), "at least 1"), ((2, 0), "at least 1"), ((2, 25, "batch"), "torch_bn, bn, in")],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet(*arguments)


@pytest.mark.parametrize(("n", "norm"), [(1, "bn"), *((2, norm) for norm in NORMS)])
def test_recomputation_changes_memory_and_nothing_else(n, norm):
    """Gradients and running statistics after two steps equal those of the plain step."""
    torch.manual_seed(0)
    plain = resnet(n, 5, norm)
    thrifty = copy.deepcopy(plain)
    thrifty.recompute = True
    images, y, kept, gradients = torch.randn(2, 4, 3, 12, 12), torch.randint(0, 5, (2, 4)), [], []
    for model in (plain, thrifty):
        stored, x = [], images.clone().requires_grad_()

        def count(t: torch.Tensor, stored: list[int] = stored) -> torch.Tensor:
            stored.append(t.numel())
            return t

        for step in range(2):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                loss = F.cross_entropy(model(x[step]), y[step])
            loss.backward()
        kept.append(sum(stored))
        gradients.append({name: p.grad for name, p in model.named_parameters()} | {"x": x.grad})
    assert kept[1] < 0.6 * kept[0]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    for (name, a), b in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert torch.equal(a, b), f"{name}: a batch was counted twice"
        assert not name.endswith("num_batches_tracked") or a == 2


@pytest.mark.slow
def test_public_weights_reach_the_reference_accuracy(shared_data):
    """1,627 of the 2,000 photos named in the reference, 81.35 %, within 0.05 points."""
    model = load_weights(resnet(3, 10, "bn"), shared_data / "weights" / "cifar10-resnet20.th")
    x = photographs(shared_data / "cifar10" / "test", slice(200)).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        predicted = torch.cat([model.eval()(part).argmax(1) for part in x.split(100)])
    right = predicted == torch.arange(10).repeat_interleave(200)
    assert abs(right.double().mean().item() - 0.8135) <= 0.0005


@pytest.mark.parametrize("name", ["state_dict", "conv.weight"])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, name):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was-run",)

    torch.save({name: Malicious()}, tmp_path / "evil.pt")
    told = error_of(load_weights, resnet(1, 5), tmp_path / "evil.pt")
    assert "evil.pt is not a file of tensors" in told
    error_of(load_classifier, str(tmp_path / "evil.pt"), 10)
    assert not (tmp_path / "was-run").exists()
