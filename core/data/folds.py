"""Folds for cross-validation of images with several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError

LEAST_HELD = 5  # images that a search is scored on, at least


def stratified_folds(labels: np.ndarray, folds: int, digests: Sequence[str] = ()) -> np.ndarray:
    """Assign images to folds so that every fold shows every class about as often.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the Stratification of
    Multi-Label Data"): the class with the fewest images left is dealt out first, each image to the
    fold that lacks this class most.

    Returns the fold of each image, (N,) int64, the same for the same arguments.

    Args:
        labels: (N, C); 1 where a class is present.
        folds: K, at most N.
        digests: of each image; equal images come into one fold, or a copy would be scored by a
            network that was trained on it.
    """
    count = len(labels)
    present = np.column_stack([labels == 1, np.ones(count, dtype=bool)])  # and a class of all
    if not 2 <= folds <= count:
        raise ValueError(f"stratified_folds: folds must be 2 to {count}, got {folds}")
    rng = np.random.default_rng(0)  # decides between folds that lack equally much
    wanted = np.tile(present.sum(0) / folds, (folds, 1))  # images of each class that a fold lacks
    fold = np.full(count, -1, dtype=np.int64)
    while (fold < 0).any():
        left = present[fold < 0].sum(0)
        scarcest = np.where(left > 0, left, count + 1).argmin()
        for i in np.flatnonzero((fold < 0) & present[:, scarcest]):
            fold[i] = _neediest(wanted[:, scarcest], wanted[:, -1], rng)
            wanted[fold[i]] -= present[i]
    if digests:
        _, first, same = np.unique(np.array(digests), return_index=True, return_inverse=True)
        fold = fold[first][same]
    return fold


def hold_out(
    labels: np.ndarray, share: float, digests: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into those to train on and a share to score, the same for the same arguments.

    One of 1/share stratified folds; what shows the only examples of a class is trained on. Returns
    the indices of both, ascending. Raises UserError: too few images to tell settings apart by them.

    Args:
        labels: (N,) class of each image, or (N, C) with 1 where a class is present.
        share: above 0, at most 0.5; the next share that is 1 over a whole number is held out.
        digests: of each image; equal images are not split.
    """
    present = labels == 1 if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    folds, count = round(1 / share), len(labels)
    held = np.zeros(count, dtype=bool)
    if count >= folds:
        held = stratified_folds(present.astype(np.int8), folds, digests) == 0
        held &= ~present[:, ~present[~held].any(0)].any(1)
        if digests:
            held &= ~np.isin(np.array(digests), np.array(digests)[~held])
    if held.sum() < LEAST_HELD:
        raise UserError(
            f"--search: it is scored on {share:.2g} of the training images, which is"
            f" {held.sum()} of {count}: give at least {LEAST_HELD}, by more images or a larger"
            " --set holdout="
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def describe_hold_out(
    labels: np.ndarray, share: float, digests: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return what a report says about the images that `hold_out` holds out."""
    kept, held = hold_out(labels, share, digests)
    shown = labels[held] == 1 if labels.ndim == 2 else labels[held, None] == np.arange(len(classes))
    absent = [name for name, any_ in zip(classes, shown.any(0), strict=True) if not any_]
    return {"share": share, "trained": len(kept), "scored": len(held), "missing": absent}


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
