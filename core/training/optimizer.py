"""Optimisers, and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from core.layers.norms import parameter_groups
from core.training.recipe import OptimizerName, Recipe, Shape


def optimizer_and_schedule(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Build the optimiser, and the schedule to step after each batch: warm-up, then cosine to 0.

    Gates (`core.layers.norms`) get ten times the learning rate and no weight decay. `steps` are the
    batches in the whole training.
    """
    groups = parameter_groups(model, recipe.lr, recipe.weight_decay)
    optimizer = make_optimizer(recipe.optimizer, groups, recipe.lr, momentum=recipe.momentum)
    return optimizer, lr_schedule(optimizer, steps, recipe.warmup)


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[Any],
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build an optimiser of `torch.optim`; what it has no use for is left out.

    Args:
        name: sgd (with Nesterov momentum), adam, adamw or rmsprop.
        parameters: tensors, or groups that may have their own `lr` and `weight_decay`.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 penalty, decoupled for adamw.
        betas: of adam and adamw.
        fused: update all weights in one pass of memory (rmsprop cannot); None: torch decides.
    """
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, weight_decay=weight_decay)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(parameters, lr, betas, weight_decay=weight_decay, fused=fused)


def lr_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.0, shape: Shape = "cosine"
) -> LambdaLR:
    """Build the schedule to step after each batch: a linear rise, then `shape`.

    Args:
        optimizer: its groups keep their ratio.
        steps: batches in the whole training.
        warmup: share of the steps in which the rates rise from 0, in [0, 1).
        shape: "cosine" falls to 0, "step" to a tenth after each third of the steps that are left,
            "constant" stays.
    """
    warmup = warmup * steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1.0, steps - warmup)
        if shape == "constant":
            return 1.0
        if shape == "step":
            return 0.1 ** min(2, int(3 * done))
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))

    return LambdaLR(optimizer, factor)
