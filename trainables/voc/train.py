"""Fine-tuning for several labels per photograph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import trial
from core.data import voc
from core.models import memory, pretrained
from core.training import optimizer
from core.training.device import device_here
from core.training.epoch import Learner
from core.training.multilabel import LabelledImages, Loss, balance, make_loss, pair_loss
from trainables.voc import Config
from trainables.voc.data import images, split

HEAD_FACTOR = 10  # the new head learns so much faster than the pretrained body
EVAL_FACTOR = 4  # batches without gradients take less memory


def train_voc(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Train one network; report loss (nats per pair), mAP and accuracy each epoch.

    Without a fold, the validation images are scored after each epoch, and the scores of the epoch
    with the best mAP on them are kept, with the mAP of the training images under the weights of
    that epoch: the lab's short cut. With a fold, this fold is scored (it
    tells which epoch is best), and the scores of the validation images are kept of every epoch,
    unseen: nothing about them is reported. With `holdout`, the images held out take the place of
    the validation images, and their metrics are named heldout_ in place of val_.
    """
    cfg = Config(**config)
    device = device_here()
    torch.manual_seed(cfg.seed)
    train_set, val_set = images(cfg)
    chosen, held = split(cfg, train_set)
    train = batches(cfg, train_set, chosen, device)
    name = "heldout" if cfg.holdout else "val"
    sources = {name: (val_set, np.arange(len(val_set)))}
    if cfg.fold is not None:
        sources = {"heldout": (train_set, held), **sources}
    if cfg.train_eval:
        sources["train"] = (train_set, chosen)
    scored = {key: as_they_are(batches(cfg, *source, device)) for key, source in sources.items()}
    model = pretrained.resnet18(cfg.weights, len(train_set.classes))
    model = placed(cfg, model, device)
    weight = balance(train_set.labels[chosen]) if cfg.class_weights == "balanced" else None
    loss = make_loss(cfg.loss, weight, device)
    learner = learner_of(cfg, model, loss, cfg.epochs * len(train))
    kept: trial.Best | Every = trial.Best() if cfg.fold is None else Every()
    state = {"model": model, **learner.state(), "kept": kept}
    for row in trial.epochs(state, cfg.epochs, report):
        row["lr"], row["head_lr"] = learner.schedule.get_last_lr()
        shown = memory.counted(train.epoch(row["epoch"]), trial.step_counter(), model)
        row |= learner.train_epoch(shown, row["epoch"])
        metrics, logits = learner.score(scored)
        if isinstance(kept, Every):
            kept.add(logits)
            row |= {key: value for key, value in metrics.items() if not key.startswith("val_")}
        else:
            row |= metrics
            kept.add(row, logits[name])
    if isinstance(kept, trial.Best):
        trial.load_best(model)
        trial.note(**learner.score({"best_train": as_they_are(train)})[0])
    keep_predictions(kept, train_set, val_set, chosen, held, cfg)


def batches(
    cfg: Config, images: voc.VocSet, chosen: np.ndarray, device: torch.device
) -> LabelledImages:
    """Return the chosen images in the batches of training, augmented."""
    how = cfg.batch_size, device, cfg.seed, cfg.augment, cfg.channels_last
    return LabelledImages(images.images, images.labels, chosen, *how)


def as_they_are(images: LabelledImages) -> LabelledImages:
    """Return images in order and without augmentation, in larger batches."""
    return replace(images, augment=None, batch_size=EVAL_FACTOR * images.batch_size)


def placed(cfg: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network on its device and in its memory format."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if cfg.channels_last else model


def learner_of(cfg: Config, model: nn.Module, loss: Loss, steps: int) -> Learner:
    """Return the training of a network with a loss of pairs."""
    found = make_optimizer(cfg, model)
    schedule = optimizer.lr_schedule(found, steps, cfg.warmup, cfg.schedule)
    return Learner(model, found, schedule, pair_loss(loss), cfg.precision, cfg.max_norm)


def make_optimizer(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser with two groups: the body, then the head.

    Fused: eleven million weights in one pass of memory, a sixth of a small batch's time on a CPU.
    """
    head = list(model.get_submodule("fc").parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    head_lr = HEAD_FACTOR * cfg.lr if cfg.head_lr is None else cfg.head_lr
    groups = [{"params": body, "lr": cfg.lr}, {"params": head, "lr": head_lr}]
    how = {"momentum": cfg.momentum, "weight_decay": cfg.weight_decay}
    return optimizer.make_optimizer(cfg.optimizer, groups, cfg.lr, fused=True, **how)


class Every:
    """The scores of the held-out fold and of the validation images after every epoch."""

    def __init__(self) -> None:
        self.scores: dict[str, list[Tensor]] = {"heldout": [], "val": []}

    def add(self, logits: Mapping[str, Tensor]) -> None:
        """Take an epoch's scores."""
        for name, scores in self.scores.items():
            scores.append(logits[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {name: list(scores) for name, scores in self.scores.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.scores = {name: list(state_dict[name]) for name in self.scores}


def keep_predictions(
    kept: trial.Best | Every,
    train_set: voc.VocSet,
    val_set: voc.VocSet,
    chosen: np.ndarray,
    held: np.ndarray,
    cfg: Config,
) -> None:
    """Save the scores with the names of the images they belong to, and of those trained on.

    Of a fold the main arrays are its held-out images at the last epoch; `heldout_scores` and
    `val_scores` (epochs, images, classes) hold every epoch's.
    """
    trained = np.array([train_set.files[i] for i in chosen])
    if isinstance(kept, trial.Best):
        more = {**kept.named(), "train_files": trained}
        scores, shown = kept.scores.numpy(), (val_set.labels, val_set.files, val_set.classes)
    else:
        every = {name: torch.stack(scores).numpy() for name, scores in kept.scores.items()}
        more = {
            "epoch": np.array(len(every["val"])),
            "fold": np.array(-1 if cfg.fold is None else cfg.fold),
            "folds": np.array(cfg.folds),
            "train_files": trained,
            "heldout_scores": every["heldout"],
            "val_scores": every["val"],
            "val_labels": val_set.labels,
            "val_files": np.array(val_set.files),
        }
        files = tuple(train_set.files[i] for i in held)
        scores, shown = every["heldout"][-1], (train_set.labels[held], files, train_set.classes)
    trial.note(scores_epoch=int(more["epoch"]))
    trial.save_predictions(scores, *shown, more)
