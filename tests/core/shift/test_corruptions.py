"""Corruptions: against the reference's results, against plain loops, and what draws depend on.

The plain versions take one image and the draws of `core.shift.corruptions`, and follow the
descriptions of Hendrycks & Dietterich (ICLR 2019) with no thought of speed.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d, gaussian_filter

from core.shift import blurs, corruptions, frost, weather
from core.shift import draws as corruptions_draws
from core.shift.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from tests.support.calls import error_of
from tests.support.datasets import photographs, save

FIXED = ("defocus_blur", "zoom_blur", "brightness")
# draws of a fixed seed, as first written down: results keep their meaning between versions
KEYS = [-4928558841286419165, -5335226598081634471]
FIELD = [[10745, -18128, -4268, 1812, -3445], [-2517, 30125, 6621, -8775, -27756]]
DRAWN = tuple(name for name in CORRUPTIONS if name not in FIXED)


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, np.ndarray]:
    """Return 32 photos and what the reference functions make of them."""
    with np.load(shared_data.parent / "reference" / "corrupted-samples.npz") as file:
        return {name: file[name] for name in ("clean", *CORRUPTIONS)}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> torch.Tensor:
    """Return the 2,000 photos of the reference's statistics, (2000, 3, 32, 32)."""
    return photographs(shared_data / "cifar10" / "test", slice(200))


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def made_up(count: int, size: int = 32, width: int | None = None) -> torch.Tensor:
    """Return smooth images with a black and a white row and a sharp edge."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(count + size))
    shape = (size, width or size)
    images = torch.nn.functional.interpolate(coarse * 255, size=shape, mode="bilinear")
    images[:, :, 3], images[:, :, 5], images[:, :, :, 9] = 0, 255, 128
    return images.to(torch.uint8)


# --- against the reference ---


@pytest.mark.parametrize("name", FIXED)
def test_fixed_corruptions_equal_the_reference(reference, name):
    clean = tensor(reference["clean"])
    for severity in SEVERITIES:
        ours = corrupt(clean, name, severity).int()
        distance = (ours - tensor(reference[name][severity - 1]).int()).abs()
        assert (distance <= 1).float().mean() >= 0.999, severity
        assert (distance == 0).float().mean() > 0.9, severity


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_corruptions_have_the_reference_statistics(shared_data, photos, name):
    with (shared_data.parent / "reference" / "corruption-statistics.csv").open() as file:
        rows = {int(r["severity"]): r for r in csv.DictReader(file) if r["corruption"] == name}
    for severity in SEVERITIES:
        ours = corrupt(photos, name, severity, frost_dir=shared_data / "frost").float()
        change = ours - photos
        found = {
            "mean_pixel": ours.mean(),
            "std_pixel": ours.std(),
            "mean_abs_diff_vs_clean": change.abs().mean(),
            "rmse_vs_clean": change.square().mean().sqrt(),
        }
        # what one draw per image leaves open, from the spread over images of our own draws
        error = change.mean((1, 2, 3)).std() / math.sqrt(len(photos))
        for column, value in found.items():
            expected = float(rows[severity][column])
            assert abs(value - expected) < max(5 * error, 0.01 * expected), (severity, column)


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_corruptions_have_the_reference_sharpness(reference, shared_data, name):
    clean, frost_dir = tensor(reference["clean"]), shared_data / "frost"
    for severity in SEVERITIES:
        draws = [corrupt(clean, name, severity, s, frost_dir=frost_dir) for s in range(8)]
        ours = sharpness(torch.stack(draws))
        theirs = sharpness(tensor(reference[name][severity - 1]))
        error = (ours.std(0).square().sum() * (1 + 1 / 8)).sqrt() / len(clean)
        assert abs(ours.mean() - theirs.mean()) < 4 * error + 0.002 * theirs.mean(), severity


def sharpness(images: torch.Tensor) -> torch.Tensor:
    """Return the mean squared step to the next pixel, per image."""
    images = images.double()
    down, right = images.diff(dim=-2), images.diff(dim=-1)
    return down.square().mean((-3, -2, -1)) + right.square().mean((-3, -2, -1))


def test_motion_blur_is_the_reference_at_the_angle_it_drew(reference):
    """A search over angles finds each sample of the reference, but for rare single levels."""
    angles = np.deg2rad(np.linspace(-45, 45, 361))
    for severity, which in ((1, 0), (3, 1), (5, 2)):
        image = tensor(reference["clean"][which : which + 1]).expand(len(angles), -1, -1, -1)
        constants = corruptions._MOTION[0][severity - 1]
        blurred = blurs.motion(image, angles, *constants)
        theirs = tensor(reference["motion_blur"][severity - 1])[which]
        equal = (blurred == theirs).float().mean((1, 2, 3))
        assert equal.max() > 0.98


# --- against plain loops ---


@pytest.mark.parametrize(("size", "severity"), [(32, 1), (32, 5), (144, 2), (144, 4)])
def test_glass_blur_is_a_loop_that_copies(size, severity):
    images = made_up(2, size)
    ours = corrupt(images, "glass_blur", severity, seed=3)
    sigma, reach, passes = corruptions._GLASS[size >= 128][severity - 1]
    keys = corruptions_draws.keys_of(3, None, 2, "glass_blur", severity)
    inner = size - 2 * reach
    draws = corruptions_draws.field(keys, 2 * passes * inner**2).numpy().astype(int) + 2**15
    draws = (draws * 2 * reach // 2**16 - reach).reshape(2, passes, 2, inner, inner)
    for image, result, moves in zip(images, ours, draws, strict=True):
        x = image.permute(1, 2, 0).numpy().astype(float)
        x = np.floor(smooth(x, sigma) + 1e-4)
        for turn in range(passes):
            for h in range(size - reach, reach, -1):
                for w in range(size - reach, reach, -1):
                    right, down = moves[turn, :, h - reach - 1, w - reach - 1]
                    x[h, w] = x[h + down, w + right]
        expected = torch.from_numpy(np.floor(smooth(x, sigma) + 1e-4)).permute(2, 0, 1)
        distance = (result - expected).abs()
        assert distance.max() <= 1 and (distance == 0).float().mean() > 0.999


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)


@pytest.mark.parametrize(("size", "severity"), [(32, 2), (40, 5), (130, 3)])
def test_motion_blur_is_a_one_sided_line(size, severity):
    images = made_up(3, size)
    ours = corrupt(images, "motion_blur", severity, seed=1)
    radius, sigma = corruptions._MOTION[size >= 128][severity - 1]
    keys = corruptions_draws.keys_of(1, None, 3, "motion_blur", severity)
    angles = np.deg2rad(90 * corruptions_draws.uniforms(keys, 1)[:, 0] - 45)
    assert np.abs(angles).max() <= math.pi / 4
    for image, result, angle in zip(images.numpy(), ours.numpy(), angles, strict=True):
        weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
        rows, columns = np.indices((size, size))
        total = np.zeros(image.shape)
        for i, weight in enumerate(weights):
            right, down = (math.ceil(i * f(angle) - 0.5) for f in (math.cos, math.sin))
            place = (rows + down).clip(0, size - 1), (columns + right).clip(0, size - 1)
            total += weight / sum(weights) * image[:, place[0], place[1]]
        distance = np.abs(result.astype(int) - np.floor(total + 1e-6))
        assert distance.max() <= 1 and (distance == 0).mean() > 0.97


@pytest.mark.parametrize(("side", "decay"), [(32, 2.5), (64, 1.4)])
def test_fog_is_midpoint_displacement(side, decay):
    keys = corruptions_draws.keys_of(0, [5, 6], 2, "fog", 1)
    maps = weather._height_map(keys, side, decay, block=1)
    for key, ours in zip(keys.split(1), maps, strict=True):
        field = np.zeros((side, side))
        roughness, step = 100.0, side
        while step > 1:
            half, count = step // 2, side // step
            draws = corruptions_draws.field(key, 3 * count**2, count**2).double().numpy()
            noise = ((draws + 0.5) / 2**15 * roughness**2).reshape(3, count, count)
            for i, j in np.ndindex(count, count):
                y, x = i * step, j * step
                corners = field[np.ix_((y, (y + step) % side), (x, (x + step) % side))]
                field[y + half, x + half] = np.mean(corners) + noise[0, i, j]
            for i, j in np.ndindex(count, count):
                y, x = i * step, j * step
                for number, (a, b) in enumerate(((y, x + half), (y + half, x)), 1):
                    near = ((a - half, b), (a + half, b), (a, b - half), (a, b + half))
                    mean = np.mean([field[c % side, d % side] for c, d in near])
                    field[a, b] = mean + noise[number, i, j]
            step, roughness = half, roughness / decay
        assert np.allclose(ours[:side, :side].numpy(), field, atol=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_wide_defocus_is_its_windows_kernel(severity):
    """The window has 17 or 21 pixels, and the blur of the disk's edge reflects at its border."""
    image = made_up(1, 132, 150)[0].double().numpy()
    radius, sigma = corruptions._DEFOCUS[1][severity - 1]
    border, edge = max(8, radius), 1 if radius <= 8 else 2
    steps = np.arange(-border, border + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * sigma**2))
    kernel = disk / disk.sum()
    for axis in (0, 1):
        kernel = correlate1d(kernel, taps / taps.sum(), axis, mode="mirror")
    padded = np.pad(image, ((0, 0), (border, border), (border, border)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(1, 2))
    expected = np.einsum("chwij,ij->chw", windows, kernel, optimize=True).clip(0, 255)
    ours = corrupt(torch.from_numpy(image).to(torch.uint8)[None], "defocus_blur", severity)[0]
    assert np.abs(ours.numpy() - (expected - 0.5)).max() < 0.51
    if severity >= 4:
        assert 1.01 < kernel.sum() < 1.014


def test_brightness_keeps_hue_and_turns_black_grey():
    image = torch.tensor([[0, 0, 0], [100, 50, 0], [200, 100, 50]], dtype=torch.uint8)
    images = image.T[None, :, :, None].expand(1, 3, 3, 32).repeat(1, 1, 11, 1)
    ours = corrupt(images, "brightness", 5)[0, :, :3, 0].T.tolist()
    # 0.3 * 255 = 76.5; 100 -> 176.5, 50 -> 88.25; 200 -> 255, so times 1.275
    assert ours == [[76, 76, 76], [176, 88, 0], [255, 127, 63]]


# --- what a draw depends on ---


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 128])
def test_neither_batch_nor_order_nor_company_moves_a_pixel(name, size):
    count = 70 if size == 32 else 5  # more than are worked on at once
    images = made_up(count, size)
    together = corrupt(images, name, 3, seed=7)
    for i in {0, 1, 2, 3, 4, 63, 64, 69} & set(range(count)):
        assert torch.equal(together[[i]], corrupt(images[[i]], name, 3, seed=7, index=[i]))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert torch.equal(together[order], corrupt(images[order], name, 3, seed=7, index=order))


@pytest.mark.parametrize("name", DRAWN)
def test_seed_index_and_severity_change_the_draw(name):
    image = made_up(1).expand(8, -1, -1, -1)
    first = corrupt(image, name, 2)
    assert len({bytes(i.numpy()) for i in first}) > 1, "each image has its own draw"
    assert not torch.equal(first, corrupt(image, name, 2, seed=1))
    assert not torch.equal(first, corrupt(image, name, 2, index=range(8, 16)))
    assert torch.equal(first, corrupt(image, name, 2))


def test_draws_are_the_same_on_every_machine():
    keys = corruptions_draws.keys_of(12, [0, 10**12], 2, "snow", 4)
    assert keys.tolist() == KEYS
    assert corruptions_draws.field(keys, 5).tolist() == FIELD
    nine = corruptions_draws.field(keys, 9)
    assert torch.equal(nine[:, :5], corruptions_draws.field(keys, 5))
    assert torch.equal(nine[:, 4:8], corruptions_draws.field(keys, 4, 1))


def test_draws_are_uniform_and_independent():
    draws = corruptions_draws.field(corruptions_draws.keys_of(0, None, 64, "fog", 1), 4096).double()
    assert abs(draws.mean() + 0.5) < 5 * 2**16 / math.sqrt(12 * draws.numel())
    counts = np.bincount(((draws + 2**15) // 1024).long().flatten(), minlength=64)
    expected = draws.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 63 degrees of freedom, 5 sigma
    correlation = torch.corrcoef(draws)[~torch.eye(64, dtype=torch.bool)]
    assert correlation.abs().max() < 6 / math.sqrt(4096)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_gpu_makes_the_same_images(name):
    for images in (made_up(40), made_up(3, 224)):
        ours = corrupt(images.cuda(), name, 3).cpu().int()
        distance = (ours - corrupt(images, name, 3).int()).abs()
        assert (distance == 0).float().mean() > 0.999 and distance.max() <= 1


# --- sizes and bad input ---


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(32, 47), (100, 64), (130, 201)])
def test_any_size_from_32_pixels_on(name, shape):
    images = made_up(2, *shape)
    before = images.clone()
    for severity in (1, 5):
        result = corrupt(images, name, severity)
        assert result.shape == images.shape and result.dtype == torch.uint8
        assert not torch.equal(result, images)
        assert torch.equal(images, before)
    assert corrupt(images[:0], name, 1).shape == (0, 3, *shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((made_up(1), "rain", 1), f"'rain': choose from {', '.join(CORRUPTIONS)}"),
        ((made_up(1), "fog", 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
        ((made_up(1), "fog", 6), "got 6"),
        ((made_up(1)[:, :, 1:], "fog", 1), "at least 32 x 32 pixels, got 32 x 31"),
        ((made_up(1).float(), "fog", 1), "uint8"),
        ((made_up(1)[:, :2], "fog", 1), "(N, 3, H, W)"),
        ((made_up(2), "fog", 1, 0, [1]), "2 whole numbers"),
        ((made_up(2), "fog", 1, 0, [0.5, 1]), "whole numbers"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    assert message in error_of(corrupt, *arguments)


# --- frost ---


def test_own_textures_are_like_photographs_of_frost(shared_data):
    """Brightness, contrast and detail lie in the range of the reference's five photographs."""
    files = sorted((shared_data / "frost").iterdir())[: frost.COUNT]
    theirs = np.array([look(np.asarray(Image.open(f).convert("RGB"))) for f in files])
    ours = np.array([look(texture) for texture in frost.drawn()])
    assert np.allclose(ours[:, :2].mean(0), theirs[:, :2].mean(0), rtol=0.1)
    assert 0.6 < ours[:, 2].mean() / theirs[:, 2].mean() < 1.6


def look(texture: np.ndarray) -> tuple[float, float, float]:
    """Return mean, deviation and mean step to the next pixel of the brightness."""
    grey = texture.mean(2)
    return grey.mean(), grey.std(), np.abs(np.diff(grey, axis=1)).mean()


def test_own_pictures_serve_as_frost(tmp_path):
    for number in range(6):  # the sixth is never used
        level = 40 * number if number < 5 else 255
        Image.new("RGB", (400, 300), (level, level, level)).save(tmp_path / f"frost{number}.png")
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    ours = corrupt(images, "frost", 3, frost_dir=tmp_path)
    assert {int(value) for value in ours.unique()} == {int(0.4 * 40 * n) for n in range(5)}
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[2::5, 2::5] = 100  # small images get every fifth pixel
    for number in range(5):
        save(Image.fromarray(picture), tmp_path / "dotted" / f"{number}.png")
    assert (corrupt(images, "frost", 1, frost_dir=tmp_path / "dotted") == 20).all()


def test_frost_folders_that_cannot_be_used(tmp_path):
    def told() -> str:
        return error_of(corrupt, made_up(1), "frost", 1, frost_dir=tmp_path / "own")

    assert "is not a folder" in told()
    for number in range(4):
        save(Image.new("RGB", (99, 99)), tmp_path / "own" / f"{number}.png")
    assert "has 4 pictures where 5 are needed" in told()
    (tmp_path / "own" / "9.jpg").write_bytes(b"no picture")
    assert "9.jpg cannot be read" in told()
