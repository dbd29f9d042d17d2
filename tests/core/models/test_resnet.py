"""The 6n+2 network: its size, its shapes, public weights, recomputation."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from core.errors import UserError
from core.layers.norms import NORMS
from core.models.resnet import load_weights, resnet


@pytest.mark.parametrize(("n", "count"), [(1, 76_265), (2, 173_481), (3, 270_697), (5, 465_129)])
@pytest.mark.parametrize("norm", ["bn", "torch_bn"])
def test_number_of_parameters(n, count, norm):
    model = resnet(n, 25, norm)
    assert sum(p.numel() for p in model.parameters()) == count
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 6 * n + 2


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_follows_every_convolution(norm):
    model = resnet(2, 25, norm)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if type(m) is type(NORMS[norm](16))]
    assert len(norms) == len(convolutions) == 13
    assert all((m.bias is not None) == (norm == "none") for m in convolutions)


def test_stages_halve_the_image():
    model, sizes = resnet(2, 25, "bn"), []
    for stage in (model.stage1, model.stage2, model.stage3):
        stage.register_forward_hook(lambda m, x, y: sizes.append(tuple(y.shape[1:])))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 25)
    assert sizes == [(16, 64, 64), (32, 32, 32), (64, 16, 16)]


@pytest.mark.parametrize("size", [(17, 23), (32, 32), (33, 8)])
def test_any_image_size(size):
    assert resnet(1, 5, "gn")(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 25), "at least 1"), ((2, 0), "at least 1"), ((2, 25, "batch"), "torch_bn, bn, in")],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet(*arguments)


def test_one_seed_gives_every_norm_the_same_convolutions():
    weights = []
    for norm in NORMS:
        torch.manual_seed(3)
        weights.append(resnet(2, 25, norm).stage2[1].conv2.weight)
    assert all(torch.equal(w, weights[0]) for w in weights)


@pytest.mark.parametrize("norm", [n for n in NORMS])
def test_recomputation_changes_memory_and_nothing_else(norm):
    torch.manual_seed(0)
    plain = resnet(1, 5, norm)
    thrifty = copy.deepcopy(plain)
    thrifty.recompute = True
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    kept = []
    for model in (plain, thrifty):
        stored = 0

        def count(t: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        kept.append(stored)
    assert kept[1] < 0.6 * kept[0]
    for (name, a), (_, b) in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, a), (_, b) in zip(plain.named_buffers(), thrifty.named_buffers(), strict=True):
        assert torch.equal(a, b), f"{name}: a batch was counted twice"


def test_public_weights_reach_the_reference_accuracy(shared_data):
    """1,627 of the 2,000 photos named in the reference, 81.35 %, within 0.05 points."""
    model = load_weights(resnet(3, 10, "bn"), shared_data / "weights" / "cifar10-resnet20.th")
    classes = sorted(p.name for p in (shared_data / "cifar10" / "test").iterdir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((shared_data / "cifar10" / "test" / name).glob("*.jpg"))[:200]:
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        predicted = torch.cat([model.eval()(part).argmax(1) for part in x.split(100)])
        right = predicted == torch.tensor(labels)
    assert abs(right.double().mean().item() - 0.8135) <= 0.0005


def test_own_weights_come_back(tmp_path):
    model = resnet(1, 5, "bin")
    torch.save(model.state_dict(), tmp_path / "own.pt")
    again = load_weights(resnet(1, 5, "bin"), tmp_path / "own.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_weights_that_do_not_fit_list_both_sides(tmp_path):
    state = resnet(1, 5, "bn").state_dict()
    state["extra"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(7, 64)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError) as refused:
        load_weights(resnet(1, 5, "bn"), tmp_path / "other.pt")
    for part in ("missing from the file: head.bias", "not in the model: extra", "(7, 64)"):
        assert part in str(refused.value)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["PROOF"])),)


def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PROOF", str(tmp_path / "was-run"))
    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt is not a file of tensors"):
        load_weights(resnet(1, 5), tmp_path / "evil.pt")
    assert not (tmp_path / "was-run").exists()


def test_missing_truncated_and_whole_model_files_are_refused(tmp_path):
    model = resnet(1, 5)
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    torch.save(model, tmp_path / "pickled.pt")
    for name, message in [("none.pt", "no weights at"), ("half.pt", "not a file of tensors"),
                          ("pickled.pt", "not a file of tensors")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_weights(resnet(1, 5), tmp_path / name)
