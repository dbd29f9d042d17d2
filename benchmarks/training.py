"""What the study engine costs in training speed (seconds per trial: benchmarks/engine.py).

    python benchmarks/training.py --json results/bench-training.json

A ratio taken side by side on this machine. The trial trains the norms
study's network on the embedded birds under Ray, with checkpoints, records and reports; the bare
loop does the same forward, backward and evaluation on the same images held in memory, and nothing
else. Runs alternate; medians are reported.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.table import Table

from benchmarks.turns import show, study
from core.data.batches import Batches
from core.models.resnet import resnet
from core.storage.files import read_json
from core.study.driver import run
from core.study.options import Options
from core.training.epoch import Learner, cross_entropy, evaluate
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES
from core.trial import worker
from trainables.birds import Config, describe_images, train_birds
from trainables.birds.data import images

SETTINGS: dict[str, Any] = {"norm": "torch_bn", "image_size": 24, "epochs": 4}


def engine_images_per_second(folder: Path, name: str) -> float:
    """Return training images per second of one whole trial under the engine."""
    grid = {key: [value] for key, value in SETTINGS.items()}
    options = Options(results_dir=str(folder), max_concurrent=1, name=name)
    run(study(train_birds, Config, grid, describe_images), options)
    (path,) = (folder / "benchmark" / name).glob("trials/*/result.json")
    return _trained_images() / read_json(path)["seconds"]


def bare_images_per_second() -> float:
    """Return training images per second of the same work in a plain loop on arrays in memory."""
    cfg = Config(**SETTINGS)
    sets = [replace(s, images=np.array(s.images)) for s in images(cfg)]
    device = torch.device("cpu")
    worker.reset(seed=0, threads=1)  # as the engine does before a trial; not timed there either
    start = time.monotonic()
    model = resnet(cfg.n, len(sets[0].classes), cfg.norm)
    train = Batches(sets[0], cfg.batch_size, device, train=True)
    val = Batches(sets[1], cfg.batch_size, device)
    optimizer, schedule = optimizer_and_schedule(model, RECIPES["good"], cfg.epochs * len(train))
    task = cross_entropy(len(sets[0].classes))
    max_norm = RECIPES["good"].max_norm
    learner = Learner(model, optimizer, schedule, task, max_norm=max_norm)
    for epoch in range(1, cfg.epochs + 1):
        learner.train_epoch(train.epoch(epoch), epoch)
        evaluate(model, val.epoch(epoch), task)
    return _trained_images() / (time.monotonic() - start)


def _trained_images() -> int:
    cfg = Config(**SETTINGS)
    return cfg.epochs * len(images(cfg)[0].labels)


def main(
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None, rounds: int = 3
) -> None:
    """Measure both in turn and print them."""
    describe_images(vars(Config(**SETTINGS)))  # decode before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            (engine_images_per_second(Path(folder), f"round-{i}"), bare_images_per_second())
            for i in range(rounds)
        ]
    engine, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    result = {
        "engine_images_per_second": engine,
        "bare_images_per_second": bare,
        "ratio": engine / bare,
    }
    view = Table("measure", "value")
    for key, value in result.items():
        view.add_row(key, f"{value:.3f}")
    show(view, json_file, result)


if __name__ == "__main__":
    tyro.cli(main)
