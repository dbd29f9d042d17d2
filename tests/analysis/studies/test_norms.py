"""The report of the norms study, from folders whose numbers follow a formula."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.results.folder import load
from analysis.studies.norms import answers, sections
from tests.support import reports
from tests.support.reports import assert_says, assert_whole, printed, told, words_of
from tests.support.results import DIVERGED, IMAGES, NORMS, SPECIES, edited
from tests.support.results import norms as build

CURVES = "error loss accuracy micro_f1 macro_f1 "


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Seven norms, three seeds, two recipes, one diverged trial; reported, with one curve each."""
    folder = build(tmp_path_factory.mktemp("norms") / "full", recipes=("lab", "good"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "CURVES", {"error": sections.CURVES["error"]})
        sections.report(folder)
    return folder


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """One seed of a real data set, without bn, one trial missing and one diverged; reported."""
    folder = build(
        tmp_path_factory.mktemp("norms") / "lean", ("in", "gn", "ln", "none"), seeds=1, recipes=(),
        diverged=[("none", 0)], unfinished=[("ln", 0)], predictions=False, data_kind="folder",
    )  # fmt: skip
    told(sections.report, folder, pdf=True)
    return folder


def rows_of(folder: Path, name: str) -> dict[str, dict]:
    return {row["norm"]: row for row in reports.rows_of(folder, name)}


def test_everything_is_written(full, lean):
    drawn = "error sanity cost classes recipes error_lab"
    assert_whole(full, "norms norms_by_seed recipes splits splits_lab", drawn)
    assert_whole(lean, "norms norms_by_seed splits", CURVES + "cost")


def test_the_main_table_is_the_good_recipe_recomputed_from_trials_csv(full):
    trials = pd.read_csv(full / "trials.csv", keep_default_na=False)
    good = trials[(trials["recipe"] == "good") & (trials["state"] == "finished")]
    table = rows_of(full, "norms")
    assert set(table) == set(NORMS)
    means = good.groupby("norm")["val_accuracy"].mean()
    assert next(iter(table)) == means.idxmax() == "bin"
    for norm, row in table.items():
        values = good[good["norm"] == norm].set_index("seed")["val_accuracy"].astype(float)
        assert float(row["val_accuracy"]) == pytest.approx(values.mean(), abs=1e-15)
        assert int(row["n"]) == len(values)
        assert row["of"] == "3"
        bn = good[good["norm"] == "bn"].set_index("seed")["val_accuracy"].astype(float)
        if norm != "bn":
            difference = (values - bn).dropna().mean()
            assert float(row["difference"]) == pytest.approx(difference, abs=1e-15)
    assert table["none"]["n"] == "2"
    assert table["none"]["pairs"] == "2.0"
    assert table["torch_bn"]["p_holm"] == ""
    assert float(table["bin"]["p_holm"]) > float(table["bin"]["p"]) > 0
    assert table["bin"]["val_micro_f1"] == table["bin"]["val_accuracy"]


def test_shown_tables_count_the_seeds_and_fit_100_columns(full):
    shown = (full / "tables" / "norms.md").read_text()
    assert "| 2 of 3 |" in shown
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) == 2 + len(NORMS)
    by_seed = (full / "tables" / "norms_by_seed.md").read_text()
    assert by_seed.count("| finished |") == 40 and by_seed.count("| diverged |") == 2
    short = sections.headline(sections.norm_table(sections.by_recipe(load(full))[0]))
    lines = printed(short)
    rows = [line.split()[0] for line in lines if line.split() and line.split()[0] in NORMS]
    assert rows == list(rows_of(full, "norms"))
    assert any("2 of 3" in line for line in lines)


def test_text_answers_from_the_numbers_and_names_data_trouble_and_origin(full):
    best = float(rows_of(full, "norms")["bin"]["val_accuracy"]) * 100
    leads = "bin (batch-instance norm) has the highest mean validation accuracy"
    assert_says(
        words_of(full), f"{leads}, {best:.1f}",
        # own and torch's bn differ by 4e-5 * |cos(epoch)| in training accuracy, most in epoch 3
        "the largest difference is 0.00396 points in accuracy",
        "1 of 3 trials without normalisation did not survive training",
        "Over all epochs and trials here the two are equal", "sgd, learning rate 0.1",
        "Training minus validation accuracy at each trial's best epoch: ",
        "Training values are of these weights, on the training images without",
        "good has 1,000 times as much", "It takes 6 epochs of 47 steps, 282 in all",
        "(guessing among 25 classes: 3.219)", "accuracy and macro-F1",
        f"stored scores of 40 trials ({IMAGES} validation images each)",
        "Other people's results", "Synthetic data: generated images, not photographs.",
        "2 of 42 trials failed or diverged", DIVERGED, "torch 2.15.0",
        "0123456789abcdef0123456789abcdef01234567 with uncommitted changes",
        "1,500 in train (60 of each class) and 250 in val (10 of each class)",
        "1: train/Hoopoe/broken.jpg", "1: train/Hoopoe/1.jpg = val/Hoopoe/9.jpg",
        "python studies/norms.py --data-dir …/data --name x", never="unfinished",
    )  # fmt: skip


def test_one_seed_without_bn_and_with_missing_trials(lean):
    words = words_of(lean)
    assert_says(
        words, "The study is unfinished: 3 of 4 trials have run.",
        "1 of 4 trials failed or diverged", "One seed: there is no interval",
        "No trial of bn finished, so there are no differences to it.",
        "bn and torch_bn did not both finish", "No scores are stored",
        "one seed gives no interval, so it may be chance",
        "1 of 1 trials without normalisation did not survive", never="leads",
    )  # fmt: skip
    assert "Synthetic" not in words
    table = rows_of(lean, "norms")
    assert list(table)[:2] == ["in", "gn"]
    assert table["in"]["val_accuracy_low"] == table["in"]["p"] == ""


def test_scores_that_do_not_belong_to_the_metrics_are_noticed(tmp_path):
    folder = build(tmp_path / "x", norms=("bn", "in"), seeds=1)
    right = sections.recompute(load(folder))
    assert (right.trials, right.images) == (2, IMAGES)
    assert right.largest("val_accuracy") == 0 and right.largest("val_macro_f1") < 1e-12
    assert "do not belong" not in answers.recomputed(right)
    best = pd.read_csv(folder / "trials.csv").best_epoch[1]
    with edited(folder / "history.csv") as rows:
        rows.loc[(rows.norm == "in") & (rows.epoch == best), "val_accuracy"] += 0.01
    wrong = sections.recompute(load(folder))
    assert wrong.largest("val_accuracy") == pytest.approx(0.01)
    assert "do not belong" in answers.recomputed(wrong)


def test_both_splits_are_of_the_kept_epoch_and_training_of_fixed_weights(full):
    trials = pd.read_csv(full / "trials.csv", keep_default_na=False)
    history = pd.read_csv(full / "history.csv", keep_default_na=False)
    assert (trials.best_epoch.astype(int) < trials.epochs_run).any()
    for recipe, name in (("good", "splits"), ("lab", "splits_lab")):
        good = trials[(trials.recipe == recipe) & (trials.state == "finished")]
        for norm, row in rows_of(full, name).items():
            mine = good[good.norm == norm]
            fixed = mine.best_train_accuracy.astype(float).mean()
            assert float(row["best_train_accuracy"]) == pytest.approx(fixed, abs=1e-12)
            rows = history.merge(mine[["trial", "best_epoch"]], on="trial")
            rows = rows[rows.epoch == rows.best_epoch]
            assert float(row["best_val_macro_f1"]) == pytest.approx(rows.val_macro_f1.mean())
    assert "Best epoch of each trial" in (full / "tables" / "splits.md").read_text()


def test_a_folder_of_before_is_read_and_its_running_figures_are_named_so(tmp_path):
    """Commit 8948c4d wrote train_accuracy for what was running, and scores of the last epoch."""
    folder = build(tmp_path / "x", norms=("bn", "in"), seeds=2, diverged=(), old=True)
    words = told(sections.report, folder)
    results = load(folder)
    for table in (results.trials, results.history):
        assert "train_accuracy" not in table and "train_loss_running" in table
    assert sections.recompute(results).largest("val_accuracy") == 0
    assert "Training values are running ones" in words and "augmented images" in words
    best = results.trials.set_index("trial").best_epoch
    rows = results.history[results.history.epoch == results.history.trial.map(best)]
    running = rows[rows.norm == "in"].train_accuracy_running.mean()
    found = float(rows_of(folder, "splits")["in"]["best_train_accuracy"])
    assert found == pytest.approx(running, abs=1e-12)


def test_own_bn_against_torchs_per_seed_and_epoch_and_recall_per_class(full):
    results = load(full)
    found = sections.own_against_torch(sections.by_recipe(results)[0])
    assert len(found) == 3 * 6
    largest = found["train_accuracy_running"].abs().max()
    assert largest == pytest.approx(4e-5 * 0.98999, rel=1e-4)
    assert found["val_accuracy"].abs().max() == 0
    recalls, matrix = sections.class_recall(sections.by_recipe(results)[0])
    assert list(recalls.index) == list(SPECIES) and set(recalls.columns) == set(NORMS)
    assert matrix.sum() == IMAGES
    best = float(results.trials["best_val_accuracy"].max())
    assert recalls["bin"].mean() == pytest.approx(best)


@pytest.mark.browser
def test_a_browser_shows_it_without_a_request_or_sideways_scrolling(full, chromium):
    address = (full / "report.html").as_uri()
    page = chromium.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(address)
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg").count() == 6
    page.close()
    assert asked == [address] and said == []
