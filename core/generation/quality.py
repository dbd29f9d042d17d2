"""How good generated images are, measured on features of real and generated images.

Features are (N, F) tensors from any network (`core.generation.features`); a number means something
only beside the numbers of real images and of noise in the same features. Everything is computed in
float64 and needs no randomness.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from core.choices import NEIGHBOURS

_ROWS = 1024  # compared at once: bounds the memory of distances


class Moments(NamedTuple):
    """Mean (F,) and unbiased covariance (F, F) of features, float64."""

    mean: Tensor
    covariance: Tensor


class Nearest(NamedTuple):
    """The nearest training images of some images."""

    index: Tensor  # (N, k) of the nearest, nearest first
    distance: Tensor  # (N, k) root mean square differences over pixels and channels, 0 to 255


def moments(features: Tensor) -> Moments:
    """Return mean and covariance of feature vectors, at least two (else ValueError)."""
    if len(features) < 2:
        raise ValueError(f"moments: at least 2 feature vectors are needed, got {len(features)}")
    x = features.double()
    return Moments(x.mean(0), torch.atleast_2d(torch.cov(x.T)))


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of two normal distributions with these moments.

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), A and B the covariances (Dowson &
    Landau 1982; Heusel et al., arXiv:1706.08500, call it FID on Inception features). The last trace
    is the sum of the singular values of A^(1/2) B^(1/2), with symmetric roots from eigenvalues:
    unlike a root of the product A B it stays real, and covariances of fewer images than features
    are no special case. Few images bias the distance upwards, so compare equal numbers only.
    """
    gap = (a.mean - b.mean).square().sum()
    product = root(a.covariance) @ root(b.covariance)
    overlap = torch.linalg.svdvals(product).sum()
    total = gap + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, total.item())


def root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a covariance; eigenvalues below 0 are rounding and become 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def prdc(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return precision, recall, density and coverage of `made` among `real` features.

    With balls around each point that reach to its k-th nearest neighbour of the same kind:
    precision is the share of made points inside some real ball, recall the share of real points
    inside some made ball (Kynkaanniemi et al., arXiv:1904.06991); density is the number of real
    balls around a made point, divided by k, coverage the share of real balls that hold a made point
    (Naeem et al., arXiv:2002.09797). Density may exceed 1. Points on the rim count as outside, as
    in Naeem et al.'s code.

    `real` is (N, F), `made` (M, F); N and M are above k (else ValueError), best equal.
    """
    if min(len(real), len(made)) <= k:
        raise ValueError(f"prdc: more than {k} images of each kind are needed")
    real, made = real.double(), made.double()
    real_radii, made_radii = _radii(real, k), _radii(made, k)
    balls = torch.zeros(len(made), device=real.device, dtype=torch.float64)
    recalled, covered = [], []
    for rows in torch.arange(len(real), device=real.device).split(_ROWS):
        distance = torch.cdist(real[rows], made)
        inside = distance < real_radii[rows, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance < made_radii[None]).any(1))
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": (balls.mean() / k).item(),
        "coverage": torch.cat(covered).double().mean().item(),
    }


def _radii(points: Tensor, k: int) -> Tensor:
    """Return the distance of each point to its k-th nearest neighbour, itself not counted."""
    distances = (torch.cdist(part, points) for part in points.split(_ROWS))
    # the first is itself, at 0
    return torch.cat([apart.kthvalue(k + 1, dim=1).values for apart in distances])


def balance(predicted: Tensor, classes: int) -> float:
    """Return the entropy of predicted classes (N,) over its maximum: 1 when all are as frequent."""
    shares = torch.bincount(predicted, minlength=classes).double() / len(predicted)
    return abs((torch.special.xlogy(shares, shares).sum() / math.log(classes)).item())


def nearest(images: Tensor, among: Tensor, keep: int = 1) -> Nearest:
    """Find the `keep` nearest training images (`among`) in pixels, all (N, C, S, S) uint8."""
    x, y = (part.flatten(1).float() for part in (images, among))
    index, distance = [], []
    for part in x.split(_ROWS):
        # Exact differences: the shortcut by products loses the digits that tell a copy.
        apart = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
        near = apart.topk(min(keep, len(y)), dim=1, largest=False)
        index.append(near.indices)
        distance.append(near.values / x.shape[1] ** 0.5)
    return Nearest(torch.cat(index), torch.cat(distance))
