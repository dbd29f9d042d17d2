"""The birds trainable in this process, and the norms study on a few images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from analysis.results.folder import load_predictions
from core.data import images
from core.data.synthetic import birds as synthetic_birds
from core.errors import Diverged, UserError
from core.study.command import command_line
from core.training.recipe import LEARNING_RATES
from core.trial import records, run, running
from studies.norms import study
from tests.support.faults import Lost, losing
from trainables.birds import Config, describe_images, train_birds


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Four species, eight training and four validation pictures each."""
    root = tmp_path_factory.mktemp("birds")
    return synthetic_birds.make_birds(root / "set", 4, train_per_class=8, val_per_class=4)


def config(birds: Path, **settings) -> dict:
    small = {"norm": "bn", "n": 1, "image_size": 16, "epochs": 2, "batch_size": 10}
    return small | {"data_dir": str(birds)} | settings


def train(settings: dict) -> list[dict]:
    rows: list[dict] = []
    train_birds(settings, report=rows.append)
    return rows


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("norm", ["torch_bn", "bn", "in", "bin", "ln", "gn", "none"])
def test_every_norm_trains_and_reports_every_metric(birds, norm):
    rows = train(config(birds, norm=norm))
    assert [row["epoch"] for row in rows] == [1, 2]
    names = ("loss", "accuracy", "error", "micro_f1", "macro_f1")
    for row in rows:
        assert {f"{n}" for name in names for n in (f"val_{name}", f"train_{name}_running")} < set(
            row
        )
        assert not {f"train_{name}" for name in names} & set(row)
        assert row["val_micro_f1"] == pytest.approx(row["val_accuracy"], abs=1e-12)


def test_own_batch_norm_learns_exactly_what_torchs_does(birds):
    runs = [train(config(birds, norm=norm, epochs=3)) for norm in ("bn", "torch_bn")]
    for ours, torchs in zip(*map(without_times, runs), strict=True):
        for key, value in torchs.items():
            assert ours[key] == pytest.approx(value, abs=1e-3), key


def test_one_seed_one_curve(birds):
    runs = [without_times(train(config(birds, seed=s))) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    "option",
    [{"recompute": True}, {"channels_last": True}, {"precision": "bfloat16"}, {"recipe": "lab"},
     {"train_eval": True}, {"augment": False}, {"train_images": 8, "val_images": 4}],
    ids=lambda option: ",".join(option),
)  # fmt: skip
def test_options_train(birds, option):
    rows = train(config(birds, epochs=1, **option))
    assert np.isfinite(rows[0]["train_loss_running"]) and np.isfinite(rows[0]["val_loss"])
    assert ("train_accuracy" in rows[0]) == ("train_eval" in option)


def test_recomputation_leaves_the_curve_as_it_is(birds):
    runs = [without_times(train(config(birds, recompute=r))) for r in (False, True)]
    for plain, thrifty in zip(*runs, strict=True):
        for key, value in plain.items():
            assert thrifty[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_a_loss_that_explodes_names_epoch_step_and_learning_rate(birds):
    with pytest.raises(Diverged, match=r"epoch 1, step 2 \(lr 9\.\d+e\+07\)"):
        train(config(birds, norm="none", lr=1e8, warmup=0.0, max_norm=0.0, epochs=5))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"lr": -1.0}, {"warmup": 1.0}, {"batch_size": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Config(**bad)


def test_data_are_described_without_absolute_paths(birds):
    described = describe_images(config(birds))
    assert described["kind"] == "folder" and described["counts"]["train"]
    assert str(birds.parent) not in json.dumps(described)


def norms(birds: Path, results: Path, *arguments: str) -> int:
    fixed = ["--local", "--data-dir", str(birds), "--results-dir", str(results), "--set", "n=1"]
    few = ["image_size=16", "epochs=2", "batch_size=10", "norm=bn,torch_bn,none"]
    return command_line(study, [*fixed, *few, "--seeds", "2", "--name", "few", *arguments])


@pytest.fixture(scope="module")
def finished(birds, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert norms(birds, results) == 0
    return results / "norms" / "few"


def test_predictions_give_the_reported_metrics_again(finished):
    trials = pd.read_csv(finished / "trials.csv", keep_default_na=False)
    history = pd.read_csv(finished / "history.csv", keep_default_na=False)
    assert len(trials) == 6 and set(trials.state) == {"finished"}
    for row in trials.itertuples():
        saved = load_predictions(finished, row.trial)
        assert saved.epoch == row.best_epoch == row.scores_epoch
        told = history[(history.trial == row.trial) & (history.epoch == saved.epoch)].iloc[0]
        predicted = saved.scores.argmax(1)
        accuracy = accuracy_score(saved.labels, predicted)
        assert accuracy == pytest.approx(told.val_accuracy, abs=1e-12)
        assert accuracy == pytest.approx(row.best_val_accuracy, abs=1e-12)
        macro = f1_score(saved.labels, predicted, average="macro")
        assert macro == pytest.approx(told.val_macro_f1, abs=1e-12)
        assert not any(str(name).startswith("/") for name in saved.files)
    assert (trials.best_epoch < trials.epochs_run).any()  # or the last epoch's would do as well


def test_training_metrics_are_of_the_kept_weights_on_images_as_they_are(finished, birds):
    from core.data.batches import Batches
    from core.models.resnet import load_weights, resnet
    from core.training.epoch import cross_entropy, evaluate

    trials = pd.read_csv(finished / "trials.csv", keep_default_na=False)
    seen = images.load(birds, 16)["train"]
    for row in trials.itertuples():
        model = resnet(1, len(seen.classes), row.norm)
        load_weights(model, finished / "trials" / row.trial / "best.pt")
        batches = Batches(seen, 10, torch.device("cpu"))
        found, _ = evaluate(model, batches.epoch(0), cross_entropy(len(seen.classes)), prefix="")
        for name, value in found.items():
            assert getattr(row, f"best_train_{name}") == pytest.approx(value, abs=1e-12)


def test_memory_is_that_of_a_step_not_of_a_process_that_has_grown(finished):
    """All six trials ran in this process; of one norm each takes the same, to the byte."""
    if torch.cuda.is_available():
        pytest.skip("a GPU has its own counter")
    trials = pd.read_csv(finished / "trials.csv", keep_default_na=False)
    peaks = trials.groupby("norm").peak_memory_mib.agg(["nunique", "first"])
    assert (peaks["nunique"] == 1).all()
    # The estimate counts gradients where activations peak; with images, momentum and the rest
    assert (trials.peak_memory_mib < 2 * trials.plain_mib).all()
    assert (trials.peak_memory_mib > 0.5 * trials.plain_mib).all()


def test_a_copied_folder_gives_the_same_tables_without_data_and_ray(finished, birds, tmp_path):
    copied = tmp_path / "results" / "norms" / "few"
    shutil.copytree(finished, copied)
    for gone in ("trials", "ray", "tensorboard", "tables", "figures", "report.html", "report.pdf"):
        path = copied / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    arguments = ["--results-dir", str(tmp_path / "results"), "--name", "few", "--report-only"]
    assert command_line(study, arguments) == 0
    tables = sorted((finished / "tables").iterdir())
    assert len(tables) >= 6
    for table in tables:
        assert (copied / "tables" / table.name).read_bytes() == table.read_bytes()
    assert (copied / "report.html").read_bytes() == (finished / "report.html").read_bytes()


def test_the_report_is_whole_and_needs_no_network(finished):
    page = (finished / "report.html").read_text()
    assert "part lab-recipe repeats its text" in page  # what was left out is told
    for name in ("norms", "norms_by_seed"):
        assert all(
            (finished / "tables" / f"{name}.{kind}").is_file() for kind in ("csv", "md", "tex")
        )
    assert (finished / "report.pdf").read_bytes().startswith(b"%PDF")
    assert not re.search(r'(src=|<link[^>]*href=|url\()["\']?(https?:|//)', page)


def test_best_weights_score_what_the_table_says(finished, birds):
    """Rebuild the best network from its plain state dict and score the validation images."""
    from core.data.batches import Batches
    from core.models.resnet import load_weights, resnet
    from core.training.epoch import cross_entropy, evaluate

    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    settings = best["config"]
    sets = images.load(birds, settings["image_size"])
    model = resnet(settings["n"], len(sets["val"].classes), settings["norm"])
    load_weights(model, finished / "checkpoints" / "best.pt")
    batches = Batches(sets["val"], 10, torch.device("cpu"))
    metrics, _ = evaluate(model, batches.epoch(0), cross_entropy(len(sets["val"].classes)))
    assert metrics["val_accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-12)


def test_an_interrupted_birds_trial_goes_on_to_the_same_numbers(birds, finished, tmp_path):
    with losing(lambda seen: len(seen) == 3) as seen:  # the first epoch of the second trial
        with pytest.raises(Lost):
            norms(birds, tmp_path)
        assert norms(birds, tmp_path, "--resume") == 0
    assert len(seen) == 12  # six trials of two epochs, none twice
    again = pd.read_csv(tmp_path / "norms" / "few" / "history.csv", keep_default_na=False)
    whole = pd.read_csv(finished / "history.csv", keep_default_na=False)
    columns = [c for c in whole.columns if c != "seconds"]
    pd.testing.assert_frame_equal(again[columns], whole[columns], check_exact=True)
    both = [
        pd.read_csv(folder / "trials.csv", keep_default_na=False).drop(
            columns=["seconds", "seconds_per_epoch"]
        )
        for folder in (tmp_path / "norms" / "few", finished)
    ]
    pd.testing.assert_frame_equal(*both, check_exact=True)
    for stored in (finished / "predictions").iterdir():
        one, other = (load_predictions(p, stored.stem) for p in (tmp_path / "norms/few", finished))
        assert one.epoch == other.epoch and (one.scores == other.scores).all()


def test_a_repeated_validation_image_is_told(birds, tmp_path):
    copied = tmp_path / "birds"
    shutil.copytree(birds, copied)
    name = next((copied / "train").iterdir())
    shutil.copy(next(name.glob("*.jpg")), copied / "val" / name.name / "again.jpg")
    assert describe_images(config(copied))["duplicates"] == 1


# --- optimisers ---


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_every_optimizer_comes_with_its_learning_rate(birds, name, tmp_path):
    """Of the recipe good the table's, of the lab's text 1e-4; one set by hand goes before both."""

    def noted(**settings) -> tuple[float, float]:
        asked = config(birds, optimizer=name, epochs=1, **settings)
        number = len(list(tmp_path.glob("trials/*")))
        spec = running.Spec(f"{number}", asked, {}, tmp_path, "val_accuracy", "max")
        run.run(train_birds, spec, lambda row: None)
        facts = (records.read_result(spec.folder) or {})["facts"]
        return facts["base_lr"], records.read_rows(spec.folder)[0]["train_loss_running"]

    found = [noted(), noted(recipe="lab"), noted(lr=0.007), noted(recipe="lab", lr=0.007)]
    rates = [rate for rate, _ in found]
    assert rates == [LEARNING_RATES[name], 1e-4, 0.007, 0.007]
    assert all(np.isfinite(loss) for _, loss in found)


def test_the_literal_recipe_scores_both_splits_after_each_epoch(birds, tmp_path):
    """Loss, accuracy and both F1 of fixed weights on training images too, as curves and table."""
    assert norms(birds, tmp_path, "--part", "lab-recipe", "--set", "norm=bn", "--seeds", "1") == 0
    folder = tmp_path / "norms" / "few"
    history = pd.read_csv(folder / "history.csv", keep_default_na=False)
    table = pd.read_csv(folder / "tables" / "splits_lab.csv")
    for split in ("train", "val"):
        for metric in ("loss", "accuracy", "micro_f1", "macro_f1"):
            assert np.isfinite(history[f"{split}_{metric}"]).all()
            assert np.isfinite(table[f"best_{split}_{metric}"]).all()
            assert (folder / "figures" / f"{metric}.svg").is_file()
    page = (folder / "report.html").read_text()
    assert "running training" not in (folder / "figures" / "accuracy.svg").read_text()
    assert "sgd, learning rate 1e-4" in page
