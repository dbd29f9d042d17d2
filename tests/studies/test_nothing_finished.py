"""Every study whose trials all fail ends with a report that says why, and with exit code 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from core.errors import Diverged
from core.study import Data
from tests.studies.test_every_setting import STUDIES
from tests.support import results as built
from tests.support.calls import command, table

BUG = "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
PARTS = {"adaptation": "stream"}  # the smallest
SEARCHES = [name for name, study in STUDIES.items() if study.search]


def fail(config, report):
    """End in the first epoch, as with lr=1e30 or a user's mistake; some in the second."""
    if config["seed"] % 2:
        raise RuntimeError(BUG.partition(": ")[2])
    if config["seed"]:
        report({"epoch": 1})
    raise Diverged("the loss is nan at epoch 1, step 1 (lr 1e+30)")


def run(name: str, folder: Path, *arguments: str) -> list[int]:
    data = Data(lambda settings: {"kind": "synthetic", "fingerprint": "x"})
    study = replace(STUDIES[name], trainable=fail, data=data)
    return [
        command(study, folder, "--smoke", *arguments, *more) for more in ([], ["--report-only"])
    ]


def told(folder: Path) -> pd.DataFrame:
    assert "None of" in (folder / "report.html").read_text()
    assert BUG in (folder / "report.html").read_text()
    return table(folder / "tables", "reasons")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_without_a_finished_trial_says_why(tmp_path, capsys, name):
    part = ["--part", PARTS[name]] if name in PARTS else []
    assert run(name, tmp_path, "--seeds", "3", *part) == [1, 1]
    folder = tmp_path / name / "smoke"
    reasons = told(folder)
    counts = dict(zip(reasons.state, reasons.trials, strict=True))
    assert counts == dict(table(folder).state.value_counts())
    assert set(counts) == {"failed", "diverged"}
    out = " ".join(capsys.readouterr().out.split())
    assert BUG in out and "None of" in out


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_without_a_finished_trial_says_why(tmp_path, capsys, name):
    search = ["--search", "optuna", "--trials", "2", "--set", "seed=1"]
    assert run(name, tmp_path, *search) == [1, 1]
    assert list(told(tmp_path / name / "smoke").trials) == [3]
    assert "use it" not in capsys.readouterr().out


def test_folders_that_an_older_labtune_left_without_an_epoch_are_reported(tmp_path):
    """Its history.csv is an empty line."""
    assert run("cifar", tmp_path, "--part", "cnn", "--set", "seed=1") == [1, 1]
    folder = tmp_path / "cifar" / "smoke"
    (folder / "history.csv").write_text("\n")
    (folder / "trials").rename(tmp_path / "gone")
    assert run("cifar", tmp_path, "--report-only")[0] == 1
    assert len(told(folder)) == 1


def test_folds_that_outlive_the_trials_they_serve_are_reported_with_the_reason(tmp_path):
    folder = built.voc(tmp_path / "x", images=40, seeds=1, folds=2)
    with built.edited(folder / "trials.csv") as trials:
        trials.loc[trials.part == "main", ["state", "error"]] = ["failed", BUG]
    STUDIES["voc"].report(folder)
    assert BUG in (folder / "report.html").read_text()
    assert (folder / "tables" / "folds.csv").is_file()
