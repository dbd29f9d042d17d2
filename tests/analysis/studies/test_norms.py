"""The report of the norms study, from folders whose numbers follow a formula."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.document import report as reports
from analysis.document import tables
from analysis.results.folder import load
from analysis.studies.norms import answers, sections
from core.errors import UserError
from tests.analysis.document.test_report import assert_self_contained
from tests.support import reports as reports_of
from tests.support.calls import ROOT
from tests.support.reports import words_of
from tests.support.results import DIVERGED, IMAGES, NORMS, SPECIES
from tests.support.results import norms as build

CURVES = ("error", "loss", "accuracy", "micro_f1", "macro_f1")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Seven norms, three seeds, two recipes, one diverged trial; reported."""
    folder = build(tmp_path_factory.mktemp("norms") / "full", recipes=("lab", "good"))
    sections.report(folder)
    return folder


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """One seed of a real data set, without bn, one trial missing and one diverged; reported."""
    folder = build(
        tmp_path_factory.mktemp("norms") / "lean",
        norms=("in", "gn", "ln", "none"),
        seeds=1,
        recipes=(),
        diverged=[("none", 0)],
        unfinished=[("ln", 0)],
        predictions=False,
        data_kind="folder",
    )
    sections.report(folder)
    return folder


def rows_of(folder: Path, name: str) -> dict[str, dict]:
    return {row["norm"]: row for row in reports_of.rows_of(folder, name)}


def test_everything_is_written(full):
    tables = {"norms", "norms_by_seed", "recipes", "splits", "splits_lab"}
    found = {file.name for file in (full / "tables").iterdir()}
    assert found == {f"{name}.{kind}" for name in tables for kind in ("csv", "md", "tex")}
    drawn = {*CURVES, "sanity", "cost", "classes", "recipes", *(f"{c}_lab" for c in CURVES)}
    found = {file.name for file in (full / "figures").iterdir()}
    assert found == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}


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


def test_shown_tables_count_the_seeds(full):
    shown = (full / "tables" / "norms.md").read_text()
    assert "| 2 of 3 |" in shown
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) == 2 + len(NORMS)
    by_seed = (full / "tables" / "norms_by_seed.md").read_text()
    assert by_seed.count("| finished |") == 40
    assert by_seed.count("| diverged |") == 2


def test_text_answers_from_the_numbers(full):
    words = words_of(full)
    table = rows_of(full, "norms")
    best = float(table["bin"]["val_accuracy"]) * 100
    assert (
        f"bin (batch-instance norm) has the highest mean validation accuracy, {best:.1f}" in words
    )
    # own and torch's bn differ by 4e-5 * |cos(epoch)| in training accuracy, most in epoch 3
    assert "the largest difference is 0.00396 points in accuracy" in words
    assert "1 of 3 trials without normalisation did not survive training" in words
    assert "Over all epochs and trials here the two are equal" in words
    assert "Training minus validation accuracy at each trial's best epoch: " in words
    assert "Training values are of these weights, on the training images without" in words
    assert "sgd, learning rate 0.1" in words
    assert "good has 1,000 times as much" in words
    assert "It takes 6 epochs of 47 steps, 282 in all" in words
    assert "(guessing among 25 classes: 3.219)" in words
    assert "accuracy and macro-F1" in words
    assert f"stored scores of 40 trials ({IMAGES} validation images each)" in words
    assert "Other people's results" in words


def test_report_names_data_trouble_and_origin(full):
    words = words_of(full)
    assert "Synthetic data: generated images, not photographs." in words
    assert "2 of 42 trials failed or diverged" in words
    assert DIVERGED in words
    assert "0123456789abcdef0123456789abcdef01234567 with uncommitted changes" in words
    assert "1,500 in train (60 of each class) and 250 in val (10 of each class)" in words
    assert "1: train/Hoopoe/broken.jpg" in words
    assert "1: train/Hoopoe/1.jpg = val/Hoopoe/9.jpg" in words
    assert "python studies/norms.py --data-dir …/data --name x" in words
    assert "torch 2.15.0" in words
    assert "unfinished" not in words


def test_html_is_self_contained(full, lean):
    page = assert_self_contained((full / "report.html").read_text())
    assert len(page.named("svg")) == 14
    assert_self_contained((lean / "report.html").read_text())


def test_pdf_is_short(full, lean):
    for folder in (full, lean):
        assert 1 < reports.page_count((folder / "report.pdf").read_bytes()) <= 10


def test_no_artefact_holds_an_absolute_path(full):
    files = [full / "report.html", full / "report.pdf"]
    files += [*(full / "tables").iterdir(), *(full / "figures").iterdir()]
    for file in files:
        content = file.read_bytes()
        for path in (str(full), str(ROOT), "/home/someone"):
            assert path.encode() not in content, file.name


@pytest.mark.slow
def test_a_copy_without_engine_files_gives_the_same_bytes(full, tmp_path):
    copy = tmp_path / "another place" / "copy"
    copy.mkdir(parents=True)
    for name in ("study.json", "trials.csv", "history.csv"):
        shutil.copy(full / name, copy)
    shutil.copytree(full / "predictions", copy / "predictions")
    sections.report(copy)
    written = ["report.html", "report.pdf"]
    for kind in ("tables", "figures"):
        written += [f"{kind}/{file.name}" for file in (full / kind).iterdir()]
    assert len(written) == 2 + 15 + 28
    for name in written:
        assert (copy / name).read_bytes() == (full / name).read_bytes(), name


def test_one_seed_without_bn_and_with_missing_trials(lean):
    words = words_of(lean)
    assert "The study is unfinished: 3 of 4 trials have run." in words
    assert "1 of 4 trials failed or diverged" in words
    assert "No trial of bn finished, so there are no differences to it." in words
    assert "bn and torch_bn did not both finish" in words
    assert "One seed: there is no interval" in words
    assert "one seed gives no interval, so it may be chance" in words and "leads" not in words
    assert "1 of 1 trials without normalisation did not survive" in words
    assert "No scores are stored" in words
    assert "Synthetic" not in words
    table = rows_of(lean, "norms")
    assert list(table)[:2] == ["in", "gn"]
    assert table["in"]["val_accuracy_low"] == table["in"]["p"] == ""
    assert not (lean / "tables" / "recipes.csv").exists()
    assert not (lean / "figures" / "sanity.svg").exists()


def test_a_study_without_any_finished_trial_is_reported(tmp_path, capsys):
    folder = build(
        tmp_path / "x", norms=("bn", "in"), seeds=1, diverged=[("bn", 0)], unfinished=[("in", 0)]
    )
    sections.report(folder)
    assert "None of 2 trials finished." in words_of(folder)
    assert "None of 2 trials finished." in capsys.readouterr().out


def test_headline_fits_100_columns(full):
    out = io.StringIO()
    table = sections.norm_table(sections.main_recipe(load(full)))
    tables.print_table(sections.headline(table), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split()[0] for line in lines if line.split() and line.split()[0] in NORMS]
    assert rows == list(rows_of(full, "norms"))
    assert any("2 of 3" in line for line in lines)


def test_scores_that_do_not_belong_to_the_metrics_are_noticed(tmp_path):
    folder = build(tmp_path / "x", norms=("bn", "in"), seeds=1)
    right = sections.recompute(load(folder))
    assert (right.trials, right.images) == (2, IMAGES)
    assert right.largest("val_accuracy") == 0 and right.largest("val_macro_f1") < 1e-12
    assert "do not belong" not in answers.recomputed(right)
    history = pd.read_csv(folder / "history.csv", keep_default_na=False)
    best = pd.read_csv(folder / "trials.csv", keep_default_na=False).best_epoch[1]
    history.loc[(history.norm == "in") & (history.epoch == best), "val_accuracy"] += 0.01
    history.to_csv(folder / "history.csv", index=False)
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
    sections.report(folder)
    results = load(folder)
    for table in (results.trials, results.history):
        assert "train_accuracy" not in table and "train_loss_running" in table
    assert sections.recompute(results).largest("val_accuracy") == 0
    words = words_of(folder)
    assert "Training values are running ones" in words and "augmented images" in words
    best = results.trials.set_index("trial").best_epoch
    rows = results.history[results.history.epoch == results.history.trial.map(best)]
    running = rows[rows.norm == "in"].train_accuracy_running.mean()
    found = float(rows_of(folder, "splits")["in"]["best_train_accuracy"])
    assert found == pytest.approx(running, abs=1e-12)


def test_differences_of_own_and_torch_bn_are_taken_per_seed_and_epoch(full):
    found = sections.own_against_torch(sections.main_recipe(load(full)))
    assert len(found) == 3 * 6
    largest = found["train_accuracy_running"].abs().max()
    assert largest == pytest.approx(4e-5 * 0.98999, rel=1e-4)
    assert found["val_accuracy"].abs().max() == 0


def test_recall_per_class_of_the_best_trials(full):
    recalls, matrix = sections.class_recall(sections.main_recipe(load(full)))
    assert list(recalls.index) == list(SPECIES)
    assert set(recalls.columns) == set(NORMS)
    assert matrix.sum() == IMAGES
    best = float(load(full).trials["best_val_accuracy"].max())
    assert recalls["bin"].mean() == pytest.approx(best)


def test_damage_is_one_sentence_for_the_user(tmp_path):
    folder = build(tmp_path / "x", norms=("bn",), seeds=1)
    (folder / "study.json").write_text(json.dumps({"study": "norms"}))
    with pytest.raises(UserError, match=r"study\.json lacks question"):
        sections.report(folder)


@pytest.mark.browser
def test_a_browser_shows_it_without_a_request_or_sideways_scrolling(full):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    address = (full / "report.html").as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(address)
        for width in (390, 1200):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == 14
        browser.close()
    assert asked == [address]
    assert said == []
