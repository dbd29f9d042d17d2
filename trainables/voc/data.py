"""The photographs of a trial, and the folds that they are in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.data import archive, devkit, folds, voc
from core.data.synthetic import scenes
from core.errors import UserError
from core.models import pretrained
from trainables import holdout
from trainables.voc import Config


def images(cfg: Config) -> tuple[voc.VocSet, voc.VocSet]:
    """Return the decoded images that a trial is trained on, and those that it is scored on."""
    root = scenes.default_voc() if cfg.data_dir is None else cfg.data_dir
    sets = voc.load(
        root,
        cfg.image_size,
        year=cfg.year,
        difficult=cfg.difficult,
        fit=cfg.fit,
        limit={"train": cfg.train_images, "val": cfg.val_images},
        untrained=cfg.untrained,
        skip_broken=cfg.skip_broken,
    )
    return holdout.trained_and_scored(sets, cfg.holdout)


def split(cfg: Config, train_set: voc.VocSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images that are trained on, and of those held out."""
    if cfg.fold is None:
        return np.arange(len(train_set)), np.arange(0)
    fold = assign(cfg, train_set)
    return np.flatnonzero(fold != cfg.fold), np.flatnonzero(fold == cfg.fold)


def assign(cfg: Config, train_set: voc.VocSet) -> np.ndarray:
    """Return the fold of each training image, the same for every seed; refuse too few images."""
    if cfg.folds > len(train_set):
        raise UserError(f"--folds {cfg.folds}: there are only {len(train_set)} training images")
    return folds.stratified_folds(train_set.labels, cfg.folds, train_set.digests)


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check, fetch and decode what trials need, and return what the report says about it.

    Raises UserError: data or weights that cannot be used or fetched.
    """
    cfg = Config(**settings)
    if cfg.download:
        if cfg.data_dir is None:
            raise UserError("--download: say with --data-dir into which folder")
        archive.download(Path(cfg.data_dir), cfg.year or "2012")
    root = devkit.open_root(cfg.data_dir or scenes.default_voc())
    kit = devkit.read_devkit(root, cfg.year, cfg.skip_broken)
    named = cfg.weights if cfg.weights in pretrained.NAMES else Path(cfg.weights).name
    weights = {"given": named, "digest": pretrained.digest(cfg.weights)}
    train_set, val_set = images(replace(cfg, holdout=0.0))
    synthetic = None if cfg.data_dir else scenes.SYNTHETIC
    described = voc.describe({"train": train_set, "val": val_set}, kit, synthetic)
    told = f"{described['fingerprint']} {weights['digest']}"
    described |= {"weights": weights, "difficult": cfg.difficult}
    described["fingerprint"] = f"sha256:{hashlib.sha256(told.encode()).hexdigest()[:32]}"
    if cfg.folds:
        described["folds"] = _describe_folds(cfg, train_set, set(described["untrained"]))
    return described | holdout.describe(train_set, cfg.holdout)


def _describe_folds(cfg: Config, train_set: voc.VocSet, absent: set[str]) -> dict[str, Any]:
    """Return number and sizes of the folds, and which classes they lack that are not `absent`."""
    fold = assign(cfg, train_set)
    missing = folds.missing(train_set.labels, fold, train_set.classes)
    return {
        "number": cfg.folds,
        "sizes": np.bincount(fold, minlength=cfg.folds).tolist(),
        "missing": [pair for pair in missing if pair[0] not in absent],
    }
