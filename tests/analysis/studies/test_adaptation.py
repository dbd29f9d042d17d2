"""The numbers and sentences of the adaptation study's report."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from analysis.results.folder import Results
from analysis.studies.adaptation import answers, sections
from core.data import small
from trainables.adaptation import data


def sweep(key: str, values: dict[int, list[float]], unadapted: float = 0.5) -> pd.DataFrame:
    """Trials of a sweep: a setting's value -> accuracies by seed."""
    rows = [
        {key: value, "seed": seed, "acc_adapted": accuracy, "gain": accuracy - unadapted,
         "acc_unadapted": unadapted, "method": "running", "state": "finished"}
        for value, accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_sentences_name_a_gain_or_loss_only_where_the_interval_leaves_out_zero():
    moved = pd.DataFrame({"batch_size": [1, 1, 64], "ratio": [0.8, 0.9, 1.0]})
    told = answers.batch_sizes(
        sweep("batch_size", {1: [0.40, 0.41, 0.42], 64: [0.45, 0.55, 0.56]}), moved
    )
    assert "1: −9.0 [−11.5, −6.5] points; 64: +2.0 [" in told
    assert "points, which cannot be told from 0" in told.split("64: +2.0")[1]
    assert "0.85 at 1 (0.8 to 0.9) and 1 at 64 (1 to 1)" in told
    once = answers.batch_sizes(sweep("batch_size", {1: [0.76], 64: [0.7]}), moved[:0])
    assert "1: +26.0 points (one seed gives no interval)" in once and "standard dev" not in once
    peak = sweep("num_bn_updates", {5: [0.60, 0.61, 0.62], 50: [0.50, 0.51, 0.53]})
    assert "not better without end" in answers.updates(peak, 0.1)
    flat = sweep("num_bn_updates", {5: [0.60, 0.51, 0.62], 50: [0.57, 0.56, 0.55]})
    assert "cannot be told from 0" in answers.updates(flat, 0.1)
    orders = sweep("order", {"shuffled": [0.6, 0.62, 0.61], "sorted": [0.3, 0.31, 0.33]})  # pyrefly: ignore
    assert "shuffle them before adapting" in answers.streams(orders)
    assert "shuffle them" not in answers.streams(orders[orders["seed"] == 0])


def test_the_photograph_of_python_batches_is_the_studys_first(tmp_path, monkeypatch):
    from torchvision.datasets import cifar

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    labels = [(k + 3) % 10 for k in range(12)]
    batch, meta = {"data": pixels, "labels": labels}, {"label_names": list("abcdefghij")}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # of the published files' MD5
    (tmp_path / ".private.json").write_text(json.dumps({"data_dir": str(folder)}))
    results = Results(tmp_path, {"data": {"kind": "folder"}}, pd.DataFrame(), pd.DataFrame())
    published = small.cifar10_test(tmp_path)
    assert published is not None
    expected = data._first_evenly(published, 10).images[0]
    assert np.array_equal(sections._first_image(results), expected)


@pytest.mark.parametrize("right", [0, 3, 50, 97, 100])
def test_wilsons_interval_is_scipys(right):
    expected = binomtest(right, 100).proportion_ci(method="wilson")
    assert sections.wilson(right, 100) == pytest.approx((expected.low, expected.high))


def test_paired_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    n, up, down = 100, 0.15, 0.05
    drawn = generator.multinomial(n, [up, down, 1 - up - down], size=2000)
    hits = [
        low <= up - down <= high
        for low, high in (sections.paired_interval(g, lost, n) for g, lost, _ in drawn)
    ]
    assert 0.935 <= np.mean(hits) <= 0.97
