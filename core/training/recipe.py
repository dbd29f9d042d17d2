"""How a network is trained: optimiser, learning rate, schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from core.layers.norms import parameter_groups

Precision = Literal["float32", "bfloat16", "float16"]
Shape = Literal["cosine", "step", "constant"]
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]

# The highest learning rate that goes with each optimiser: of five rates, the one with the best mean
# validation accuracy of three seeds (norms' demo, norm=bn). docs/studies.md has the figures.
LEARNING_RATES: dict[OptimizerName, float] = {
    "sgd": 0.1,
    "adam": 3e-3,
    "adamw": 3e-3,
    "rmsprop": 3e-3,
}


@dataclass(frozen=True)
class Recipe:
    """How the weights are optimised.

    Attributes:
        optimizer: see `make_optimizer`.
        lr: learning rate at its highest.
        momentum: of SGD.
        weight_decay: L2 penalty (decoupled for adamw); never applied to the gates of bin.
        warmup: share of all steps in which lr rises linearly from 0, in [0, 1).
        max_norm: gradients are scaled down to this L2 norm; 0 leaves them.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = LEARNING_RATES["sgd"]
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    max_norm: float = 1.0


RECIPES = {
    # The lab's words: SGD, initial learning rate 1e-4, decayed. Momentum is not mentioned there.
    "lab": Recipe(lr=1e-4, momentum=0.0, weight_decay=0.0, warmup=0.0, max_norm=0.0),
    "good": Recipe(),
}


def optimizer_and_schedule(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Build the optimiser, and the schedule to step after each batch: warm-up, then cosine to 0.

    Args:
        model: its gates (`core.layers.norms`) get ten times the learning rate and no weight decay.
        recipe: see `Recipe`.
        steps: batches in the whole training.
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


def override(recipe: Recipe, **settings: Any) -> Recipe:
    """Return `recipe` with every setting that is not None put in place of its own.

    Where the recipe's learning rate is that of its optimiser, another optimiser brings its own.
    """
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if recipe.lr == LEARNING_RATES[recipe.optimizer] and "optimizer" in given:
        given.setdefault("lr", LEARNING_RATES[given["optimizer"]])
    return replace(recipe, **given)


def converted_rate(rate: float, stated: OptimizerName, chosen: OptimizerName) -> float:
    """Return the learning rate for `chosen` that a rate stated for another optimiser amounts to.

    It stands to `rate` as the two optimisers' `LEARNING_RATES` to each other, to three digits.
    """
    if chosen == stated:
        return rate
    return float(f"{rate * LEARNING_RATES[chosen] / LEARNING_RATES[stated]:.3g}")
