"""When a trial ends before its last epoch: rules, and a plateau of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Stopping:
    """Rules of early stopping of a study.

    Attributes:
        scheduler: asha (asynchronous successive halving, Li et al. 2020, "A System for Massively
            Parallel Hyperparameter Tuning") or none.
        grace: epochs that every trial may run.
        reduction_factor: at each rung (grace, grace x factor, ...) a trial goes on if it is among
            the best 1/reduction_factor of those that came there before it.
        brackets: number of grace periods in use; trials are spread over them.
        patience: a trial ends when its metric has not been better for so many epochs; 0: never.
    """

    scheduler: Literal["asha", "none"] = "none"
    grace: int = 1
    reduction_factor: int = 4
    brackets: int = 1
    patience: int = 0

    def record(self, max_epochs: int) -> dict[str, Any]:
        """Return the rules as `study.json` keeps them."""
        return asdict(self) | {"max_epochs": max_epochs}


def plateau(rows: Sequence[Mapping[str, Any]], metric: str, mode: str, patience: int) -> str:
    """Return why a trial with these rows has come to a plateau, or nothing."""
    having = [row for row in rows if row.get(metric) is not None and row[metric] == row[metric]]
    if not patience or not having:
        return ""
    sign = 1 if mode == "max" else -1
    best = max(having, key=lambda row: (sign * row[metric], -row["epoch"]))
    last = rows[-1]["epoch"]
    if last - best["epoch"] < patience:
        return ""
    return (
        f"plateau at epoch {last}: no better than {best[metric]:.4g} (epoch {best['epoch']})"
        f" for {patience} epochs"
    )
