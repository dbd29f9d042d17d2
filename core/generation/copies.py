"""Training images found again among other images: exact, mirrored, shifted, blended or re-lit.

An image is a copy if one training image is much nearer to it than the others that look like it. The
measure is the one of Carlini et al. 2023 (arXiv:2301.13188, section 5): the distance to the nearest
training image over the mean distance to its 50 nearest, so that a dull image, which is near to
everything, is no copy. Three things are changed:

* Differences of neighbouring pixels are compared instead of pixels, scaled to length 1. Two
  photographs often share their large shapes and hardly ever their edges, so that an image which is
  blended of two still points at the stronger one; brightness and contrast do not matter.
* The nearest is looked for over mirroring and shifts too.
* The threshold is set on real images that the generator has not seen: at most `FALSE_ALARMS` of
  them lie below it. (Some of these may be near-duplicates of training images, as 3 % of CIFAR-10's
  test images are: Barz & Denzler, arXiv:1902.00423.) It is never above `LIMIT`.

What it cannot see: images so blurred that their edges are gone, and copies of a part.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

AROUND = 50  # training images that look most alike; the nearest is held against their mean
FALSE_ALARMS = 0.005  # of unseen images: half of 1 %, as the next sample of them will differ
# Unrelated images are about 1.27 apart. In a blend of 80:20 the angle to the stronger image has the
# tangent r / 4, the other's edges being r times as strong: at this limit r may be 2.2.
LIMIT = 0.4
PLANTED = 100  # copies of each kind that the check is tried on
_SIZE = 32  # pixels: larger images are reduced to it
_SHIFT = 2  # pixels in every direction, of 32 or 16; 1 of 8
_AT_ONCE = 100


class CopyCheck:
    """Looks for training images in images.

    `train` is (M, C, S, S) uint8, S a power of 2 of at least 8; kept, not copied.
    """

    def __init__(self, train: Tensor):
        self.train = train
        size = min(train.shape[-1], _SIZE)
        self.shift = min(_SHIFT, size // 8)
        self.pool = 2 if size == _SIZE else 1
        parts = train.split(1000)
        self.looks = torch.cat([self._look(self._crop(_small(part))) for part in parts])

    def ratios(self, images: Tensor) -> Tensor:
        """Return the distance to the nearest training image over the mean of the nearest 50.

        Of images (N, C, S, S) uint8: (N,) in [0, 1], 0 for a copy and near 1 where no training
        image stands out.
        """
        return torch.cat([self._ratios(part) for part in images.split(_AT_ONCE)])

    def _ratios(self, images: Tensor) -> Tensor:
        small = _small(images.to(self.train.device))
        # Those that look alike are found on coarse pixels, in steps of the shift.
        alike = torch.full((len(small), len(self.train)), -1.0, device=small.device)
        for variant in self._variants(small, self.shift):
            torch.maximum(alike, self._look(variant) @ self.looks.T, out=alike)
        found = alike.topk(min(AROUND, len(self.train)), 1).indices
        candidates = self._edges(self._crop(_small(self.train[found.flatten()])))
        candidates = candidates.unflatten(0, found.shape)
        variants = torch.stack([self._edges(v) for v in self._variants(small, 1)], 1)
        cosine = (variants @ candidates.transpose(1, 2)).amax(1)
        distance = (2 - 2 * cosine).clamp_min(0).sqrt()
        return distance.amin(1) / distance.mean(1).clamp_min(1e-12)

    def _crop(self, images: Tensor) -> Tensor:
        edge, width = self.shift, images.shape[-1] - 2 * self.shift
        return images[..., edge : edge + width, edge : edge + width]

    def _variants(self, images: Tensor, step: int) -> Iterator[Tensor]:
        """Yield the crops of images and of their mirror images at every shift."""
        width = images.shape[-1] - 2 * self.shift
        places = range(0, 2 * self.shift + 1, step)
        for one in (images, images.flip(3)):
            for y in places:
                for x in places:
                    yield one[..., y : y + width, x : x + width]

    def _look(self, crops: Tensor) -> Tensor:
        """Return coarse pixels without their mean, of length 1."""
        pixels = F.avg_pool2d(crops, 2 * self.pool).flatten(2)
        return F.normalize((pixels - pixels.mean(2, keepdim=True)).flatten(1))

    def _edges(self, crops: Tensor) -> Tensor:
        """Return differences of neighbouring pixels, to the right and down, of length 1."""
        pixels = F.avg_pool2d(crops, self.pool)
        corner = pixels[..., :-1, :-1]
        right, down = pixels[..., :-1, 1:] - corner, pixels[..., 1:, :-1] - corner
        return F.normalize(torch.cat([right, down], 1).flatten(1))


def threshold(unseen: Tensor) -> float:
    """Return the ratio that at most `FALSE_ALARMS` of unseen images lie below, or `LIMIT`.

    `unseen` are (N,) ratios of real images that are not among the training images.
    """
    return min(LIMIT, unseen.sort().values[int(FALSE_ALARMS * len(unseen))].item())


def false_alarms(unseen: Tensor) -> float:
    """Return the share of unseen images that are taken for copies.

    Each half of them is judged by the threshold of the other half; their own lets no more than
    `FALSE_ALARMS` through, whatever the images are.
    """
    halves = unseen[::2], unseen[1::2]
    if not len(halves[1]):
        return 0.0
    wrong = sum(int((a < threshold(b)).sum()) for a, b in (halves, halves[::-1]))
    return wrong / len(unseen)


def plant(train: Tensor) -> dict[str, Tensor]:
    """Return copies of training images (M, C, S, S) uint8 to try a check on.

    No threshold may depend on them. They are exact, mirrored, shifted (2 pixels to the right, the
    edge repeated) and blended (80 % the training image, 20 % another one), up to `PLANTED` each.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    chosen = order[:PLANTED].to(train.device)
    image, other = train[chosen], train[order.roll(len(order) // 2)[:PLANTED].to(train.device)]
    shifted = torch.cat([image[..., :1].expand(-1, -1, -1, 2), image[..., :-2]], 3)
    blended = (0.8 * image.float() + 0.2 * other.float()).round().to(torch.uint8)
    return {"exact": image, "mirrored": image.flip(3), "shifted": shifted, "blended": blended}


def _small(images: Tensor) -> Tensor:
    pixels = images.float()
    return F.avg_pool2d(pixels, pixels.shape[-1] // _SIZE) if pixels.shape[-1] > _SIZE else pixels
