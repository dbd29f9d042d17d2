"""Training of a network that tells species apart, and how much memory a step takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from core import trial
from core.data.batches import Batches
from core.data.images import ImageSet
from core.models import memory
from core.models.resnet import resnet
from core.training.device import device_here
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES, Precision, override
from trainables.birds import Config
from trainables.birds.data import images

LAB_BATCH = 32  # images; the learning rates of the recipes are meant for it
SCALING = {"linear": lambda ratio: ratio, "sqrt": math.sqrt, "none": lambda ratio: 1.0}


def train_birds(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Train one network; report loss (nats), accuracy, error and F1 on train and val each epoch.

    With `holdout` the metrics of the images held out are named heldout_ in place of val_.
    """
    cfg = Config(**config)
    device = device_here()
    torch.manual_seed(cfg.seed)
    train_set, val_set = images(cfg)
    train, seen, val = batches(cfg, train_set, val_set, device)
    classes = len(train_set.classes)
    way = step(cfg, classes)
    model = resnet(cfg.n, classes, cfg.norm).to(device)
    model.recompute = way.recompute
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    learner = learner_of(cfg, model, classes, way.precision, cfg.epochs * len(train))
    trial.note(**way.facts())
    kept, name = trial.Best(), "heldout" if cfg.holdout else "val"
    state = {"model": model, **learner.state(), "kept": kept}
    scored = ({"train": seen} if cfg.train_eval else {}) | {name: val}
    for row in trial.epochs(state, cfg.epochs, report):
        row["lr"] = learner.schedule.get_last_lr()[0]
        shown = train.epoch(row["epoch"])
        if not cfg.compile:  # the compiler would stand back while steps are counted
            shown = memory.counted(shown, trial.step_counter(), model)
        row |= learner.train_epoch(shown, row["epoch"])
        metrics, logits = learner.score(scored)
        row |= metrics
        kept.add(row, logits[name])
    trial.load_best(model)
    trial.note(scores_epoch=kept.epoch, **learner.score({"best_train": seen})[0])
    trial.save_predictions(
        kept.scores.numpy(), val_set.labels, val_set.files, val_set.classes, kept.named()
    )


def batches(
    cfg: Config, train_set: ImageSet, val_set: ImageSet, device: torch.device
) -> tuple[Batches, Batches, Batches]:
    """Return the training images as they are trained on and as they are, and those to score."""
    shared = {"device": device, "seed": cfg.seed, "channels_last": cfg.channels_last}
    shift = -1 if cfg.augment else 0
    train = Batches(train_set, cfg.batch_size, train=True, flip=cfg.augment, shift=shift, **shared)
    seen, val = (Batches(s, cfg.batch_size, **shared) for s in (train_set, val_set))
    return train, seen, val


def learner_of(
    cfg: Config, model: nn.Module, classes: int, precision: Precision, steps: int
) -> Learner:
    """Return the training of a network, and note its learning rate before and after scaling."""
    fields = ("optimizer", "lr", "momentum", "weight_decay", "warmup", "max_norm")
    recipe = override(RECIPES[cfg.recipe], **{name: getattr(cfg, name) for name in fields})
    scaled = recipe.lr * SCALING[cfg.lr_scaling](cfg.batch_size / LAB_BATCH)
    trial.note(base_lr=recipe.lr, scaled_lr=scaled)
    recipe = override(recipe, lr=scaled)
    optimizer, schedule = optimizer_and_schedule(model, recipe, steps)
    network = cast(nn.Module, torch.compile(model)) if cfg.compile else model
    how = (precision, recipe.max_norm, cfg.accumulate)
    return Learner(network, optimizer, schedule, cross_entropy(classes), *how)


def share_slot(
    configs: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    slot: int | None,
    bfloat16: bool,
) -> tuple[dict[str, Any], int]:
    """Choose how all trials run so that the largest fits the smallest slot; see `Study.fit`.

    With fit=false nothing is chosen, and 0 bytes are returned.
    """
    cfgs = [Config(**config) for config in configs]
    if not cfgs[0].fit:
        return {}, 0
    classes = len(described["classes"])
    half = cfgs[0].precision
    if half == "float32":
        half = "bfloat16" if bfloat16 else "float16"  # whose gradients are scaled
    sizes = "norm={0.norm}: batch {0.batch_size} at {0.image_size}x{0.image_size}"
    return memory.share({sizes.format(cfg): step(cfg, classes) for cfg in cfgs}, slot, half)


def step(cfg: Config, classes: int) -> memory.Step:
    """Return the training step of a trial."""
    part = -(-cfg.batch_size // cfg.accumulate)
    model = (cfg.n, classes, cfg.norm)
    return memory.Step(resnet, model, cfg.image_size, part, cfg.precision, cfg.recompute)
