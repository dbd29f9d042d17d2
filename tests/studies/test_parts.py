"""Every part of every study alone, at the smallest size: trials, tables and report.

The studies with one part are run in their own tests, the parts of adaptation in theirs.
"""

from __future__ import annotations

import contextlib
import importlib

import pandas as pd
import pytest

from core.study.command import command_line
from tests.support.reports import blank_figures

pytestmark = pytest.mark.slow

PARTS = {
    ("norms", "norms"): ["norm=torch_bn,none", "train_images=50", "val_images=25"],
    ("norms", "lab-recipe"): ["norm=torch_bn,none", "train_images=50", "val_images=25"],
    ("cifar", "resnet18"): ["variant=layer4,head", "train_images=20", "val_images=20"],
    ("cifar", "conv1"): ["train_images=20", "val_images=20"],
    ("cifar", "statistics"): ["train_images=20", "val_images=20"],
    ("cifar", "cnn"): ["bn=none,meant", "lr=0.1", "train_images=20", "val_images=20"],
    ("voc", "main"): ["epochs=1"],
    ("voc", "folds"): ["folds=2", "epochs=1"],
    ("generation", "small"): ["family=vae", "width=16,32", "epochs=1"],
    ("generation", "large"): ["family=vae", "width=32,64", "epochs=1"],
}


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: value)
def test_a_part_alone_gives_a_report(name, part, tmp_path):
    study = importlib.import_module(f"studies.{name}").study
    words = ["--smoke", "--local", "--part", part, "--results-dir", str(tmp_path)]
    # The figures of norms, those of Grad-CAM too, are drawn by tests of their own.
    with blank_figures() if name == "norms" else contextlib.nullcontext():
        assert command_line(study, [*words, "--set", *PARTS[name, part]]) == 0
    folder = tmp_path / name / "smoke"
    trials = pd.read_csv(folder / "trials.csv")
    assert set(trials["part"]) == {part} and set(trials["state"]) == {"finished"}
    assert (folder / "report.html").is_file() and any((folder / "tables").iterdir())


def test_no_part_of_a_study_with_several_is_left_out():
    for name in ("norms", "cifar", "voc", "generation"):
        study = importlib.import_module(f"studies.{name}").study
        assert set(study.parts) == {part for other, part in PARTS if other == name}
