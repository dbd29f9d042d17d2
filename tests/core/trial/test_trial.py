"""What a trial keeps of its best epoch and of itself, also through interruptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from analysis.results.folder import load_predictions
from core import trial
from core.models import memory
from core.trial import records, running
from core.trial import run as trial_run
from tests.support.faults import Lost

VALUES = [0.2, 0.9, 0.4, 0.9]  # of the metric: the second epoch is the best


def scripted(values: list[float], lose: int = 0):
    """Return a trainable whose metric follows a script; its weight and scores name the epoch."""

    def train(config: dict, report: trial.Report) -> None:
        model, kept = torch.nn.Linear(1, 1, bias=False), trial.Best()
        state = {"model": model, "kept": kept}
        done = trial.restore(state)
        if not done:
            trial.note(start=np.float64(7.5))  # what only a fresh trial can measure
        for epoch in range(done + 1, config["epochs"] + 1):
            batches = [torch.ones(100 if not done else 9, 1)] * 3
            batches = memory.counted(batches, trial.step_counter(), model)
            for x in batches:
                model(x).sum().backward()
            model.load_state_dict({"weight": torch.full((1, 1), float(epoch))})
            row = {"epoch": epoch, "val_accuracy": values[epoch - 1]}
            kept.add(row, torch.full((2, 2), float(epoch)))
            trial.save(state, row)
            report(row)
            if epoch == lose:
                raise Lost
        trial.load_best(model)
        trial.note(scores_epoch=kept.epoch, weight=float(model.weight.item()))
        trial.save_predictions(
            kept.scores.numpy(), np.zeros(2, int), ("a", "b"), ("x", "y"), kept.named()
        )

    return train


def run(study: Path, values: list[float], lose: int = 0) -> dict:
    """Run the trial until it is lost, if it is to be, and to its end; return its result."""
    spec = running.Spec("t", {"seed": 0, "epochs": len(values)}, {}, study, "val_accuracy", "max")
    if lose:
        with pytest.raises(Lost):
            trial_run.run(scripted(values, lose), spec, lambda row: None)
    trial_run.run(scripted(values), spec, lambda row: None)
    result = records.read_result(spec.folder)
    assert result is not None and result["state"] == "finished"
    return result


@pytest.mark.parametrize("lose", [0, 1, 2, 3, 4])
def test_scores_facts_and_memory_are_those_of_the_best_epoch_and_an_unbroken_trial(tmp_path, lose):
    """Lost after an epoch (the last one, too) and resumed: nothing is another's or gone."""
    result = run(tmp_path, VALUES, lose)
    assert result["facts"].pop("numerics")
    assert result["facts"] == {"start": 7.5, "scores_epoch": 2, "weight": 2.0}
    stored = load_predictions(tmp_path, "t")
    assert stored.epoch == 2 and (stored.scores == 2).all()
    if not torch.cuda.is_available():  # 100 products in the first process, 9 in the second
        assert result["peak_memory_mib"] * 2**20 > 4 * 100


@pytest.mark.parametrize(
    ("values", "epoch"),
    [([float("nan"), 0.1, float("nan")], 2), ([float("nan")] * 3, 3), ([0.5, 0.5], 1)],
)
def test_an_epoch_without_a_metric_is_not_the_best_one(tmp_path, values, epoch):
    result = run(tmp_path, values)
    assert result["facts"]["scores_epoch"] == result["facts"]["weight"] == epoch
    # Without a single value no epoch's weights are called the best.
    assert (tmp_path / "trials" / "t" / "best.pt").exists() == any(v == v for v in values)


def test_a_trial_that_runs_is_no_other_process_s(tmp_path):
    """Two drivers that Ray or a file system kept apart would write over each other's epochs."""
    spec = running.Spec("t", {"seed": 0, "epochs": 1}, {}, tmp_path, "val_accuracy", "max")
    taken = []

    def train(config, report):
        with pytest.raises(Timeout):
            FileLock(spec.folder / "lock").acquire(timeout=0)
        taken.append(True)

    trial_run.run(train, spec, lambda row: None)
    assert taken == [True]
    FileLock(spec.folder / "lock").acquire(timeout=0).lock.release()


def test_outside_the_engine_the_epoch_is_the_last():
    kept = trial.Best()
    for epoch, value in enumerate(VALUES, 1):
        kept.add({"epoch": epoch, "val_accuracy": value}, torch.tensor([epoch]))
    assert kept.epoch == 4 and kept.scores.item() == 4
    assert json.dumps({k: v.tolist() for k, v in kept.named().items()}) == '{"epoch": 4}'
