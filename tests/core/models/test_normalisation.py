"""How pixels are normalised for weights of known and of unknown origin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from core.models import normalisation
from core.models.normalisation import first_norm, of_file, settle
from tests.support.calls import error_of


def threshold(at: float, std: float = 0.05) -> nn.Module:
    """A network that tells dark from bright images: class 1 where the mean is above `at`."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([-1 / 3, 1 / 3])[:, None, None, None]
        model[0].bias.zero_()
        model[1].running_mean[:] = torch.tensor([-at, at])
        model[1].running_var.fill_(std**2)
    return nn.Sequential(model, nn.Flatten()).eval()


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    """Grey images around 0.45 (class 0) and 0.55 (class 1) of the range 0 to 1."""
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (40, 1, 8, 8))
    grey = 0.45 + 0.1 * labels[:, None, None, None] + noise
    return np.repeat(np.rint(255 * grey), 3, 1).astype(np.uint8), labels


def test_what_makes_the_unadapted_model_most_accurate_is_guessed(images):
    found = settle(threshold(0.5), *images)
    assert (found.name, found.how, found.images) == ("none", "guessed", 40) and not found.far
    assert found.accuracy["none"] == 1 and found.accuracy["imagenet"] == 0.5
    assert "imagenet 50.0 %, cifar10 50.0 %, none 100.0 %" in found.sentence()
    for_imagenet = settle(threshold(0.2, 0.3), *images)
    assert for_imagenet.name == "imagenet" and for_imagenet.accuracy["none"] == 0.5


def test_images_that_come_class_by_class_are_all_asked(images):
    """Of one class alone every constant answer would be right."""
    bright_last = np.argsort(images[1], kind="stable")
    many = tuple(np.repeat(part[bright_last], 60, axis=0) for part in images)  # 1,200 of each class
    found = settle(threshold(0.5), *many)
    assert (found.name, found.images) == ("none", 1000) and not found.far
    assert 0.45 < found.accuracy["imagenet"] < 0.55 and found.accuracy["none"] == 1


def test_what_is_known_or_set_is_not_guessed_and_what_is_far_is_said(images):
    for options, how in (({"known": "imagenet"}, "known"), ({"wanted": "imagenet"}, "set")):
        found = settle(threshold(0.5), *images, **options)
        assert (found.name, found.how, found.accuracy) == ("imagenet", how, {}) and found.far
        assert "Warning: on clean images the input of the first batch norm" in found.sentence()
    assert settle(threshold(0.5), *images, "none", "imagenet").name == "none"
    assert "Warning" not in settle(threshold(0.5), *images, "none").sentence()


def test_without_labels_imagenets_is_assumed_with_a_warning_where_it_is_far(images):
    found = settle(threshold(0.5), images[0], None)
    assert (found.name, found.how) == ("imagenet", "assumed") and found.far
    assert not settle(threshold(0.2, 0.3), images[0], None).far


def test_the_first_norms_distance_is_that_of_its_inputs(images):
    x = torch.from_numpy(images[0]) / 255
    model = threshold(0.6, 0.1)
    means = x.mean(1)
    shift, ratio = first_norm(model, x)
    assert shift == pytest.approx(abs(float(means.mean()) - 0.6) / 0.1, rel=1e-3)
    assert ratio == pytest.approx(float(means.std()) / 0.1, rel=5e-3)  # both with the layer's eps


def test_values_that_are_not_finite_are_refused(images):
    model = threshold(0.5)
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    assert "not finite" in error_of(settle, model, *images)


def test_public_files_are_known_by_their_bytes(shared_data, tmp_path):
    public = shared_data / "weights" / "cifar10-resnet20.th"
    assert of_file(public) == "imagenet"
    (tmp_path / "other.th").write_bytes(public.read_bytes() + b"\0")
    assert of_file(tmp_path / "other.th") is None
    assert "f37072fd" in normalisation._torchvisions()  # of resnet18-f37072fd.pth
