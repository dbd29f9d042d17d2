"""Fine-tuning of one variant, and the short check of the conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from core import trial
from core.errors import TrialError
from core.layers.convert import conversion, convert
from core.models import conversion_check, memory, pretrained
from core.training.device import device_here
from core.training.multilabel import make_loss
from trainables.voc import data as voc_data
from trainables.voc import train as voc_train
from trainables.weight_standardization import Config
from trainables.weight_standardization.watch import Watch

CHECK_IMAGES = 40  # of the short check that every report shows


def train_converted(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Fine-tune one variant; report loss (nats per pair), mAP and accuracy each epoch.

    Raises TrialError: the network cannot be converted.
    """
    cfg = Config(**config)
    task = cfg.task()
    device = device_here()
    torch.manual_seed(task.seed)
    train_set, val_set = voc_data.images(task)
    train, val = (
        voc_train.batches(task, s, np.arange(len(s)), device) for s in (train_set, val_set)
    )
    seen, val = voc_train.as_they_are(train), voc_train.as_they_are(val)
    model = pretrained.resnet18(task.weights, len(train_set.classes))
    model = voc_train.placed(task, converted(model, cfg.variant), device)
    watch = Watch(model, make_loss("bce", None, device), cfg.watch_steps)
    learner = voc_train.learner_of(task, model, watch.loss, task.epochs * len(train))
    kept = trial.Best()
    state = {"model": model, **learner.state(), "kept": kept, "watch": watch}
    epochs = trial.epochs(state, task.epochs, report)
    if not kept.epoch:
        before = learner.score({"start": val})[0]
        trial.note(start_loss=before["start_loss"], start_map=before["start_map"])
    scored = {"train": seen, "val": val} if task.train_eval else {"val": val}
    for row in epochs:
        row["body_lr"] = learner.schedule.get_last_lr()[0]
        shown = memory.counted(train.epoch(row["epoch"]), trial.step_counter(), model)
        row |= learner.train_epoch(shown, row["epoch"])
        metrics, logits = learner.score(scored)
        row |= metrics
        kept.add(row, logits["val"])
    trial.load_best(model)
    trial.note(scores_epoch=kept.epoch, **learner.score({"best_train": seen})[0])
    more = {**kept.named(), **watch.arrays()}
    trial.save_predictions(
        kept.scores.numpy(), val_set.labels, val_set.files, val_set.classes, more
    )


def converted(model: nn.Module, variant: str) -> nn.Module:
    """Return the network as it is ("original"), or converted in mode A or B (else TrialError)."""
    if variant == "original":
        return model
    try:
        model = convert(model, "A" if variant == "A" else "B", inplace=True)
    except ValueError as e:
        raise TrialError(f"the network cannot be converted: {e}") from e
    known = conversion(model)
    assert known is not None
    trial.note(converted_layers=len(known.converted), conversion_difference=known.difference)
    return model


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode images and weights; return what the report says, with a short check of both.

    Raises UserError: data or weights that cannot be used.
    """
    cfg = Config(**settings)
    described = voc_data.describe_images(vars(cfg.task()))
    images = voc_data.images(cfg.task())[1].images[:CHECK_IMAGES]
    model, _, _ = conversion_check.network(cfg.task().weights)
    photos = conversion_check.Photos(np.asarray(images))
    rows = [r for r in conversion_check.check(model, photos) if r.layer == conversion_check.OUTPUT]
    described["check"] = [dataclasses.asdict(row) for row in rows]
    return described
