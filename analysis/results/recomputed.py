"""Metrics computed again from what trials stored, held against those that they reported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import statistics
from analysis.results.folder import Predictions


@dataclass
class Recomputed:
    """How far metrics that were computed again are from those reported."""

    trials: int = 0  # how many have stored what they are computed from
    of: int = 0  # how many have finished
    images: int = 0  # of each trial
    # metric -> (largest absolute difference, the trial)
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)

    def compare(self, trial: str, again: Mapping[str, float], reported: Any) -> dict[str, float]:
        """Take note of a trial's metrics, and return those that are in `reported`, by name."""
        known = {name: value for name, value in again.items() if pd.notna(reported.get(name))}
        for name, value in known.items():
            apart = abs(value - float(reported[name]))
            self.worst[name] = max(self.worst.get(name, (0.0, "")), (apart, trial))
        return known

    def largest(self, *metrics: str) -> float:
        """The largest difference of these metrics, or of all."""
        names = metrics or self.worst
        return max((self.worst[name][0] for name in names if name in self.worst), default=0.0)


def confusion(stored: Predictions) -> np.ndarray:
    """Count matrix of the predictions of one class per image, see `statistics.confusion`."""
    return statistics.confusion(stored.labels, stored.scores.argmax(1), len(stored.classes))
