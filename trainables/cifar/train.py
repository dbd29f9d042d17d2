"""Training of the small CNN, and of a part of a ResNet-18."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core import trial
from core.data.images import ImageSet
from core.layers.freezing import (
    PartlyFrozen,
    counts,
    freeze,
    small_stem,
    statistics_digest,
    trained_part,
    weights_digest,
)
from core.models import memory, pretrained
from core.models.small_cnn import SmallCNN, without_gradient
from core.training.device import device_here
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES, override
from trainables.cifar import Config
from trainables.cifar.data import batches, images, merge_single, steps_of


def train_cifar(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Train one network; report loss (nats), accuracy, error and F1 on train and val each epoch."""
    cfg = Config(**config)
    device = device_here()
    torch.manual_seed(cfg.seed)
    sets = images(cfg)
    train, seen, val = batches(cfg, sets, device)
    network = build(cfg, len(sets["train"].classes)).to(device)
    learner = learner_of(cfg, network, sets["train"])
    trial.note(**facts(cfg, network))
    trial.note(**digests(network, "before"))  # of the start, also when the trial is resumed
    kept = trial.Best()
    state = {"model": network, **learner.state(), "kept": kept}
    scored = {"train": seen, "val": val} if cfg.train_eval else {"val": val}
    for row in trial.epochs(state, cfg.epochs, report):
        start = time.monotonic()
        row["step_lr"] = learner.schedule.get_last_lr()[0]
        shown = merge_single(train.epoch(row["epoch"]))
        shown = memory.counted(shown, trial.step_counter(), network)
        row |= learner.train_epoch(shown, row["epoch"])
        trained = time.monotonic() - start
        metrics, logits = learner.score(scored)
        row |= metrics | {"train_seconds": trained}
        kept.add(row, logits["val"])
    trial.note(**digests(network, "after"))
    trial.load_best(network)
    if cfg.model == "cnn":  # of the weights whose scores are stored, with which it is compared
        trial.note(training_mode_accuracy=training_mode_accuracy(network, val.epoch(0)))
    trial.note(scores_epoch=kept.epoch, **learner.score({"best_train": seen})[0])
    shown = sets["val"]
    trial.save_predictions(
        kept.scores.numpy(), shown.labels, shown.files, shown.classes, kept.named()
    )


def build(cfg: Config, classes: int) -> nn.Module:
    """Return the network of a trial, with what is to stay frozen frozen."""
    if cfg.model == "cnn":
        return SmallCNN(cfg.bn, 3, classes)
    network = pretrained.resnet18("none" if cfg.variant == "scratch" else cfg.weights, classes)
    small_stem(network, cfg.conv1, maxpool=cfg.maxpool)
    freeze(network, cfg.variant, train_stem=cfg.conv1 == "trained")
    return network


def learner_of(cfg: Config, network: nn.Module, images: ImageSet) -> Learner:
    """Return the training of a network on these images, and note its learning rate."""
    fields = ("optimizer", "momentum", "weight_decay", "warmup", "max_norm")
    recipe = override(RECIPES["good"], **{name: getattr(cfg, name) for name in fields})
    recipe = override(recipe, lr=cfg.lr if cfg.model == "cnn" else cfg.tune_lr)
    trial.note(base_lr=recipe.lr)
    steps = cfg.epochs * steps_of(len(images), cfg.batch_size)
    optimizer, schedule = optimizer_and_schedule(trained_part(network), recipe, steps)
    task, frozen = cross_entropy(len(images.classes)), PartlyFrozen(network, cfg.statistics)
    return Learner(frozen, optimizer, schedule, task, cfg.precision, recipe.max_norm)


def facts(cfg: Config, network: nn.Module) -> dict[str, Any]:
    """Return what is known of a network before it is trained: its parameters, and the dead ones.

    Dead are those that a backward pass does not reach though they are to be trained.
    """
    probe = copy.deepcopy(network).eval()  # the trial's own gradients and statistics stay as made
    device = next(probe.parameters()).device
    probe(torch.zeros(1, 3, cfg.image_size, cfg.image_size, device=device)).sum().backward()
    dead = set(without_gradient(probe))
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    return counts(network) | {"dead_parameters": sum(sizes[name] for name in dead)}


def digests(network: nn.Module, when: str) -> dict[str, str]:
    """Return the digests of frozen weights and frozen statistics, named after `when`."""
    return {
        f"frozen_weights_{when}": weights_digest(network),
        f"frozen_statistics_{when}": statistics_digest(network),
    }


@torch.no_grad()
def training_mode_accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the accuracy of one who forgets `net.eval()`: batch norm uses each batch's statistics.

    A copy is scored, since a forward pass in training mode moves the running statistics.
    """
    forgetful = copy.deepcopy(network).train()
    right = count = 0
    for x, y in merge_single(batches):
        right += int((forgetful(x).argmax(1) == y).sum())
        count += len(y)
    return right / count
