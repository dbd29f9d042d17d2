"""A result folder read back: types, duplicates, missing trials, damage."""

import csv
import json

import numpy as np
import pytest

from analysis.results.folder import load, load_predictions
from core.errors import UserError
from tests.support.results import DIVERGED, IMAGES, SPECIES
from tests.support.results import norms as build


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path / "study", norms=("bn", "none", "in"), seeds=2, epochs=3)


def test_text_and_numbers_keep_their_types(folder):
    results = load(folder)
    assert list(results.trials["norm"]) == ["bn", "bn", "none", "none", "in", "in"]
    assert results.trials["seed"].dtype.kind == "i"
    assert results.history["val_loss"].dtype == float
    assert results.levels("norm") == ["bn", "none", "in"]
    assert results.levels("seed") == [0, 1]
    assert results.levels("no such key") == []
    assert set(results.history["norm"]) == {"bn", "none", "in"}


def test_cells_that_only_look_like_numbers_stay_text(folder):
    text = (folder / "trials.csv").read_text()
    (folder / "trials.csv").write_text(text.replace(",good,", ",1_000,"))
    assert set(load(folder).trials["recipe"]) == {"good"}  # the declaration decides on grid keys
    study = json.loads((folder / "study.json").read_text())
    del study["grid"]["recipe"]
    for entry in study["trials"]:
        del entry["config"]["recipe"]
    (folder / "study.json").write_text(json.dumps(study))
    assert set(load(folder).trials["recipe"]) == {"1_000"}


def test_numbers_are_read_bit_for_bit(folder):
    row = load(folder).history.iloc[0]
    with (folder / "history.csv").open() as file:
        written = next(csv.DictReader(file))
    for key in ("train_loss_running", "val_accuracy", "lr"):
        assert float(written[key]) == row[key]


def test_an_epoch_told_twice_counts_once_with_its_last_values(folder):
    with (folder / "history.csv").open(newline="") as file:
        again = next(csv.DictReader(file)) | {"val_loss": "9.5"}
    with (folder / "history.csv").open("a", newline="") as file:
        csv.DictWriter(file, list(again), lineterminator="\n").writerow(again)
    history = load(folder).history
    trial = history[history["trial"] == again["trial"]]
    assert list(trial[trial["epoch"] == 1]["val_loss"]) == [9.5]
    assert list(trial["epoch"]) == [1, 2, 3]


def test_a_setting_is_read_as_set_where_older_tables_hold_the_last_epoch(folder):
    study = json.loads((folder / "study.json").read_text())
    for number, entry in enumerate(study["trials"]):
        entry["config"]["lr"] = 0.05 if number else None  # left to the recipe
    (folder / "study.json").write_text(json.dumps(study))
    with (folder / "trials.csv").open() as file:
        assert {row["lr"] for row in csv.DictReader(file)} != {"0.05", ""}
    rates = load(folder).trials["lr"]
    assert np.isnan(rates[0]) and set(rates[1:]) == {0.05}
    assert load(folder).history["lr"].iloc[0] == 0.1


def test_declared_trials_without_a_row_are_unfinished(tmp_path):
    folder = build(tmp_path / "x", norms=("bn", "ln"), seeds=2, unfinished=[("ln", 0)])
    trials = load(folder).trials
    assert list(trials["state"]) == ["finished", "finished", "unfinished", "finished"]
    missing = trials.iloc[2]
    assert (missing["norm"], missing["seed"]) == ("ln", 0)
    assert np.isnan(missing["val_accuracy"])


def test_a_grid_over_lr_is_not_mixed_with_the_rate_of_an_epoch(folder):
    study = json.loads((folder / "study.json").read_text())
    study["grid"]["lr"] = [0.5]
    for entry in study["trials"]:
        entry["config"]["lr"] = 0.5
    (folder / "study.json").write_text(json.dumps(study))
    results = load(folder)
    assert set(results.trials["lr"]) == {0.5}
    assert results.history["lr"].iloc[0] == 0.1


def test_where_cuts_trials_and_history(folder):
    part = load(folder).where(norm="in", seed=1)
    assert list(part.trials["trial"]) == ["norm=in,seed=1,recipe=good"]
    assert set(part.history["trial"]) == {"norm=in,seed=1,recipe=good"}
    assert len(part.history) == 3


def test_failed_trials_carry_their_reason(tmp_path):
    results = load(build(tmp_path / "x", norms=("none",), epochs=4))
    assert list(results.trials["state"]) == ["finished", "finished", "diverged"]
    assert results.trials["error"].iloc[2] == DIVERGED


@pytest.mark.parametrize("name", ["study.json", "trials.csv", "history.csv"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load(folder)


@pytest.mark.parametrize("name", ["study.json", "trials.csv", "history.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"study": "norms"}\n'])
def test_a_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load(folder)


@pytest.mark.parametrize("name", ["trials.csv", "history.csv"])
def test_a_row_cut_off_is_named_with_its_number(folder, name):
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(lines)[:-30])
    with pytest.raises(UserError, match=rf"{name}.*row {len(lines)} "):
        load(folder)


def test_no_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="not a result folder"):
        load(tmp_path / "nothing")


def test_an_unknown_state_is_refused(folder):
    text = (folder / "trials.csv").read_text()
    (folder / "trials.csv").write_text(text.replace(",finished,", ",perhaps,", 1))
    with pytest.raises(UserError, match="perhaps"):
        load(folder)


def test_a_table_with_byte_order_mark_and_windows_line_ends_reads_the_same(folder):
    before = load(folder)
    for name in ("trials.csv", "history.csv"):
        text = (folder / name).read_text()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    after = load(folder)
    assert after.trials.equals(before.trials)
    assert after.history.equals(before.history)


def test_predictions_are_read_with_names(folder):
    stored = load_predictions(folder, "norm=bn,seed=0,recipe=good")
    assert stored.scores.shape == (IMAGES, len(SPECIES))
    assert stored.classes == SPECIES
    assert stored.files[1] == "val/Brown-Headed Barbet/0001.jpg"
    assert stored.config["norm"] == "bn"
    assert load(folder).with_predictions() == list(load(folder).trials["trial"])


def test_damaged_or_pickled_predictions_are_refused(folder):
    name = "norm=bn,seed=0,recipe=good"
    file = folder / "predictions" / f"{name}.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=name):
        load_predictions(folder, name)
    np.savez_compressed(file, scores=np.zeros((400, 9)))
    content = bytearray(file.read_bytes())
    content[60:90] = b"\xff" * 30  # within the compressed stream: zlib's own error
    file.write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_predictions(folder, name)
    np.savez(file, scores=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=name):
        load_predictions(folder, name)
    file.unlink()
    with pytest.raises(UserError, match=name):
        load_predictions(folder, name)


def test_scores_that_are_not_finite_are_refused(folder):
    name = "norm=bn,seed=0,recipe=good"
    file = folder / "predictions" / f"{name}.npz"
    with np.load(file) as stored:
        content = dict(stored)
    content["scores"][3, 2] = np.nan
    np.savez(file, **content)
    with pytest.raises(UserError, match="not finite"):
        load_predictions(folder, name)
