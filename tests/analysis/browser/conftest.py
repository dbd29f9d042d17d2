"""A study to browse: its scores, and photographs to them."""

from __future__ import annotations

import pytest

from analysis.browser.page import Shown
from analysis.results.folder import load, load_predictions
from tests.support import results as built


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return built.voc(tmp_path_factory.mktemp("study") / "voc" / "demo")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return built.draw_images(tmp_path_factory.mktemp("data") / "VOCdevkit")


@pytest.fixture(scope="session")
def stored(study):
    """The predictions of the trial that is shown first."""
    return load_predictions(study, Shown(load(study), None).first)
