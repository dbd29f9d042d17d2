"""A result folder read back: types, duplicates, missing trials, damage."""

import csv
import shutil

import numpy as np
import pytest

from analysis.results.folder import load, load_predictions
from core.errors import UserError
from tests.support.results import DIVERGED, IMAGES, SPECIES, edited
from tests.support.results import norms as build

FILES = ("study.json", "trials.csv", "history.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    return build(folder, norms=("bn", "none", "in"), seeds=2, epochs=3)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "study")


def test_text_and_numbers_keep_their_types(whole):
    results = load(whole)
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
    with edited(folder / "study.json") as study:
        del study["grid"]["recipe"]
        for entry in study["trials"]:
            del entry["config"]["recipe"]
    assert set(load(folder).trials["recipe"]) == {"1_000"}


def test_numbers_are_read_bit_for_bit_and_an_epoch_told_twice_with_its_last_values(folder):
    row = load(folder).history.iloc[0]
    with (folder / "history.csv").open(newline="") as file:
        written = next(csv.DictReader(file))
    for key in ("train_loss_running", "val_accuracy", "lr"):
        assert float(written[key]) == row[key]
    with (folder / "history.csv").open("a", newline="") as file:
        again = csv.DictWriter(file, list(written), lineterminator="\n")
        again.writerow(written | {"val_loss": "9.5"})
    history = load(folder).history
    trial = history[history["trial"] == written["trial"]]
    assert list(trial[trial["epoch"] == 1]["val_loss"]) == [9.5]
    assert list(trial["epoch"]) == [1, 2, 3]


def test_a_setting_is_read_as_set_not_as_the_rate_of_the_last_epoch(folder):
    with edited(folder / "study.json") as study:
        for number, entry in enumerate(study["trials"]):
            entry["config"]["lr"] = 0.05 if number else None  # left to the recipe
    with (folder / "trials.csv").open() as file:
        assert {row["lr"] for row in csv.DictReader(file)} != {"0.05", ""}
    rates = load(folder).trials["lr"]
    assert np.isnan(rates[0]) and set(rates[1:]) == {0.05}
    with edited(folder / "study.json") as study:
        study["grid"]["lr"] = [0.05]
        study["trials"][0]["config"]["lr"] = 0.05
    results = load(folder)
    assert set(results.trials["lr"]) == {0.05} and results.history["lr"].iloc[0] == 0.1


def test_declared_trials_without_a_row_are_unfinished_and_failed_ones_carry_their_reason(tmp_path):
    broken = {"unfinished": [("ln", 0)], "diverged": [("ln", 1)]}
    trials = load(build(tmp_path / "x", norms=("bn", "ln"), seeds=2, **broken)).trials
    assert list(trials["state"]) == ["finished", "finished", "unfinished", "diverged"]
    missing = trials.iloc[2]
    assert (missing["norm"], missing["seed"]) == ("ln", 0)
    assert np.isnan(missing["val_accuracy"])
    assert trials["error"].iloc[3] == DIVERGED


def test_where_cuts_trials_and_history(whole):
    part = load(whole).where(norm="in", seed=1)
    assert list(part.trials["trial"]) == ["norm=in,seed=1,recipe=good"]
    assert list(part.history["trial"]) == ["norm=in,seed=1,recipe=good"] * 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b'{"study": "norms"}\n'])
def test_a_missing_or_damaged_file_is_named(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    lacking = content is not None and content.startswith(b"{") and name == "study.json"
    with pytest.raises(UserError, match=r"study\.json lacks question" if lacking else name):
        load(folder)


@pytest.mark.parametrize("name", ["trials.csv", "history.csv"])
def test_a_row_cut_off_is_named_with_its_number(folder, name):
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(lines)[:-30])
    with pytest.raises(UserError, match=rf"{name}.*row {len(lines)} "):
        load(folder)


def test_no_folder_and_an_unknown_state_are_refused(folder):
    with pytest.raises(UserError, match="not a result folder"):
        load(folder / "nothing")
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


def test_damaged_pickled_or_not_finite_predictions_are_refused(folder):
    name = "norm=bn,seed=0,recipe=good"
    file = folder / "predictions" / f"{name}.npz"
    whole = file.read_bytes()
    with np.load(file) as stored:
        content = dict(stored)
    content["scores"][3, 2] = np.nan

    def refuse(words: str = name) -> None:
        with pytest.raises(UserError, match=words):
            load_predictions(folder, name)

    np.savez(file, **content)
    refuse("not finite")
    np.savez(file, scores=np.array([{"a": 1}], dtype=object))
    refuse()
    file.write_bytes(whole[: len(whole) // 2])
    refuse()
    np.savez_compressed(file, scores=np.zeros((400, 9)))
    packed = bytearray(file.read_bytes())
    packed[60:90] = b"\xff" * 30  # within the compressed stream: zlib's own error
    file.write_bytes(packed)
    refuse()
    file.unlink()
    refuse()
