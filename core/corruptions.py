"""Eight ways in which photos go bad, at five severities, for whole batches on any device.

The formulas and constants are those of Hendrycks & Dietterich, "Benchmarking neural network
robustness to common corruptions and perturbations" (ICLR 2019), as in their reference functions for
CIFAR-10-C and ImageNet-C. Images with a shorter side below 128 pixels get the CIFAR constants (made
for 32 x 32), larger ones the ImageNet constants (made for 224 x 224).

What the reference does and one might not expect is kept, since published accuracies contain it:

- Results are cut to whole numbers, not rounded. Where the exact result is whole, floating point
  decides in the reference; here it stays.
- Glass blur copies a neighbour over a pixel, where the code looks like a swap, so pixels get lost.
  It runs from the bottom right to the top left and so may copy what was copied before. Offsets lie
  in -d .. d-1, which moves the content to the lower right; a border stays as it is.
- Defocus blurs its disk inside a small window whose border reflects: at severities 4 and 5 of the
  ImageNet constants the kernel sums to 1.013 and 1.011, so images get about 1 % brighter.
- Motion blur is one half of a Gaussian, so it shifts the content too. Results are cut, not rounded,
  as ImageMagick does.
- Zoom blur averages the image twice: as itself and at the factor 1. Its factors come from a float
  range that at some severities includes the end.
- Frost draws from the first five textures only. For CIFAR they are thinned to every fifth pixel
  without averaging.
- Fog normalises its map before it cuts it to the image, and scales by the image's own maximum; the
  roughness enters squared. Black turns grey under brightness.

Randomness is drawn from a counter: the draw of an image is a function of (seed, index, corruption,
severity), so neither batch size, order, device nor number of workers has a say. Sums of weighted
pixels are taken in whole numbers that float32 holds exactly, or element by element, so that the
order of additions cannot move a pixel either.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.special import ndtri
from torch import Tensor

from core import frost
from core.errors import UserError

CORRUPTIONS = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels of a side
LARGE = 128  # shorter side from which the ImageNet constants apply

# Constants per corruption and severity 1 to 5: CIFAR's, then ImageNet's.
_DEFOCUS = (  # radius of the disk, sigma of the blur of its edge, pixels
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
_GLASS = (  # sigma of both blurs, largest shift, passes
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
_MOTION = (  # radius and sigma, pixels
    ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)
_ZOOM = (  # end and step of the range of factors, which starts at 1
    ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)
_SNOW = (  # noise mean and deviation, its zoom, threshold, radius and sigma of blur, image's share
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
_FROST = (  # weights of image and texture
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
_FROST_THINNING = (5, 1)
_FOG = (  # amount, decay of the roughness per halving of the step
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
_BRIGHTNESS = ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))  # added to the value of HSV

_ONE = 2**16  # weights are whole multiples of 1/_ONE: 255 * _ONE < 2**24, exact in float32
_JUST_BELOW = 2e-3  # levels: results this close below a whole number count as the number
# At sigma 0.25 glass blur moves a pixel by 1/3000 of a step to its neighbour: enough to be cut.
_GLASS_JUST_BELOW = 1e-4
# Pixels worked on at once: as many as stay in the cache of a CPU core, or fill a GPU.
_BLOCK = {"cpu": 2**16, "cuda": 2**22}
_AHEAD = {"fog": 16, "zoom_blur": 4}  # blocks at a time where small steps are shared


class _Batch(NamedTuple):
    """Images (B, 3, H, W) uint8, a key (B,) int64 for each one's draws, and where textures are."""

    images: Tensor
    keys: Tensor
    frost_dir: Path | None


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    seed: int = 0,
    index: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    frost_dir: str | Path | None = None,
) -> Tensor:
    """Return corrupted copies of images.

    Args:
        images: (N, 3, H, W) uint8, RGB, sides of at least 32 pixels; on any device.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random draws.
        index: (N,) whole numbers that tell the images apart, 0 to N - 1 if None; an image's draw
            depends on its number, the seed, the corruption and the severity alone.
        frost_dir: folder whose first five pictures serve as frost; None: textures that labtune
            makes (see `core.frost`).

    Returns:
        (N, 3, H, W) uint8, on the device of `images`.

    Raises:
        UserError: no such corruption or severity, images of another kind or too small, or a frost
            folder that cannot be used.
    """
    check(name, severity)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"{name} needs uint8 images of shape (N, 3, H, W), got {images.dtype} of shape"
            f" {tuple(images.shape)}: convert them first"
        )
    height, width = images.shape[2:]
    if min(height, width) < SMALLEST:
        raise UserError(
            f"{name} needs images of at least {SMALLEST} x {SMALLEST} pixels, got {width} x"
            f" {height}: set a larger image size"
        )
    keys = _keys(seed, index, len(images), name, severity).to(images.device)
    function = _FUNCTIONS[name]
    constants = _CONSTANTS[name][min(height, width) >= LARGE][severity - 1]
    block = _AHEAD.get(name, 1) * _block(images)
    folder = None if frost_dir is None else Path(frost_dir)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        for start in range(0, len(images), block):
            part = slice(start, start + block)
            batch = _Batch(images[part].contiguous(), keys[part], folder)
            out[part] = function(batch, constants)
    return out


def _block(images: Tensor) -> int:
    """Return how many images are worked on at once."""
    return max(1, _BLOCK.get(images.device.type, 2**22) // (images.shape[2] * images.shape[3]))


def check(name: str, severity: int) -> None:
    """Refuse a corruption or severity that does not exist.

    Raises:
        UserError: one sentence that lists the choices.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"there is no corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")


# --- random draws ---


def _keys(
    seed: int,
    index: Tensor | np.ndarray | Sequence[int] | None,
    count: int,
    name: str,
    severity: int,
) -> Tensor:
    """Return a 64-bit key (N,) for each image."""
    numbers = torch.arange(count) if index is None else torch.as_tensor(index).cpu()
    if numbers.shape != (count,) or numbers.dtype.is_floating_point:
        raise UserError(
            f"index must be {count} whole numbers, one per image, got {numbers.dtype} of shape"
            f" {tuple(numbers.shape)}"
        )
    cell = zlib.crc32(f"{name} {severity}".encode())
    key = _mix(torch.tensor([_signed(seed)]) + cell)
    return _mix(_mix(numbers.long() + _GOLDEN) ^ key)


def _signed(number: int) -> int:
    """Wrap a whole number into 64 bits with sign, as torch counts."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(words: Tensor) -> Tensor:
    """Scramble int64 words: the output function of SplitMix64 (Steele et al., OOPSLA 2014)."""
    words = (words ^ ((words >> 30) & (2**34 - 1))).mul_(_FIRST)
    words = words.bitwise_xor_((words >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return words.bitwise_xor_((words >> 31).bitwise_and_(2**33 - 1))


def _field(keys: Tensor, count: int, first: int = 0) -> Tensor:
    """Draw (B, count) uniform int16 numbers, four from each word of the counter past `first`."""
    steps = torch.arange(first + 1, first + -(-count // 4) + 1, device=keys.device) * _GOLDEN
    return _mix(keys[:, None] + steps).view(torch.int16)[:, :count]


def _uniforms(keys: Tensor, count: int) -> np.ndarray:
    """Draw (B, count) float64 uniform in [0, 1), from counters that no field reaches."""
    steps = torch.arange(2**40, 2**40 + count, device=keys.device) * _GOLDEN
    words = _mix(keys[:, None] + steps).cpu().numpy()
    return (words.view(np.uint64) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=4)
def _normal_table(device: torch.device) -> Tensor:
    """Return the 65,536 normal quantiles that an int16 draw stands for, from -32768 on."""
    return torch.from_numpy(ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)).to(device)


# --- sums of weighted pixels ---


def _whole(weights: np.ndarray) -> np.ndarray:
    """Scale weights to whole numbers with the same sum; the largest takes what rounding left.

    The last axis sums to about one; the result to exactly the nearest whole number of 1/_ONE.
    """
    whole = np.rint(weights * _ONE)
    rest = np.rint(weights.sum(-1, keepdims=True) * _ONE) - whole.sum(-1, keepdims=True)
    np.put_along_axis(
        whole,
        whole.argmax(-1, keepdims=True),
        np.take_along_axis(whole, whole.argmax(-1, keepdims=True), -1) + rest,
        -1,
    )
    return whole


def _to_uint8(levels: Tensor, just_below: float = _JUST_BELOW) -> Tensor:
    """Clip float levels to 0..255 and cut the fraction; overwrites its argument."""
    # by way of int16, which is three times faster
    return levels.add_(just_below).clamp_(0, 255).to(torch.int16).to(torch.uint8)


class _Plane:
    """Padded images as one run of memory, in which a shift of the image is a shift of the start.

    Attributes:
        shape: (B, C, H, W) with the padding.
        flat: (rows, n) float32, a row for each image or one for all.
        start: place of the first image's first pixel in its row.
        count: from there to the last image's last pixel in the row.
    """

    def __init__(self, images: Tensor, pad: Sequence[int], mode: str, per_image: bool = False):
        """Pad images (B, C, H, W) by (left, right, top, bottom) in a mode of `F.pad`."""
        left, right, top, bottom = pad
        padded = F.pad(images.float(), (left, right, top, bottom), mode=mode)
        self.size = images.shape[-2:]
        self.shape = padded.shape
        self.flat = padded.view(len(images) if per_image else 1, -1)
        self.start = top * padded.shape[-1] + left
        self.count = self.flat.shape[1] - self.start - bottom * padded.shape[-1] - right

    def shifted(self, down: int, right: int) -> Tensor:
        """Return (rows, count): at the place of each pixel, the one `down` and `right` of it."""
        return self.flat.narrow(1, self.start + down * self.shape[-1] + right, self.count)

    def sums(self) -> Tensor:
        """Return a place (rows, count) for sums, filled with anything."""
        return torch.empty_like(self.flat)[:, self.start : self.start + self.count]

    def image(self, sums: Tensor) -> Tensor:
        """Return the images (B, C, H, W) within sums from `sums` or `shifted`, as a view."""
        batch, channels, height, width = self.shape
        strides = (channels * height * width, height * width, width, 1)
        return sums.as_strided((batch, channels, *self.size), strides)


def _motion(images: Tensor, angles: np.ndarray, radius: int, sigma: float) -> Tensor:
    """Blur levels (B, C, H, W) along a line to one side; whole levels, float32.

    Pixel i of the line, counted from 0 to twice the radius, has the weight exp(-i^2 / 2 sigma^2).

    Args:
        images: whole levels, 0 to 255.
        angles: (B,) of the line, clockwise from the right, in radians.
        radius: half the length.
        sigma: of the Gaussian.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = _whole(weights / weights.sum())
    steps = steps[weights > 0]
    order = np.argsort(angles, kind="stable")  # neighbours then share most of their line
    cos, sin = (np.array([f(a) for a in angles[order].tolist()]) for f in (math.cos, math.sin))
    right, down = (np.ceil(np.outer(part, steps) - 0.5).astype(int) for part in (cos, sin))
    pad = (max(-right.min(), 0), max(right.max(), 0), max(-down.min(), 0), max(down.max(), 0))
    same = len(images) == 1
    chosen = images if same else images[torch.from_numpy(order).to(images.device)]
    plane = _Plane(chosen, [int(p) for p in pad], "replicate", per_image=True)
    sums = plane.sums()
    torch.mul(plane.shifted(0, 0), float(weights[0]), out=sums)
    for step in steps[1:].tolist():
        line = down[:, step] * plane.shape[-1] + right[:, step]
        ends = np.flatnonzero(np.diff(line, append=line[-1] + 1)) + 1
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            shifted = plane.shifted(int(down[start, step]), int(right[start, step]))
            sums[start:end].add_(shifted[start:end], alpha=float(weights[step]))
    blurred = plane.image(sums).mul(1 / _ONE).floor_()
    if same:
        return blurred
    out = torch.empty_like(blurred)
    out[torch.from_numpy(order).to(images.device)] = blurred
    return out


def _gaussian(images: Tensor, kernel: Sequence[float]) -> Tensor:
    """Blur (B, C, H, W) by a symmetric kernel [centre, first neighbour, ...] along both axes."""
    reach = len(kernel) - 1
    if reach == 0:
        return images.float()
    plane = _Plane(images, (reach,) * 4, "replicate")
    _blur(plane.flat.view(-1), kernel, 1)
    _blur(plane.flat.view(-1), kernel, plane.shape[-1])
    return plane.image(plane.shifted(0, 0))


def _blur(flat: Tensor, kernel: Sequence[float], stride: int) -> None:
    """Blur a run of memory in place along a stride; what is near its ends is left as it is.

    Products and sums are separate operations: fused ones round otherwise on some processors.
    """
    reach = (len(kernel) - 1) * stride
    middle = slice(reach, len(flat) - reach)
    out = flat[middle] * kernel[0]
    for step, weight in enumerate(kernel[1:], 1):
        before, after = (
            slice(reach + s, len(flat) - reach + s) for s in (-step * stride, step * stride)
        )
        out.add_((flat[before] + flat[after]).mul_(weight))
    flat[middle] = out


# --- the corruptions ---


def _brightness(batch: _Batch, amount: float) -> Tensor:
    """Add to the value of HSV: hue and saturation stay, so all channels grow by one factor."""
    levels = batch.images.float()
    value = levels.amax(1, keepdim=True)
    brighter = (value + 255 * amount).clamp_(max=255)
    black = value == 0  # no hue: turns grey
    levels.mul_(brighter / value.masked_fill(black, 1))
    return _to_uint8(torch.where(black, brighter, levels) if black.any() else levels)


def _frost(batch: _Batch, weights: tuple[float, float]) -> Tensor:
    """Lay a random piece of one of five textures over each image."""
    images = batch.images
    height, width = images.shape[2:]
    thinning = _FROST_THINNING[min(height, width) >= LARGE]
    textures = frost.textures(batch.frost_dir, thinning, height, width, images.device)
    pieces = torch.empty_like(images)
    for piece, (which, down, right) in zip(pieces, _uniforms(batch.keys, 3).tolist(), strict=True):
        texture = textures[int(which * len(textures))]
        top = int(down * max(texture.shape[1] - height, 1))
        left = int(right * max(texture.shape[2] - width, 1))
        piece.copy_(texture[:, top : top + height, left : left + width])
    levels = images.float().mul_(weights[0])
    return _to_uint8(levels.add_(pieces.float().mul_(weights[1])))


def _fog(batch: _Batch, constants: tuple[float, float]) -> Tensor:
    """Add a rough height map to each image and scale it back to its own maximum."""
    amount, decay = constants
    height, width = batch.images.shape[2:]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    block = _block(batch.images)
    maps = _height_map(batch.keys, side, decay, block)[:, :side, :side]
    out = []
    for images, heights in zip(batch.images.split(block), maps.split(block), strict=True):
        low, high = heights.amin((1, 2), True), heights.amax((1, 2), True)
        heights = heights[:, :height, :width].sub(low).mul_(255 * amount / (high - low))
        levels = images.float()
        brightest = levels.amax((1, 2, 3), True)
        levels.add_(heights[:, None]).mul_(brightest / (brightest + 255 * amount))
        out.append(_to_uint8(levels))
    return torch.cat(out)


def _height_map(keys: Tensor, side: int, decay: float, block: int) -> Tensor:
    """Return maps (B, side + 1, side + 1) by midpoint displacement (diamond-square).

    Each round halves the step: a new point is the mean of its four neighbours and a uniform draw
    within the square of a roughness, which starts at 100 and falls by `decay` per round. Maps are
    periodic: the last row and column repeat the first. At most `block` maps' worth of points is
    worked on at once.
    """
    heights = torch.zeros(len(keys), 2, 2, device=keys.device)
    roughness, step = 100.0, 1  # step: points per side so far
    while step < side:
        scale = roughness**2 / 2**15
        few = max(1, block * side * side // (4 * step * step))
        parts = zip(heights.split(few), keys.split(few), strict=True)
        heights = torch.cat([_finer_map(h, k, scale) for h, k in parts])
        step, roughness = 2 * step, roughness / decay
    return heights


def _finer_map(heights: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Double the points (B, n + 1, n + 1) of periodic maps; draws are whole steps of `scale`."""
    count, side = len(keys), heights.shape[1] - 1
    draws = _field(keys, 3 * side * side, side * side)
    noise = draws.float().add_(0.5).mul_(scale).view(count, 3, side, side)
    across = heights[:, :, :-1] + heights[:, :, 1:]
    down = heights[:, :-1] + heights[:, 1:]
    middle = (down[:, :, :-1] + down[:, :, 1:]).mul_(0.25).add_(noise[:, 0])
    above = torch.cat([middle[:, -1:], middle[:, :-1]], 1)
    before = torch.cat([middle[:, :, -1:], middle[:, :, :-1]], 2)
    upper = above.add_(middle).add_(across[:, :-1]).mul_(0.25).add_(noise[:, 1])
    left = before.add_(middle).add_(down[:, :, :-1]).mul_(0.25).add_(noise[:, 2])
    finer = heights.new_empty(count, 2 * side + 1, 2 * side + 1)
    finer[:, ::2, ::2], finer[:, 1::2, 1::2] = heights, middle
    finer[:, :-1:2, 1::2], finer[:, 1::2, :-1:2] = upper, left
    finer[:, -1], finer[:, :, -1] = finer[:, 0], finer[:, :, 0]
    return finer


def _motion_blur(batch: _Batch, constants: tuple[int, float]) -> Tensor:
    """Blur each image along a line of random direction, within 45 degrees of the horizontal."""
    angles = np.deg2rad(90 * _uniforms(batch.keys, 1)[:, 0] - 45)
    return _motion(batch.images, angles, *constants).to(torch.uint8)


def _snow(batch: _Batch, constants: tuple[float, ...]) -> Tensor:
    """Whiten the image and add streaks: blurred noise above a threshold, and the same turned."""
    mean, deviation, factor, threshold, radius, sigma, share = constants
    height, width = batch.images.shape[2:]
    tall, wide = (_crop(side, factor)[1] for side in (height, width))
    draws = _field(batch.keys, tall * wide).int().add_(2**15)
    noise = _normal_table(draws.device).index_select(0, draws.flatten())
    noise = noise.mul_(deviation).add_(mean).view(-1, tall, wide)
    noise = _stretch(_stretch(noise, width, factor, 2), height, factor, 1)
    noise = F.threshold(noise, threshold, 0).clamp_(0, 1).mul_(255).floor_()
    angles = np.deg2rad(90 * _uniforms(batch.keys, 1)[:, 0] - 135)
    streaks = _motion(noise[:, None], angles, int(radius), sigma)
    levels = batch.images.float()
    red, green, blue = levels.unbind(1)
    grey = (red * (1.5 * 0.299)).add_(green * (1.5 * 0.587)).add_(blue * (1.5 * 0.114))
    white = torch.maximum(levels, grey.add_(127.5)[:, None]).mul_(1 - share)
    return _to_uint8(levels.mul_(share).add_(white).add_(streaks + streaks.flip(2, 3)))


def _crop(side: int, factor: float) -> tuple[int, int]:
    """Return start and length of the middle that fills `side` pixels after a zoom."""
    length = math.ceil(side / factor)
    return (side - length) // 2, length


def _places(side: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each pixel of a zoomed side, the pixel before it in the crop and the way past it.

    The crop's first and last pixels fall on those of the zoomed side (scipy's `zoom`, order 1),
    which is then trimmed evenly to `side` pixels.
    """
    _, length = _crop(side, factor)
    zoomed = round(length * factor)
    places = (np.arange(side) + (zoomed - side) // 2) * ((length - 1) / (zoomed - 1))
    before = np.minimum(places.astype(int), length - 2)
    return before, places - before


def _stretch(noise: Tensor, side: int, factor: float, dim: int) -> Tensor:
    """Zoom one axis of a cropped (B, h, w) field to `side` pixels, linearly."""
    if factor == 1:
        return noise
    before, past = _places(side, factor)
    index = torch.from_numpy(before).to(noise.device)
    share = torch.from_numpy(past.astype(np.float32)).to(noise.device)
    share = share if dim == 2 else share[:, None]
    near, far = noise.index_select(dim, index), noise.index_select(dim, index + 1)
    return near.mul_(1 - share).add_(far.mul_(share))


def _zoom_blur(batch: _Batch, constants: tuple[float, float]) -> Tensor:
    """Average the image with its own enlargements."""
    count, channels, height, width = batch.images.shape
    pixels, offsets, weights = _zoom_sums(height, width, *constants, batch.images.device)
    table = batch.images.view(-1, height * width).t().float()
    sums = F.embedding_bag(
        pixels, table.contiguous(), offsets, mode="sum", per_sample_weights=weights
    )
    levels = sums.t().reshape(count, channels, height, width)
    return _to_uint8(levels.mul_(1 / _ONE))


@functools.lru_cache(maxsize=16)
def _zoom_sums(
    height: int, width: int, end: float, step: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each pixel of a zoom blur, which pixels it sums up and by which weights.

    Returns:
        pixels (n,) of all sums, the first of each sum (H * W,), weights (n,) float32.
    """
    factors = np.arange(1, end, step)
    total = sparse.identity(height * width, format="csr")
    for factor in factors.tolist():
        rows, columns = (_zoom_matrix(side, factor) for side in (height, width))
        total = total + sparse.kron(rows, columns, format="csr")
    total = total.tocsr() / (len(factors) + 1)
    total.sort_indices()
    total.data = np.rint(total.data * _ONE)
    rest = _ONE - np.asarray(total.sum(1)).ravel()  # what rounding left goes to the pixel itself
    total = (total + sparse.diags(rest)).tocsr()
    total.eliminate_zeros()
    return (
        torch.from_numpy(total.indices.astype(np.int32)).to(device),
        torch.from_numpy(total.indptr[:-1].astype(np.int32)).to(device),
        torch.from_numpy(total.data.astype(np.float32)).to(device),
    )


def _zoom_matrix(side: int, factor: float) -> sparse.csr_matrix:
    """Return the sparse (side, side) matrix that zooms one axis."""
    start, _ = _crop(side, factor)
    before, past = _places(side, factor)
    rows = np.arange(side)
    data = np.concatenate([1 - past, past])
    columns = np.concatenate([before, before + 1]) + start
    return sparse.csr_matrix((data, (np.tile(rows, 2), columns)), shape=(side, side))


def _glass_blur(batch: _Batch, constants: tuple[float, int, int]) -> Tensor:
    """Blur, move pixels about, blur again."""
    sigma, reach, passes = constants
    kernel = _half_gaussian(sigma, int(4 * sigma + 0.5))
    count, channels, height, width = batch.images.shape
    blurred = _gaussian(batch.images, kernel).add(_GLASS_JUST_BELOW).floor_()
    inner = (height - 2 * reach) * (width - 2 * reach)
    draws = _field(batch.keys, 2 * passes * inner).int().add_(2**15).mul_(2 * reach) >> 16
    draws = draws.sub_(reach).view(count, passes, 2, height - 2 * reach, width - 2 * reach)
    source = _moves(draws[:, 0], height, width, reach)
    for turn in range(1, passes):
        source = source.gather(1, _moves(draws[:, turn], height, width, reach))
    moved = blurred.reshape(count, channels, -1).gather(
        2, source[:, None].expand(count, channels, -1)
    )
    return _to_uint8(_gaussian(moved.view_as(blurred), kernel).clone(), _GLASS_JUST_BELOW)


def _moves(draws: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Return, for each pixel, which pixel's value it has after one pass of glass blur.

    The pass visits pixels from the last to the first. The value it copies from a later pixel is
    what that one got itself, from an earlier pixel what was there before.

    Args:
        draws: (B, 2, H - 2 reach, W - 2 reach) shifts to the right and down.
        height: H.
        width: W.
        reach: how far a pixel is at most taken from; the outermost ones stay.

    Returns:
        (B, H * W) int64.
    """
    own = torch.arange(height * width, device=draws.device)
    source = own.repeat(len(draws), 1).view(-1, height, width)
    visited = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    source[:, visited[0], visited[1]] += draws[:, 0] + width * draws[:, 1]
    source = source.view(-1, height * width)
    if reach == 1:  # shifts of -1 and 0 point at earlier pixels only
        return source
    inside = torch.zeros(height, width, dtype=torch.bool, device=draws.device)
    inside[visited] = True
    # a pixel may go on to the source of its source while that one was visited before it
    onward = inside.view(-1).index_select(0, source.view(-1)).view_as(source) & (source > own)
    following = torch.where(onward, source, own)  # itself: the end of the way
    while True:
        further = following.gather(1, following)
        if torch.equal(further, following):
            return source.gather(1, following)
        following = further


def _half_gaussian(sigma: float, reach: int) -> tuple[float, ...]:
    """Return the weights of a Gaussian that sums to one, from its centre outwards."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return tuple((weights / weights.sum())[reach:].tolist())


def _defocus_blur(batch: _Batch, constants: tuple[float, float]) -> Tensor:
    """Spread each pixel over a disk."""
    radius, sigma = constants
    if radius < 3:
        return _small_defocus(batch.images, radius, sigma)
    return _large_defocus(batch.images, int(radius), sigma)


def _small_defocus(images: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur by a disk of a few pixels: one sum over its pixels."""
    reach = int(radius) + 1
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    edge = np.zeros(2 * reach + 1)
    edge[reach - 1 : reach + 2] = [*_half_gaussian(sigma, 1)[:0:-1], *_half_gaussian(sigma, 1)]
    smooth = np.array([np.roll(edge, s) for s in steps])
    kernel = smooth @ (disk / disk.sum()) @ smooth.T
    weights = _whole(kernel.ravel()).reshape(kernel.shape)
    plane = _Plane(images, (reach,) * 4, "reflect")
    sums = plane.sums().zero_()
    for weight in np.unique(weights[weights != 0]).tolist():
        places = [(int(y), int(x)) for y, x in np.argwhere(weights == weight) - reach]
        for down, right in places:
            sums.add_(plane.shifted(down, right), alpha=weight)
    return _to_uint8(plane.image(sums).mul(1 / _ONE))


def _large_defocus(images: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur by a wide disk, whose rows are differences of running sums.

    With F the blur of the disk's edge, R what the window's border adds to it along one axis, and D
    the disk, the reference's kernel is F D F + R D F + F D R: no disk reaches a window's corner.
    """
    edge = 1 if radius <= 8 else 2  # reach of F
    smooth = _half_gaussian(sigma, edge)
    runs = _Runs(images, radius, edge)
    disk = runs.disk()
    _blur(disk, smooth, runs.width)
    _blur(disk, smooth, 1)
    levels = runs.image(disk)
    terms = _reflections(radius, smooth)
    if terms:
        levels = levels + _window_border(images, radius, smooth, terms)
        levels.add_(_window_border(images.mT, radius, smooth, terms).mT)
    return _to_uint8(levels.mul(1 / sum(2 * half + 1 for half in _half_widths(radius))))


def _half_widths(radius: int) -> list[int]:
    """Return the half width of each row of a disk, from the top row to the bottom one."""
    return [math.isqrt(radius**2 - row**2) for row in range(-radius, radius + 1)]


class _Runs:
    """Sums of pixels in a row, for all images of a batch."""

    def __init__(self, images: Tensor, radius: int, edge: int):
        """Prepare sums of up to `radius` pixels to either side; `edge` more may be looked up."""
        reach = radius + edge
        self.radius, self.edge = radius, edge
        self.size = images.shape[-2:]
        padded = F.pad(images.float(), (reach + 1, reach, reach, reach), mode="reflect")
        # whole numbers either way; 16 bits wrap, but the differences that are used fit
        small = 255 * sum(2 * half + 1 for half in _half_widths(radius)) < 2**15
        kind = torch.int16 if small else torch.float32
        self.shape, self.width = padded.shape, padded.shape[-1]
        self.totals = padded.to(kind).cumsum(-1, dtype=kind).view(-1)
        self.start = reach * self.width + reach + 1  # of the first image
        self.stop = len(self.totals) - reach * self.width - reach  # of the last

    def row(self, half: int) -> Tensor:
        """Return, per place, the sum of the pixels at most `half` to the left and right."""
        sums = torch.empty_like(self.totals)
        end = len(sums)
        torch.sub(
            self.totals[2 * half + 1 :],
            self.totals[: end - 2 * half - 1],
            out=sums[half + 1 : end - half],
        )
        return sums

    def disk(self) -> Tensor:
        """Return a flat float32 run: the sum over the disk around each place near an image."""
        margin = self.edge * self.width + self.edge
        first, last = self.start - margin, self.stop + margin
        halves = _half_widths(self.radius)
        total = torch.zeros_like(self.totals)
        for half in sorted(set(halves)):
            row = self.row(half)
            for down in (i - self.radius for i, own in enumerate(halves) if own == half):
                total[first:last].add_(row[first + down * self.width : last + down * self.width])
        return total.float()

    def image(self, flat: Tensor) -> Tensor:
        """Return the images (B, C, H, W) within a flat run, as a view."""
        return flat.as_strided(
            (*self.shape[:2], *self.size),
            (self.shape[1] * self.shape[2] * self.width, self.shape[2] * self.width, self.width, 1),
            self.start,
        )


def _reflections(radius: int, smooth: Sequence[float]) -> list[tuple[int, int, float]]:
    """Return what reflecting at the window's border changes in the blur of the disk's rows.

    Returns:
        (row, row of the disk, weight): by how much more of the second the first holds.
    """
    border, edge = max(8, radius), len(smooth) - 1
    change: dict[tuple[int, int], float] = {}
    for row in range(-border - edge, border + edge + 1):
        for step in range(-edge, edge + 1):
            weight, other = smooth[abs(step)], row + step
            if abs(row) > border and abs(other) <= border:  # cut off by the window
                change[row, other] = change.get((row, other), 0) - weight
            elif abs(row) <= border < abs(other):
                inner = math.copysign(2 * border - abs(other), other)
                change[row, int(inner)] = change.get((row, int(inner)), 0) + weight
    return [(row, other, w) for (row, other), w in change.items() if abs(other) <= radius]


def _window_border(
    images: Tensor,
    radius: int,
    smooth: Sequence[float],
    terms: Sequence[tuple[int, int, float]],
) -> Tensor:
    """Return the sums (B, C, H, W) that the upper and lower border of the window add."""
    runs = _Runs(images, radius, len(smooth) - 1)
    halves = _half_widths(radius)
    first, last = runs.start - runs.edge, runs.stop + runs.edge
    total = torch.zeros_like(runs.totals, dtype=torch.float32)
    for row, other, weight in terms:
        shift = row * runs.width
        sums = runs.row(halves[other + radius])[first + shift : last + shift]
        total[first:last].add_(sums * weight)
    _blur(total, smooth, 1)
    return runs.image(total)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
}
_CONSTANTS: dict[str, Sequence[Sequence]] = {
    "defocus_blur": _DEFOCUS,
    "glass_blur": _GLASS,
    "motion_blur": _MOTION,
    "zoom_blur": _ZOOM,
    "snow": _SNOW,
    "frost": _FROST,
    "fog": _FOG,
    "brightness": _BRIGHTNESS,
}
