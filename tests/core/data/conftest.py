"""Data sets that several files of this folder read, and a cache for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.datasets import folder, thing, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Keep each test's cache to itself."""
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def birds(tmp_path) -> Path:
    return folder(tmp_path / "birds", {"train": 3, "val": 2})


@pytest.fixture
def small(tmp_path) -> Path:
    """Two training images and a validation image with cats and dogs."""
    images = {
        "a": [thing("cat"), thing("dog", 1)],
        "b": [thing("dog"), thing("dog"), thing("dog", 1)],
        "c": [thing("cat", None), thing("dog", 1)],
    }
    return write(tmp_path / "kit" / "VOC2012", images, {"train": ["a", "b"], "val": ["c"]})
