"""Folds for cross-validation of images with several labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_folds(
    labels: np.ndarray, folds: int, digests: Sequence[str] = (), seed: int = 0
) -> np.ndarray:
    """Assign images to folds so that every fold shows every class about as often.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the Stratification of
    Multi-Label Data"): the class with the fewest images left is dealt out first, each image to the
    fold that lacks this class most.

    Args:
        labels: (N, C); 1 where a class is present.
        folds: K, at most N.
        digests: of each image; equal images come into one fold, or a copy would be scored by a
            network that was trained on it.
        seed: decides between folds that lack equally much.

    Returns:
        (N,) int64, the fold of each image; the same for the same arguments.
    """
    present = labels == 1
    count = len(present)
    if not 2 <= folds <= count:
        raise ValueError(f"stratified_folds: folds must be 2 to {count}, got {folds}")
    rng = np.random.default_rng(seed)
    room = np.full(folds, count / folds)  # images that each fold still lacks
    wanted = np.tile(present.sum(0) / folds, (folds, 1))  # and images of each class
    fold = np.full(count, -1, dtype=np.int64)
    while (fold < 0).any():
        left = present[fold < 0].sum(0)
        if left.any():
            c = int(np.where(left > 0, left, count + 1).argmin())
            chosen, lacking = np.flatnonzero(present[:, c] & (fold < 0)), wanted[:, c]
        else:  # images that show nothing
            chosen, lacking = np.flatnonzero(fold < 0), room
        for i in chosen:
            k = _neediest(lacking, room, rng)
            fold[i] = k
            room[k] -= 1
            wanted[k] -= present[i]
    if digests:
        _, first, same = np.unique(np.array(digests), return_index=True, return_inverse=True)
        fold = fold[first][same]
    return fold


def _neediest(lacking: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> int:
    """Return the fold that lacks most, of these the one with most room, of these any."""
    best = np.flatnonzero(np.isclose(lacking, lacking.max()))
    best = best[np.isclose(room[best], room[best].max())]
    return int(best[0] if len(best) == 1 else rng.choice(best))


def missing(labels: np.ndarray, fold: np.ndarray, classes: Sequence[str]) -> list[list]:
    """Return [class, fold] for each class that no image of a fold shows."""
    return [
        [name, int(k)]
        for k in range(int(fold.max()) + 1)
        for c, name in enumerate(classes)
        if not (labels[fold == k, c] == 1).any()
    ]
