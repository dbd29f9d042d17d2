"""Early stopping: halving across trials, a plateau in one, and what the records say of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from core.cluster.tune import Halving
from core.study import options
from core.study.options import Options
from core.trial.stopping import Stopping, plateau
from tests.studies.test_every_setting import STUDIES
from tests.support.calls import history, refusal, table, toy
from tests.support.toy import study

ASHA = Stopping(scheduler="asha", grace=1, reduction_factor=2)


def rows(values) -> list[dict]:
    return [{"epoch": i, "acc": value} for i, value in enumerate(values, 1)]


def test_a_trial_stops_below_the_cut_of_those_before_it():
    """With factor 2 the cut is the median of what reached the rung before (Li et al. 2020)."""
    halving = Halving(ASHA, "acc", "max", 8)
    assert halving.decide("a", {"epoch": 1, "acc": 0.5}) == ""
    assert halving.decide("b", {"epoch": 1, "acc": 0.3}) == (
        "ASHA at epoch 1: acc 0.3 is below the cut of 0.5"
    )
    assert halving.decide("c", {"epoch": 1, "acc": 0.45}) == ""  # the median is 0.4
    assert halving.decide("c", {"epoch": 2, "acc": 0.1}) == ""  # the first at this rung
    assert halving.decide("a", {"epoch": 2, "acc": 0.05}) != ""
    assert halving.decide("a", {"epoch": 8, "acc": 0.0}) == ""  # the last epoch ends by itself
    for missing in ({"acc": float("nan")}, {}):
        assert halving.decide("d", {"epoch": 1, **missing}) == ""


def test_smaller_is_better_for_a_loss():
    halving = Halving(ASHA, "loss", "min", 8)
    halving.decide("a", {"epoch": 1, "loss": 1.0})
    assert "loss 2 is above the cut of 1" in halving.decide("b", {"epoch": 1, "loss": 2.0})


def test_rungs_are_filled_again_from_the_rows_and_a_row_counts_once():
    whole, again = Halving(ASHA, "acc", "max", 8), Halving(ASHA, "acc", "max", 8)
    generator = np.random.default_rng(0)
    curves = {f"t{i}": generator.random(7) for i in range(6)}
    for name, values in curves.items():
        whole.recall(name, rows(values))
        again.recall(name, rows(values[:3]))
        again.recall(name, rows(values))  # after a lost process the first rows come again
    for epoch in (1, 2, 4):
        for value in (0.2, 0.5, 0.8):
            row = {"epoch": epoch, "acc": value}
            name = f"new-{epoch}-{value}"
            assert whole.decide(name, row) == again.decide(name, row)


def test_brackets_are_drawn_by_name_and_leave_numpys_generator_alone():
    rules = Stopping(scheduler="asha", grace=1, reduction_factor=2, brackets=3)
    np.random.seed(3)
    expected = np.random.get_state()[1].copy()
    np.random.seed(3)
    drawn = []
    for _ in range(2):
        halving = Halving(rules, "acc", "max", 16)
        for i in range(8):
            halving.decide(f"t{i}", {"epoch": 1, "acc": 0.5})
        drawn.append([len(halving._cuts(f"t{i}")) for i in range(8)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1
    assert (np.random.get_state()[1] == expected).all()


def test_plateau():
    assert plateau(rows([0.1, 0.5, 0.4, 0.5]), "acc", "max", 2) == (
        "plateau at epoch 4: no better than 0.5 (epoch 2) for 2 epochs"
    )
    assert plateau(rows([0.1, 0.5, 0.4]), "acc", "max", 2) == ""
    assert plateau(rows([0.1, 0.5, 0.4, 0.5]), "acc", "max", 0) == ""
    assert plateau(rows([3.0, 2.0, 2.5]), "acc", "min", 1) != ""
    assert plateau([], "acc", "max", 1) == ""


def test_stopped_trials_say_why_and_are_not_run_again(tmp_path):
    rules = ["--scheduler", "asha", "--grace", "1", "--reduction-factor", "2", "--patience", "4"]
    arguments = ["--search", "optuna", "--trials", "7", "--set", "epochs=8", *rules]
    assert toy(tmp_path, *arguments) == 0
    folder = tmp_path / "toy" / "demo"
    trials = table(folder)
    assert set(trials.state) == {"finished", "stopped"}
    stopped = trials[trials.state == "stopped"]
    assert stopped.stopped_by.str.match(r"(ASHA|plateau) at epoch \d").all()
    assert stopped.stopped_by.str.startswith("ASHA").any()
    assert stopped.error.isna().all() and (stopped.epochs_run < 8).all()
    assert (trials[trials.state == "finished"].epochs_run == 8).all()
    for trial, why in zip(stopped.trial, stopped.stopped_by, strict=True):
        epoch = int(why.split()[3].rstrip(":"))
        kept = json.loads((folder / "trials" / trial / "history.json").read_text())
        assert [row["epoch"] for row in kept["rows"]] == list(range(1, epoch + 1))
        assert not list((folder / "trials" / trial).glob("epoch-*.pt"))
    declared = json.loads((folder / "study.json").read_text())["stopping"]
    assert declared == {
        "scheduler": "asha", "grace": 1, "reduction_factor": 2, "brackets": 1, "patience": 4,
        "max_epochs": 8,
    }  # fmt: skip
    before = (folder / "history.csv").read_bytes()
    assert toy(tmp_path, *arguments, "--resume") == 0
    assert (folder / "history.csv").read_bytes() == before
    assert toy(tmp_path, *arguments[:-1], "5", "--resume") == 2  # another patience


def test_without_stopping_nothing_changes(tmp_path):
    toy(tmp_path, "--name", "a")
    toy(tmp_path, "--name", "b", "--patience", "0")
    assert history(tmp_path / "toy" / "a").equals(history(tmp_path / "toy" / "b"))


@pytest.mark.parametrize("name", STUDIES)
def test_no_study_halves_what_it_compares(name, tmp_path):
    """Not even asked to, and before its data are looked at."""
    assert "use it with --search" in refusal(STUDIES[name], tmp_path, "--scheduler", "asha")
    assert options.stopping(STUDIES[name], Options()).scheduler == "none"


def test_a_study_without_a_search_says_so(tmp_path):
    told = refusal(replace(study, search=None), tmp_path, "--search", "optuna")
    assert "names no settings to search" in told
