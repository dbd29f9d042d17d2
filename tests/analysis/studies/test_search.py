"""The report of a search, from folders with known values."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis.document import report as reports
from analysis.results.folder import load
from analysis.studies.search import sections
from core.errors import UserError
from tests.analysis.document.test_report import assert_self_contained
from tests.support import results as built
from tests.support.reports import words_of

SPACE = {
    "lr": {"low": 0.001, "high": 1.0, "log": True},
    "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
    "momentum": {"low": 0.5, "high": 0.99, "log": False},
}
WEIGHTS = {"lr": 0.8, "weight_decay": 0.15, "momentum": 0.05}
EPOCHS = 10


def build(
    path: Path,
    count: int = 12,
    default: float | None = 0.6,
    lr: float | None = 0.1,
    failed: int = 4,
    **files,
) -> Path:
    """Write the folder of a search whose value is highest at lr 0.3: 0.7.

    Args:
        path: the result folder to make.
        count: configurations; the third is stopped.
        default: value of the default trial; None leaves it out.
        lr: its learning rate; None leaves it to the recipe, which takes 0.1.
        failed: index of the configuration that failed.
        files: content of search.json (`importances`) and of best_config.json (`best`); None leaves
            the file out.
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
        config = {
            "lr": 0.3 if number == 7 else 0.001 * 10 ** (3 * number / count),
            "weight_decay": 10 ** (-5 + 3 * (number * 5 % count) / count),
            "momentum": 0.5 + 0.4 * (number * 7 % count) / count,
            "seed": 0,
        }
        value = 0.7 - 0.1 * abs(math.log10(config["lr"] / 0.3))
        state = {2: "stopped", failed: "failed"}.get(number, "finished")
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
    if best is not None:
        (path / "best_config.json").write_text(json.dumps(best))
    return path


def hold_out(path: Path, default: list[float], best: list[float]) -> Path:
    """Turn a folder of `build` into one whose search was scored on images held out of train.

    Args:
        path: the result folder.
        default: values of the default on the validation images, by seed.
        best: those of search-0007.
    """
    study = json.loads((path / "study.json").read_text())
    study["search"]["metric"] = "heldout_accuracy"
    study["data"]["holdout"] = {"share": 0.1, "trained": 450, "scored": 50, "missing": ["Owl"]}
    trials = pd.read_csv(path / "trials.csv", keep_default_na=False)
    trials = trials.rename(columns={"best_val_accuracy": "best_heldout_accuracy"})
    added = []
    for kind, name, values in (("default", "default", default), ("best", "search-0007", best)):
        planned = next(entry for entry in study["trials"] if entry["trial"] == name)
        for seed, value in enumerate(values):
            trial, part = f"reported={name},seed={seed}", f"reported-{kind}"
            config = planned["config"] | {"seed": seed}
            study["trials"].append({"trial": trial, "part": part, "config": config})
            row = trials[trials["trial"] == name].iloc[0].to_dict() | config
            row |= {"trial": trial, "part": part, "best_heldout_accuracy": ""}
            added.append(row | {"best_val_accuracy": value})
    trials = pd.concat([trials, pd.DataFrame(added)])
    trials.to_csv(path / "trials.csv", index=False)
    (path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("search") / "full")
    sections.report(folder)
    return folder


def test_everything_is_written(full):
    found = {file.name for file in (full / "tables").iterdir()}
    named = {"search", "search_trials"}
    assert found == {f"{name}.{kind}" for name in named for kind in ("csv", "md", "tex")}
    found = {file.name for file in (full / "figures").iterdir()}
    drawn = {"search_history", "search_settings", "importances"}
    assert found == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert reports.page_count((full / "report.pdf").read_bytes()) <= 10
    page = assert_self_contained((full / "report.html").read_text())
    assert len(page.named("svg")) == 3
    for file in [full / "report.html", full / "report.pdf", *(full / "tables").iterdir()]:
        assert str(full).encode() not in file.read_bytes()


def test_one_report_has_what_was_tried_and_what_came_of_it(tmp_path, capsys):
    default, best = [0.60, 0.62, 0.61], [0.66, 0.67, 0.68]
    folder = hold_out(build(tmp_path / "x"), default, best)
    sections.report(folder)
    tried = pd.read_csv(folder / "tables" / "search_trials.csv")
    assert len(tried) == 12 and tried["value"].max() == 0.7
    found = pd.read_csv(folder / "tables" / "reported.csv").set_index("settings")
    assert found["n"].to_dict() == {"default": 3, "best found": 3}
    assert found.loc["best found", "mean"] == pytest.approx(np.mean(best))
    gains = np.subtract(best, default)
    low, high = scipy.stats.t.interval(0.95, 2, gains.mean(), scipy.stats.sem(gains))
    assert found.loc["best found", "difference"] == pytest.approx(gains.mean())
    assert found.loc["best found", "difference_low"] == pytest.approx(low)
    assert found.loc["best found", "difference_high"] == pytest.approx(high)
    words = words_of(folder)
    assert "best held-out accuracy (%)" in words and "best val accuracy (%)" in words
    assert "has 70.0" in words and "held-out accuracy at its best epoch" in words
    assert "On the validation images it is better than the default settings: +6.0" in words
    assert "chosen on 50 images held out of the training images" in words
    assert "None of them shows Owl." in words
    assert "if its held-out accuracy is in the best 1/4" in words
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
    table = pd.read_csv(full / "tables" / "search_trials.csv").set_index("trial")
    assert len(table) == len(raw) == 12
    assert table.index[0] == raw["best_val_accuracy"].idxmax() == "search-0007"
    running = raw["best_val_accuracy"].cummax().ffill()
    for name, row in table.iterrows():
        assert row["value"] == pytest.approx(raw.loc[name, "best_val_accuracy"], nan_ok=True)
        assert row["so_far"] == pytest.approx(running[name], nan_ok=True)
        assert row["state"] == raw.loc[name, "state"]
        for key in SPACE:  # as set, not the last epoch's rate in the column lr of trials.csv
            assert row[key] == pytest.approx(config[name][key])
    settings = pd.read_csv(full / "tables" / "search.csv").set_index("setting")
    assert settings["best"].to_dict() == pytest.approx(
        {**{k: config["search-0007"][k] for k in SPACE}, "best val accuracy (%)": 0.7}
    )
    assert settings["default"].to_dict() == pytest.approx(
        {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "best val accuracy (%)": 0.6}
    )
    assert settings["importance"].dropna().to_dict() == WEIGHTS


def test_text_names_the_best_the_gain_and_the_command(full, capsys):
    words = words_of(full)
    assert "TPE proposed 12 of 12 configurations" in words
    assert "10 finished, 1 stopped early and 1 failed" in words
    assert "The best, search-0007, has 70.0" in words
    assert "scores higher than the default learning rate of 0.1 and the other default" in words
    assert "(+10.0 points), with caution: one seed each, and the best of 11" in words
    assert "python studies/norms.py --config best_config.json" in words
    assert "lr 0.80, weight_decay 0.15 and momentum 0.05" in words
    assert "ASHA (asynchronous successive halving) over epochs: grace 1" in words
    assert "differs from the best configuration" not in words
    sections.report(full)
    out = capsys.readouterr().out
    assert f"use it: python studies/norms.py --config {full / 'best_config.json'}" in out
    assert max(len(line) for line in out.splitlines()[:-1]) <= 100


@pytest.mark.parametrize(
    ("default", "said"),
    [
        (0.7, "No configuration scores higher than the default"),
        (0.75, "No configuration scores higher than the default"),
        (0.69, "validation images alone leave an error of about"),
        (None, "cannot be said whether the best scores higher"),
    ],
)
def test_the_verdict_follows_the_values(tmp_path, default, said):
    assert said in sections.verdict(load(build(tmp_path / "x", default=default)))


def test_a_default_that_leads_is_not_to_be_replaced(tmp_path, capsys):
    sections.report(build(tmp_path / "x", default=0.75))
    out = capsys.readouterr().out
    assert "Keep the default." in " ".join(out.split()) and "use it" not in out


def test_a_default_rate_left_to_the_recipe_is_the_one_it_used(tmp_path):
    results = load(build(tmp_path / "x", lr=None))
    assert sections.default_trial(results)["lr"] == pytest.approx(0.1)
    assert "default learning rate of 0.1" in sections.verdict(results)


def test_order_is_that_of_the_search_and_failures_have_no_value(tmp_path):
    found = sections.configurations(load(build(tmp_path / "x")))
    assert found["trial"].tolist() == [f"search-{number:04}" for number in range(12)]
    assert math.isnan(found["value"][4])
    assert found["so_far"].is_monotonic_increasing


def test_without_importances_the_reason_is_given(tmp_path):
    why = "2 configurations ended, which are too few to tell"
    folder = build(tmp_path / "x", count=2, importances={"importances": None, "why": why}, best={})
    sections.report(folder)
    words = words_of(folder)
    assert f"No importances: {why}." in words
    assert not (folder / "figures" / "importances.svg").exists()
    assert sections.importances(load(build(tmp_path / "y", importances=None)))[0] is None


def test_nothing_succeeded(tmp_path, capsys):
    folder = build(tmp_path / "x", count=1, failed=0, default=None, importances=None, best=None)
    sections.report(folder)
    words = words_of(folder)
    assert "None of 1 trials finished." in words
    assert "use it" not in capsys.readouterr().out


def test_a_best_config_of_other_settings_is_noticed(tmp_path):
    folder = build(tmp_path / "x", best={"lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9})
    sections.report(folder)
    assert "It differs from the best configuration of trials.csv in lr" in words_of(folder)


def test_a_best_value_at_the_end_of_its_range_is_noticed(tmp_path):
    folder = build(tmp_path / "x")
    assert sections.edges(load(folder)) == ""
    study = json.loads((folder / "study.json").read_text())
    study["search"]["space"]["lr"]["high"] = 0.31
    (folder / "study.json").write_text(json.dumps(study))
    assert "of `lr` (upper end): widen it" in sections.edges(load(folder))


def test_a_folder_without_a_search_is_refused(tmp_path):
    folder = build(tmp_path / "x")
    study = json.loads((folder / "study.json").read_text())
    del study["search"]
    (folder / "study.json").write_text(json.dumps(study))
    with pytest.raises(UserError, match=r"study\.json holds no search"):
        sections.report(folder)
