"""Tail accuracy against the formula evaluated by hand, its thresholds, and published scores."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.document import tables
from analysis.results import ranking
from analysis.studies.voc import tail_accuracy


def naive(scores, labels, thresholds):
    """Evaluate the formula image by image, with what is undefined as None."""
    found = []
    for t in thresholds:
        row = []
        for c in range(len(scores[0])):
            right = wrong = 0
            for x, y in zip(scores, labels, strict=True):
                if x[c] > t:
                    if y[c] == 1:
                        right += 1
                    elif y[c] == -1 or y[c] is False:
                        wrong += 1
            row.append((right / (right + wrong), right + wrong) if right + wrong else None)
        found.append(row)
    return found


def draw(case: int):
    """Return a random case: few distinct scores make ties, high thresholds empty tails."""
    rng = np.random.default_rng(case)
    n, c, t = rng.integers(1, 40), rng.integers(1, 6), rng.integers(1, 8)
    scores = rng.normal(size=(n, c)).round(rng.integers(0, 3)).astype(np.float32)
    values = ([-1, 1], [0, 1], [-1, 0, 1], [False, True])[case % 4]
    labels = rng.choice(values, size=(n, c))
    cuts = np.concatenate([rng.normal(size=t), rng.choice(scores.ravel(), t), [scores.max(), 9.0]])
    return scores, labels, np.sort(cuts)


@pytest.mark.parametrize("case", range(100))
def test_equals_the_formula_evaluated_naively(case):
    scores, labels, cuts = draw(case)
    found = tail_accuracy.tail_accuracy(scores, labels, cuts)
    for row, expected in enumerate(naive(scores.tolist(), labels.tolist(), cuts.tolist())):
        per_class, counts = zip(*(value or (math.nan, 0) for value in expected), strict=True)
        np.testing.assert_array_equal(found.per_class[row], per_class)
        np.testing.assert_array_equal(found.counts[row], counts)
        defined = [value for value in per_class if not math.isnan(value)]
        assert found.classes[row] == len(defined)
        mean = sum(defined) / len(defined) if defined else math.nan
        assert found.mean[row] == pytest.approx(mean, abs=1e-12, nan_ok=True)


def test_cases_by_hand():
    scores = np.array([[3.0, 0.5], [2.0, -1.0], [2.0, 4.0], [0.0, 0.1]])
    labels = np.array([[1, -1], [-1, 1], [0, 1], [1, -1]])
    found = tail_accuracy.tail_accuracy(scores, labels, np.array([0.0, 2.0, 3.0, 4.0]))
    # class 0 above 0: right, wrong, ignored; 0.0 itself is not above 0
    np.testing.assert_array_equal(found.counts, [[2, 3], [1, 1], [0, 1], [0, 0]])
    np.testing.assert_allclose(found.mean, [(1 / 2 + 1 / 3) / 2, 1, 1, np.nan])
    np.testing.assert_array_equal(found.classes, [2, 2, 1, 0])
    # one label per image
    scores = np.array([[2.0, 1.0], [1.0, 2.0], [3.0, -1.0]])
    found = tail_accuracy.tail_accuracy(scores, np.array([0, 1, 1]), np.array([0.0, 1.5]))
    np.testing.assert_allclose(found.per_class, [[1 / 3, 1 / 2], [1 / 2, 1.0]])


@pytest.mark.parametrize(
    ("scores", "labels", "cuts"),
    [
        (np.zeros(3), np.zeros((3, 1)), [0.0]),
        (np.zeros((3, 2)), np.zeros((3, 3)), [0.0]),
        (np.zeros((3, 2)), np.zeros((2, 2)), [0.0]),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), [0.0]),
        (np.zeros((3, 2)), np.full((3, 2), 2), [0.0]),
        (np.zeros((3, 2)), np.array([0, 1, 2]), [0.0]),
        (np.zeros((3, 2)), np.zeros((3, 2)), 0.0),
    ],
)
def test_refuses_what_does_not_fit(scores, labels, cuts):
    with pytest.raises(ValueError):
        tail_accuracy.tail_accuracy(scores, labels, np.array(cuts))


def test_thresholds_run_from_the_decision_to_the_maximum():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 4))
    cuts = tail_accuracy.thresholds(logits)
    assert len(cuts) == 15 and cuts[0] == 0 and cuts[-1] == logits.max()
    assert (np.diff(cuts) > 0).all()
    between = np.histogram(logits[logits > 0], cuts)[0]
    assert between.max() - between.min() <= 2  # as many scores between all neighbours
    probabilities = 1 / (1 + np.exp(-logits))
    assert tail_accuracy.thresholds(probabilities, 10)[0] == 0.5
    assert len(tail_accuracy.thresholds(probabilities, 10)) == 10
    assert tail_accuracy.thresholds(probabilities, 10, start=0.7)[0] == 0.7
    # without a tail, and with ties
    np.testing.assert_array_equal(tail_accuracy.thresholds(np.full((5, 2), -1.0)), [0.0])
    np.testing.assert_array_equal(tail_accuracy.thresholds(np.full((5, 2), 2.0)), [0.0, 2.0])
    with pytest.raises(ValueError, match="at least 2"):
        tail_accuracy.thresholds(np.zeros((2, 2)), 1)


def test_public_scores_give_the_published_tail_accuracies(shared_data):
    file = shared_data.parent / "reference" / "voc2012-val-resnet18.csv.gz"
    stored = pd.read_csv(file)
    scores = stored.filter(like="score_").to_numpy()
    labels = stored.filter(like="label_").to_numpy() == 1  # 0 means absent there
    found = tail_accuracy.tail_accuracy(scores, labels, np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]))
    np.testing.assert_allclose(
        found.mean, [0.8803, 0.8989, 0.9157, 0.9316, 0.9529, 0.9678], atol=5e-5
    )
    assert (found.classes == 20).all()
    chosen = tail_accuracy.tail_accuracy(scores, labels, tail_accuracy.thresholds(scores))
    assert chosen.thresholds[0] == 0.5 and chosen.thresholds[-1] == scores.max()
    assert (np.diff(chosen.counts.sum(axis=1)) < 0).all()
    assert chosen.classes[-1] == 0 and math.isnan(chosen.mean[-1])


def test_table_and_figure_say_what_is_undefined(tmp_path):
    scores, labels, _ = draw(5)
    tail = tail_accuracy.tail_accuracy(scores, labels, np.array([0.0, float(scores.max()), 50.0]))
    shown = tail_accuracy.table(tail)
    assert shown.cells()[-1] == ["50.000", "-", "-", "-", "0", "0", "-"]
    assert "undefined" in shown.note
    tables.write(shown, tmp_path)
    first = tail_accuracy.figure(tail, tmp_path).path.read_bytes()
    assert tail_accuracy.figure(tail, tmp_path).path.read_bytes() == first
    nothing = tail_accuracy.tail_accuracy(scores, labels, np.array([50.0]))
    tail_accuracy.figure(nothing, tmp_path, "nothing")
    assert tail_accuracy.table(nothing).cells()[0][1] == "-"


def test_ranking_and_point():
    scores = np.array([0.5, 0.9, 0.5, 0.1])
    labels = np.array([1, -1, 0, 1])
    np.testing.assert_array_equal(ranking.ranking(scores), [1, 0, 2, 3])
    at = ranking.point(scores, labels, 0.4)
    assert at == (1, 1, 1, 1) and at.precision == at.recall == 0.5
    assert math.isnan(ranking.point(scores, labels, 0.9).precision)
    assert math.isnan(ranking.point(scores, np.array([-1, -1, 0, -1]), 0.0).recall)
