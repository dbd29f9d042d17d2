"""The report of the batch size study, every number of it computed again by other code."""

import math
import re
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis.document import report as reports
from analysis.document.report import Section, Text
from analysis.results.folder import Results, load
from analysis.studies.batch_size import sections
from tests.support import results as built
from tests.support.reports import assert_says, assert_whole, printed, table_of, told, words_of

EPOCHS = 20
ASHA = {"scheduler": "asha", "grace": 2, "reduction_factor": 3, "brackets": 1}
ASHA |= {"max_epochs": EPOCHS, "patience": 5}
# Trial (norm, batch size, seed) to state, last epoch and reason.
PLATEAU = "plateau at epoch 14: no better than 0.71 (epoch 9) for 5 epochs"
ENDS = {
    ("bn", 8, 1): ("stopped", 6, "ASHA at epoch 6: val_accuracy 0.312 is below the cut of 0.404"),
    ("gn", 8, 2): ("stopped", 14, PLATEAU),
    ("gn", 128, 0): ("stopped", 4, "ASHA at epoch 4: val_accuracy 0.212 is below the cut of 0.304"),
    ("gn", 128, 1): ("failed", 3, ""),
}


def accuracy(norm: str, size: int, seed: int, epoch: int, loss: float = 0.05) -> float:
    """A rising curve; bn loses about `loss` from batch size 128 to 8."""
    top = 0.7 + (0.01 if norm == "bn" else 0.0) - (loss * 8 / size if norm == "bn" else 0.0)
    wave = 0.003 * np.random.default_rng([ord(norm[0]), size, seed, epoch]).standard_normal()
    return round(top * (1 - math.exp(-epoch * 4 / EPOCHS)) + wave, 4)


def build(path: Path, norms=("bn", "gn"), sizes=(8, 128), seeds=3, ends=None, **study) -> Path:
    """Write a study with known curves, of which `ends` tells what did not run to the end, as ENDS.

    `study` is content of study.json; but `facts=False` leaves out what trials note of themselves,
    and `loss` is that of `accuracy`.
    """
    facts, ends = study.pop("facts", True), ENDS if ends is None else ends
    loss = study.pop("loss", 0.05)
    planned, trials, history = [], [], []
    for norm, size, seed in product(norms, sizes, range(seeds)):
        name = f"norm={norm},batch_size={size},seed={seed}"
        config = {"norm": norm, "batch_size": size, "seed": seed, "epochs": EPOCHS, "lr": None}
        entry = {"trial": name, "part": "batch_size", "config": config | {"lr_scaling": "linear"}}
        planned.append(entry)
        state, last, why = ends.get((norm, size, seed), ("finished", EPOCHS, ""))
        if state == "unfinished":
            continue
        each = 2.0 + 0.25 * seed + (1.0 if size == 8 else 0.0)
        rows = []
        for epoch in range(1, last + 1):
            value = accuracy(norm, size, seed, epoch, loss)
            row = {"trial": name, "part": "batch_size", "norm": norm, "seed": seed, "epoch": epoch}
            row |= {"lr": 0.1 * size / 32 * (1 - (epoch - 1) / EPOCHS), "seconds": each}
            row |= {"train_accuracy": value + 0.05, "val_accuracy": value}
            rows.append(row | {"val_loss": 3.2 - 3 * value})
        history += rows
        best = max(rows, key=lambda row: row["val_accuracy"], default={})
        plain = {8: 700.0, 128: 9000.0}.get(size, 100.0 * size)
        more = {"error": "CUDA out of memory" if state == "failed" else ""}
        more |= {"seconds_per_epoch": each if rows else "", "lr": rows[-1]["lr"] if rows else ""}
        more |= {f"best_{key}": best.get(key, "") for key in ("epoch", "val_accuracy")}
        if facts:
            more |= {
                "stopped_by": why, "base_lr": 0.1, "scaled_lr": 0.1 * size / 32,
                "estimated_mib": min(plain, 1500.0), "plain_mib": plain,
                "chosen_precision": "bfloat16" if size == 128 else "float32",
                "chosen_recompute": size == 128, "slot_mib": 1748.0,
            }  # fmt: skip
        seconds = last * each + 1.5
        trials.append(built.ended(entry, rows, seconds, state, peak_memory_mib=600 + size, **more))
    grid = {"norm": list(norms), "batch_size": list(sizes), "seed": list(range(seeds))}
    question = "Does batch norm lose to group norm when batches are small?"
    given = {"grid": grid, "stopping": ASHA, "data": built.birds_data("synthetic"), **study}
    declared = built.declare("batch_size", question, planned, **given)
    return built.write(path, declared, trials, history, ("trial", "epoch", "val_accuracy"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Two norms, two batch sizes, three seeds; three trials stopped, one failed; reported."""
    folder = build(tmp_path_factory.mktemp("batch") / "full")
    more = [Section("More", (Text("Something more."),))]
    told(partial(sections.report, extra=lambda results: more), folder, pdf=True)
    return folder


def study(folder: Path) -> Results:
    return sections.measured(load(folder))


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """trials.csv and history.csv, by pandas alone; the trials that count only."""
    trials = pd.read_csv(folder / "trials.csv", keep_default_na=False, na_values=[""])
    trials = trials[trials["state"].isin(["finished", "stopped"])]
    history = pd.read_csv(folder / "history.csv")
    history = history[history["trial"].isin(trials["trial"])]
    keys = trials[["trial", "batch_size"]]
    return trials, history.drop(columns="batch_size", errors="ignore").merge(keys, on="trial")


def mean_and_span(values: pd.Series) -> list[float]:
    """Mean, low and high of the 95 % t interval, by scipy."""
    mean, scale = values.mean(), scipy.stats.sem(values) if len(values) > 1 else math.nan
    return [mean, *scipy.stats.t.interval(0.95, len(values) - 1, mean, scale)]


def test_everything_is_written(full):
    written = "batch_size batch_size_by_seed bn_minus_gn saved stopped learning_rates memory"
    drawn = "accuracy_by_batch_size bn_minus_gn curves train_curves epochs_run"
    assert_whole(full, written, drawn)


def test_the_main_table_is_recomputed_from_trials_and_history(full):
    trials, history = read(full)
    last = history.groupby("trial")["epoch"].max()
    equal = last.min()
    assert equal == 4
    table = table_of(full, "batch_size")
    cells = list(zip(table["norm"], table["batch_size"], strict=True))
    assert cells == list(product(("bn", "gn"), (8, 128)))
    at = history[history["epoch"] == equal]
    best = history.groupby(["norm", "batch_size", "trial"])["val_accuracy"].max().reset_index()
    for row in table.to_dict("records"):
        cell = f"norm == {row['norm']!r} and batch_size == {row['batch_size']}"
        mine = trials.query(cell)
        expected = {
            "equal": at.query(cell)["val_accuracy"],
            "best": best.query(cell)["val_accuracy"],
            "full": mine[mine["state"] == "finished"]["best_val_accuracy"],
        }
        for metric, values in expected.items():
            shown = [row[metric], row[f"{metric}_low"], row[f"{metric}_high"]]
            assert shown == pytest.approx(mean_and_span(values), abs=1e-12, nan_ok=True)
        assert row["n"] == row["n_equal"] == len(mine) and row["of"] == 3
        assert row["finished"] == row["n_full"] == (mine["state"] == "finished").sum()
        for rule in ("ASHA", "plateau"):
            assert row[rule] == mine["stopped_by"].str.startswith(rule).sum()
        means = mine[["best_epoch", "epochs_run", "seconds_per_epoch"]].mean().tolist()
        assert [row[key] for key in ("best_epoch", "ran", "per_epoch")] == pytest.approx(means)
        assert row["peak_memory_mib"] == mine["peak_memory_mib"].max()
    reached = [words.replace("\xa0", " ") for words in table["reached"]]
    assert reached == [
        "2 to 20 (finished); 1 to 6 (ASHA)",
        "3 to 20 (finished)",
        "2 to 20 (finished); 1 to 14 (plateau)",
        "1 to 20 (finished); 1 to 4 (ASHA); 1 to 3 (failed)",
    ]


def test_the_gap_is_recomputed_over_pairs(full):
    trials, history = read(full)
    table = table_of(full, "bn_minus_gn").set_index("batch_size")
    sources = {
        "equal": history[history["epoch"] == 4],
        "best": trials.rename(columns={"best_val_accuracy": "val_accuracy"}),
    }
    for metric, source in sources.items():
        raw, changes = {}, {}
        for size in (8, 128):
            wide = source[source["batch_size"] == size].pivot_table("val_accuracy", "seed", "norm")
            gap = changes[size] = (wide["bn"] - wide["gn"]).dropna()
            row = table.loc[size]
            shown = [row[metric], row[f"{metric}_low"], row[f"{metric}_high"]]
            assert shown == pytest.approx(mean_and_span(gap), abs=1e-12)
            assert row[f"{metric}_pairs"] == len(gap)
            if gap.std() > 1e-9:
                raw[size] = scipy.stats.ttest_1samp(gap, 0).pvalue
                assert row[f"{metric}_p"] == pytest.approx(raw[size])
        if len(raw) == 2:
            low, high = sorted(raw, key=lambda size: raw[size])
            both = [min(1, 2 * raw[low]), min(1, max(2 * raw[low], raw[high]))]
            assert list(table.loc[[low, high], f"{metric}_p_holm"]) == pytest.approx(both)
        found = sections.gap_change(study(full), metric)
        span = mean_and_span((changes[8] - changes[128]).dropna())
        assert [found.mean, found.low, found.high] == pytest.approx(span, abs=1e-12)
    assert table["stopped"].to_dict() == {8: 2, 128: 1}


def test_what_stopping_saved_is_recomputed(full):
    trials, _ = read(full)
    left = trials["epochs"] - trials["epochs_run"]
    seconds = left * trials["seconds_per_epoch"]
    table = table_of(full, "saved").set_index("reason")
    assert list(table.index) == ["ASHA", "plateau", "all"]
    for reason, row in table.iterrows():
        why = trials["stopped_by"].fillna("").str
        mine = (trials["state"] == "stopped") & why.startswith(reason.replace("all", ""))
        assert (row["trials"], row["epochs"]) == (mine.sum(), left[mine].sum())
        assert row["seconds"] == pytest.approx(seconds[mine].sum())
        assert row["epochs_share"] == pytest.approx(left[mine].sum() / trials["epochs"].sum())
        whole = trials["seconds"].sum() + seconds.sum()
        assert row["seconds_share"] == pytest.approx(seconds[mine].sum() / whole)
        assert row["full_epochs"] == 220


def test_every_trial_is_in_its_table_and_a_stopped_one_with_when_and_why(full):
    every = pd.read_csv(full / "trials.csv", keep_default_na=False, na_values=[""])
    table = table_of(full, "batch_size_by_seed").merge(every, on="trial", suffixes=("", "_raw"))
    assert len(table) == 12
    raw = ("best_val_accuracy", "best_epoch_raw", "epochs_run", "scaled_lr", "state_raw")
    for ours, theirs in zip(("best", "best_epoch", "ran", "highest_lr", "state"), raw, strict=True):
        assert (table[ours] == table[theirs]).all(), ours
    stopped = table_of(full, "stopped").set_index("trial")[["ran", "why"]].T.to_dict("list")
    assert stopped == {
        f"norm={norm},batch_size={size},seed={seed}": [last, why]
        for (norm, size, seed), (state, last, why) in ENDS.items() if state == "stopped"
    }  # fmt: skip
    assert all(why in words_of(full) for _, why in stopped.values())


def test_rates_steps_and_memory(full):
    rates = table_of(full, "learning_rates").set_index("batch_size")
    assert rates["highest_lr"].to_dict() == {8: 0.025, 128: 0.4}
    assert rates["steps"].to_dict() == {8: 188, 128: 12}  # 1,500 training images
    memory = table_of(full, "memory").set_index(["norm", "batch_size"])
    assert memory.loc[("bn", 128), "plain_mib"] == 9000
    assert memory.loc[("bn", 128), "estimated_mib"] == 1500
    assert memory.loc[("bn", 128), "chosen_precision"] == "bfloat16"


def test_the_slot_and_what_was_chosen_for_it_are_the_studys(tmp_path):
    nodes = [{"count": 2, "memory": 1000 * 2**20}, {"count": 0, "memory": 5}]
    fit = {"settings": {"recompute": True}}
    folder = build(tmp_path / "x", ends={}, slots={"nodes": nodes}, fit=fit)
    with built.edited(folder / "trials.csv") as trials:
        del trials["slot_mib"]
        trials[["chosen_precision", "chosen_recompute"]] = "float32", True
    words = sections.memory_text(study(folder))
    assert "A trial's slot has 1,000 MiB." in words
    assert "All cells ran in float32 with recomputation, chosen before the first trial" in words


def test_text_says_what_was_compared_and_what_stopped_trials(full):
    assert_says(
        words_of(full), "Epoch 4 is the last that all 11 finished or stopped trials reached",
        "grace 2, reduction factor 3, brackets 1, at most 20 epochs", "after epochs 2, 6 and 18",
        "has not improved for 5 epochs", "3 trials are censored",
        "That saved 36 of 220 trial-epochs (16.4 %)",
        "equal those in trials.csv for all 12 trials", "1 of 12 trials failed or diverged",
        "these seeds do not show that batch norm suffers, which does not contradict",
        "linear (learning rate = base × batch size / reference batch size)",
        "reference batch size 32", "0.025 at batch size 8 and 0.4 at batch size 128",
        "A trial's slot has 1,748 MiB.", "did not all run with the same precision",
        "Synthetic data", "Something more.",
    )  # fmt: skip


def test_shown_cells_are_the_numbers_rounded_and_fit_100_columns(full):
    shown = (full / "tables" / "batch_size.md").read_text()
    for row in table_of(full, "batch_size").to_dict("records"):
        assert f"{row['equal'] * 100:.1f} [" in shown and f"{row['best'] * 100:.1f} [" in shown
    assert " [n/a] |" in shown  # one seed of gn at 128 finished
    assert "| 2 of 3 |" in shown
    lines = printed(sections.headline(sections.cell_table(study(full))))
    assert sum(line.split()[:1] in (["bn"], ["gn"]) for line in lines) == 4


def test_a_cell_with_all_seeds_stopped_or_failed_keeps_its_row(tmp_path):
    ends = {("bn", 8, seed): ("stopped", 3 + seed, "ASHA at epoch 3: low") for seed in range(3)}
    ends |= {("gn", 128, seed): ("failed", 0, "") for seed in range(3)}
    ends[("gn", 8, 0)] = ("unfinished", 0, "")
    folder = build(tmp_path / "x", ends=ends)
    words = told(sections.report, folder)
    table = table_of(folder, "batch_size").set_index(["norm", "batch_size"])
    assert len(table) == 4
    assert table.loc[("bn", 8), ["n", "finished", "ASHA", "n_full"]].tolist() == [3, 0, 3, 0]
    assert table.loc[("gn", 128), ["n", "of", "failed"]].tolist() == [0, 3, 3]
    assert table.loc[("gn", 8), ["n", "of", "unfinished"]].tolist() == [2, 3, 1]
    assert math.isnan(table.loc[("gn", 128), "best"])
    assert "| n/a |" in re.sub(" +", " ", (folder / "tables" / "batch_size.md").read_text())
    gaps = table_of(folder, "bn_minus_gn").set_index("batch_size")
    assert gaps["best_pairs"].to_dict() == {8: 2, 128: 0}
    assert "does not show how the gap changes" in words


def test_one_seed_has_no_interval(tmp_path):
    folder = build(tmp_path / "x", seeds=1, ends={}, stopping={**ASHA, "scheduler": "none"})
    words = told(sections.report, folder)
    assert_says(
        words, "(one seed gives no interval, so it may be chance)",
        "study.json, trials.csv and history.csv beside this file", "One seed: there is no interval",
        "No trial was stopped early, so nothing was saved.",
        "No scheduler compared the trials while they ran", never="censored: their best",
    )  # fmt: skip
    assert "ASHA" not in sections.limits(study(folder), sections.cell_numbers(study(folder)))
    table = table_of(folder, "batch_size")
    assert table["best_low"].isna().all()
    assert "[n/a]" in (folder / "tables" / "batch_size.md").read_text()
    assert not (folder / "tables" / "stopped.csv").exists()


def test_without_bn_or_gn_there_is_no_gap(tmp_path):
    folder = build(tmp_path / "x", norms=("gn", "in", "ln"), sizes=(32,), ends={}, facts=False)
    words = told(sections.report, folder)
    assert_says(words, "The study lacks bn or gn", "No estimate of memory was recorded.")
    assert not (folder / "tables" / "bn_minus_gn.csv").exists()
    assert len(table_of(folder, "batch_size")) == 3
    assert table_of(folder, "learning_rates")["highest_lr"].tolist() == [0.1]
    alone = study(build(tmp_path / "y", norms=("bn",), ends={}, facts=False))
    assert "lacks `bn` or `gn`" in sections.gap_text(alone) and sections.gap_table(alone) is None
    rates = sections.rate_table(alone).numbers["highest_lr"].tolist()
    assert rates == pytest.approx([0.1 * size / 32 for size in (8, 128)])


def test_one_batch_size_and_more_norms(tmp_path):
    results = study(build(tmp_path, norms=("bn", "gn", "none"), sizes=(8,), ends={}, seeds=2))
    assert len(sections.gap_table(results).numbers) == 1
    assert sections.gap_change(results, "best") is None
    note = sections.cell_table(results).note
    assert "All 6 finished or stopped trials reached epoch 20." in note


@pytest.mark.slow
def test_a_whole_row_of_batch_sizes_stays_short(tmp_path):
    sizes, norms = (1, 2, 4, 8, 16, 32, 64, 128), ("bn", "gn", "ln", "in", "none")
    folder = build(tmp_path / "x", norms=norms, sizes=sizes, seeds=1)
    told(sections.report, folder, pdf=True)
    assert len(table_of(folder, "batch_size")) == 40
    assert reports.page_count((folder / "report.pdf").read_bytes()) <= 10
    assert not (folder / "figures" / "epochs_run.svg").exists()


def test_nothing_ran(tmp_path):
    ends = {("bn", 8, 0): ("failed", 0, ""), ("gn", 8, 0): ("unfinished", 0, "")}
    folder = build(tmp_path / "x", sizes=(8,), seeds=1, ends=ends)
    assert "None of 2 trials finished" in told(sections.report, folder)
    assert list(table_of(folder, "reasons").state) == ["failed", "unfinished"]


def test_files_that_do_not_belong_together_are_noticed(tmp_path):
    folder = build(tmp_path / "x", sizes=(8,), seeds=1, ends={})
    with built.edited(folder / "trials.csv") as trials:
        trials.loc[0, "best_val_accuracy"] += 0.1
    results = study(folder)
    assert "do not belong together" in sections.summary(results, sections.cell_numbers(results))


@pytest.mark.parametrize(
    ("rule", "power", "reference"), [("linear", 1, 64), ("sqrt", 0.5, 64), ("none", 0, None)]
)
def test_the_reference_batch_size_follows_from_the_rates(rule, power, reference):
    rows = [
        {"batch_size": size, "rule": rule, "base_lr": 0.1, "highest_lr": 0.1 * (size / 64) ** power}
        for size in (8, 128)
    ]
    assert sections._reference(pd.DataFrame(rows)) == reference


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (0.05, "so batch norm loses ground with small batches here too, as published; Wu & He"),
        (0.0, "an interval with 0 in it"),
        (-0.05, "so batch norm gains ground with small batches here, against the published"),
    ],
)
def test_the_verdict_follows_the_interval(tmp_path, loss, verdict):
    results = study(build(tmp_path / "x", ends={}, loss=loss))
    sentence = sections.gap_sentence(results)
    assert verdict in sentence
    assert "at the best goes from" in sentence  # nothing is censored
    change = sections.gap_change(results, "best")
    assert f"{abs(change.mean) * 100:.1f}" in sentence
