"""Augmentation and normalisation of whole batches, on the device the batch is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Means and standard deviations of ImageNet's training pixels (range 0 to 1), as torchvision uses
# them; public weights expect them, and for other photographs they are near enough.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def augment(
    images: Tensor, generator: torch.Generator, *, flip: bool = True, padding: int = 4
) -> Tensor:
    """Mirror and shift each image of a batch by random amounts of its own.

    The shift is the crop from a padded image of He et al. 2016 (arXiv:1512.03385, section 4.2), but
    with reflected instead of black borders.

    Args:
        images: (N, C, H, W), any type; not changed.
        generator: on the CPU; draws are made there, so that every device gets the same ones.
        flip: mirror left-right with probability 1/2.
        padding: shift by up to this many pixels each way; below H and W (else ValueError).

    Returns (N, C, H, W) on the device of `images`; `images` itself if there is nothing to do.
    """
    n, c, h, w = images.shape
    if not 0 <= padding < min(h, w):
        raise ValueError(f"augment: padding must be 0 to {min(h, w) - 1}, got {padding}")
    # Drawn even when unused: the flips do not depend on `padding`, nor the shifts on `flip`.
    draws = torch.rand(3, n, generator=generator)
    if not flip and padding == 0:
        return images
    down, right = (draws[1:] * (2 * padding + 1)).long() - padding
    rows = _reflect(torch.arange(h) + down[:, None], h)
    columns = _reflect(torch.arange(w) + right[:, None], w)
    columns = torch.where(draws[0, :, None] < flip / 2, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    if padding:  # whole rows are copied at once; a gather would go pixel by pixel
        first = torch.arange(0, n * c * h, h, device=images.device).view(n, c, 1)
        chosen = (first + rows[:, None, :]).flatten()
        images = images.reshape(n * c * h, w).index_select(0, chosen).view(n, c, h, w)
    return images.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def distort(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Mirror, zoom, shift and recolour each image of a batch by amounts of its own.

    Returns (N, C, H, W) float32, 0 to 255, on the device of `images`.

    At strength 1 an image is zoomed to between 2/3 and 3/2 of its size, its sides' ratio changed by
    up to a quarter, moved by up to a quarter of the frame (what comes in is mirrored), and its
    brightness, contrast and saturation scaled by 0.6 to 1.4; smaller strengths do less of each.
    Objects may leave the frame in part: it is a labelled image's lot in every random crop.

    Args:
        images: (N, C, H, W) uint8; not changed.
        draws: (N, 8) uniform in [0, 1); the image's own random numbers.
        strength: 0 to 1; at 0 images are mirrored, no more.
    """
    draws = draws.to(images.device)
    x = images.to(torch.float32)
    flip = 1 - 2 * (draws[:, 0] < 0.5).float()
    if strength == 0:
        return torch.where(flip[:, None, None, None] < 0, x.flip(3), x)
    signed = 2 * draws - 1
    zoom = 1.5 ** (signed[:, 1] * strength)
    ratio = 1.25 ** (signed[:, 2] * strength / 2)
    shift = signed[:, 3:5] * (strength / 2)  # the frame is 2 wide
    # Not by affine_grid, a matrix product: its last digit depends on the maker of the CPU.
    across = (flip * zoom * ratio)[:, None] * _centres(x, 3) + shift[:, :1]
    down = (zoom / ratio)[:, None] * _centres(x, 2) + shift[:, 1:]
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), 3)
    x = F.grid_sample(x, grid, "bilinear", "reflection", align_corners=False)
    scales = (1 + 0.4 * strength * signed[:, 5:])[:, :, None, None]
    brightness, contrast, saturation = scales.split(1, dim=1)
    x = x * brightness
    x = x.mean((1, 2, 3), keepdim=True).lerp(x, contrast)
    return x.mean(1, keepdim=True).lerp(x, saturation).clamp_(0, 255)


def _centres(images: Tensor, dim: int) -> Tensor:
    """Return where pixels lie along a side, in a frame from -1 to 1."""
    size = images.shape[dim]
    return (2 * torch.arange(size, device=images.device) + 1) / size - 1


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold indices in [-size + 1, 2 size - 2] into [0, size), without repeating the border."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def normalise(
    images: Tensor,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Scale pixels (N, C, H, W), 0 to 255, to (x / 255 - mean) / std, float32.

    Pixels that are float32 already are overwritten. Mean and std of each channel are in the range
    0 to 1; `channels_last` is the memory format of the result.
    """
    pairs = zip(mean, std, strict=True)
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in pairs], device=images.device)[:, None, None]
    if channels_last:  # rearranged as bytes: a quarter of the memory traffic
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(torch.float32).mul_(scale).add_(shift)
