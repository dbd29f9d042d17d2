"""The birds trainable in this process, and the norms study on a few images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from analysis.results.folder import load_predictions
from core.data import images
from core.data.batches import Batches
from core.data.synthetic import birds as synthetic_birds
from core.errors import Diverged
from core.models.resnet import load_weights, resnet
from core.study import Study
from core.training.epoch import cross_entropy, evaluate
from core.training.recipe import LEARNING_RATES
from core.trial import records, run, running
from studies.norms import study
from tests.support.calls import assert_same_numbers, command, copied, silent, table, trained
from tests.support.faults import Lost, losing
from trainables.birds import describe_images, train_birds


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Four species, eight training and four validation pictures each."""
    root = tmp_path_factory.mktemp("birds")
    return synthetic_birds.make_birds(root / "set", 4, train_per_class=8, val_per_class=4)


def train(birds: Path, **settings) -> list[dict]:
    return trained(train_birds, config(birds, **settings))


def config(birds: Path, **settings) -> dict:
    small = {"norm": "bn", "n": 1, "image_size": 16, "epochs": 2, "batch_size": 10}
    return small | {"data_dir": str(birds)} | settings


@pytest.mark.parametrize("norm", ["torch_bn", "bn", "in", "bin", "ln", "gn", "none"])
def test_every_norm_trains_and_reports_every_metric(birds, norm):
    rows = train(birds, norm=norm)
    assert [row["epoch"] for row in rows] == [1, 2]
    names = ("loss", "accuracy", "error", "micro_f1", "macro_f1")
    for row in rows:
        assert {n for name in names for n in (f"val_{name}", f"train_{name}_running")} < row.keys()
        assert not {f"train_{name}" for name in names} & row.keys()
        assert row["val_micro_f1"] == pytest.approx(row["val_accuracy"], abs=1e-12)


def test_own_batch_norm_learns_exactly_what_torchs_does(birds):
    runs = [train(birds, norm=norm, epochs=3) for norm in ("bn", "torch_bn")]
    for ours, torchs in zip(*runs, strict=True):
        assert ours == pytest.approx(torchs, abs=1e-3)


def test_one_seed_one_curve(birds):
    runs = [train(birds, seed=s, train_eval=True) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2] and "train_accuracy" in runs[0][0]


def test_recomputation_leaves_the_curve_as_it_is(birds):
    for plain, thrifty in zip(train(birds), train(birds, recompute=True), strict=True):
        assert thrifty == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_a_loss_that_explodes_names_epoch_step_and_learning_rate(birds):
    with pytest.raises(Diverged, match=r"epoch 1, step 2 \(lr 9\.\d+e\+07\)"):
        train(birds, norm="none", lr=1e8, warmup=0.0, max_norm=0.0, epochs=5)


def test_data_are_described_without_absolute_paths(birds):
    described = describe_images(config(birds))
    assert described["kind"] == "folder" and described["counts"]["train"]
    assert str(birds.parent) not in json.dumps(described)


def norms(birds: Path, results: Path, *arguments: str, study: Study = study) -> int:
    few = ["n=1", "image_size=16", "epochs=2", "batch_size=10", "norm=bn,torch_bn,none"]
    fixed = ["--data-dir", birds, "--set", *few, "--seeds", "2", "--name", "few"]
    return command(study, results, *fixed, *arguments)


@pytest.fixture(scope="module")
def finished(birds, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert norms(birds, results) == 0
    return results / "norms" / "few"


def test_predictions_give_the_reported_metrics_again(finished):
    trials = table(finished)
    history = table(finished, "history")
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


def scored(seen: images.ImageSet, n: int, norm: str, weights: Path) -> dict[str, float]:
    """Rebuild a network from its plain state dict and score images as they are."""
    model = resnet(n, len(seen.classes), norm)
    load_weights(model, weights)
    batches = Batches(seen, 10, torch.device("cpu")).epoch(0)
    return evaluate(model, batches, cross_entropy(len(seen.classes)), prefix="")[0]


def test_metrics_are_of_the_kept_weights_on_images_as_they_are(finished, birds):
    sets = images.load(birds, 16)
    for row in table(finished).itertuples():
        found = scored(sets["train"], 1, row.norm, finished / "trials" / row.trial / "best.pt")
        for name, value in found.items():
            assert getattr(row, f"best_train_{name}") == pytest.approx(value, abs=1e-12)
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    settings, weights = best["config"], finished / "checkpoints" / "best.pt"
    found = scored(sets["val"], settings["n"], settings["norm"], weights)
    assert settings["image_size"] == 16
    assert found["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-12)


def test_memory_is_that_of_a_step_not_of_a_process_that_has_grown(finished):
    """All six trials ran in this process; of one norm each takes the same, to the byte."""
    if torch.cuda.is_available():
        pytest.skip("a GPU has its own counter")
    trials = table(finished)
    peaks = trials.groupby("norm").peak_memory_mib.agg(["nunique", "first"])
    assert (peaks["nunique"] == 1).all()
    # The estimate counts gradients where activations peak; with images, momentum and the rest
    assert (trials.peak_memory_mib < 2 * trials.plain_mib).all()
    assert (trials.peak_memory_mib > 0.5 * trials.plain_mib).all()


def test_a_copied_folder_gives_the_same_tables_without_data_and_ray(finished, tmp_path):
    folder = copied(finished, tmp_path)
    assert command(study, tmp_path, "--name", "few", "--report-only") == 0
    tables = sorted((finished / "tables").iterdir())
    assert len(tables) >= 6
    for path in [*tables, finished / "report.html"]:
        same = folder / path.relative_to(finished)
        assert same.read_bytes() == path.read_bytes()


def test_the_report_is_whole_and_needs_no_network(finished):
    page = (finished / "report.html").read_text()
    assert "part lab-recipe repeats its text" in page  # what was left out is told
    for name in ("norms", "norms_by_seed"):
        assert all(
            (finished / "tables" / f"{name}.{kind}").is_file() for kind in ("csv", "md", "tex")
        )
    assert (finished / "report.pdf").read_bytes().startswith(b"%PDF")
    assert not re.search(r'(src=|<link[^>]*href=|url\()["\']?(https?:|//)', page)


def test_an_interrupted_birds_trial_goes_on_to_the_same_numbers(birds, finished, tmp_path):
    with losing(lambda seen: len(seen) == 3) as seen:  # the first epoch of the second trial
        with pytest.raises(Lost):
            norms(birds, tmp_path)
        assert norms(birds, tmp_path, "--resume", study=silent(study)) == 0
    assert len(seen) == 12  # six trials of two epochs, none twice
    assert_same_numbers(finished, tmp_path / "norms" / "few")


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
    history = table(folder, "history")
    splits = table(folder / "tables", "splits_lab")
    for metric in ("loss", "accuracy", "micro_f1", "macro_f1"):
        assert (folder / "figures" / f"{metric}.svg").is_file()
        for split in ("train", "val"):
            assert np.isfinite(history[f"{split}_{metric}"]).all()
            assert np.isfinite(splits[f"best_{split}_{metric}"]).all()
    page = (folder / "report.html").read_text()
    assert "running training" not in (folder / "figures" / "accuracy.svg").read_text()
    assert "sgd, learning rate 1e-4" in page
