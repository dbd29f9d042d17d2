"""The VOC report: its numbers against direct computation, its bytes, its words."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from analysis.document import report as reports
from analysis.results.folder import load, load_predictions
from analysis.studies.voc import answers, pictures, sections, tail_accuracy
from core.errors import UserError
from tests.support import results as built
from tests.support.reports import table_of, told, words_of


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LABTUNE_AUTHOR", "Ada *Lovelace*, 123456")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return built.draw_images(tmp_path_factory.mktemp("data") / "root", 60)


@pytest.fixture(scope="module")
def full(tmp_path_factory, root, cache):
    """Two seeds, two folds of each, with images; reported."""
    study = build(tmp_path_factory.mktemp("full"), root, folds=2)
    sections.report(study)
    return study


def build(path, root=None, **options):
    study = built.voc(path / "voc" / "demo", **{"images": 60, **options})
    if root is not None:
        (study / ".private.json").write_text(json.dumps({"data_dir": str(root)}))
    return study


def scores_of(study, seed):
    return load_predictions(study, f"seed={seed}")


def aps_of(scores, labels) -> list[float]:
    """Average precision of each class that occurs, by scikit-learn."""
    counted = [(scores[labels[:, c] != 0, c], labels[labels[:, c] != 0, c]) for c in range(5)]
    return [average_precision_score(y == 1, x) for x, y in counted if (y == 1).any()]


def test_class_table_against_sklearn_and_by_hand(tmp_path):
    study = build(tmp_path, undefined="sofa")
    shown = told(sections.report, study)
    table = table_of(study, "average_precision").set_index("class")
    aps = [aps_of(stored.scores, stored.labels) for stored in map(scores_of, [study] * 2, (0, 1))]
    np.testing.assert_allclose(table["ap"].iloc[:4], np.mean(aps, axis=0), rtol=1e-12)
    assert np.isnan(table.loc["sofa", "ap"]) and table.loc["sofa", "images"] == 0
    mean = np.mean([np.mean(ap) for ap in aps])  # over the four classes that occur
    assert table.loc["mean over classes", "ap"] == pytest.approx(mean, rel=1e-12)
    best = scores_of(study, int(np.argmax(np.mean(aps, axis=1))))
    counted = best.labels != 0
    right = ((best.scores > 0) == (best.labels == 1))[counted].mean()
    assert table.loc["mean over classes", "accuracy"] == pytest.approx(right, rel=1e-12)
    no = (best.labels == -1).sum() / counted.sum()
    assert table.loc["mean over classes", "all_negative"] == pytest.approx(no, rel=1e-12)
    assert "No validation image shows sofa" in shown and "over 4 classes" in shown
    assert f"{100 * right:.1f}" in shown and f"{100 * no:.1f}" in shown
    assert "is what was reported, to the last digit" in shown


def test_tail_table_is_of_the_best_trial(full):
    table = table_of(full, "tail_accuracy")
    scored = sections.scored_trials(load(full))
    best = max(scored, key=lambda one: one.mean).stored
    found = tail_accuracy.tail_accuracy(best.scores, best.labels, table["threshold"].to_numpy())
    np.testing.assert_allclose(table["tail_accuracy"], found.mean)
    np.testing.assert_array_equal(table["images"], found.counts.sum(axis=1))
    assert table["threshold"].iloc[0] == 0 and 10 <= len(table) <= 20
    assert "tail is empty and its accuracy undefined" in words_of(full)


def test_folds_against_the_contract(full):
    numbers = sections.fold_numbers(load(full))
    assert numbers is not None and numbers["seed"].tolist() == [0, 1]
    for seed in (0, 1):
        stored = []
        for fold in range(2):
            with np.load(full / "predictions" / f"part=folds,fold={fold},seed={seed}.npz") as npz:
                stored.append(dict(npz))
        heldout = np.mean(
            [[np.mean(aps_of(s, x["labels"])) for s in x["heldout_scores"]] for x in stored], axis=0
        )
        epoch = int(heldout.argmax())
        averaged = np.mean([one["val_scores"][epoch].astype(float) for one in stored], axis=0)
        proper = np.mean(aps_of(averaged, stored[0]["val_labels"]))
        row = numbers[numbers["seed"] == seed].iloc[0]
        assert row["epoch"] == epoch + 1
        assert row["heldout"] == pytest.approx(heldout[epoch], rel=1e-9)
        assert row["proper"] == pytest.approx(proper, rel=1e-9)
        history = pd.read_csv(full / "history.csv")
        main = history[(history["trial"] == f"part=main,seed={seed}")].set_index("epoch")["val_map"]
        assert row["shortcut"] == main.max() and row["same_epoch"] == main[epoch + 1]
    shown = words_of(full)
    gap = 100 * (numbers["shortcut"] - numbers["proper"]).mean()
    assert f"Difference (short cut minus proper): {gap:+.1f} points".replace("-", "−") in shown
    assert "mean (2)" in shown


def test_a_seed_with_a_failed_fold_is_left_out(full, tmp_path):
    study = shutil.copytree(full, tmp_path / "failed")
    with built.edited(study / "trials.csv") as table:
        table.loc[table["trial"] == "part=folds,fold=1,seed=0", "state"] = "failed"
    numbers = sections.fold_numbers(load(study))
    assert numbers is not None and numbers["seed"].tolist() == [1]
    better = numbers.assign(same_epoch=numbers["shortcut"] - 0.01)
    stopped = pd.concat([better, better.assign(seed=2, same_epoch=np.nan)])
    assert "which alone makes +1.00 points (the" in answers.folds(stopped, {})
    assert "choosing on val (the" in answers.folds(stopped[1:], {})
    assert sections.fold_numbers(load(build(tmp_path / "other"))) is None


@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes(full, tmp_path, root):
    """Times, memory and where results go differ between two runs; nothing else may."""
    again = build(tmp_path, root, folds=2, seconds=47.5)
    with built.edited(again / "study.json") as study:
        study["command"] += ["--name", "again", "--results-dir=/tmp/else", "--local"]
        study["slots"] = None
    sections.report(again)
    given = ("study.json", "trials.csv", "history.csv", ".private.json")
    files = [path for path in full.rglob("*") if path.is_file() and path.name not in given]
    compared = [path.relative_to(full) for path in files]
    assert {"report.html", "report.pdf"} <= {str(path) for path in compared}
    for path in compared:
        assert (full / path).read_bytes() == (again / path).read_bytes(), path


def test_the_report_answers_what_the_lab_asks(full):
    shown = words_of(full)
    for asked in (
        "Author: Ada *Lovelace*, 123456", "2,565 new parameters", "Learning rate",
        "binary_cross_entropy_with_logits", "rises linearly over the first 10", "half a cosine",
        "SGD with Nesterov momentum, batches of 16", "Why accuracy misleads", "weight_decay",
        "Why do the top 50 look good", "the rule of the official development kit",
        "two submissions a week", "Versions", "python 3.11.7", "Seeds 0, 1", "84.46",
        "the 10 highest scores",
    ):  # fmt: skip
        assert asked in shown, asked
    pages = reports.page_count((full / "report.pdf").read_bytes())
    assert 2 <= pages <= 10
    page = (full / "report.html").read_text()
    assert str(full.parents[1]) not in page and "/home/someone" not in page
    for name in ("curves", "tail_accuracy"):
        assert (full / "figures" / f"{name}.svg").is_file()


@pytest.mark.slow
def test_twenty_classes_fit_ten_pages(tmp_path, root):
    classes = tuple(f"class {number:02d}" for number in range(20))
    study = build(tmp_path, root, folds=2, classes=classes)
    told(sections.report, study, pdf=True)
    assert 2 <= reports.page_count((study / "report.pdf").read_bytes()) <= 10


def test_sheets_show_the_ten_highest_and_lowest(tmp_path, root):
    study = build(tmp_path, root)
    stored = scores_of(study, 0)
    ap = np.array([0.5, np.nan, 0.5, 0.5, 0.5])
    chosen = pictures.drawn_classes(ap)
    assert len(chosen) == 3 and 1 not in chosen and sorted(chosen) == list(chosen)
    section = pictures.section(load(study), "seed=0", stored, ap)
    assert len(section.blocks) == 4
    files = sorted((study / "figures").glob("ranked_*.jpg"))
    assert len(files) == 3
    made = [file.read_bytes() for file in files]
    # a copy without the images shows what was drawn from the same scores
    shutil.copytree(study, tmp_path / "copy", ignore=shutil.ignore_patterns(".private.json"))
    copied = pictures.section(load(tmp_path / "copy"), "seed=0", stored, ap)
    assert len(copied.blocks) == 4
    # other scores: those sheets would be wrong, and there are no images to draw them anew
    other = scores_of(study, 1)
    said = pictures.section(load(tmp_path / "copy"), "seed=1", other, ap).blocks
    assert len(said) == 1 and "images are not on this machine" in said[0].text
    assert [file.read_bytes() for file in files] == made


def test_one_seed_has_no_interval_and_lost_images_labels_and_scores_are_said(tmp_path):
    study = build(tmp_path, tmp_path / "root", seeds=1)
    (tmp_path / "root").mkdir()
    with built.edited(study / "trials.csv") as table:
        table["best_val_map"] -= 0.01
    shown = told(sections.report, study)
    assert "one trial" in shown and "mean over seeds" not in shown
    assert "no longer where the study found them" in shown
    assert "do not belong to the reported metrics" in shown
    nothing = pictures.section(load(study), "seed=0", scores_of(study, 0), np.full(5, np.nan))
    assert "nothing to show" in nothing.blocks[0].text
    shutil.rmtree(study / "predictions")
    with pytest.raises(UserError, match="no trial has ended with stored scores"):
        sections.report(study)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"loss": "bce", "class_weights": "none"}, ["sigma", "binary_cross_entropy_with_logits"]),
        ({"loss": "bce", "class_weights": "balanced"}, ["w_c", "pos_weight=weight"]),
        ({"loss": "asymmetric", "class_weights": "none"}, ["gamma_-", "FOCUS_ABSENT"]),
    ],
)
def test_loss_formula_and_code_follow_the_config(config, found):
    tex, _ = answers.loss_formula(config)
    code = answers.loss_code(config)
    assert found[0] in tex and found[1] in code and '"""' not in code
    assert reports.figures.equation(tex).startswith("<?xml")


@pytest.mark.parametrize("running", [True, False])
def test_training_curves_are_drawn_and_named_for_what_they_are(full, tmp_path, running):
    results = replace(load(full), path=tmp_path)
    if not running:  # as with train_eval=true
        names = {f"train_{m}_running": f"train_{m}" for m in ("loss", "map", "accuracy")}
        results = replace(results, history=results.history.rename(columns=names))
    drawn = sections.curve_figure(results)
    assert drawn is not None and ("running" in drawn.caption) == running
    assert drawn.path.read_text().count("stroke-dasharray") >= 2  # the training lines


def test_a_tail_that_does_not_rise_is_not_explained_away():
    scores, labels = np.array([[1.0], [2.0], [3.0]]), np.array([[1], [1], [-1]])
    falling = tail_accuracy.tail_accuracy(scores, labels, np.array([0.0, 2.5]))
    assert "Here it does not rise" in answers.tail(falling, 0.5)
    rising = tail_accuracy.tail_accuracy(scores, -labels, np.array([0.0, 2.5]))
    assert "does not rise" not in answers.tail(rising, 0.5)
    empty = tail_accuracy.tail_accuracy(scores, labels, np.array([9.0]))
    assert "no tail to look at" in answers.tail(empty, 0.5)


@pytest.mark.parametrize("shape", ["cosine", "step", "constant"])
def test_schedules_are_said(shape):
    said = answers.schedule({"lr": 0.01, "head_lr": None, "warmup": 0.0, "schedule": shape})
    assert "0.01 for the body and 0.1 for the last layer" in said and "rises" not in said
