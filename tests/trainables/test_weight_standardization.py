"""The weight standardisation study and its check, run as a user runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from analysis.results.folder import Results, load
from analysis.studies.weight_standardization import answers, sections
from core.errors import TrialError
from core.models.normalisation import NORMALISATIONS
from core.models.weights import load_state
from core.study.command import command_line
from studies.weight_standardization import study
from trainables.weight_standardization import Config, train_converted
from trainables.weight_standardization.train import converted
from trainables.weight_standardization.watch import WATCHED, Watch

SMALL = {
    "weights": "none", "image_size": 32, "batch_size": 8, "epochs": 2, "train_images": 24,
    "val_images": 16, "lr": 0.01, "watch_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    words = ["--local", "--smoke", "--results-dir", str(folder), "--set", "lr=0.01"]
    assert command_line(study, [*words, "train_images=32", "val_images=24"]) == 0
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


def rows_of(**settings):
    rows = []
    train_converted(SMALL | settings, report=rows.append)
    return rows


@pytest.mark.slow
def test_same_seed_gives_the_same_rows():
    first, second = rows_of(variant="B"), rows_of(variant="B")
    for one, other in zip(first, second, strict=True):
        one.pop("seconds"), other.pop("seconds")
        assert one == other
    assert [row["epoch"] for row in first] == [1, 2]


def test_watch_records_scale_gradient_and_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
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


def test_config_is_checked():
    for wrong in ({"watch_steps": 0}, {"epochs": 0}, {"augment": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)


# ---- the check ----


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        pixels = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def check(*words):
    return command_line(study, ["--check", *map(str, words)])


def test_check_on_a_flat_folder(photos, tmp_path, capsys):
    options = ["--weights", "none", "--results-dir", tmp_path, "--set", "image_size=32"]
    assert check("--data-dir", photos, *options) == 0
    printed = capsys.readouterr().out
    assert "none" in printed and "layer4.1.bn2" in printed and "…" not in printed
    table = pd.read_csv(next(tmp_path.rglob("check.csv")))
    assert len(table) == 6 and table["accuracy"].isna().all()
    exact = table[table["mode"] != "none"]
    assert (exact["changed"] == 0).all() and (exact["images"] == 4).all()


@pytest.mark.slow
def test_check_takes_the_pixels_that_foreign_weights_expect(shared_data, tmp_path, capsys):
    state = load_state(shared_data / "weights" / "cifar10-resnet20.th")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALISATIONS["imagenet"])
    state["conv1.weight"] = state["conv1.weight"] / std  # the same network, for pixels in 0 to 1
    state["bn1.running_mean"] += (state["conv1.weight"] * mean).sum((1, 2, 3))
    torch.save(state, tmp_path / "takes-0-to-1.th")
    words = ["--data-dir", shared_data / "cifar10", "--results-dir", tmp_path]
    assert check(*words, "--weights", tmp_path / "takes-0-to-1.th", "--set", "val_images=40") == 0
    table = pd.read_csv(next(tmp_path.rglob("check.csv")))
    assert (table.loc[table["mode"] != "none", "accuracy"] > 0.5).all()  # 0.2 with ImageNet's
    assert "normalisation=none, guessed" in capsys.readouterr().out


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
def test_check_with_class_folders_and_the_public_network(shared_data, tmp_path, capsys):
    words = ["--data-dir", shared_data / "cifar10", "--results-dir", tmp_path]
    weights = shared_data / "weights" / "cifar10-resnet20.th"
    assert check(*words, "--weights", weights, "--set", "val_images=100") == 0
    table = pd.read_csv(next(tmp_path.rglob("check.csv")))
    exact = table[table["mode"] != "none"]
    assert (exact["accuracy"] == exact["accuracy_converted"]).all()
    assert (exact["accuracy"] > 0.6).all() and (exact["mae"] < 1e-4).all()
    assert "100 images of the folder cifar10" in capsys.readouterr().out


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_exit_2(photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")
    foreign = tmp_path / "foreign.pt"
    torch.save(nn.Linear(2, 2).state_dict(), foreign)
    bad_image = tmp_path / "bad"
    bad_image.mkdir()
    (bad_image / "a.jpg").write_bytes(b"no image")
    none = ["--weights", "none"]
    cases = [
        (["--check", "--data-dir", tmp_path / "gone", *none], "gone"),
        (["--check", "--data-dir", tmp_path / "empty", *none], "no images in it"),
        (["--check", "--data-dir", bad_image, *none], "a.jpg"),
        (["--check", "--data-dir", photos, "--weights", damaged], "damaged.pt"),
        (["--check", "--data-dir", photos, "--weights", foreign], "neither a torchvision"),
        (["--check", "--data-dir", photos, "--weights", tmp_path / "x.pt"], "no weights at"),
        (["--smoke", "--local", "--set", "variant=C"], "variant must be one of original, A, B"),
        (["--smoke", "--local", "--set", "watch_steps=0"], "watch_steps must be at least 1"),
        (["--smoke", "--local", "--set", "batch_size=500"], "batch_size=500"),
        (["--smoke", "--local", "--data-dir", photos, *none], "photos"),
    ]
    for words, expected in cases:
        code = command_line(study, [*map(str, words), "--results-dir", str(tmp_path / "out")])
        captured = capsys.readouterr()
        said = captured.err + captured.out
        assert code == 2 and expected in said and "Traceback" not in said, (words, said)
        assert len(captured.err.strip().splitlines()) == 1, (words, captured.err)
