"""The scores of one cell, before adaptation and after it."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import trial
from core.data.augment import normalise
from core.errors import Diverged, UserError
from core.layers import running
from core.models.normalisation import NORMALISATIONS
from core.shift import adaptation
from core.shift.corruptions import corrupt
from core.training.device import device_here
from trainables.adaptation import CLEAN, Config
from trainables.adaptation.data import Key, Task, only, stamp, task_of

EVAL_BATCH = 125  # images; a measure of speed only, as the model is in evaluation mode
_CHUNK = 256  # images corrupted at once
_KEPT_BYTES = 2**30  # corrupted images that are kept; of more, batches are corrupted as they come
_KEPT_SCORES = 250_000  # scores of a trial that go to predictions/


class Scored(NamedTuple):
    """How a model did on a cell's images."""

    right: np.ndarray  # (N,) bool, in the order of the images
    loss: float  # cross-entropy, nats per image
    logits: Tensor  # (N, C) float32 on the CPU

    @property
    def accuracy(self) -> float:
        """Share of the images that were told right."""
        return float(self.right.mean())


def adapt_cell(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Score the model on one cell without and with adaptation; report once.

    Reports accuracies and losses (nats) before and after, the number of images, those told right
    before and after, those that adaptation put right (`gained`) and wrong (`lost`), the updates
    made, the accuracy on clean images, and where the time went.
    """
    start = time.monotonic()
    cfg = Config(**config)
    task = task_of(cfg)
    before = _unadapted(_key(cfg))
    after, adapted = _adapted(cfg, task)
    if cfg.method in ("none", "running"):
        _note_changes(task, adapted.model)
    clean = _unadapted(_key(_clean(cfg)))
    row: dict[str, Any] = {"epoch": 1, "acc_unadapted": before.accuracy}
    row |= {"acc_adapted": after.accuracy, "gain": after.accuracy - before.accuracy}
    row |= {"loss_unadapted": before.loss, "loss_adapted": after.loss, "n": len(after.right)}
    row |= _counts(before, after)
    row |= {"updates": adapted.updates, "clean_acc_unadapted": clean.accuracy}
    if cfg.clean_reference:
        again = _clean_adapted(_clean(cfg), stamp(cfg.checkpoint))
        row |= {"clean_acc_adapted": again.accuracy}
        row |= {f"clean_{key}": value for key, value in _counts(clean, again).items()}
    seconds = time.monotonic() - start
    row |= {"corruption_seconds": _shifted(_key(cfg)).take_seconds(), "seconds": seconds}
    if after.logits.numel() <= _KEPT_SCORES:
        images = task.images
        trial.save_predictions(after.logits.numpy(), images.labels, images.files, images.classes)
    (report or trial.report)(row)


def check_cells(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse, by a UserError, batches and updates without wrapping that need too many images."""
    labels = np.zeros(sum(described["counts"]["val"].values()), dtype=np.int64)
    for config in configs:
        try:
            if config["method"] == "running":
                _update_batches(Config(**config), labels)
            else:
                adaptation.stream(labels, "shuffled", 0, config["batch_size"])
        except UserError as e:
            raise UserError(f"--set {e}") from e


def _adapted(cfg: Config, task: Task) -> tuple[Scored, adaptation.Adapted]:
    """Return the scores with adaptation, and the model after it."""
    shifted = _shifted(_key(cfg))
    labels = task.images.labels
    moving = _update_batches(cfg, labels) if cfg.method == "running" else []
    images = (_batch(task, shifted, index) for index in moving)
    adapted = adaptation.adapt(
        task.model, images, cfg.method, num_bn_updates=cfg.num_bn_updates, momentum=cfg.momentum,
        cumulative=cfg.cumulative, prior=cfg.prior_n, lr=cfg.tent_lr,
    )  # fmt: skip
    if cfg.method in ("none", "running"):
        batches = _in_order(len(labels))
    else:
        batches = adaptation.stream(labels, cfg.order, cfg.seed, cfg.batch_size)
    return _score(task, adapted.model, shifted, batches), adapted


def _note_changes(task: Task, adapted: nn.Module) -> None:
    """Keep which tensors adaptation changed, and how far the statistics of each layer moved."""
    names = running.changed_tensors(task.model, adapted)
    kinds = Counter(name.rpartition(".")[2] for name in names)
    moved = [
        [change.layer, round(change.shift, 4), round(change.ratio, 4)]
        for change in running.changes(task.model, adapted)
    ]
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    trial.note(tensors_changed=told, bn_change=json.dumps(moved))


def _update_batches(cfg: Config, labels: np.ndarray) -> list[np.ndarray]:
    """Return the images of each update."""
    return adaptation.stream(
        labels, cfg.order, cfg.seed, cfg.batch_size, cfg.num_bn_updates, cfg.wrap
    )


def _in_order(count: int, size: int = EVAL_BATCH) -> list[np.ndarray]:
    return [np.arange(k, min(k + size, count)) for k in range(0, count, size)]


@torch.inference_mode()
def _score(task: Task, model: nn.Module, shifted: Shifted, batches: list[np.ndarray]) -> Scored:
    """Predict the images batch by batch; every image is in one batch."""
    logits = torch.cat([model(_batch(task, shifted, index)).float() for index in batches]).cpu()
    if not logits.isfinite().all():
        raise Diverged(
            "a score is not finite: the weights or what adaptation made of them overflow"
        )
    ordered = torch.empty_like(logits)
    ordered[torch.from_numpy(np.concatenate(batches))] = logits
    labels = torch.from_numpy(task.images.labels)
    right = (ordered.argmax(1) == labels).numpy()
    return Scored(right, F.cross_entropy(ordered, labels).item(), ordered)


def _batch(task: Task, shifted: Shifted, index: np.ndarray) -> Tensor:
    pixels = shifted(index).to(device_here(), non_blocking=True)
    return normalise(pixels, *NORMALISATIONS[task.normalisation], channels_last=True)


def _counts(before: Scored, after: Scored) -> dict[str, int]:
    return {
        "right_unadapted": int(before.right.sum()),
        "right_adapted": int(after.right.sum()),
        "gained": int((after.right & ~before.right).sum()),
        "lost": int((before.right & ~after.right).sum()),
    }


class Shifted:
    """The images of a cell, corrupted once where they fit, else batch by batch.

    The result for an image depends on the image, its place in the set and the corruption's seed:
    both ways give the same bytes.
    """

    def __init__(self, cfg: Config, images: np.ndarray):
        self.cfg, self.images = cfg, images
        self.seconds = 0.0  # spent on corrupting
        self.kept: Tensor | None = None
        if images.nbytes <= _KEPT_BYTES:
            chunks = _in_order(len(images), _CHUNK)
            self.kept = torch.cat([self._corrupted(chunk).cpu() for chunk in chunks])

    def __call__(self, index: np.ndarray) -> Tensor:
        """Return the corrupted images (B, 3, S, S) uint8 with these places in the set."""
        if self.kept is not None:
            return self.kept[torch.from_numpy(index)]
        return self._corrupted(index)

    def take_seconds(self) -> float:
        """Return the seconds spent on corrupting since this was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _corrupted(self, index: np.ndarray) -> Tensor:
        start = time.monotonic()
        images, cfg = torch.from_numpy(self.images[index]), self.cfg
        if cfg.corruption != CLEAN:
            how = cfg.corruption, cfg.severity, cfg.corruption_seed, torch.from_numpy(index)
            images = corrupt(images.to(device_here()), *how, frost_dir=cfg.frost_dir)
        self.seconds += time.monotonic() - start
        return images


def _clean(cfg: Config) -> Config:
    return replace(cfg, corruption=CLEAN, severity=0)


def _key(cfg: Config) -> Key:
    """Return what the corrupted images of a cell depend on."""
    return only(
        cfg, "corruption", "severity", "corruption_seed", "images", "image_size", "checkpoint",
        "normalisation", "frost_dir", "data_dir", "skip_broken",
    )  # fmt: skip


@functools.lru_cache(maxsize=2)  # this cell's images, and the clean ones
def _shifted(key: Key) -> Shifted:
    return Shifted(key.cfg, task_of(key.cfg).images.images)


@functools.lru_cache(maxsize=64)
def _unadapted(key: Key) -> Scored:
    task = task_of(key.cfg)
    return _score(task, task.model, _shifted(key), _in_order(len(task.images)))


@functools.lru_cache(maxsize=64)
def _clean_adapted(cfg: Config, stamp: int) -> Scored:
    return _adapted(cfg, task_of(cfg))[0]
