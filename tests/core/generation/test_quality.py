"""Measures of generated images against scipy and naive loops, and the classifier behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy
import torch
from scipy.spatial.distance import cdist

from core.data import small
from core.generation import copies, quality
from core.generation import features as sample_features
from core.generation.features import quantised, scaled, yardsticks
from core.generation.quality import balance, frechet, moments, nearest, prdc
from tests.support.calls import error_of
from tests.support.datasets import photographs


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(size, size))
    return torch.from_numpy(generator.normal(size=(count, size)) @ mixing + shift)


def direct(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula as it is written, with scipy's matrix root."""
    x, y = a.numpy(), b.numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(one + two - 2 * root))


@pytest.mark.parametrize(("count", "size", "shift"), [(200, 8, 0.0), (500, 64, 1.0), (70, 64, 0.3)])
def test_frechet_equals_scipy(count, size, shift):
    a, b = features(count, size, 1), features(count + 20, size, 2, shift)
    assert frechet(moments(a), moments(b)) == pytest.approx(direct(a, b), rel=1e-6)


def test_frechet_of_fewer_images_than_features():
    """Where scipy's root of a singular product is inaccurate, the zero directions are known."""
    a, b = features(20, 5, 1), features(20, 5, 2, 1.0)
    wide = [torch.cat([x, torch.zeros(20, 60, dtype=torch.float64)], 1) for x in (a, b)]
    rotation = torch.linalg.qr(features(65, 65, 3)).Q
    found = frechet(*(moments(x @ rotation) for x in wide))
    assert found == pytest.approx(direct(a, b), rel=1e-6)
    assert frechet(moments(wide[0]), moments(wide[0])) == pytest.approx(0, abs=1e-9)


def test_frechet_by_hand_and_its_symmetry():
    a = torch.tensor([[0.0], [2.0]])  # mean 1, variance 2
    b = torch.tensor([[1.0], [5.0]])  # mean 3, variance 8
    expected = (1 - 3) ** 2 + (math.sqrt(2) - math.sqrt(8)) ** 2
    for one, two in ((a, b), (b, a)):
        assert frechet(moments(one), moments(two)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        moments(a[:1])


def naive_prdc(real: np.ndarray, made: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, each from scipy's table of all distances at once."""
    radii, made_radii = (np.sort(cdist(x, x))[:, k] for x in (real, made))  # the first is itself
    gaps = cdist(real, made)
    inside = gaps < radii[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (gaps < made_radii).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 5), (41, 23, 3), (12, 40, 1)])
def test_precision_recall_density_coverage_equal_the_definitions(n, m, k, monkeypatch):
    monkeypatch.setattr(quality, "_ROWS", 7)  # several parts, the last one smaller
    real, made = features(n, 4, 5), features(m, 4, 6, 0.5)
    expected = naive_prdc(real.numpy(), made.numpy(), k)
    found = prdc(real, made, k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["precision"] > 0 and found["coverage"] > 0
    with pytest.raises(ValueError, match="more than 5"):
        prdc(features(5, 3, 0), features(9, 3, 1))


def test_balance_is_one_for_equal_and_zero_for_one_class():
    assert balance(torch.arange(30) % 10, 10) == pytest.approx(1)
    assert balance(torch.zeros(30, dtype=torch.int64), 10) == 0
    half = torch.tensor([0, 0, 1, 1])
    assert balance(half, 4) == pytest.approx(0.5)


def test_nearest_images_equal_a_naive_search(monkeypatch):
    monkeypatch.setattr(quality, "_ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    images, among = (
        torch.randint(0, 256, (n, 2, 4, 4), generator=generator, dtype=torch.uint8) for n in (8, 20)
    )
    images[3] = among[11]  # a copy
    found = nearest(images, among, keep=2)
    for i, image in enumerate(images):
        gaps = [((image.double() - y.double()) ** 2).mean().sqrt().item() for y in among]
        order = np.argsort(gaps)
        assert found.index[i].tolist() == order[:2].tolist()
        assert found.distance[i].tolist() == pytest.approx([gaps[j] for j in order[:2]], rel=1e-5)
    assert found.distance[3, 0] == 0
    every = torch.arange(256, dtype=torch.uint8)  # pixels survive the way to a network and back
    assert torch.equal(quantised(scaled(every)), every)
    assert scaled(every).min() == -1 and scaled(every).max() == 1


# --- the classifier ---


def squares(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes: a bright square on the left or on the right, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 90, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        left = 1 + 3 * int(label)
        image[0, 2:6, left : left + 3] += 150
    return images, labels


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sample_features, "_LEAST_STEPS", 30)


def reference() -> sample_features.Reference:
    return sample_features.Reference(
        *squares(48, 0), *squares(40, 1), 2,
        flip=False, count=24, neighbours=3, fingerprint="squares",
    )  # fmt: skip


def test_the_classifier_is_the_same_each_time_and_leaves_no_trace(quick):
    images, labels = squares(48, 0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = sample_features.train_classifier(images, labels, 2, flip=False)
    torch.manual_seed(5)  # what was drawn before does not matter
    second = sample_features.train_classifier(images, labels, 2, flip=False)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    torch.set_rng_state(state)
    sample_features.train_classifier(images, labels, 2, flip=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_the_cache_is_used_and_a_damaged_one_is_told(quick, tmp_path, monkeypatch):
    first = reference()
    seen, _ = first.classifier.look(first.train)  # the spread of real features is one
    assert seen.double().var(0).sum().item() == pytest.approx(1, rel=1e-4)
    monkeypatch.setattr(sample_features, "train_classifier", None)  # would raise if called
    assert reference().digest == first.digest
    (file,) = (tmp_path / "cache" / "classifiers").glob("*.pt")
    file.write_bytes(b"damaged")
    assert "delete it and run" in error_of(reference)


def test_yardsticks_order_real_images_before_noise(quick):
    found = yardsticks(reference())
    assert set(found) == {"held_out", "copies", "noise"}
    assert found["held_out"]["frechet"] < found["noise"]["frechet"] / 4
    assert found["copies"]["copies"] == 1 and found["noise"]["copies"] == 0
    assert found["held_out"]["class_agreement"] > 0.9


def test_foreign_inception_weights_are_refused(tmp_path):
    assert "no weights at" in error_of(sample_features.inception, tmp_path / "none.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert "not the state dict" in error_of(sample_features.inception, tmp_path / "other.pt")


def test_inception_sees_grey_and_coloured_pixels_from_minus_one_to_one(tmp_path):
    """What its weights were trained on; ImageNet's normalisation would give -2.1 to 2.6."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "inception.pt")
    look = sample_features.inception(tmp_path / "inception.pt")
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    grey[0], grey[1] = 0, 255
    seen = []

    def watch(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and not seen:
            seen.append(inputs[0])

    hook = register_module_forward_pre_hook(watch)
    try:
        found = look(grey)
    finally:
        hook.remove()
    black, white, _ = seen[0]  # what the first layer got
    assert black.shape == (3, 299, 299)
    torch.testing.assert_close(black, torch.full_like(black, -1))
    torch.testing.assert_close(white, torch.full_like(white, 1))
    assert found.shape == (3, 2048) and found.isfinite().all()
    torch.testing.assert_close(look(grey.expand(-1, 3, -1, -1)), found)
    some = found[:, :64]  # all 2,048 would take a minute
    assert frechet(moments(some), moments(some)) == pytest.approx(0, abs=1e-6)


# --- the check for copies ---


@pytest.mark.slow
def test_planted_copies_of_photographs_are_found_and_unseen_ones_are_not(shared_data):
    """Of 32 px: 2,000 to copy from, 500 for the threshold, 500 unseen."""
    train = photographs(shared_data / "cifar10" / "train", slice(200))
    test = shared_data / "cifar10" / "test"
    check = copies.CopyCheck(train)
    limit = copies.threshold(check.ratios(photographs(test, slice(50))))
    for kind, images in copies.plant(train).items():
        assert len(images) == 100
        assert int((check.ratios(images) < limit).sum()) >= 90, kind
    # Shifts of another kind than `plant` makes: up and to the left, wrapped around.
    rolled = train[::20].roll((-2, -2), (2, 3))
    assert int((check.ratios(rolled) < limit).sum()) >= 90
    assert int((check.ratios(photographs(test, slice(50, 100))) < limit).sum()) <= 5


def test_planted_copies_of_the_embedded_digits():
    """The rates that docs/generation.md states."""
    sets = small.load("digits", None, 16)
    train, held_out = (torch.from_numpy(sets[k].images[:, :1].copy()) for k in ("train", "val"))
    check = copies.CopyCheck(train)
    unseen = check.ratios(held_out)
    limit = copies.threshold(unseen)
    found = {
        kind: float((check.ratios(images) < limit).double().mean())
        for kind, images in copies.plant(train).items()
    }
    assert found["exact"] == found["mirrored"] == found["shifted"] == 1
    assert 0.4 < found["blended"] < 0.7
    assert copies.false_alarms(unseen) <= 0.01


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_copies_are_found_at_every_size_and_flat_images_are_none(size):
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (70, 3, size, size), generator=generator, dtype=torch.uint8)
    check = copies.CopyCheck(train)
    assert check.ratios(train[:5].flip(3)).max() < 0.01
    assert check.ratios(torch.full_like(train[:2], 90)).min() > 0.99
    new = torch.randint(0, 256, (5, 3, size, size), generator=generator, dtype=torch.uint8)
    assert check.ratios(new).min() > 0.5


def test_the_threshold_lets_half_a_per_cent_through_and_halves_judge_each_other():
    ratios = torch.arange(400) / 400
    assert copies.threshold(ratios) == ratios[2]
    assert copies.threshold(ratios[5:20]) == ratios[5]  # too few: none lies below
    assert copies.threshold(ratios[300:]) == copies.LIMIT
    falling = torch.cat([torch.full((50,), 0.2), torch.full((50,), 0.9)])[torch.arange(100) % 100]
    mixed = torch.stack([falling, torch.full((100,), 0.5)], 1).flatten()  # halves that differ
    assert copies.false_alarms(mixed) == pytest.approx(50 / 200)
