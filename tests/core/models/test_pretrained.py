"""ResNet-18 with weights from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import ResNet18_Weights
from torchvision.models import resnet18 as build

from core.errors import UserError
from core.models import pretrained
from core.models.weights import load_state


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put torch's cache of downloads in a folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens: no network
    pretrained._state.cache_clear()
    yield tmp_path / "hub" / "hub" / "checkpoints"
    pretrained._state.cache_clear()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return weights of an ImageNet-sized network, as a wrapper leaves them."""
    torch.manual_seed(1)
    state = build(num_classes=1000).state_dict()
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def test_a_file_fills_all_but_a_head_of_another_size(file):
    state = load_state(file)
    model = pretrained.resnet18(str(file), 7)
    assert model.fc.out_features == 7
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, state[name]), name
    whole = pretrained.resnet18(str(file), 1000)
    assert torch.equal(whole.fc.weight, state["fc.weight"])


def test_the_labs_small_first_convolution():
    model = pretrained.resnet18("none", 10, small_stem=True)
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "odd": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"missing from the file: .*not in the model: odd"):
        pretrained.resnet18(str(tmp_path / "x.pt"), 3)
    with pytest.raises(UserError, match="no weights at"):
        pretrained.resnet18(str(tmp_path / "none.pt"), 3)


def test_torchvisions_weights_are_taken_from_its_cache_or_asked_for(hub, file):
    name = ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    with pytest.raises(UserError) as error:
        pretrained.resnet18("default", 3)
    assert name in str(error.value) and "\n" not in str(error.value)
    torch.save(load_state(file), hub / name)
    assert torch.equal(
        pretrained.resnet18("default", 3).conv1.weight, load_state(file)["conv1.weight"]
    )
    assert pretrained.digest("default") == pretrained.digest(str(file))


def test_the_embedded_weights_know_more_than_random_ones(tmp_path, monkeypatch):
    """After a short lesson, in a cache of its own."""
    monkeypatch.setattr(pretrained, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(pretrained, "_IMAGES", 250)
    monkeypatch.setattr(pretrained, "_EPOCHS", 1)
    pretrained._state.cache_clear()
    model = pretrained.resnet18("embedded", 25)
    assert pretrained.digest("embedded").startswith("sha256:")
    random = pretrained.resnet18("none", 25)
    moved = (model.bn1.running_mean - random.bn1.running_mean).abs().mean()
    assert moved > 0.005 and not torch.equal(model.fc.weight, random.fc.weight)
    pretrained._state.cache_clear()
