"""What the study engine costs in training speed (seconds per trial: benchmarks/engine.py).

    python benchmarks/training.py --json results/bench-training.json

A ratio taken side by side on this machine. The trial trains the norms
study's network on the embedded birds under Ray, with checkpoints, records and reports; the bare
loop does the same forward, backward and evaluation on the same images held in memory, and nothing
else. Runs alternate; medians are reported.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from core.data.batches import Batches
from core.data.images import ImageSet
from core.models.resnet import resnet
from core.storage.files import write_json
from core.study import Data, Part, Scale, Study
from core.study.driver import run
from core.study.options import Options
from core.training.epoch import Learner, cross_entropy, evaluate
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES
from core.trial import worker
from trainables.birds import Config, describe_images, train_birds
from trainables.birds.data import images

SETTINGS: dict[str, Any] = {"norm": "torch_bn", "image_size": 24, "epochs": 4}


def no_report(folder: Path) -> None:
    """Write nothing: the engine alone is timed."""


def engine_study(trainable, config: type, grid: dict[str, list], prepare) -> Study:
    """Declare a study of one part and one seed."""
    return Study(
        name="benchmark",
        question="What does the engine cost?",
        trainable=trainable,
        config=config,
        parts={"main": Part(grid=grid)},
        scales={"demo": Scale(seeds=1), "full": Scale(seeds=1), "smoke": Scale(seeds=1)},
        metric="val_accuracy",
        mode="max",
        data=Data(prepare=prepare),
        report=no_report,
    )


def engine_images_per_second(folder: Path, name: str) -> float:
    """Return training images per second of one whole trial under the engine."""
    grid = {key: [value] for key, value in SETTINGS.items()}
    study = engine_study(train_birds, Config, grid, describe_images)
    run(study, Options(results_dir=str(folder), max_concurrent=1, name=name))
    (path,) = (folder / "benchmark" / name).glob("trials/*/result.json")
    return _trained_images() / json.loads(path.read_text())["seconds"]


def bare_images_per_second() -> float:
    """Return training images per second of the same work in a plain loop on arrays in memory."""
    cfg = Config(**SETTINGS)
    sets = [_in_memory(s) for s in images(cfg)]
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


def _in_memory(data: ImageSet) -> ImageSet:
    return replace(data, images=np.array(data.images))


def _trained_images() -> int:
    cfg = Config(**SETTINGS)
    return cfg.epochs * len(images(cfg)[0].labels)


def main(
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None, rounds: int = 3
) -> None:
    """Measure both in turn and print them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        describe_images(vars(Config(**SETTINGS)))  # decode before anything is timed
        engine: list[float] = []
        bare: list[float] = []
        for i in range(rounds):
            engine.append(engine_images_per_second(folder, f"round-{i}"))
            bare.append(bare_images_per_second())
    result = {
        "engine_images_per_second": statistics.median(engine),
        "bare_images_per_second": statistics.median(bare),
        "ratio": statistics.median(engine) / statistics.median(bare),
    }
    table = Table("measure", "value")
    for key, value in result.items():
        table.add_row(key, f"{value:.3f}")
    Console().print(table)
    if json_file is not None:
        write_json(json_file, result)


if __name__ == "__main__":
    tyro.cli(main)
