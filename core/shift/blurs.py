"""Corruptions that blur: motion, zoom, glass, defocus."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from core.shift.draws import field, uniforms
from core.shift.pixels import ONE, Batch, crop, places_of, to_uint8, whole_numbers

# At sigma 0.25 glass blur moves a pixel by 1/3000 of a step to its neighbour: enough to be cut.
_GLASS_JUST_BELOW = 1e-4


class _Plane:
    """Padded images as one run of memory, in which a shift of the image is a shift of the start.

    `flat` (rows, n) has a row for each image or one for all: the first image's first pixel is at
    `start`, the last one's last `count` behind it. `shape` is (B, C, H, W) with the padding.
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
        return _inner(sums, self.shape, self.size)


def _inner(flat: Tensor, shape: torch.Size, size: torch.Size, start: int | None = None) -> Tensor:
    """Return the images of `size` within a run of memory that holds padded ones of `shape`."""
    batch, channels, height, width = shape
    strides = (channels * height * width, height * width, width, 1)
    return flat.as_strided((batch, channels, *size), strides, start)


def motion(images: Tensor, angles: np.ndarray, radius: int, sigma: float) -> Tensor:
    """Blur levels (B, C, H, W) along a line to one side; whole levels, float32.

    Pixel i of the line, counted from 0 to twice the radius (half its length), has the weight
    exp(-i^2 / 2 sigma^2). `images` are whole levels, 0 to 255; `angles` (B,) of the line are
    clockwise from the right, in radians.
    """
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights = whole_numbers(weights / weights.sum())
    steps = np.flatnonzero(weights > 0)
    order = np.argsort(angles, kind="stable")  # neighbours then share most of their line
    cos, sin = (np.array([f(a) for a in angles[order].tolist()]) for f in (math.cos, math.sin))
    right, down = (np.ceil(np.outer(part, steps) - 0.5).astype(int) for part in (cos, sin))
    pad = (max(-right.min(), 0), max(right.max(), 0), max(-down.min(), 0), max(down.max(), 0))
    index = torch.from_numpy(order).to(images.device)
    plane = _Plane(images[index], [int(p) for p in pad], "replicate", per_image=True)
    sums = plane.sums()
    torch.mul(plane.shifted(0, 0), float(weights[0]), out=sums)
    for step in steps[1:].tolist():
        line = down[:, step] * plane.shape[-1] + right[:, step]
        ends = np.flatnonzero(np.diff(line, prepend=line[0] - 1, append=line[-1] + 1))
        for start, end in itertools.pairwise(ends.tolist()):
            shifted = plane.shifted(int(down[start, step]), int(right[start, step]))
            sums[start:end].add_(shifted[start:end], alpha=float(weights[step]))
    blurred = plane.image(sums).mul(1 / ONE).floor_()
    out = torch.empty_like(blurred)
    out[index] = blurred
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
        way, stop = step * stride, len(flat) - reach
        before, after = flat[reach - way : stop - way], flat[reach + way : stop + way]
        out.add_((before + after).mul_(weight))
    flat[middle] = out


def motion_blur(batch: Batch, constants: tuple[int, float]) -> Tensor:
    """Blur each image along a line of random direction, within 45 degrees of the horizontal."""
    angles = np.deg2rad(90 * uniforms(batch.keys, 1)[:, 0] - 45)
    return motion(batch.images, angles, *constants).to(torch.uint8)


def zoom_blur(batch: Batch, constants: tuple[float, float]) -> Tensor:
    """Average the image with its own enlargements."""
    count, channels, height, width = batch.images.shape
    pixels, offsets, weights = _zoom_sums(height, width, *constants, batch.images.device)
    table = batch.images.view(-1, height * width).t().float()
    table = table.contiguous()
    sums = F.embedding_bag(pixels, table, offsets, mode="sum", per_sample_weights=weights)
    levels = sums.t().reshape(count, channels, height, width)
    return to_uint8(levels.mul_(1 / ONE))


@functools.lru_cache(maxsize=16)
def _zoom_sums(
    height: int, width: int, end: float, step: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each pixel of a zoom blur, which pixels it sums up and by which weights.

    These are pixels (n,) of all sums, the first of each sum (H * W,), weights (n,) float32.
    """
    factors = np.arange(1, end, step)
    total = sparse.identity(height * width, format="csr")
    for factor in factors.tolist():
        rows, columns = (_zoom_matrix(side, factor) for side in (height, width))
        total = total + sparse.kron(rows, columns, format="csr")
    total = total.tocsr() / (len(factors) + 1)
    total.sort_indices()
    total.data = np.rint(total.data * ONE)
    rest = ONE - np.asarray(total.sum(1)).ravel()  # what rounding left goes to the pixel itself
    total = (total + sparse.diags(rest)).tocsr()
    total.eliminate_zeros()
    places = (torch.from_numpy(p.astype(np.int32)) for p in (total.indices, total.indptr[:-1]))
    pixels, firsts = (p.to(device) for p in places)
    return pixels, firsts, torch.from_numpy(total.data.astype(np.float32)).to(device)


def _zoom_matrix(side: int, factor: float) -> sparse.csr_matrix:
    """Return the sparse (side, side) matrix that zooms one axis."""
    start, _ = crop(side, factor)
    before, past = places_of(side, factor)
    rows = np.arange(side)
    data = np.concatenate([1 - past, past])
    columns = np.concatenate([before, before + 1]) + start
    return sparse.csr_matrix((data, (np.tile(rows, 2), columns)), shape=(side, side))


def glass_blur(batch: Batch, constants: tuple[float, int, int]) -> Tensor:
    """Blur, move pixels about, blur again."""
    sigma, reach, passes = constants
    kernel = _half_gaussian(sigma, int(4 * sigma + 0.5))
    count, channels, height, width = batch.images.shape
    blurred = _gaussian(batch.images, kernel).add(_GLASS_JUST_BELOW).floor_()
    inner = (height - 2 * reach) * (width - 2 * reach)
    draws = field(batch.keys, 2 * passes * inner).int().add_(2**15).mul_(2 * reach) >> 16
    draws = draws.sub_(reach).view(count, passes, 2, height - 2 * reach, width - 2 * reach)
    source = _moves(draws[:, 0], height, width, reach)
    for turn in range(1, passes):
        source = source.gather(1, _moves(draws[:, turn], height, width, reach))
    source = source[:, None].expand(count, channels, -1)
    moved = blurred.reshape(count, channels, -1).gather(2, source)
    return to_uint8(_gaussian(moved.view_as(blurred), kernel).clone(), _GLASS_JUST_BELOW)


def _moves(draws: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Return, for each pixel, which pixel's value it has after one pass of glass blur.

    The pass visits pixels from the last to the first. The value it copies from a later pixel is
    what that one got itself, from an earlier pixel what was there before.

    `draws` are shifts to the right and down (B, 2, H - 2 reach, W - 2 reach), by `reach` at most;
    the outermost pixels stay. Returns (B, H * W) int64.
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


def defocus_blur(batch: Batch, constants: tuple[float, float]) -> Tensor:
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
    weights = whole_numbers(kernel.ravel()).reshape(kernel.shape)
    plane = _Plane(images, (reach,) * 4, "reflect")
    sums = plane.sums().zero_()
    for weight in np.unique(weights[weights != 0]).tolist():
        for down, right in (np.argwhere(weights == weight) - reach).tolist():
            sums.add_(plane.shifted(down, right), alpha=weight)
    return to_uint8(plane.image(sums).mul(1 / ONE))


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
    return to_uint8(levels.mul(1 / sum(2 * half + 1 for half in _half_widths(radius))))


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
        sums, wide = torch.empty_like(self.totals), 2 * half + 1
        inner = sums[half + 1 : len(sums) - half]
        torch.sub(self.totals[wide:], self.totals[:-wide], out=inner)
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
        return _inner(flat, self.shape, self.size, self.start)


def _reflections(radius: int, smooth: Sequence[float]) -> list[tuple[int, int, float]]:
    """Return what reflecting at the window's border changes in the blur of the disk's rows.

    Of each change: row, row of the disk, weight: by how much more of the second the first holds.
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
    images: Tensor, radius: int, smooth: Sequence[float], terms: Sequence[tuple[int, int, float]]
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
