"""Classification metrics: from a confusion matrix filled on the device, and of rankings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (true class, predicted class), from which accuracy and F1 follow.

    Filling it costs one `bincount` per batch and never waits for the device; the metrics equal
    scikit-learn's on the same predictions.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        # (C, C): rows are true classes, columns predictions
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count a batch: `predictions` and `labels` are (B,) integers in [0, C)."""
        c = len(self.counts)
        pairs = labels.to(torch.int64) * c + predictions.to(torch.int64)
        self.counts += torch.bincount(pairs, minlength=c * c).view(c, c)

    def metrics(self) -> dict[str, float]:
        """Return `accuracy`, `error`, `micro_f1`, `macro_f1` in [0, 1]; nan before any update.

        Micro-F1 pools the counts of all classes: with one label per image each wrong image is one
        false positive and one false negative, so it equals the accuracy. Macro-F1 is the mean of
        the per-class F1 over the classes that occur among labels or predictions.
        """
        counts = self.counts.cpu()
        total = int(counts.sum())
        if total == 0:
            return dict.fromkeys(("accuracy", "error", "micro_f1", "macro_f1"), float("nan"))
        right = counts.diagonal()
        occurs = counts.sum(0) + counts.sum(1)  # labels + predictions = 2 TP + FP + FN
        wrong = occurs - 2 * right
        accuracy = int(right.sum()) / total
        micro = 2 * int(right.sum()) / (2 * int(right.sum()) + int(wrong.sum()))
        seen = occurs > 0
        macro = (2 * right[seen] / occurs[seen].double()).mean().item()
        return {"accuracy": accuracy, "error": 1 - accuracy, "micro_f1": micro, "macro_f1": macro}


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each class's average precision over all images: scikit-learn's, sum (R_n - R_n-1) P_n.

    It belongs to the ranking of all images at once; means over batches flatter. Returns (C,)
    float64 in [0, 1]; nan where no image is labelled 1, as nothing is to be found then.

    Args:
        scores: (N, C), higher for more likely; of equal ones the order does not matter.
        labels: (N, C): of integers, 1 present, -1 absent, 0 left out of the count (VOC's difficult
            objects); or of booleans, whether the class is present. The type says which, never the
            values: a column with present and difficult objects alone has no -1.

    Raises ValueError: shapes differ, another label, or scores that are not finite.
    """
    from sklearn.metrics import average_precision_score  # 1 s to import, seldom needed

    return _of_classes(scores, labels, lambda s, present: average_precision_score(present, s))


def voc_average_precision(
    scores: np.ndarray, labels: np.ndarray, year: Literal["2007", "2010"] = "2010"
) -> np.ndarray:
    """Return each class's average precision as Pascal VOC's development kits define it.

    "2007": the mean, over recalls of 0, 0.1, ..., 1, of the highest precision at that recall or
    more (Everingham et al. 2010, section 4.2). "2010", used since that year: the area under the
    precision made monotone, at every recall. Images of equal score are taken together, so that the
    order of files does not matter; the kits take them one by one as they come.

    Args, returns and errors as of `average_precision`.
    """
    if year not in ("2007", "2010"):
        raise ValueError(f"voc_average_precision: year must be 2007 or 2010, got {year}")
    measure = _eleven_points if year == "2007" else _area
    return _of_classes(scores, labels, lambda *of: measure(*_precision_at_recall(*of)))


def _of_classes(
    scores: np.ndarray, labels: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """Return a measure of each class's scores that count and whether it is present there."""
    present, counted = counted_labels(scores, labels)
    values = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        here = counted[:, c]
        if present[here, c].any():
            values[c] = measure(scores[here, c], present[here, c])
    return values


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Return the mean of `average_precision` over the classes that have one, and their number.

    The mean is nan if there are none.
    """
    values = average_precision(scores, labels)
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), len(defined)


def counted_labels(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which classes are present and which pairs count, (N, C) bool each.

    Args and errors as of `average_precision`.
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be (N, C)")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: the network that made them has diverged")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels must be 1, 0 or -1, or booleans")
    if labels.dtype == bool:
        return labels, np.ones(labels.shape, dtype=bool)
    return labels == 1, labels != 0


def _precision_at_recall(scores: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positives found (counts) and precision at each different score, from the highest."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of equal scores
    found = np.cumsum(present[order])[last]
    return found, found / (last + 1)


def _eleven_points(found: np.ndarray, precision: np.ndarray) -> float:
    # recall >= i / 10 in whole numbers: 0.1 x 3 is more than 0.3 in floating point
    reached = [precision[10 * found >= i * found[-1]] for i in range(11)]
    return float(np.mean([p.max() for p in reached]))


def _area(found: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(found, prepend=0) * envelope).sum() / found[-1])
