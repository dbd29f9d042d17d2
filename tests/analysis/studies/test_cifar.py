"""The report of the CIFAR study, from folders whose numbers follow a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from analysis.results.folder import load
from analysis.studies.cifar import answers, sections
from tests.support import results as built
from tests.support.reports import assert_whole, rows_of, told, words_of

FORMS, RATES, SEEDS = ("none", "listing", "meant"), (0.01, 0.1), (0, 1, 2)
SETUPS = {
    "all": ("all", "printed", "frozen"),
    "layer4": ("layer4", "printed", "frozen"),
    "layer4, conv1 trained": ("layer4", "trained", "frozen"),
    "layer4, conv1 averaged": ("layer4", "averaged", "frozen"),
    "layer4, moving BN": ("layer4", "printed", "moving"),
    "head": ("head", "printed", "frozen"),
    "scratch": ("scratch", "printed", "frozen"),
}
TRAINED = {"all": 11_173_962, "scratch": 11_173_962, "layer4": 8_398_858, "head": 5_130}
DEFAULTS = {"bn": "meant", "lr": 0.05, "variant": "all", "conv1": "printed", "statistics": "frozen"}


def accuracy(place: int, seed: int, lr: float = 0.0) -> float:
    """The more a form or setup does, the better, the same for all seeds but for a small part."""
    return 0.6 + 0.04 * place + 0.01 * seed + 0.001 * ((place * 7 + seed * 3) % 5) + 0.2 * lr


def cnn_trial(bn: str, lr: float, seed: int) -> dict:
    config = DEFAULTS | {"model": "cnn", "bn": bn, "lr": lr, "seed": seed, "image_size": 32}
    value = accuracy(FORMS.index(bn), seed, lr)
    count = 62_006 if bn == "none" else 62_458
    facts = {"parameters": count, "trainable_parameters": count, "frozen_parameters": 0}
    facts["dead_parameters"] = 408 if bn == "listing" else 0
    facts["training_mode_accuracy"] = value - (0 if bn == "none" else 0.125)
    name = f"part=cnn,bn={bn},lr={lr},seed={seed}"
    return {"trial": name, "part": "cnn", "config": config, "value": value, "facts": facts}


def tuned_trial(setup: str, seed: int, broken: bool = False) -> dict:
    variant, conv1, moving = SETUPS[setup]
    config = DEFAULTS | {"model": "resnet18", "variant": variant, "conv1": conv1, "seed": seed}
    config |= {"statistics": moving, "image_size": 16}
    trained = TRAINED[variant] + (1_728 if conv1 == "trained" else 0)
    facts = {"parameters": 11_173_962, "trainable_parameters": trained, "dead_parameters": 0}
    facts["frozen_parameters"] = 11_173_962 - trained
    stays = {"weights": not broken, "statistics": moving == "frozen"}
    for what, kept in stays.items() if variant in ("layer4", "head") else ():
        facts[f"frozen_{what}_before"] = f"sha256:{what}{setup}{seed}"
        facts[f"frozen_{what}_after"] = f"sha256:{what}{setup}{seed}{'' if kept else 'x'}"
    name = f"part=resnet18,setup={list(SETUPS).index(setup)},seed={seed}"
    value = accuracy(7 - list(SETUPS).index(setup), seed)
    return {"trial": name, "part": "resnet18", "config": config, "value": value, "facts": facts}


def valued(planned: list[dict], *values: float) -> list[dict]:
    """Return the trials with these accuracies instead of the formula's."""
    return [entry | {"value": value} for entry, value in zip(planned, values, strict=True)]


def write(path: Path, planned: list[dict], failed: tuple[str, ...] = ()) -> Path:
    """Write study.json, trials.csv and history.csv with two epochs of every trial."""
    trials, history = [], []
    for number, entry in enumerate(planned):
        entry["config"] = config = entry["config"] | {"epochs": 2, "batch_size": 20}
        rows = []
        for epoch in (1, 2):
            value = entry["value"] - (0.1 if epoch == 1 else 0)
            row = {"trial": entry["trial"], "part": entry["part"], **config, "epoch": epoch}
            row |= {f"val_{m}": value for m in ("accuracy", "micro_f1", "macro_f1")}
            row |= {"train_accuracy_running": value + 0.05, "train_loss_running": 0.9 - value}
            row |= {"val_loss": 1 - value, "val_error": 1 - value}
            rows.append(row | {"seconds": 2.0 + epoch, "train_seconds": 1.0 + number % 3})
        history += rows
        last = {k: v for k, v in rows[-1].items() if k.startswith(("val_", "train_"))}
        last |= {"best_epoch": 2, "best_train_accuracy": value + 0.08}
        last |= {"best_train_loss": 0.8 - value, "peak_memory_mib": 100.0 + number}
        state = "failed" if entry["trial"] in failed else "finished"
        last |= {"error": "it broke"} if state == "failed" else {}
        trials.append(built.ended(entry, rows, 7.0, state, **entry["facts"], **last))
    keys = planned[0]["config"]
    grid = {key: list(dict.fromkeys(e["config"][key] for e in planned)) for key in keys}
    counts = {"train": dict.fromkeys("0123456789", 30), "val": dict.fromkeys("0123456789", 5)}
    data = {"kind": "embedded", "dataset": "digits", "weights": "embedded"}
    data |= {"description": "digits", "classes": list("0123456789"), "counts": counts}
    told = [{k: e[k] for k in ("trial", "part", "config")} for e in planned]
    study = built.declare("cifar", "What does batch norm bring?", told, grid=grid, data=data)
    return built.write(path, study, trials, history)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    planned = [tuned_trial(setup, seed) for setup in SETUPS for seed in SEEDS]
    planned += [cnn_trial(bn, lr, seed) for bn in FORMS for lr in RATES for seed in SEEDS]
    lost = "part=cnn,bn=listing,lr=0.1,seed=2"
    folder = write(tmp_path_factory.mktemp("cifar") / "full", planned, failed=(lost,))
    sections.report(folder)
    return folder


def cnn_rows(folder: Path) -> dict[tuple[str, float], dict[str, str]]:
    return {(row["bn"], float(row["lr"])): row for row in rows_of(folder, "cnn")}


def test_everything_is_written_and_needs_no_network(full):
    drawn = "cnn_val_accuracy cnn_train_loss resnet18_accuracy resnet18_cost"
    assert_whole(full, "cnn resnet18 frozen modes trials", drawn)


def test_the_cnns_table_is_that_of_the_trials(full):
    rows = cnn_rows(full)
    assert len(rows) == 6
    for (bn, lr), row in rows.items():
        seeds = SEEDS if (bn, lr) != ("listing", 0.1) else SEEDS[:2]
        values = [accuracy(FORMS.index(bn), seed, lr) for seed in seeds]
        assert float(row["val_accuracy"]) == pytest.approx(sum(values) / len(values), abs=1e-12)
        assert int(row["n"]) == len(seeds) and int(row["of"]) == 3
        if bn == "none":
            assert row["difference"] == ""
            continue
        plain = [accuracy(0, seed, lr) for seed in seeds]
        wanted = sum(v - p for v, p in zip(values, plain, strict=True)) / len(seeds)
        assert float(row["difference"]) == pytest.approx(wanted, abs=1e-12)
        assert float(row["p_holm"]) >= float(row["p"]) > 0
    assert float(rows["listing", 0.01]["dead_parameters"]) == 408


def test_the_setups_are_told_apart_and_ordered(full):
    rows = rows_of(full, "resnet18")
    assert [row["setup"] for row in rows] == list(SETUPS)
    kept = ["", "yes", "yes", "yes", "weights", "yes", ""]
    assert [row["unchanged"] for row in rows] == kept
    assert int(float(rows[1]["trainable_parameters"])) == 8_398_858
    assert int(float(rows[2]["trainable_parameters"])) == 8_398_858 + 1_728
    difference = [accuracy(6, s) - accuracy(7, s) for s in SEEDS]
    assert float(rows[1]["difference"]) == pytest.approx(sum(difference) / 3, abs=1e-12)


def test_the_answers_come_from_the_numbers(full):
    words = words_of(full)
    table = cnn_rows(full)
    lead = float(table["meant", 0.01]["difference"]) * 100
    assert f"at lr 0.01 meant beats none by +{lead:.1f} points (95 % interval" in words
    assert "They are 408 parameters of 62,458 that no gradient reaches" in words
    assert "changes the accuracy by up to −12.5 points" in words
    assert "without batch norm by 0 points" in words
    assert "layer4 trains 8,398,858 of 11,173,962 parameters" in words
    assert "In 15 of 15 trials with a frozen part every frozen weight is bit for bit" in words
    assert "in 12 of 12 so are the running statistics" in words
    assert "they moved in 3 of 3" in words
    assert "weights come from drawn birds, not from ImageNet" in words
    assert "1 of 39 trials failed" in words and "it broke" in words
    assert "300 training images, 50 for validation" not in words  # "and" joins two
    assert "300 training images and 50 for validation, 32x32 pixels, 2 epochs" in words
    assert "never used" in words and "94.82" in words


def store(folder: Path, trial: str, right: int, **epoch: int) -> float:
    """Write scores of which `right` of 50 are right; return the macro-F1 of scikit-learn."""
    labels = np.arange(50) % 10
    predicted = np.where(np.arange(50) < right, labels, (labels + 1) % 10)
    arrays = {"scores": np.eye(10, dtype=np.float32)[predicted] * 5, "labels": labels}
    files = [f"{i}.png" for i in range(50)]
    built.store(folder, trial, **arrays, files=files, classes=list("0123456789"), **epoch)
    return float(f1_score(labels, predicted, average="macro"))


def test_the_numbers_come_from_the_stored_scores_and_a_changed_file_is_told(tmp_path):
    planned = [cnn_trial(bn, 0.1, seed) for bn in ("none", "meant") for seed in (0, 1)]
    folder = write(tmp_path / "scores", valued(planned, 0.6, 0.64, 0.8, 0.82))
    for entry, right in zip(planned, (30, 32, 40, 41), strict=True):
        macro = store(folder, entry["trial"], right)
    results, checked = sections.recompute(load(folder))
    assert (checked.trials, checked.of) == (4, 4)
    row = results.trials.iloc[-1]
    assert row["val_accuracy"] == 0.82 and row["val_macro_f1"] == pytest.approx(macro, abs=1e-12)
    logits = np.array([5.0] + [0.0] * 9)
    loss = np.log(np.exp(logits).sum()) - 0.82 * 5  # a wrong one has 0 for the right class
    assert row["val_loss"] == pytest.approx(loss, rel=1e-6)
    store(folder, planned[0]["trial"], 45)  # trials.csv says 0.6
    words = told(sections.report, folder)
    assert float(cnn_rows(folder)["none", 0.1]["val_accuracy"]) == pytest.approx((0.9 + 0.64) / 2)
    assert f"val_accuracy of {planned[0]['trial']} by 0.3" in words
    assert "a stored file has been changed or is of another run" in words


def test_scores_of_another_epoch_are_held_against_that_epoch(tmp_path):
    planned = [cnn_trial("meant", 0.1, seed) for seed in (0, 1)]
    folder = write(
        tmp_path / "kept", valued(planned, 0.8, 0.8)
    )  # after epoch 2; 0.7 after the first
    for entry in planned:
        store(folder, entry["trial"], 35, epoch=1)
    results, checked = sections.recompute(load(folder))
    assert checked.worst["val_accuracy"][0] < 1e-12
    assert list(results.trials["val_accuracy"]) == [0.7, 0.7]
    assert results.trials["train_accuracy_running"].tolist() == pytest.approx([0.75, 0.75])
    cnn = results.where(model="cnn")
    assert sections.cnn_table(cnn).note.startswith("The epoch of the weights kept; ")
    limits = answers.limits(results, sections.cnn_numbers(cnn), pd.DataFrame())
    assert "chosen on the images shown" in limits


def test_meant_that_does_not_beat_none_is_said_so(tmp_path):
    planned = [cnn_trial(bn, 0.1, seed) for bn in ("none", "meant") for seed in SEEDS]

    def summary(name: str, *values: float) -> str:
        cnn = load(write(tmp_path / name, valued(planned, *values))).where(model="cnn")
        words = answers.summary(sections.cnn_numbers(cnn), pd.DataFrame())
        return words.replace("\u00a0", " ").replace("`", "")

    words = summary("even", 0.5, 0.6, 0.7, 0.65, 0.58, 0.69)
    assert "meant and none cannot be told apart: +4.0 points" in words
    assert "The highest mean of the small CNN" in words and "does best" not in words
    words = summary("worse", 0.5, 0.6, 0.7, 0.4, 0.5, 0.61)
    assert "meant is worse than none by −9.7 points" in words


def test_the_largest_change_by_forgetting_eval_whatever_its_sign_and_the_labs_floor():
    row = {"bn": "meant", "lr": 0.1, "difference": -0.01, "low": -0.02, "high": 0.0}
    gain = row | {"lr": 0.01, "difference": 0.05, "low": 0.01, "high": 0.09}
    said = answers.forgotten(pd.DataFrame([row, gain])).replace("\u00a0", " ")
    assert "by up to +5.0 points" in said and "lr 0.01" in said
    floors = {0.9999: "99\u00a0%", 0.57: "57\u00a0%", float("nan"): "-"}  # 100 * 0.57 < 57
    assert [answers.floored(value) for value in floors] == list(floors.values())


def test_one_seed_still_makes_a_report(tmp_path):
    assert "One seed" in told(sections.report, write(tmp_path, [cnn_trial("meant", 0.1, 0)]))


def test_a_changed_frozen_weight_is_shouted_also_of_one_seed(tmp_path):
    planned = [tuned_trial("all", 0), tuned_trial("layer4", 0, broken=True), tuned_trial("head", 0)]
    folder = write(tmp_path / "broken", planned)
    words = told(sections.report, folder)
    assert "In 1 of 2 trials with a frozen part" in words and "One seed" in words
    kept = {row["setup"]: row["unchanged"] for row in rows_of(folder, "resnet18")}
    assert kept == {"all": "", "layer4": "no", "head": "yes"}
    checked = sections.frozen_numbers(sections.tuned_part(load(folder)))
    assert answers.proof(checked).startswith("**")
    assert not (folder / "tables" / "cnn.csv").exists()
