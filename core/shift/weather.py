"""Corruptions of weather and light: brightness, frost, fog, snow."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.shift import frost
from core.shift.blurs import motion
from core.shift.draws import field, normal_table, uniforms
from core.shift.pixels import LARGE, Batch, block_size, crop, stretch, to_uint8

_FROST_THINNING = (5, 1)


# --- the corruptions ---


def brightness(batch: Batch, amount: float) -> Tensor:
    """Add to the value of HSV: hue and saturation stay, so all channels grow by one factor."""
    levels = batch.images.float()
    value = levels.amax(1, keepdim=True)
    brighter = (value + 255 * amount).clamp_(max=255)
    black = value == 0  # no hue: turns grey
    levels.mul_(brighter / value.masked_fill(black, 1))
    return to_uint8(torch.where(black, brighter, levels) if black.any() else levels)


def frosted(batch: Batch, weights: tuple[float, float]) -> Tensor:
    """Lay a random piece of one of five textures over each image."""
    images = batch.images
    height, width = images.shape[2:]
    thinning = _FROST_THINNING[min(height, width) >= LARGE]
    textures = frost.textures(batch.frost_dir, thinning, height, width, images.device)
    pieces = torch.empty_like(images)
    for piece, (which, down, right) in zip(pieces, uniforms(batch.keys, 3).tolist(), strict=True):
        texture = textures[int(which * len(textures))]
        top = int(down * max(texture.shape[1] - height, 1))
        left = int(right * max(texture.shape[2] - width, 1))
        piece.copy_(texture[:, top : top + height, left : left + width])
    levels = images.float().mul_(weights[0])
    return to_uint8(levels.add_(pieces.float().mul_(weights[1])))


def fog(batch: Batch, constants: tuple[float, float]) -> Tensor:
    """Add a rough height map to each image and scale it back to its own maximum."""
    amount, decay = constants
    height, width = batch.images.shape[2:]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    block = block_size(batch.images)
    maps = _height_map(batch.keys, side, decay, block)[:, :side, :side]
    out = []
    for images, heights in zip(batch.images.split(block), maps.split(block), strict=True):
        low, high = heights.amin((1, 2), True), heights.amax((1, 2), True)
        heights = heights[:, :height, :width].sub(low).mul_(255 * amount / (high - low))
        levels = images.float()
        brightest = levels.amax((1, 2, 3), True)
        levels.add_(heights[:, None]).mul_(brightest / (brightest + 255 * amount))
        out.append(to_uint8(levels))
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
    draws = field(keys, 3 * side * side, side * side)
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


def snow(batch: Batch, constants: tuple[float, ...]) -> Tensor:
    """Whiten the image and add streaks: blurred noise above a threshold, and the same turned."""
    mean, deviation, factor, threshold, radius, sigma, share = constants
    height, width = batch.images.shape[2:]
    tall, wide = (crop(side, factor)[1] for side in (height, width))
    draws = field(batch.keys, tall * wide).int().add_(2**15)
    noise = normal_table(draws.device).index_select(0, draws.flatten())
    noise = noise.mul_(deviation).add_(mean).view(-1, tall, wide)
    noise = stretch(stretch(noise, width, factor, 2), height, factor, 1)
    noise = F.threshold(noise, threshold, 0).clamp_(0, 1).mul_(255).floor_()
    angles = np.deg2rad(90 * uniforms(batch.keys, 1)[:, 0] - 135)
    streaks = motion(noise[:, None], angles, int(radius), sigma)
    levels = batch.images.float()
    red, green, blue = levels.unbind(1)
    grey = (red * (1.5 * 0.299)).add_(green * (1.5 * 0.587)).add_(blue * (1.5 * 0.114))
    white = torch.maximum(levels, grey.add_(127.5)[:, None]).mul_(1 - share)
    return to_uint8(levels.mul_(share).add_(white).add_(streaks + streaks.flip(2, 3)))
