"""A search with Optuna: exactly as many configurations as asked for, none lost, the best kept."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
from pathlib import Path

import pandas as pd
import pytest

from core.study import Range, Search
from core.trial import running
from tests.support.calls import command, copied_process, exit_code, refusal, table
from tests.support.faults import watched_writes
from tests.support.toy import study

searching = dataclasses.replace(
    study,
    search=Search(
        {"lr": Range(1e-3, 0.3, log=True)},
        report=lambda folder: (folder / "report.html").write_text("searched"),
    ),
)


def search(folder: Path, *arguments: str) -> int:
    return command(searching, folder, "--search", "optuna", "--trials", "6", *arguments)


def proposals(folder: Path) -> list[float]:
    declared = json.loads((folder / "study.json").read_text())
    return [t["config"]["lr"] for t in declared["trials"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert search(folder) == 0
    return folder / "toy" / "demo"


def test_a_search_runs_the_default_and_its_proposals_and_keeps_the_best(tmp_path, whole):
    trials = table(whole)
    assert list(trials.trial) == ["default", *(f"search-{i:04}" for i in range(6))]
    assert set(trials.state) == {"finished"}
    rates = proposals(whole)
    assert rates[0] == 0.1 and len(set(rates)) == 7
    assert all(1e-3 <= rate <= 0.3 for rate in rates)
    tried = trials[trials.trial != "default"]
    best = rates[int(tried.best_val_accuracy.idxmax())]
    assert json.loads((whole / "best_config.json").read_text()) == {"lr": best}
    importances = json.loads((whole / "search.json").read_text())["importances"]
    assert importances == {"lr": pytest.approx(1.0)}
    assert (whole / "report.html").read_text() == "searched"
    config = ["--config", whole / "best_config.json", "--name", "best"]
    assert command(study, tmp_path, *config, "--seeds", "1") == 0
    assert proposals(tmp_path / "toy" / "best") == [best]


def test_a_killed_search_goes_on_with_the_same_proposals_and_ends_with_as_many(tmp_path, whole):
    assert exit_code(copied_process(search, tmp_path, TOY_KILL="search-0002:2")) == -signal.SIGKILL
    folder = tmp_path / "toy" / "demo"
    before = proposals(folder)
    assert len(before) == 4
    assert search(tmp_path, "--resume") == 0
    after = proposals(folder)
    assert after[:4] == before and len(after) == 7 and len(set(after)) == 7
    assert set(table(folder).state) == {"finished"}
    assert after == proposals(whole)
    modified = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert search(tmp_path, "--resume") == 0  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in modified} == modified


def fail_once(folder: Path, *names: str) -> None:
    """Run a search in which these trials find the disk full after their first epoch."""

    def reached(step: str) -> None:
        current = running.current.get()
        if current is not None and current.spec.name in names and current.rows:
            raise OSError(errno.ENOSPC, "No space left on device")

    with watched_writes(reached):
        assert search(folder) == 1


def test_a_search_whose_trials_failed_ends_as_an_undisturbed_one(tmp_path, whole):
    """From the second random proposal on all fail: those of TPE knew less than they should."""
    fail_once(tmp_path, *(f"search-{i:04}" for i in range(1, 6)))
    folder = tmp_path / "toy" / "demo"
    assert list(table(folder).state) == ["finished"] * 2 + ["failed"] * 5
    assert proposals(folder) != proposals(whole)
    assert search(tmp_path, "--resume") == 0
    assert proposals(folder) == proposals(whole)
    for name in ("best_config.json", "search.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    kept = ["trial", "state", "lr", "best_val_accuracy", "epochs_run"]
    pd.testing.assert_frame_equal(*(table(at)[kept] for at in (folder, whole)))


def test_what_a_failed_trial_comes_to_is_known_afterwards(tmp_path, whole):
    """The best one alone failed: what was proposed since stays, and its value counts."""
    tried = table(whole).query("trial != 'default'")
    best = tried.trial[tried.best_val_accuracy.idxmax()]
    fail_once(tmp_path, best)
    folder = tmp_path / "toy" / "demo"
    before = proposals(folder)
    assert list((folder / "trials" / best).glob("epoch-00001-*.pt"))
    assert search(tmp_path, "--resume") == 0
    assert proposals(folder) == before
    assert before[:4] == proposals(whole)[:4]  # these are drawn, whatever is known
    again = table(folder).query("trial != 'default'")
    rate = again.lr[again.best_val_accuracy.idxmax()]
    assert json.loads((folder / "best_config.json").read_text()) == {"lr": rate}
    assert again.set_index("trial").best_val_accuracy[best] == tried.best_val_accuracy.max()


def test_failed_configurations_are_told_and_never_best_and_their_space_stays(tmp_path):
    assert search(tmp_path, "--set", "kind=refuse") == 1
    folder = tmp_path / "toy" / "demo"
    assert not (folder / "best_config.json").exists()
    told = json.loads((folder / "search.json").read_text())
    assert told["importances"] is None and "too few" in told["why"]
    other = dataclasses.replace(searching, search=Search({"lr": Range(0.2, 0.3)}))
    arguments = ["--set", "kind=refuse", "--resume", "--search", "optuna", "--trials", "6"]
    assert "the searched space has changed" in refusal(other, tmp_path, *arguments)


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
def test_config_files_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(content)
    error = refusal(study, tmp_path, "--config", path)
    assert words in error and str(path) in error
