"""A search with Optuna: exactly as many configurations as asked for, none lost, the best kept."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from core.engine import command_line
from core.study import Range
from tests.conftest import ROOT
from tests.toy import study

searching = dataclasses.replace(
    study,
    search={"lr": Range(1e-3, 0.3, log=True)},
    search_report=lambda folder: (folder / "report.html").write_text("searched"),
)


def search(folder: Path, *arguments: str) -> int:
    command = ["--local", "--results-dir", str(folder), "--search", "optuna", "--trials", "6"]
    return command_line(searching, [*command, *arguments])


def proposals(folder: Path) -> list[float]:
    declared = json.loads((folder / "study.json").read_text())
    return [t["config"]["lr"] for t in declared["trials"]]


def test_a_search_runs_the_default_and_its_proposals_and_keeps_the_best(tmp_path):
    assert search(tmp_path) == 0
    folder = tmp_path / "toy" / "demo"
    trials = pd.read_csv(folder / "trials.csv")
    assert list(trials.trial) == ["default", *(f"search-{i:04}" for i in range(6))]
    assert set(trials.state) == {"finished"}
    rates = proposals(folder)
    assert rates[0] == 0.1 and len(set(rates)) == 7
    assert all(1e-3 <= rate <= 0.3 for rate in rates)
    tried = trials[trials.trial != "default"]
    best = rates[int(tried.best_val_accuracy.idxmax())]
    assert json.loads((folder / "best_config.json").read_text()) == {"lr": best}
    importances = json.loads((folder / "search.json").read_text())["importances"]
    assert importances == {"lr": pytest.approx(1.0)}
    assert (folder / "report.html").read_text() == "searched"
    config = ["--config", str(folder / "best_config.json"), "--name", "best", "--local"]
    assert command_line(study, [*config, "--results-dir", str(tmp_path), "--seeds", "1"]) == 0
    assert proposals(tmp_path / "toy" / "best") == [best]


def test_a_killed_search_goes_on_with_the_same_proposals_and_ends_with_as_many(tmp_path):
    script = (
        "import os, sys; from tests.test_search import *; from core import trial\n"
        "save = trial.save\n"
        "def lost(state, row):\n"
        "    save(state, row)\n"
        "    name = trial._current.get().spec.name\n"
        "    if (name, row['epoch']) == ('search-0002', 2): os.kill(os.getpid(), 9)\n"
        "trial.save = lost\n"
        "search(Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "toy" / "demo"
    before = proposals(folder)
    assert len(before) == 4
    assert search(tmp_path, "--resume") == 0
    after = proposals(folder)
    assert after[:4] == before and len(after) == 7 and len(set(after)) == 7
    assert set(pd.read_csv(folder / "trials.csv").state) == {"finished"}
    modified = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert search(tmp_path, "--resume") == 0  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in modified} == modified


def test_failed_configurations_are_told_and_never_best(tmp_path):
    assert search(tmp_path, "--set", "kind=refuse") == 1
    folder = tmp_path / "toy" / "demo"
    assert not (folder / "best_config.json").exists()
    told = json.loads((folder / "search.json").read_text())
    assert told["importances"] is None and "too few" in told["why"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("[1]", "give an object"),
        ("{", "not a readable JSON file"),
        ('{"speed": 1}', "no setting 'speed'"),
        ('{"lr": [1]}', "must be a number or a text"),
        ('{"lr": "fast"}', "lr must be of type float"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, capsys, content, words):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert command_line(study, ["--local", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and str(path) in error
