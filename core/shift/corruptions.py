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

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.shift.blurs import defocus_blur, glass_blur, motion_blur, zoom_blur
from core.shift.draws import keys_of
from core.shift.pixels import LARGE, Batch, block_size
from core.shift.weather import brightness, fog, frosted, snow

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels of a side

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
_FOG = (  # amount, decay of the roughness per halving of the step
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
_BRIGHTNESS = ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))  # added to the value of HSV
_TABLE: dict[str, tuple[Callable[..., Tensor], Sequence[Sequence]]] = {
    "defocus_blur": (defocus_blur, _DEFOCUS),
    "glass_blur": (glass_blur, _GLASS),
    "motion_blur": (motion_blur, _MOTION),
    "zoom_blur": (zoom_blur, _ZOOM),
    "snow": (snow, _SNOW),
    "frost": (frosted, _FROST),
    "fog": (fog, _FOG),
    "brightness": (brightness, _BRIGHTNESS),
}
CORRUPTIONS = tuple(_TABLE)
_AHEAD = {"fog": 16, "zoom_blur": 4}  # blocks at a time where small steps are shared


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    seed: int = 0,
    index: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    frost_dir: str | Path | None = None,
) -> Tensor:
    """Return corrupted copies of images, (N, 3, H, W) uint8, on the device of `images`.

    Args:
        images: (N, 3, H, W) uint8, RGB, sides of at least 32 pixels; on any device.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random draws.
        index: (N,) whole numbers that tell the images apart, 0 to N - 1 if None; an image's draw
            depends on its number, the seed, the corruption and the severity alone.
        frost_dir: folder whose first five pictures serve as frost; None: textures that labtune
            makes (see `core.shift.frost`).

    Raises UserError: no such corruption or severity, images of another kind or too small, or a
    frost folder that cannot be used.
    """
    check(name, severity)
    _check_images(images, name)
    keys = keys_of(seed, index, len(images), name, severity).to(images.device)
    function, tables = _TABLE[name]
    constants = tables[min(images.shape[2:]) >= LARGE][severity - 1]
    block = _AHEAD.get(name, 1) * block_size(images)
    folder = None if frost_dir is None else Path(frost_dir)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        for start in range(0, len(images), block):
            part = slice(start, start + block)
            batch = Batch(images[part].contiguous(), keys[part], folder)
            out[part] = function(batch, constants)
    return out


def _check_images(images: Tensor, name: str) -> None:
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


def check(name: str, severity: int) -> None:
    """Refuse, by a UserError that lists the choices, a corruption or severity that is none."""
    if name not in CORRUPTIONS:
        raise UserError(f"there is no corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
