"""The command line that all studies share: what it understands, explains and refuses."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from core.errors import UserError
from core.study import Part, Settings
from core.study.options import parse_settings, read_config, settings_help
from core.study.plan import plan, trial_name
from tests.support.calls import refusal, table, toy
from tests.support.toy import study

REFUSED = {
    "--set kind=foo": "kind must be one of train", "--set nonsense=1": "has no setting 'nonsense'",
    "--set epochs=x": "epochs must be of type int", "--set epochs=0": "epochs must be at least 1",
    "--set epochs": "write it as key=value", "--set data_dir=x": "use --data-dir",
    "--set lr=0.1,0.01": "toy compares lr in no part, so it takes one value; run the study once",
    "--set lr=0.1,x": "lr must be of type float, got '0.1,x'",
    "--set seed=18446744073709551616": "a seed is a whole number from 0 to 2^63 - 1",
    "--set seed=0,-1": "a seed is a whole number from 0 to 2^63 - 1", "--seeds 0": "--seeds 0",
    "--max-concurrent 0": "--max-concurrent 0", "--name ../x": "--name ../x",
    "--part nope": "toy has main", "--slot-memory lots": "--slot-memory lots",
    "--resume": "no study at", "--report-only": "no study at", "--address auto": "give one of them",
    f"--name {'é' * 130}": "at most 200 bytes", f"--results-dir {'é' * 130}": "at most 200 bytes",
    "--seeds 100000000": "--seeds 100000000: ", "--trials 100000000": "--trials 100000000: ",
    "--grace 0": "--grace 0", "--reduction-factor 1": "--reduction-factor 1",
    "--patience -1": "--patience -1", "--trials 0": "--trials 0",
    "--scheduler asha": "selects what the comparison is to show: use it with --search",
    "--grace 2": "--grace 2: a rule of --scheduler asha, which is not used",
    "--search optuna --brackets 2": "--brackets 2: a rule of --scheduler asha",
    "--config absent.json": "--config absent.json",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, arguments):
    assert REFUSED[arguments] in refusal(study, tmp_path, *arguments.split())
    assert capsys.readouterr().out == "" and not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_place_that_cannot_hold_results_is_refused(tmp_path, kind):
    if kind == "closed" and os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o500 if kind == "closed" else 0o700)
    told = {"file": "choose another --results-dir", "closed": "cannot write"}[kind]
    assert told in refusal(study, tmp_path / "file" if kind == "file" else tmp_path)


def test_help_needs_no_docstrings():
    """Under `python -OO` there are none."""

    def act(settings, folder):
        return 0

    assert act.__doc__ is None
    shown = settings_help(replace(study, settings=Settings(actions={"act": act})))
    assert "lr = 0.1" in shown and "--act:" in shown


def test_a_setting_can_be_set_to_none(tmp_path):
    @dataclass(frozen=True)
    class Config:
        images: int | None = 7
        norm: Literal["bn", "none"] = "bn"
        way: Literal["none"] | None = None

    other = replace(study, config=Config)
    assert parse_settings(other, ["images=none", "norm=none", "way=none"]) == {
        "images": None, "norm": "none", "way": "none"
    }  # fmt: skip
    assert "images = 7" in settings_help(other) and "way = none" in settings_help(other)
    path = tmp_path / "config.json"
    path.write_text('{"images": null}')
    assert read_config(other, path) == {"images": None}
    path.write_text('{"norm": null}')
    assert read_config(other, path) == {"norm": "none"}
    with pytest.raises(UserError, match="images must be of type int or none, got 'x'"):
        parse_settings(other, ["images=x"])


def test_assignments_add_up(tmp_path):
    assert toy(tmp_path, "--set", "epochs=2", "--seeds", "1", "--set", "lr=0.2", "pause=0") == 0
    trials = table(tmp_path / "toy" / "demo")
    assert list(trials.epochs) == [2] and list(trials.lr) == [0.2]


def test_help_and_a_malformed_option(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        toy(tmp_path, "--seeds", "x")
    assert ended.value.code == 2 and "--seeds" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        toy(tmp_path, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "Does the engine keep its promises?" in shown
    assert "seconds to wait in each epoch" in shown and "lr = 0.1" in shown
    assert "--resume" in shown and "--slot-memory" in shown


def test_grid_values_keep_their_type_and_order():
    assert parse_settings(study, ["seed=3,1,3", "kind=raise", "lr=1e-3"]) == {
        "seed": [3, 1], "kind": ["raise"], "lr": 1e-3
    }  # fmt: skip


def test_names_of_trials_are_safe_and_differ():
    assert trial_name({"norm": "bn", "seed": 0}) == "norm=bn,seed=0"
    odd = {trial_name({"path": "../a/b"}), trial_name({"path": "../a?b"})}
    assert len(odd) == 2 and not any("/" in name for name in odd)
    assert len(trial_name({"x": "y" * 500})) < 120


def test_a_part_that_repeats_a_text_is_left_out_when_changed():
    parts = {
        "main": Part(grid={"kind": ["train", "raise"]}),
        "letter": Part(grid={"kind": ["train"]}, fixed={"lr": 1.0}, scales=["full"], literal=True),
    }
    two = replace(study, parts=parts)
    assert [t.trial for t in plan(two, "full", None, 1, {}).trials] == [
        "part=main,kind=train,seed=0",
        "part=main,kind=raise,seed=0",
        "part=letter,kind=train,seed=0",
    ]
    assert plan(two, "full", None, 1, {}).grid["lr"] == [1.0]
    changed = plan(two, "full", None, 1, {"epochs": 2})
    assert {t.part for t in changed.trials} == {"main"}
    assert "--set changes epochs" in changed.notes[0]
    assert {t.part for t in plan(two, "demo", None, 1, {}).trials} == {"main"}
    asked = plan(two, "demo", "letter", 1, {"epochs": 2}).trials
    assert [t.config["lr"] for t in asked] == [1.0]
