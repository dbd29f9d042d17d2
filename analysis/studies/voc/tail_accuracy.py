"""Accuracy in the tail: how right a network is about a class among the images it is surest of.

For class c and threshold t, with f_c(x) the score of image x,

    Tailacc_c(t) = #{x : f_c(x) > t and c is on x} / #{x : f_c(x) > t},

the share of right decisions among the images with f_c(x) > t: from the decision threshold on (0.5
for probabilities, 0 for logits) every one of them is said to show the class. Below it the rule
would count decisions that are not made, and the curve would first fall.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.document import arms, figures, tables
from analysis.document.report import Figure
from analysis.results import ranking


@dataclass(frozen=True)
class TailAccuracy:
    """Tail accuracies at T thresholds for C classes."""

    thresholds: np.ndarray  # (T,) on the scale of the scores
    per_class: np.ndarray  # (T, C) in [0, 1]; NaN where no image of a class is above the threshold
    counts: np.ndarray  # (T, C) images behind each value; ignored ones are not counted
    mean: np.ndarray  # (T,) over the classes that have images left; NaN where none has
    classes: np.ndarray  # (T,) how many classes have images left


def tail_accuracy(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> TailAccuracy:
    """Compute the tail accuracy of every class, and their mean, at each threshold.

    Raises ValueError: shapes that do not fit, or scores that are not finite.

    Args:
        scores: (N, C), logits or probabilities.
        labels: (N, C) of 1 present, -1 absent and 0 only difficult (counts neither way), or of
            booleans; or (N,), the class of each image.
        thresholds: (T,), compared strictly: an image counts if its score is above.
    """
    scores, thresholds = np.asarray(scores), np.asarray(thresholds, dtype=float)
    if scores.ndim != 2 or thresholds.ndim != 1:
        raise ValueError(
            f"tail_accuracy: scores must be (N, C) and thresholds (T,), got {scores.shape} and "
            f"{thresholds.shape}"
        )
    signs = ranking.signs(labels, scores.shape[1])
    if len(signs) != len(scores):
        raise ValueError(f"tail_accuracy: {len(scores)} rows of scores, {len(signs)} of labels")
    if not np.isfinite(scores).all():
        raise ValueError("tail_accuracy: scores must be finite")
    counted = signs != ranking.IGNORED
    right = signs == ranking.PRESENT
    counts = np.zeros((len(thresholds), scores.shape[1]), dtype=np.int64)
    hits = np.zeros_like(counts)
    for row, threshold in enumerate(thresholds):
        above = scores > threshold
        counts[row] = (above & counted).sum(axis=0)
        hits[row] = (above & right).sum(axis=0)
    left = counts > 0
    per_class = np.divide(hits, counts, out=np.full(counts.shape, np.nan), where=left)
    classes = left.sum(axis=1)
    total = np.where(left, per_class, 0.0).sum(axis=1)
    mean = np.divide(total, classes, out=np.full(len(thresholds), np.nan), where=classes > 0)
    return TailAccuracy(thresholds, per_class, counts, mean, classes)


def thresholds(scores: np.ndarray, count: int = 15, start: float | None = None) -> np.ndarray:
    """Choose thresholds by quantiles of all scores above `start`, from it to the highest score.

    Equal steps of the quantile put as many scores between neighbours everywhere, where equal steps
    of the score would leave most thresholds almost without images. Above the highest score nothing
    is left: the last tail is always empty, and says so. Raises ValueError: `count` is below 2.

    Args:
        scores: (N, C).
        count: how many thresholds.
        start: the first; by default 0.5 for probabilities (all scores in [0, 1]), 0 for logits.

    Returns:
        (count,) rising; fewer where quantiles coincide, `start` alone where no score is above it.
    """
    if count < 2:
        raise ValueError(f"thresholds: count must be at least 2, got {count}")
    scores = np.asarray(scores, dtype=float)
    first = ranking.decision_threshold(scores) if start is None else float(start)
    tail = scores[scores > first]
    if not tail.size:
        return np.array([first])
    levels = np.linspace(0.0, 1.0, count)[1:]
    return np.unique(np.concatenate([[first], np.quantile(tail, levels)]))


def frame(tail: TailAccuracy) -> pd.DataFrame:
    """Return a row per threshold.

    Returns:
        threshold, tail_accuracy (mean over classes), lowest and highest of a class, classes,
        images (over all classes), fewest (images of one of the classes that are left).
    """
    values, counts = pd.DataFrame(tail.per_class), pd.DataFrame(tail.counts)
    return pd.DataFrame(
        {
            "threshold": tail.thresholds,
            "tail_accuracy": tail.mean,
            "lowest": values.min(axis=1),
            "highest": values.max(axis=1),
            "classes": tail.classes,
            "images": tail.counts.sum(axis=1),
            "fewest": counts.where(counts > 0).min(axis=1),
        }
    )


def table(tail: TailAccuracy) -> tables.Table:
    """Show each threshold with its tail accuracy and the numbers of images and classes behind."""
    columns = (
        tables.number("threshold", "threshold", 3),
        tables.number("tail_accuracy", "tail accuracy (%)", 2, 100.0),
        *arms.shares(lowest="lowest class", highest="highest class"),
        *arms.numbers(classes="classes", images="image-class pairs", fewest="fewest in a class"),
    )
    caption = "Tail accuracy: the mean over the classes that have images above the threshold."
    note = (
        "Classes: how many have; image-class pairs: scores above the threshold over all classes; "
        f"fewest: those of the smallest of these classes. {undefined_text(tail)}"
    )
    return tables.Table("tail_accuracy", frame(tail), columns, caption, note)


def undefined_text(tail: TailAccuracy) -> str:
    """Say which tails are empty, and what is done with them."""
    classes = tail.counts.shape[1]
    short = tail.thresholds[(tail.classes < classes) & (tail.classes > 0)]
    empty = tail.thresholds[tail.classes == 0]
    parts = []
    if len(short):
        parts.append(
            f"From {tables.decimal(float(short[0]), 3)} on some classes have no image left and are "
            "left out of the mean (0/0 is neither right nor wrong), so the means are over "
            "different classes."
        )
    if len(empty):
        parts.append(
            f"At {tables.decimal(float(empty[0]), 3)} no score is above the threshold: the tail is "
            "empty and its accuracy undefined."
        )
    return " ".join(parts) or "Every class has images above every threshold."


@figures.styled
def figure(tail: TailAccuracy, folder: Path, name: str = "tail_accuracy") -> Figure:
    """Draw the mean over its classes, and how many images and classes stand behind each point."""
    drawn, (left, right) = figures.panels(2, height=2.3)
    for values in tail.per_class.T:
        left.plot(tail.thresholds, values * 100, "-", color="#bbbbbb", linewidth=0.6)
    look = figures.styles(["mean"])["mean"]
    left.plot(tail.thresholds, tail.mean * 100, "-o", color=look.color, linewidth=1.8)
    left.set_xlabel("threshold t")
    left.set_ylabel("tail accuracy (%)")
    low = np.nanmin(tail.mean) * 100 if np.isfinite(tail.mean).any() else 0.0
    left.set_ylim(max(0.0, low - 40), 102)
    some = tail.counts.sum(axis=1) > 0
    right.semilogy(
        tail.thresholds[some], tail.counts.sum(axis=1)[some], "-s", label="image-class pairs"
    )
    right.semilogy(tail.thresholds[some], tail.classes[some], "-^", label="classes")
    right.set_ylim(bottom=0.8)
    right.set_xlim(left.get_xlim())
    right.set_xlabel("threshold t")
    right.set_ylabel("above the threshold")
    right.legend(loc="best")
    return Figure(
        figures.save(drawn, folder, name),
        "Left: tail accuracy, mean over classes (blue) and single classes (grey). Right: what "
        "stands behind each point, image-class pairs and classes (logarithmic).",
        "Tail accuracy over the threshold; beside it the numbers of images and classes left.",
    )
