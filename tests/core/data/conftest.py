"""Data sets that several files of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.synthetic import scenes
from tests.support.datasets import folder, thing, write


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Keep each test's cache to itself."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LABTUNE_CACHE", str(folder))
    return folder


@pytest.fixture
def birds(tmp_path, cache) -> Path:
    return folder(tmp_path / "birds", {"train": 3, "val": 2})


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Two training images and a validation image with cats and dogs."""
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    images = {
        "a": [thing("cat"), thing("dog", 1)],
        "b": [thing("dog"), thing("dog"), thing("dog", 1)],
        "c": [thing("cat", None), thing("dog", 1)],
    }
    return write(tmp_path / "kit" / "VOC2012", images, {"train": ["a", "b"], "val": ["c"]})


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    return scenes.make_voc(tmp_path_factory.mktemp("voc") / "set", train=60, val=30)
