"""Training of a family, and its samples after every epoch."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from core import trial
from core.errors import Diverged
from core.generation.family import Draws, Family
from core.generation.features import quantised
from core.models import memory
from core.training.device import device_here
from trainables.generation import Config
from trainables.generation.data import SAMPLES, SHOWS, Pictures, batches, build, generator, opened
from trainables.generation.keep import Grids, keep

SHOWN = 4  # images of each class in a grid, at most `GRID` in all
GRID = 40
CHECK_EVERY = 50  # steps between looks at the losses


def train_generator(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Train one family; report its losses and the quality of its samples each epoch."""
    cfg = Config(**config)
    device = device_here()
    pictures = opened(cfg)  # draws where no trial before it in this process has opened them
    torch.manual_seed(cfg.seed)
    family = build(cfg, pictures).to(device)
    draws = Draws(cfg.seed, ("order", "noise"))
    kept, grids = trial.Best(), Grids(shown_labels(len(pictures.names)))
    channels, size, _ = family.shape
    trial.note(parameters=family.parameters(), channels_used=channels, size_used=size)
    optimizer = next(iter(family.optimizers.values()))
    trial.note(base_lr=optimizer.param_groups[0]["lr"])
    state = {"model": family.average.network, "family": family, "draws": draws, "grids": grids}
    state |= {"kept": kept}
    asked = wanted(pictures.labels.cpu(), pictures.reference.count)
    for row in trial.epochs(state, cfg.epochs, report):
        epoch = row["epoch"]
        row |= train_epoch(cfg, family, pictures, draws, epoch)
        trained = time.monotonic()
        made = quantised(family.sample(asked, generator(cfg, SAMPLES)))
        row["sample_seconds"] = time.monotonic() - trained
        row |= pictures.reference.measure(made, asked if cfg.conditional else None)
        grids.images.append(quantised(family.sample(grids.columns, generator(cfg, SHOWS))))
        trial.save_picture("samples", epoch, grid_png(grids.images[-1]))
        kept.add(row)
    trial.load_best(family.average.network)
    trial.note(scores_epoch=kept.epoch)
    keep(cfg, family, pictures, grids, asked, **kept.named())


def train_epoch(
    cfg: Config, family: Family, pictures: Pictures, draws: Draws, epoch: int
) -> dict[str, float]:
    """Train for one round of steps and return the mean of each loss, named train_*.

    Raises Diverged: a loss is not finite.
    """
    sums: dict[str, Tensor] = {}
    steps = 0
    networks = (*family.networks.values(), family.average.network)
    shown = batches(cfg, pictures, draws["order"])
    for images, labels in memory.counted(shown, trial.step_counter(), *networks):
        losses = family.train_step(images, labels, draws["noise"])
        steps += 1
        for name, value in losses.items():
            sums[name] = sums[name] + value if name in sums else value.clone()
        if steps % CHECK_EVERY == 0:
            _check_finite(sums, epoch, steps)
    _check_finite(sums, epoch, steps)
    return {f"train_{name}": (total / steps).item() for name, total in sums.items()}


def wanted(labels: Tensor, count: int) -> Tensor:
    """Return `count` labels that are as frequent as among the training images."""
    ordered = labels.sort().values
    places = (torch.arange(count) * len(labels)) // count
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return ordered[places][mixed]


def shown_labels(classes: int) -> Tensor:
    """Return the labels of a grid: each class a column, for up to `GRID` classes."""
    columns = torch.arange(min(classes, GRID))
    return columns.repeat(max(1, min(SHOWN, GRID // len(columns))))


def grid_png(images: Tensor) -> bytes:
    """Return a grid of uint8 images as a PNG file, ten (or a class each) in a row, enlarged."""
    scale = max(1, 64 // images.shape[-1])
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(large, nrow=10 if len(images) % 10 == 0 else 8, pad_value=128)
    buffer = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _check_finite(sums: Mapping[str, Tensor], epoch: int, steps: int) -> None:
    wrong = [name for name, value in sums.items() if not value.isfinite()]
    if wrong:
        raise Diverged(
            f"{wrong[0]} is no longer finite at epoch {epoch}, by step {steps}: lower lr"
        )
