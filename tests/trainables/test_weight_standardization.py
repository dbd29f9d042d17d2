"""The weight standardisation study and its check, run as a user runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis.results.folder import Results, load
from analysis.studies.weight_standardization import answers, sections
from core.errors import TrialError
from studies.weight_standardization import study
from tests.support.calls import command, refusal, trained
from tests.support.datasets import picture, save, takes_0_to_1
from trainables.weight_standardization import train_converted
from trainables.weight_standardization.train import converted
from trainables.weight_standardization.watch import WATCHED, Watch

SMALL = {
    "weights": "none", "image_size": 32, "batch_size": 8, "epochs": 2, "train_images": 24,
    "val_images": 16, "lr": 0.01, "watch_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    few = ["lr=0.01", "train_images=32", "val_images=24", "image_size=32"]
    assert command(study, folder, "--smoke", "--set", *few) == 0
    return folder / "weight_standardization" / "smoke"


@pytest.mark.slow
def test_smoke_study_makes_tables_figures_and_report(smoke):
    results = load(smoke)
    assert list(results.trials["variant"]) == ["original", "A", "B"]
    assert set(results.trials["state"]) == {"finished"}
    assert (results.trials.set_index("variant").loc[["A", "B"], "converted_layers"] == 20).all()
    start = results.trials["start_loss"].to_numpy(dtype=float)
    assert np.ptp(start) < 1e-4  # in evaluation all three are the same network
    assert (results.trials["scores_epoch"] == results.trials["best_epoch"]).all()
    assert (results.trials["best_train_map"] > 0).all()
    for name in ("map", "step_loss", "mechanism"):
        assert (smoke / "figures" / f"{name}.svg").stat().st_size > 1000
    page = (smoke / "report.html").read_text()
    for words in ("What each mode does in training", "mode A", "Synthetic data", "below 0"):
        assert words in page
    assert (smoke / "report.pdf").read_bytes().startswith(b"%PDF")
    losses = pd.read_csv(smoke / "tables" / "loss_difference.csv").set_index("variant")
    assert losses.loc["A", "first"] < 1e-2 < losses.loc["B", "first"]


@pytest.mark.slow
def test_report_holds_the_checks_numbers(smoke):
    rows = pd.read_csv(smoke / "tables" / "check.csv")
    exact = rows[rows["mode"].isin(["A", "B"])]
    assert len(rows) == 6 and (exact["changed"] == 0).all()
    assert (exact.loc[exact["precision"] == "float64", "relative"] < 1e-9).all()
    assert (exact.loc[exact["precision"] == "float32", "mae"] < 1e-4).all()
    ruined = rows.loc[rows["mode"] == "none", "mae"]
    assert (ruined > 100 * exact["mae"].max()).all()


@pytest.mark.slow
def test_low_map_is_flagged_on_real_data_only(smoke):
    results = load(smoke)
    numbers = sections.map_numbers(results)
    assert "generated pictures" in sections.answers.flag(results, numbers)
    results.study["data"]["kind"] = "folder"
    numbers["mean"] = [0.5, 0.34, 0.6][: len(numbers)]
    flagged = sections.answers.flag(results, numbers)
    assert "Below 35" in flagged and "34.0" in flagged and "50.0" not in flagged


@pytest.mark.slow
def test_same_seed_gives_the_same_rows():
    few = SMALL | {"variant": "B", "epochs": 1}
    first, second = (trained(train_converted, few) for _ in range(2))
    assert first == second and [row["epoch"] for row in first] == [1]


def test_watch_records_scale_gradient_and_parameters():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    x, y = torch.randn(8, 3, 6, 6), torch.ones(8, 2)
    y[0, 0] = 0  # an ignored pair
    watch = Watch(model, lambda logits, labels: (logits - labels).square(), 1)
    for _ in range(2):
        model.train()
        each = watch.loss(model(x), y)
        model.zero_grad()
        ((each * (y != 0)).sum() / (y != 0).sum()).backward()
    found = watch.arrays()
    assert found["watch_layers"].tolist() == ["1"] and len(found["watch_loss"]) == 2
    assert found["watch_activation"][0, 0] == pytest.approx(1, abs=0.02)
    assert found["watch_weight"][0, 0] == 1 and found["watch_bias"][0, 0] == 0
    gradient = float(model[0].weight.grad.norm())
    assert found["watch_gradient"][0, 0] == pytest.approx(gradient, rel=1e-5)
    again = Watch(model, watch.loss, 1)
    again.load_state_dict(watch.state_dict())
    assert again.losses == watch.losses
    for name in WATCHED:
        np.testing.assert_array_equal(again.values[name], watch.values[name])


def test_network_that_cannot_be_converted_is_a_trial_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    assert converted(model, "original") is model
    with pytest.raises(TrialError, match=r"cannot be converted: 2: disconnected"):
        converted(model, "A")


# ---- the check ----


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        save(picture(number, 50, 40), tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def checked(folder: Path, *words) -> pd.DataFrame:
    """Return the table of a check of conversions."""
    assert command(study, folder, "--check", *words) == 0
    return pd.read_csv(next(folder.rglob("check.csv")))


def test_check_on_a_flat_folder(photos, tmp_path, capsys):
    options = ["--weights", "none", "--set", "image_size=32"]
    table = checked(tmp_path, "--data-dir", photos, *options)
    printed = capsys.readouterr().out
    assert "none" in printed and "layer4.1.bn2" in printed and "…" not in printed
    assert len(table) == 6 and table["accuracy"].isna().all()
    exact = table[table["mode"] != "none"]
    assert (exact["changed"] == 0).all() and (exact["images"] == 4).all()


def numbers_of(difference: float, low: float, high: float) -> pd.DataFrame:
    row = {"variant": "B", "lr": 0.02, "n": 3, "difference": difference}
    return pd.DataFrame([row | {"difference_low": low, "difference_high": high}])


def test_a_mode_loses_or_gains_only_where_the_interval_leaves_out_zero():
    nan = float("nan")
    for low, high, said in (
        (nan, nan, "Mode B minus the original: −2.3 points at a rate of 0.02, without"),
        (-0.05, 0.01, "Mode B cannot be told from the original: −2.3 [−5.0, +1.0] points"),
        (-0.04, -0.01, "**Mode B loses against the original: −2.3 [−4.0, −1.0] points"),
    ):
        assert said in answers.broken(numbers_of(-0.023, low, high))
    assert "**Mode B gains" in answers.broken(numbers_of(0.02, 0.01, 0.03))


def test_no_more_steps_are_told_than_were_taken():
    rows = [{"trial": name, "variant": name, "lr": 0.02, "seed": 0} for name in ("original", "A")]
    results = Results(Path(), {"grid": {"lr": [0.02]}}, pd.DataFrame(rows), pd.DataFrame())
    room = {"activation": np.zeros((10, 3))}  # of ten steps that would be watched
    stored = {"original": room | {"loss": np.ones(6)}, "A": room | {"loss": np.arange(6.0)}}
    told = sections.loss_numbers(results, stored).iloc[0]
    assert (told["steps"], told["steps_watched"], told["watched"]) == (6, 6, 4.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("foreign", "images", "least", "told"),
    [
        (False, 40, 0.5, "40 images of the folder cifar10"),
        (True, 40, 0.5, "normalisation=none, guessed"),  # 0.2 with ImageNet's
    ],
)
def test_check_takes_the_pixels_that_the_public_network_and_foreign_weights_expect(
    shared_data, tmp_path, capsys, foreign, images, least, told
):
    weights = takes_0_to_1(shared_data, tmp_path)[0 if foreign else 1]
    words = ["--data-dir", shared_data / "cifar10", "--set", f"val_images={images}"]
    table = checked(tmp_path, *words, "--weights", weights)
    exact = table[table["mode"] != "none"]
    assert (exact["accuracy"] == exact["accuracy_converted"]).all()
    assert (exact["accuracy"] > least).all() and (exact["mae"] < 1e-4).all()
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_exit_2(photos, tmp_path):
    damaged, foreign, bad = (tmp_path / name for name in ("damaged.pt", "foreign.pt", "bad"))
    for folder in (tmp_path / "empty", bad):
        folder.mkdir()
    damaged.write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2).state_dict(), foreign)
    (bad / "a.jpg").write_bytes(b"no image")
    none = ["--weights", "none"]
    cases = [
        (["--check", "--data-dir", tmp_path / "gone", *none], "gone"),
        (["--check", "--data-dir", tmp_path / "empty", *none], "no images in it"),
        (["--check", "--data-dir", bad, *none], "a.jpg"),
        (["--check", "--data-dir", photos, "--weights", damaged], "damaged.pt"),
        (["--check", "--data-dir", photos, "--weights", foreign], "neither a torchvision"),
        (["--check", "--data-dir", photos, "--weights", tmp_path / "x.pt"], "no weights at"),
        (["--smoke", "--set", "variant=C"], "variant must be one of original, A, B"),
        (["--smoke", "--set", "watch_steps=0"], "watch_steps must be at least 1"),
        (["--smoke", "--set", "batch_size=500"], "batch_size=500"),
        (["--smoke", "--data-dir", photos, *none], "photos"),
    ]
    for words, expected in cases:
        assert expected in refusal(study, tmp_path / "out", *words)
