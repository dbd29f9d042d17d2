"""The report of a search, from folders with known values."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis.results.folder import load
from analysis.studies.search import sections
from core.errors import UserError
from tests.support import results as built
from tests.support.reports import assert_says, assert_whole, table_of, told, words_of

SPACE = {
    "lr": {"low": 0.001, "high": 1.0, "log": True},
    "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
    "momentum": {"low": 0.5, "high": 0.99, "log": False},
}
WEIGHTS = {"lr": 0.8, "weight_decay": 0.15, "momentum": 0.05}
EPOCHS = 10


def build(
    path: Path, count: int = 12, default: float | None = 0.6, lr: float | None = 0.1, **files
) -> Path:  # fmt: skip
    """Write a search whose value is highest at lr 0.3: 0.7; its third trial stops, its fifth fails.

    `default` is the value of the default trial (None: there is none), `lr` its rate (None: left to
    the recipe, which takes 0.1), `files` the content of search.json (`importances`; None: no file)
    and of best_config.json (`best`).
    """
    planned, trials, history = [], [], []

    def add(name: str, config: dict, value: float, state: str) -> None:
        planned.append({"trial": name, "part": "search", "config": config})
        epochs = {"finished": EPOCHS, "stopped": 4, "failed": 0}[state]
        rows = []
        for epoch in range(1, epochs + 1):
            row = {"trial": name, "part": "search", "epoch": epoch, "seconds": 1.0}
            row |= {"lr": (config["lr"] or 0.1) * (1 - (epoch - 1) / EPOCHS)}
            rows.append(row | {"val_accuracy": value * epoch / epochs})
        history.extend(rows)
        # lr: the rate of the last epoch, as the engine writes it
        more = {"error": "out of memory" if state == "failed" else "", "lr": 1e-9}
        more["stopped_by"] = "ASHA at epoch 4: low" if state == "stopped" else ""
        more["best_val_accuracy"] = value if epochs else ""
        trials.append(built.ended(planned[-1], rows, float(epochs), state, **more))

    for number in range(count):
        config = {"lr": 0.3 if number == 7 else 0.001 * 10 ** (3 * number / count), "seed": 0}
        config["weight_decay"] = 10 ** (-5 + 3 * (number * 5 % count) / count)
        config["momentum"] = 0.5 + 0.4 * (number * 7 % count) / count
        value = 0.7 - 0.1 * abs(math.log10(config["lr"] / 0.3))
        state = {2: "stopped", 4: "failed"}.get(number, "finished")
        add(f"search-{number:04}", config, round(value, 4), state)
    if default is not None:
        config = {"lr": lr, "weight_decay": 5e-4, "momentum": 0.9, "seed": 0}
        add(sections.DEFAULT, config, default, "finished")
    rules = {"scheduler": "asha", "grace": 1, "reduction_factor": 4, "max_epochs": EPOCHS}
    asked = {"sampler": "TPE", "trials": count, "space": SPACE}
    asked["default"] = {"lr": lr, "weight_decay": 5e-4, "momentum": 0.9}
    more = {"grid": {"seed": [0]}, "stopping": rules, "search": asked}
    more["data"] = built.birds_data("synthetic")
    declared = built.declare("norms", "Which norm is best?", planned, **more)
    built.write(path, declared, trials, history)
    found = files.get("importances", {"importances": WEIGHTS, "why": ""})
    if found is not None:
        (path / "search.json").write_text(json.dumps(found))
    best = next((entry["config"] for entry in planned if entry["trial"] == "search-0007"), {})
    best = files.get("best", {key: best[key] for key in SPACE if key in best})
    (path / "best_config.json").write_text(json.dumps(best))
    return path


def hold_out(path: Path, default: list[float], best: list[float]) -> Path:
    """Have a search scored on images held out of train, and give its reported values by seed."""
    trials = pd.read_csv(path / "trials.csv", keep_default_na=False)
    trials = trials.rename(columns={"best_val_accuracy": "best_heldout_accuracy"})
    added = []
    with built.edited(path / "study.json") as study:
        study["search"]["metric"] = "heldout_accuracy"
        study["data"]["holdout"] = {"share": 0.1, "trained": 450, "scored": 50, "missing": ["Owl"]}
        for kind, name, values in (("default", "default", default), ("best", "search-0007", best)):
            planned = next(entry for entry in study["trials"] if entry["trial"] == name)
            for seed, value in enumerate(values):
                known = {"trial": f"reported={name},seed={seed}", "part": f"reported-{kind}"}
                config = planned["config"] | {"seed": seed}
                study["trials"].append(known | {"config": config})
                row = trials[trials["trial"] == name].iloc[0].to_dict() | config | known
                added.append(row | {"best_heldout_accuracy": "", "best_val_accuracy": value})
    pd.concat([trials, pd.DataFrame(added)]).to_csv(path / "trials.csv", index=False)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("search") / "full")
    sections.report(folder)
    return folder


def test_everything_is_written(full):
    assert_whole(full, "search search_trials", "search_history search_settings importances")


def test_one_report_has_what_was_tried_and_what_came_of_it(tmp_path, capsys):
    default, best = [0.60, 0.62, 0.61], [0.66, 0.67, 0.68]
    folder = hold_out(build(tmp_path / "x"), default, best)
    words = told(sections.report, folder)
    tried = table_of(folder, "search_trials")
    assert len(tried) == 12 and tried["value"].max() == 0.7
    found = table_of(folder, "reported").set_index("settings")
    assert found["n"].to_dict() == {"default": 3, "best found": 3}
    assert found.loc["best found", "mean"] == pytest.approx(np.mean(best))
    gains = np.subtract(best, default)
    low, high = scipy.stats.t.interval(0.95, 2, gains.mean(), scipy.stats.sem(gains))
    told_apart = found.loc["best found", ["difference", "difference_low", "difference_high"]]
    assert list(told_apart) == pytest.approx([gains.mean(), low, high])
    assert_says(
        words, "best held-out accuracy (%)", "best val accuracy (%)", "has 70.0",
        "held-out accuracy at its best epoch", "None of them shows Owl.",
        "On the validation images it is better than the default settings: +6.0",
        "chosen on 50 images held out of the training images",
        "if its held-out accuracy is in the best 1/4",
    )  # fmt: skip
    assert "+6.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([0.55, 0.58, 0.55], "it is worse than the default settings:** −5.0 points [−7.5, −2.5]"),
        ([0.58, 0.68, 0.61], "these seeds show no difference to the default: +1.3 points [−"),
        ([0.66], "it differs by +6.0 points in 1 seed, which may be chance"),
        ([0.65, 0.67], "it differs by +5.0 points in 2 seeds, which may be chance"),
        ([], ""),
    ],
)
def test_a_winner_is_named_where_the_interval_excludes_zero(tmp_path, best, said):
    results = load(hold_out(build(tmp_path / "x"), [0.60, 0.62, 0.61], best))
    found = sections.outcome(results).replace("\u00a0", " ")
    assert said in found and bool(said) == bool(found)


def test_tables_are_recomputed_from_trials_csv(full):
    raw = pd.read_csv(full / "trials.csv")
    raw = raw[raw["trial"] != "default"].set_index("trial")
    planned = json.loads((full / "study.json").read_text())["trials"]
    config = {entry["trial"]: entry["config"] for entry in planned}
    table = table_of(full, "search_trials").set_index("trial")
    assert len(table) == len(raw) == 12
    assert table.index[0] == raw["best_val_accuracy"].idxmax() == "search-0007"
    running = raw["best_val_accuracy"].cummax().ffill()
    for name, row in table.iterrows():
        assert row["value"] == pytest.approx(raw.loc[name, "best_val_accuracy"], nan_ok=True)
        assert row["so_far"] == pytest.approx(running[name], nan_ok=True)
        assert row["state"] == raw.loc[name, "state"]
        for key in SPACE:  # as set, not the last epoch's rate in the column lr of trials.csv
            assert row[key] == pytest.approx(config[name][key])
    found = sections.configurations(load(full))  # in the order of the search
    assert found["trial"].tolist() == [f"search-{number:04}" for number in range(12)]
    assert math.isnan(found["value"][4]) and found["so_far"].is_monotonic_increasing
    settings = table_of(full, "search").set_index("setting")
    for column, name, value in (("best", "search-0007", 0.7), ("default", "default", 0.6)):
        given = {key: config[name][key] for key in SPACE} | {"best val accuracy (%)": value}
        assert settings[column].to_dict() == pytest.approx(given)
    assert settings["importance"].dropna().to_dict() == WEIGHTS


def test_text_names_the_best_the_gain_and_the_command(full, tmp_path, capsys):
    assert_says(
        words_of(full), "TPE proposed 12 of 12 configurations",
        "10 finished, 1 stopped early and 1 failed", "The best, search-0007, has 70.0",
        "scores higher than the default learning rate of 0.1 and the other default",
        "(+10.0 points), with caution: one seed each, and the best of 11",
        "python studies/norms.py --config best_config.json",
        "lr 0.80, weight_decay 0.15 and momentum 0.05",
        "ASHA (asynchronous successive halving) over epochs: grace 1",
        never="differs from the best configuration",
    )  # fmt: skip
    copy = shutil.copytree(full, tmp_path / "copy")
    told(sections.report, copy)
    out = capsys.readouterr().out
    assert f"use it: python studies/norms.py --config {copy / 'best_config.json'}" in out
    assert max(len(line) for line in out.splitlines()[:-1]) <= 100


@pytest.mark.parametrize(
    ("default", "said"),
    [
        ({"default": 0.7}, "No configuration scores higher than the default"),
        ({"default": 0.75}, "No configuration scores higher than the default"),
        ({"default": 0.69}, "validation images alone leave an error of about"),
        ({"default": None}, "cannot be said whether the best scores higher"),
        ({"lr": None}, "default learning rate of 0.1"),  # of the recipe
    ],
)
def test_the_verdict_follows_the_values(tmp_path, default, said):
    assert said in sections.verdict(load(build(tmp_path / "x", **default)))


def test_a_default_that_leads_is_not_to_be_replaced(tmp_path, capsys):
    told(sections.report, build(tmp_path / "x", default=0.75))
    out = capsys.readouterr().out
    assert "Keep the default." in " ".join(out.split()) and "use it" not in out


def test_without_importances_the_reason_is_given(tmp_path):
    why = "2 configurations ended, which are too few to tell"
    folder = build(tmp_path / "x", count=2, importances={"importances": None, "why": why}, best={})
    words = told(sections.report, folder)
    assert f"No importances: {why}." in words
    assert not (folder / "figures" / "importances.svg").exists()
    assert sections.importances(load(build(tmp_path / "y", importances=None)))[0] is None


def test_other_settings_edges_of_a_range_and_the_lack_of_a_search_are_noticed(tmp_path):
    folder = build(tmp_path / "x", best={"lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9})
    words = told(sections.report, folder)
    assert "It differs from the best configuration of trials.csv in lr" in words
    assert sections.edges(load(folder)) == ""
    with built.edited(folder / "study.json") as study:
        study["search"]["space"]["lr"]["high"] = 0.31
    assert "of `lr` (upper end): widen it" in sections.edges(load(folder))
    with built.edited(folder / "study.json") as study:
        del study["search"]
    with pytest.raises(UserError, match=r"study\.json holds no search"):
        sections.report(folder)
