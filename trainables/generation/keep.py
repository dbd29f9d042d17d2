"""What a trial stores for the report, beside its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import trial
from core.generation import features
from core.generation.copies import threshold
from core.generation.family import Family, slerp
from core.generation.features import Reference, copying, quantised
from core.generation.quality import frechet, moments
from trainables.generation import Config
from trainables.generation.data import PATHS, SAMPLES, Pictures, generator

STORED = 1000  # samples kept per trial for the report
PAIRS = 12  # samples shown beside their nearest training images
ROWS, STEPS = 4, 9  # of interpolations
STATES = 6  # of the way from noise to image that are kept
_inception: dict[tuple[str, str, int], tuple[Any, Any]] = {}  # network and moments, of the last


class Grids:
    """The pictures made after each epoch from the same latents, as part of a checkpoint.

    Attributes:
        columns: the labels of a grid.
        images: of each epoch, uint8.
    """

    def __init__(self, columns: Tensor):
        self.columns = columns
        self.images: list[Tensor] = []

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the grids (epochs, N, C, S, S) and the labels (N,)."""
        images = torch.stack(self.images).numpy() if self.images else np.zeros(0, np.uint8)
        return {"grids": images, "grid_labels": self.columns.numpy()}

    def state_dict(self) -> dict[str, Any]:
        """Return the grids so far."""
        return {"images": list(self.images)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the grids of a checkpoint."""
        self.images = list(state_dict["images"])


def keep(
    cfg: Config, family: Family, pictures: Pictures, grids: Grids, asked: Tensor, epoch: np.ndarray
) -> None:
    """Store what the report shows: samples, grids, neighbours, interpolations, trajectories.

    Args:
        cfg: of the trial.
        family: with the weights of `epoch`; all but the grids, of which every epoch has one, are
            made with them.
        pictures: that it was trained on.
        grids: of all epochs.
        asked: (N,) labels of the samples.
        epoch: the epoch whose weights are kept.
    """
    reference = pictures.reference
    made = quantised(family.sample(asked, generator(cfg, SAMPLES)))
    found, logits = reference.classifier.look(made.to(reference.train.device))
    near, ratios = reference.nearest(made), reference.check.ratios(made)
    trial.note(**copying(near, ratios, threshold(reference.unseen)))
    if cfg.inception:
        trial.note(inception_frechet=inception_distance(cfg.inception, pictures, made))
    pairs = torch.arange(PAIRS) * len(made) // PAIRS
    stored = min(len(made), STORED)
    trial.save_predictions(
        logits.cpu().numpy()[:stored],
        asked.numpy()[:stored],
        tuple(f"sample-{number:05d}" for number in range(stored)),
        pictures.names,
        more={
            "epoch": epoch,
            "samples": made.numpy()[:stored],
            **grids.arrays(),
            "features": found.cpu().numpy(),
            "real_features": reference.real.cpu().numpy(),
            "real_mean": reference.moments.mean.cpu().numpy(),
            "real_covariance": reference.moments.covariance.cpu().numpy(),
            "nearest_distance": near.distance[:, 0].numpy(),
            "nearest_ratio": ratios.cpu().numpy(),
            "pairs": pairs.numpy(),
            "pair_images": reference.train.cpu()[near.index[pairs, 0]].numpy(),
            **_between(family, len(pictures.names), generator(cfg, PATHS)),
            **_real(reference, grids.columns),
        },
    )


def _between(family: Family, classes: int, draws: torch.Generator) -> dict[str, np.ndarray]:
    """Return images between two latents, and states on the way from noise to image."""
    latents = family.latents(2 * ROWS, draws)
    labels = torch.arange(ROWS) * classes // ROWS
    between = [
        family.decode(slerp(latents[:ROWS], latents[ROWS:], step / (STEPS - 1)), labels)
        for step in range(STEPS)
    ]
    times, states = family.trajectory(latents[:ROWS], labels)
    few = np.unique(np.linspace(0, len(times) - 1, STATES).round().astype(int))
    return {
        "interpolation": quantised(torch.stack(between, 1)).numpy(),
        "trajectory": quantised(states[few].clamp(-1, 1)).numpy(),
        "trajectory_times": np.array(times)[few],
    }


def _real(reference: Reference, columns: Tensor) -> dict[str, np.ndarray]:
    """Return real images in the order of a grid, and how near held-out ones are to training's."""
    labels, images = reference.labels.cpu(), reference.train.cpu()
    seen = dict.fromkeys(range(reference.classes), 0)
    chosen = []
    for label in columns.tolist():
        of_class = (labels == label).nonzero()[:, 0]
        chosen.append(int(of_class[seen[label] % len(of_class)]))
        seen[label] += 1
    few = torch.arange(min(len(reference.held_out), reference.count))
    near = reference.nearest(reference.held_out.cpu()[few])
    pairs = few[:: max(1, len(few) // PAIRS)][:PAIRS]
    return {
        "real": images[chosen].numpy(),
        "held_out_distance": near.distance[:, 0].numpy(),
        "held_out_ratio": reference.unseen.cpu().numpy(),
        "held_out_pairs": pairs.numpy(),
        "held_out_images": reference.held_out.cpu()[pairs].numpy(),
        "held_out_nearest": images[near.index[pairs, 0]].numpy(),
    }


def inception_distance(path: str, pictures: Pictures, made: Tensor) -> float:
    """Return the Frechet distance of samples to all training images in Inception's features."""
    key = path, pictures.reference.digest, len(pictures.train)
    if key not in _inception:  # a warm worker looks at the training images once
        _inception.clear()
        look = features.inception(path)
        _inception[key] = look, moments(look(pictures.train.cpu()))
    look, real = _inception[key]
    return frechet(moments(look(made)), real)
