"""Metrics against scikit-learn, and VOC's interpolations against the definitions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score

from core.training.metrics import (
    ConfusionMatrix,
    average_precision,
    mean_average_precision,
    voc_average_precision,
)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, in every second case with ties, and labels, in every third with ignored."""
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(2, 120)), int(rng.integers(1, 6))
    scores = rng.normal(size=(n, c)).astype(np.float32)
    if seed % 2:
        scores = np.round(scores, int(rng.integers(0, 2)))
    labels = np.where(rng.random((n, c)) < rng.uniform(0.02, 0.6), 1, -1)
    if seed % 3 == 0:
        labels[rng.random((n, c)) < 0.1] = 0
    return scores, labels.astype(np.int8)


def direct(scores: np.ndarray, positive: np.ndarray, year: str) -> float:
    """Return the definition, word by word: precision and recall at each threshold."""
    points = []
    for t in sorted(set(scores.tolist()), reverse=True):
        taken = [p for s, p in zip(scores.tolist(), positive.tolist(), strict=True) if s >= t]
        points.append((sum(taken), sum(taken) / len(taken)))
    total = int(positive.sum())
    if year == "2007":
        best = [max([p for k, p in points if 10 * k >= i * total], default=0) for i in range(11)]
        return sum(best) / 11
    area, before = 0.0, 0
    for k, _ in points:
        area += (k - before) / total * max(p for j, p in points if j >= k)
        before = k
    return area


@pytest.mark.parametrize("seed", range(42))
def test_equals_scikit_learns_and_the_official_interpolations_a_direct_computation(seed):
    scores, labels = random_case(seed)
    years = {year: voc_average_precision(scores, labels, year) for year in ("2007", "2010")}
    for c, found in enumerate(average_precision(scores, labels)):
        here = labels[:, c] != 0
        ranked = scores[here, c], labels[here, c] == 1
        if not ranked[1].any():
            assert np.isnan([found, *(values[c] for values in years.values())]).all()
            continue
        expected = average_precision_score(ranked[1], ranked[0])
        assert average_precision(scores[:, [c]], labels[:, [c]]) == expected
        assert found == expected
        for year, values in years.items():
            assert values[c] == pytest.approx(direct(*ranked, year), abs=1e-12)


def test_a_case_by_hand():
    """Ranked: right, wrong, right. Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[1], [-1], [1]])
    assert average_precision(scores, labels) == pytest.approx([(1 + 2 / 3) / 2])
    assert voc_average_precision(scores, labels, "2010") == pytest.approx([(1 + 2 / 3) / 2])
    assert voc_average_precision(scores, labels, "2007") == pytest.approx([(6 + 5 * 2 / 3) / 11])


def test_a_class_without_positives_is_undefined_and_not_counted():
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.1, 0.3, 0.2]])
    labels = np.array([[1, -1, 0], [-1, -1, -1], [-1, -1, -1]])  # the third: difficult objects only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = average_precision(scores, labels)
    assert values[0] == 1 and np.isnan(values[1:]).all()
    assert mean_average_precision(scores, labels) == (1.0, 1)
    mean, count = mean_average_precision(scores, np.full((3, 3), -1))
    assert np.isnan(mean) and count == 0


@pytest.mark.parametrize("measure", [average_precision, voc_average_precision])
def test_the_type_of_labels_says_what_they_mean_and_their_values_never(measure):
    """A column of present and difficult objects alone scores what it scores beside others."""
    scores = np.array([[4.0, 1.0], [3.0, 2.0], [2.0, 0.5]])
    labels = np.array([[0, 1], [1, 0], [0, -1]])
    assert measure(scores[:, :1], labels[:, :1]) == measure(scores, labels)[:1] == [1.0]
    binary = labels == 1
    assert (measure(scores, binary) == measure(scores, 2 * binary - 1)).all()
    assert measure(scores, binary)[0] == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        (np.array([[np.nan]]), np.array([[1]]), "finite"),
        (np.array([[np.inf]]), np.array([[1]]), "finite"),
        (np.zeros((2, 1)), np.ones((3, 1)), "must both be"),
        (np.zeros(3), np.ones(3), "must both be"),
        (np.zeros((1, 1)), np.array([[2]]), "1, 0 or -1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, labels, told):
    for measure in (average_precision, voc_average_precision):
        with pytest.raises(ValueError, match=told):
            measure(scores, labels)
    with pytest.raises(ValueError, match="year"):
        voc_average_precision(np.zeros((1, 1)), np.ones((1, 1)), "2008")  # pyrefly: ignore


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**31), st.integers(1, 9))
def test_metrics_equal_scikit_learn(classes, count, seed, batch):
    """Also where classes are absent from labels, predictions or both."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(1, classes - 1), count)
    predictions = rng.integers(0, classes, count)
    matrix = ConfusionMatrix(classes)
    parts = (torch.from_numpy(values).split(batch) for values in (predictions, labels))
    for part in zip(*parts, strict=True):
        matrix.update(*part)
    expected = confusion_matrix(labels, predictions, labels=range(classes))
    assert (matrix.counts.numpy() == expected).all()
    found = matrix.metrics()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    for average in ("micro", "macro"):
        theirs = f1_score(labels, predictions, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(theirs, abs=1e-12)
    assert found["error"] == pytest.approx(1 - found["accuracy"], abs=1e-12)


def test_nothing_counted_is_not_a_number():
    assert all(np.isnan(v) for v in ConfusionMatrix(3).metrics().values())
