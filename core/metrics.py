"""Classification metrics from one confusion matrix that is filled on the device."""

from __future__ import annotations

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (true class, predicted class), from which accuracy and F1 follow.

    Filling it costs one `bincount` per batch and never waits for the device; the metrics equal
    scikit-learn's on the same predictions.

    Args:
        num_classes: C.
        device: where the counts are kept.

    Attributes:
        counts: (C, C) int64; rows are true classes, columns predictions.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
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
        return {
            "accuracy": accuracy,
            "error": 1 - accuracy,
            "micro_f1": micro,
            "macro_f1": macro,
        }
