"""Images ranked by the score of a class: labels as signs, order, precision and recall.

Labels follow the VOC image lists: 1 present, 0 only objects marked difficult (ignored), -1 absent.
"""

from typing import NamedTuple

import numpy as np

PRESENT, IGNORED, ABSENT = 1, 0, -1


class Point(NamedTuple):
    """What a threshold does to one class; ignored images are in none of the other counts."""

    hits: int  # images with the class and a score above the threshold
    false_alarms: int  # images without the class and a score above it
    misses: int  # images with the class and a score at or below it
    ignored: int  # ignored images above it

    @property
    def precision(self) -> float:
        """Share of images with the class among those above the threshold; NaN if there are none."""
        above = self.hits + self.false_alarms
        return self.hits / above if above else float("nan")

    @property
    def recall(self) -> float:
        """Share of the images with the class that are above the threshold; NaN without any."""
        present = self.hits + self.misses
        return self.hits / present if present else float("nan")


def signs(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels in any of the stored forms as (N, C) int8 of 1, 0 (ignored) and -1.

    Raises ValueError: another shape, or labels that mean nothing.

    Args:
        labels: (N,) the class of each image; or (N, C), of integers 1 present, -1 absent and 0
            ignored, or of booleans, whether the class is present.
        classes: C.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise ValueError(f"signs: one label per image must lie in 0 to {classes - 1}")
        found = np.full((len(labels), classes), ABSENT, dtype=np.int8)
        found[np.arange(len(labels)), labels.astype(np.int64)] = PRESENT
        return found
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise ValueError(f"signs: labels must be (N,) or (N, {classes}), got {labels.shape}")
    if not np.isin(labels, (PRESENT, IGNORED, ABSENT)).all():
        raise ValueError("signs: labels of several classes per image must be 1, 0 or -1")
    if labels.dtype == bool:
        return np.where(labels, PRESENT, ABSENT).astype(np.int8)
    return labels.astype(np.int8)


def ranking(scores: np.ndarray) -> np.ndarray:
    """Return the images (N,) by finite scores (N,), highest first, equal ones as stored."""
    return np.argsort(-np.asarray(scores), kind="stable")


def point(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Point:
    """Count what `score > threshold` does to one class of scores (N,) and labels (N,), 1, 0, -1."""
    above = scores > threshold
    return Point(
        int((above & (labels == PRESENT)).sum()),
        int((above & (labels == ABSENT)).sum()),
        int((~above & (labels == PRESENT)).sum()),
        int((above & (labels == IGNORED)).sum()),
    )


def are_probabilities(scores: np.ndarray) -> bool:
    """Return whether all scores lie in [0, 1]; logits of a whole set never do by chance."""
    return bool(len(scores)) and bool(np.min(scores) >= 0) and bool(np.max(scores) <= 1)


def decision_threshold(scores: np.ndarray, kind: str = "") -> float:
    """Return the score above which a class counts as present: 0.5 of probabilities, 0 of logits.

    Where `kind`, "probabilities" or "logits", is not known, the scores (N, C) tell.
    """
    probabilities = kind == "probabilities" if kind else are_probabilities(scores)
    return 0.5 if probabilities else 0.0
