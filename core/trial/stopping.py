"""When a trial ends before its last epoch: successive halving across trials, a plateau in one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np


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


@dataclass(frozen=True)
class _Named:
    """What Tune's scheduler needs to know of a trial: ours keeps its name through retries."""

    trial_id: str


class Halving:
    """Ray Tune's ASHA, asked by trial name, so that its rungs outlive processes and `--resume`.

    Tune's own scheduler state is lost when a study is restored, and a trial that is started again
    would be another one to it. Here the rungs are filled again from the recorded rows.

    Args:
        stopping: the rules; the scheduler is "asha".
        metric: what is compared.
        mode: "max" or "min".
        max_epochs: epochs of a whole trial.
    """

    def __init__(self, stopping: Stopping, metric: str, mode: str, max_epochs: int):
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self.metric, self.max_epochs = metric, max_epochs
        self._asha: Any = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(max_epochs, stopping.grace),
            grace_period=stopping.grace,
            reduction_factor=stopping.reduction_factor,
            brackets=stopping.brackets,
        )
        self._sign = 1 if mode == "max" else -1
        self._known: set[str] = set()

    def decide(self, name: str, row: Mapping[str, Any]) -> str:
        """Take in an epoch of a trial; return why the trial must stop, or nothing."""
        trial = self._add(name)
        epoch, value = row["epoch"], row.get(self.metric)
        if value is None or value != value or epoch >= self.max_epochs:
            return ""
        cuts = self._cuts(name)
        if self._asha.on_trial_result(None, trial, dict(row)) != self._asha.STOP:
            return ""
        cut = cuts[max(rung for rung in cuts if rung <= epoch)]
        assert cut is not None  # or there would have been nothing to fall below
        return (
            f"ASHA at epoch {epoch}: {self.metric} {value:.4g} is"
            f" {'below' if self._sign > 0 else 'above'} the cut of {self._sign * cut:.4g}"
        )

    def recall(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Fill the rungs again with what a trial reported earlier."""
        for row in rows:
            self.decide(name, row)

    def _add(self, name: str) -> Any:
        trial = _Named(name)
        if name not in self._known:
            self._known.add(name)
            # Tune draws the bracket from numpy's generator: the same one for the same name.
            state = np.random.get_state()
            np.random.seed(zlib.crc32(name.encode()))
            try:
                self._asha.on_trial_add(None, trial)
            finally:
                np.random.set_state(state)
        return trial

    def _cuts(self, name: str) -> dict[int, float | None]:
        bracket = self._asha._trial_info[name]
        return {int(rung): bracket.cutoff(recorded) for rung, recorded in bracket._rungs}


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
