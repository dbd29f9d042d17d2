"""The photographs of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.data import images as data
from core.data.synthetic import birds
from trainables import holdout
from trainables.birds import Config


def images(cfg: Config) -> tuple[data.ImageSet, data.ImageSet]:
    """Return the decoded images that a trial is trained on, and those that it is scored on."""
    root = birds.default_birds() if cfg.data_dir is None else cfg.data_dir
    sets = data.load(
        root,
        cfg.image_size,
        ("train",) if cfg.holdout else ("train", "val"),
        limit={"train": cfg.train_images, "val": cfg.val_images},
        skip_broken=cfg.skip_broken,
    )
    return holdout.trained_and_scored(sets, cfg.holdout)


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode the images once, and return what the report says about them.

    Raises UserError: folders or images that cannot be used, all named.
    """
    cfg = Config(**settings)
    train, val = images(replace(cfg, holdout=0.0))
    synthetic = None if cfg.data_dir else birds.SYNTHETIC
    described = data.describe({"train": train, "val": val}, synthetic)
    return described | holdout.describe(train, cfg.holdout)
