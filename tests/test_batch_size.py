"""The batch-size study as it is run: the norms study's trials, its rules, its refusals."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from core.engine import command_line
from studies import batch_size, norms

SMOKE = ["--local", "--smoke", "--seeds", "1"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Run the whole study at toy size."""
    folder = tmp_path_factory.mktemp("smoke")
    assert command_line(batch_size.study, [*SMOKE, "--results-dir", str(folder)]) == 0
    return folder / "batch_size" / "smoke"


def test_a_cell_is_the_norms_studys_trial_bit_for_bit(tmp_path):
    same = ["norm=bn", "batch_size=8", "epochs=2", "lr_scaling=none", "image_size=16"]
    small = ["train_images=100", "val_images=50"]
    alone = [*SMOKE, "--results-dir", str(tmp_path), "--set", *same, *small]
    no_stops = ["--scheduler", "none", "--patience", "0"]
    assert command_line(batch_size.study, [*alone, *no_stops]) == 0
    assert command_line(norms.study, alone) == 0
    ours, theirs = (
        pd.read_csv(tmp_path / name / "smoke" / "history.csv", dtype=str).filter(
            regex="^(epoch|lr|train_|val_)"
        )
        for name in ("batch_size", "norms")
    )
    assert len(ours) == 2
    pd.testing.assert_frame_equal(ours, theirs)


def test_the_study_reports_every_cell_rules_rates_and_maps(smoke):
    table = pd.read_csv(smoke / "tables" / "batch_size.csv")
    assert len(table) == 4
    declared = json.loads((smoke / "study.json").read_text())["stopping"]
    assert declared["scheduler"] == "asha" and declared["max_epochs"] == 3
    trials = pd.read_csv(smoke / "trials.csv")
    rates = dict(zip(trials.batch_size, trials.scaled_lr, strict=True))
    assert rates == {8: pytest.approx(0.1 * 8 / 32), 128: pytest.approx(0.1 * 128 / 32)}
    assert (trials.estimated_mib > 0).all() and set(trials.chosen_precision) == {"float32"}
    ratio = (
        trials[trials.batch_size == 128].plain_mib.max()
        / trials[trials.batch_size == 8].plain_mib.max()
    )
    assert 6 < ratio < 16  # less than 16: weights and gradients are in both
    assert (smoke / "report.pdf").stat().st_size > 10_000
    assert list((smoke / "figures").glob("gradcam_*.png"))


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path, capsys):
    arguments = [*SMOKE, "--results-dir", str(tmp_path), "--set", "batch_size=8,151"]
    assert command_line(batch_size.study, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "batch_size=151: there are only 150 training images: give at most 150" in error


def test_parts_of_a_batch_add_up_to_it_without_a_norm_over_the_batch(tmp_path):
    settings = ["norm=gn", "batch_size=50", "epochs=1", "augment=false"]
    base = [*SMOKE, "--results-dir", str(tmp_path), "--scheduler", "none", "--patience", "0"]
    for parts in (1, 5):
        named = ["--name", f"parts-{parts}", "--set", *settings, f"accumulate={parts}"]
        assert command_line(batch_size.study, [*base, *named]) == 0
    one, five = (
        pd.read_csv(tmp_path / "batch_size" / f"parts-{parts}" / "history.csv") for parts in (1, 5)
    )
    assert five.train_loss_running[0] == pytest.approx(one.train_loss_running[0], rel=1e-5)
    assert five.val_loss[0] == pytest.approx(one.val_loss[0], rel=1e-3)
    assert five.train_loss_running[0] != 0
