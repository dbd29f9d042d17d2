"""Intervals, paired differences, Holm's correction and confusion matrices."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from analysis.results import statistics

# Student's t for a two-sided 95 % interval with 2 and 1 degrees of freedom, from printed tables.
T2, T1 = 4.302653, 12.706205


def trials_of(values, states=None) -> pd.DataFrame:
    """One row per (norm, seed) of a mapping norm -> accuracies."""
    rows = [
        {"norm": norm, "seed": seed, "acc": value, "state": "finished"}
        for norm, found in values.items()
        for seed, value in enumerate(found)
    ]
    table = pd.DataFrame(rows)
    for (norm, seed), state in (states or {}).items():
        table.loc[(table["norm"] == norm) & (table["seed"] == seed), "state"] = state
    return table


def test_t_interval_by_hand():
    got = statistics.t_interval([1.0, 2.0, 3.0])
    assert (got.mean, got.std, got.n) == (2.0, 1.0, 3)
    assert got.high - 2 == pytest.approx(T2 / math.sqrt(3), rel=1e-6)
    assert 2 - got.low == pytest.approx(T2 / math.sqrt(3), rel=1e-6)
    two = statistics.t_interval([0.0, 1.0])
    assert two.high - 0.5 == pytest.approx(T1 * 0.5, rel=1e-6)


def test_without_spread_there_is_a_mean_and_no_interval():
    got = statistics.t_interval([0.7])
    assert (got.mean, got.n) == (0.7, 1)
    assert np.isnan([got.low, got.high, got.std]).all()
    assert statistics.t_interval([]).n == 0
    for values in ([0.5, 0.5], [0.1 + 0.2, 0.3, 0.3], [1.0, 1.0, 1.0]):  # of every seed
        got = statistics.t_interval(values)
        assert got.mean == pytest.approx(values[0]) and got.n == len(values)
        assert np.isnan([got.low, got.high]).all()
    none = statistics.t_interval([0.0, 1e-17, 0.0])
    assert (none.low, none.high) == (0.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        statistics.t_interval([0.5, float("nan")])


def test_compare_sorts_counts_and_leaves_diverged_trials_out():
    table = trials_of(
        {"bn": [0.5, 0.6, 0.7], "gn": [0.8, 0.9, 0.0], "ln": [0.1, 0.1, 0.1]},
        {("gn", 2): "diverged", ("ln", 0): "failed", ("ln", 1): "unfinished", ("ln", 2): "failed"},
    )
    got = statistics.compare(table, "norm", "acc")
    assert list(got["norm"]) == ["gn", "bn", "ln"]
    assert list(got["n"]) == [2, 3, 0]
    assert list(got["of"]) == [3, 3, 3]
    assert got["mean"][0] == pytest.approx(0.85)
    assert math.isnan(got["mean"][2])
    assert list(statistics.compare(table, "norm", "acc", mode="min")["norm"]) == ["bn", "gn", "ln"]


def test_what_counts_is_finite_and_finished_or_asked_for():
    got = statistics.compare(trials_of({"bn": [0.5, float("nan")]}), "norm", "acc")
    assert (got["mean"][0], got["n"][0], got["of"][0]) == (0.5, 1, 2)
    table = trials_of({"bn": [0.5, 0.7]}, {("bn", 1): "stopped"})
    assert statistics.compare(table, "norm", "acc")["n"][0] == 1
    both = statistics.compare(table, ["norm"], "acc", states=("finished", "stopped"))
    assert (both["n"][0], both["mean"][0]) == (2, pytest.approx(0.6))


def test_paired_difference_by_hand():
    table = trials_of({"bn": [0.50, 0.60, 0.70], "in": [0.52, 0.63, 0.77]})
    row = statistics.paired(table, "norm", "acc", "bn").iloc[0]
    spread = math.sqrt(0.0014 / 2)  # differences 0.02, 0.03, 0.07 around 0.04
    t = 0.04 / (spread / math.sqrt(3))
    assert row["difference"] == pytest.approx(0.04)
    assert row["high"] - row["difference"] == pytest.approx(T2 * spread / math.sqrt(3), rel=1e-6)
    # With 2 degrees of freedom the t distribution has a closed form.
    assert row["p"] == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert row["p_holm"] == row["p"]


def test_only_shared_seeds_are_paired():
    table = trials_of(
        {"bn": [0.5, 0.6, 0.7], "in": [0.6, 0.7, 0.1]}, {("in", 2): "diverged", ("bn", 0): "failed"}
    )
    row = statistics.paired(table, "norm", "acc", "bn").iloc[0]
    assert (row["n"], row["difference"]) == (1, pytest.approx(0.1))
    assert math.isnan(row["low"]) and math.isnan(row["p"])


def test_equal_and_constant_differences():
    table = trials_of({"bn": [0.5, 0.6], "torch_bn": [0.5, 0.6], "in": [0.7, 0.8]})
    rows = statistics.paired(table, "norm", "acc", "bn").set_index("norm")
    assert (rows.loc["torch_bn", "difference"], rows.loc["torch_bn", "p"]) == (0.0, 1.0)
    assert rows.loc["in", "difference"] == pytest.approx(0.2)
    assert math.isnan(rows.loc["in", "p"]) and math.isnan(rows.loc["in", "low"])
    assert (rows.loc["torch_bn", "low"], rows.loc["torch_bn", "high"]) == (0.0, 0.0)


def test_pairs_need_a_baseline_and_must_be_unique():
    rows = statistics.paired(trials_of({"in": [0.5, 0.6], "gn": [0.5, 0.7]}), "norm", "acc", "bn")
    assert list(rows["norm"]) == ["in", "gn"] and list(rows["n"]) == [0, 0]
    assert rows[["difference", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    table = pd.concat([trials_of({"bn": [0.5], "in": [0.6]}), trials_of({"in": [0.7]})])
    with pytest.raises(ValueError, match="norm=in and seed=0"):
        statistics.paired(table, "norm", "acc", "bn")


def test_holm_by_hand():
    got = statistics.holm([0.01, 0.04, 0.03, float("nan")])
    assert got[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(got[3])
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_scores_equal_sklearn_with_classes_absent_and_never_predicted():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 6], 400)  # 3 and 5 have no images
    guesses = np.where(rng.random(400) < 0.6, labels, rng.choice([0, 1, 3, 4], 400))  # 5 never
    matrix = statistics.confusion(labels, guesses, 7)
    assert matrix.sum() == 400
    assert matrix[2, 3] == ((labels == 2) & (guesses == 3)).sum()
    assert statistics.accuracy(matrix) == pytest.approx(accuracy_score(labels, guesses), abs=1e-15)
    macro = f1_score(labels, guesses, average="macro")
    assert statistics.macro_f1(matrix) == pytest.approx(macro, abs=1e-15)
    per_class = f1_score(labels, guesses, average=None, labels=[0, 1, 2, 3, 4, 6])
    assert statistics.class_f1(matrix)[[0, 1, 2, 3, 4, 6]] == pytest.approx(per_class, abs=1e-15)
    present = [0, 1, 2, 4, 6]
    recalls = recall_score(labels, guesses, average=None, labels=present)
    assert statistics.recall(matrix)[present] == pytest.approx(recalls, abs=1e-15)
    assert np.isnan(statistics.recall(matrix)[[3, 5]]).all()
    assert math.isnan(statistics.class_f1(matrix)[5])
