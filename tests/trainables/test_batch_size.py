"""The batch-size study as it is run: the norms study's trials, its rules, its refusals."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from analysis.results.folder import load_predictions
from core.cluster import slots
from core.data import images
from core.data.synthetic import birds
from core.models.memory import WORKSPACE
from core.trial import running as trial
from studies import batch_size, norms
from tests.support.calls import command, refusal, silent, table
from tests.support.reports import blank_figures

SMOKE = ["--smoke", "--seeds", "1"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Run the whole study at toy size."""
    folder = tmp_path_factory.mktemp("smoke")
    few = ["train_images=128", "val_images=25"]
    assert command(batch_size.study, folder, *SMOKE, "--set", *few) == 0
    return folder / "batch_size" / "smoke"


def test_a_cell_is_the_norms_studys_trial_bit_for_bit(tmp_path):
    same = ["norm=bn", "batch_size=8", "epochs=2", "lr_scaling=none", "image_size=16"]
    small = ["train_images=100", "val_images=50"]
    alone = [*SMOKE, "--set", *same, *small]
    assert command(silent(batch_size.study), tmp_path, *alone, "--patience", "0") == 0
    assert command(silent(norms.study), tmp_path, *alone) == 0
    ours, theirs = (table(tmp_path / name / "smoke", "history") for name in ("batch_size", "norms"))
    assert len(ours) == 2
    numbers = "^(epoch|lr|train_|val_)"
    pd.testing.assert_frame_equal(
        *(t.filter(regex=numbers) for t in (ours, theirs)), check_exact=True
    )


@pytest.mark.slow
def test_the_study_reports_every_cell_rules_rates_and_maps(smoke):
    assert len(table(smoke / "tables", "batch_size")) == 4
    declared = json.loads((smoke / "study.json").read_text())["stopping"]
    assert declared["scheduler"] == "none" and declared["patience"] > 0
    trials = table(smoke)
    rates = dict(zip(trials.batch_size, trials.scaled_lr, strict=True))
    assert rates == {8: pytest.approx(0.1 * 8 / 32), 128: pytest.approx(0.1 * 128 / 32)}
    assert (trials.estimated_mib > 0).all() and set(trials.chosen_precision) == {"float32"}
    most = trials.groupby("batch_size").plain_mib.max()
    assert 6 < most[128] / most[8] < 16  # less than 16: weights and gradients are in both
    assert (smoke / "report.pdf").read_bytes().startswith(b"%PDF")
    assert list((smoke / "figures").glob("gradcam_*.png"))


MIB = 2**20
# Twenty slots of 400 MiB beside the driver's needs; their processes' own leave 110 MiB of each.
CARD = 8200 * MIB
ASKED = "400MiB"


@pytest.mark.slow
def test_one_precision_for_all_cells_is_chosen_for_the_smallest_slot_and_kept(
    tmp_path, monkeypatch
):
    """A card that the test makes up: it cannot compute in bfloat16, and only batch 8 fits as asked.

    The trials run here, on the CPU, in what is chosen for them: float16 with scaled gradients.
    """

    def offer(card: int, bfloat16: bool) -> None:
        node = slots.Node("", "old", 2, (card,), bfloat16)
        monkeypatch.setattr(slots, "this_machine", lambda name="": node)

    study = silent(batch_size.study)
    few = ["epochs=1", "norm=bn", "train_images=128", "val_images=25", "channels_last=true"]
    arguments = [*SMOKE, "--set", *few, "--slot-memory", ASKED]
    offer(CARD, bfloat16=False)
    assert command(study, tmp_path, *arguments) == 0
    folder = tmp_path / "batch_size" / "smoke"
    declared = json.loads((folder / "study.json").read_text())
    assert declared["fit"]["settings"] == {"recompute": True, "precision": "float16"}
    assert declared["fit"]["needs"] <= declared["fit"]["slot"] == 110 * MIB
    trials = table(folder, index="batch_size")
    assert set(trials.chosen_precision) == {"float16"} and trials.chosen_recompute.all()
    assert trials.precision.eq("float32").all()  # the setting, as it was asked for
    assert trials.estimated_mib[128] * MIB + WORKSPACE == declared["fit"]["needs"]
    assert trials.plain_mib[8] * MIB + WORKSPACE < declared["fit"]["slot"]  # alone it would fit
    scaled = [json.loads(p.read_text()) for p in folder.glob("trials/*/history.json")]
    assert all(0 < kept["rows"][0]["train_loss_running"] < 10 for kept in scaled)

    offer(CARD, bfloat16=True)  # another cluster later: what was chosen stays
    (folder / "trials" / "norm=bn,batch_size=8,seed=0" / "result.json").unlink()
    assert command(study, tmp_path, *arguments, "--resume") == 0
    assert set(table(folder).chosen_precision) == {"float16"}
    (folder / "trials" / "norm=bn,batch_size=8,seed=0" / "result.json").unlink()
    offer(8000 * MIB, bfloat16=True)  # twenty again, of 400 - 300 MiB
    smaller = [word.replace(ASKED, "390MiB") for word in arguments]
    error = refusal(study, tmp_path, *smaller, "--resume")
    assert "a slot on old has 0.10 GiB" in error
    assert "laid out to need 0.10 GiB" in error and "--name" in error


def test_a_trial_that_fits_in_no_way_is_refused_before_any_runs(tmp_path, monkeypatch):
    node = slots.Node("", "old", 2, (7940 * MIB,))  # twenty slots of 397 - 300 MiB
    monkeypatch.setattr(slots, "this_machine", lambda name="": node)
    told = refusal(batch_size.study, tmp_path, *SMOKE, "--slot-memory", "387MiB")
    assert "batch 128 at 16x16 needs about 0.1 GiB even in" in told
    assert not list(tmp_path.rglob("study.json"))


@pytest.mark.slow
def test_a_search_is_scored_on_a_part_of_train_and_reported_on_val(tmp_path, monkeypatch):
    read, load = {}, images.load

    def watching(root, size, splits, **options):
        running = trial.current.get()
        if running is not None:
            read[running.spec.name] = splits
        return load(root, size, splits, **options)

    monkeypatch.setattr(images, "load", watching)
    few = ["norm=gn", "batch_size=30", "n=1", "epochs=2"]
    base = [*SMOKE, "--set", *few]
    search = [*base, "--search", "optuna", "--trials", "2", "--grace", "1"]
    with blank_figures():
        assert command(batch_size.study, tmp_path, *search) == 0
    folder = tmp_path / "batch_size" / "smoke"
    declared = json.loads((folder / "study.json").read_text())
    assert declared["stopping"]["scheduler"] == "asha"
    assert declared["search"]["metric"] == "heldout_accuracy"
    searched = ["default", "search-0000", "search-0001"]
    chosen = [t["trial"] for t in declared["trials"] if t["part"] == "reported-best"]
    assert [t["trial"] for t in declared["trials"]] == [
        *searched, "reported=default,seed=0", *chosen
    ]  # fmt: skip
    assert {name: read[name] for name in searched} == dict.fromkeys(searched, ("train",))
    assert read[chosen[0]] == ("train", "val")

    sets = load(birds.default_birds(), 16, limit={"train": 150, "val": 50})
    files = load_predictions(folder, "default").files
    assert set(files) < set(sets["train"].files) and len(files) == 15
    assert declared["data"]["holdout"]["scored"] == 15
    assert load_predictions(folder, chosen[0]).files == tuple(sets["val"].files)

    history = table(folder, "history", "trial")
    assert history.loc[searched].val_accuracy.isna().all()
    assert history.loc[searched].heldout_accuracy.notna().all()
    trials = table(folder, index="trial")
    best = trials.loc[searched[1:]].best_heldout_accuracy.idxmax()
    assert chosen == [f"reported={best},seed=0"]
    assert trials.holdout.loc[searched].eq(0.1).all() and trials.holdout[chosen[0]] == 0
    kept = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert kept["trial"].startswith("reported=")
    assert {"search_trials.csv", "reported.csv"} <= {p.name for p in (folder / "tables").iterdir()}

    config = ["--config", str(folder / "best_config.json"), "--name", "again"]
    study = silent(batch_size.study)
    assert command(study, tmp_path, *base, *config) == 0
    again = table(tmp_path / "batch_size" / "again", "history")
    assert again.val_loss.tolist() == history.val_loss.loc[chosen[0]].tolist()

    modified = {p: p.stat().st_mtime_ns for p in folder.glob("trials/search-*/result.json")}
    (folder / "trials" / chosen[0] / "result.json").unlink()
    assert command(study, tmp_path, *search, "--resume") == 0
    assert {p: p.stat().st_mtime_ns for p in modified} == modified
    resumed = table(folder, "history", "trial")
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), history.drop(columns="seconds"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "batch_size=8,151"], "=151: there are only 150 training images: give at most"),
        (["--set", "holdout=0.1"], "--set holdout=0.1: only --search holds training images out"),
        (["--search", "optuna", "--set", "holdout=0"], "never scored on the validation images"),
        (["--set", "holdout=0.7"], "a share of at most 0.5"),
        (["--search", "optuna", "--set", "train_images=40"], " of 40: give at least 5"),
        (
            ["--search", "optuna", "--set", "batch_size=140"],
            "there are only 135 training images: give at most 135",
        ),
    ],
)
def test_images_held_out_are_for_searches_and_enough(tmp_path, arguments, words):
    assert words in refusal(batch_size.study, tmp_path, *SMOKE, *arguments)


def test_parts_of_a_batch_add_up_to_it_without_a_norm_over_the_batch(tmp_path):
    settings = ["norm=gn", "batch_size=50", "epochs=1", "augment=false", "train_images=100"]
    study, rows = silent(batch_size.study), []
    for parts in (1, 5):
        named = ["--name", f"parts-{parts}", "--set", *settings, f"accumulate={parts}"]
        assert command(study, tmp_path, *SMOKE, "--patience", "0", *named) == 0
        rows.append(table(tmp_path / "batch_size" / f"parts-{parts}", "history"))
    one, five = rows
    assert five.train_loss_running[0] == pytest.approx(one.train_loss_running[0], rel=1e-5)
    assert five.val_loss[0] == pytest.approx(one.val_loss[0], rel=1e-3)
    assert five.train_loss_running[0] != 0
