"""The confusion matrix against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from core.training.metrics import ConfusionMatrix


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**31), st.integers(1, 9))
def test_metrics_equal_scikit_learn(classes, count, seed, batch):
    """Also where classes are absent from labels, predictions or both."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(1, classes - 1), count)
    predictions = rng.integers(0, classes, count)
    matrix = ConfusionMatrix(classes)
    for at in range(0, count, batch):
        matrix.update(
            torch.from_numpy(predictions[at : at + batch]),
            torch.from_numpy(labels[at : at + batch]),
        )
    expected = confusion_matrix(labels, predictions, labels=range(classes))
    assert (matrix.counts.numpy() == expected).all()
    found = matrix.metrics()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    for average in ("micro", "macro"):
        theirs = f1_score(labels, predictions, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(theirs, abs=1e-12)
    assert found["error"] == pytest.approx(1 - found["accuracy"], abs=1e-12)


def test_micro_f1_is_the_accuracy_with_one_label_per_image():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 1]))
    assert matrix.metrics()["micro_f1"] == matrix.metrics()["accuracy"] == 0.5


def test_nothing_counted_is_not_a_number():
    assert all(np.isnan(v) for v in ConfusionMatrix(3).metrics().values())
