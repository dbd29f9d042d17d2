"""How a network is trained, in words and numbers: optimiser, learning rate, schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

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
    """How the weights are optimised."""

    optimizer: OptimizerName = "sgd"  # see `core.training.optimizer.make_optimizer`
    lr: float = LEARNING_RATES["sgd"]  # learning rate at its highest
    momentum: float = 0.9  # of SGD
    # L2 penalty (decoupled for adamw); never applied to the gates of bin
    weight_decay: float = 5e-4
    warmup: float = 0.1  # share of all steps in which lr rises linearly from 0, in [0, 1)
    max_norm: float = 1.0  # gradients are scaled down to this L2 norm; 0 leaves them


RECIPES = {
    # The lab's words: SGD, initial learning rate 1e-4, decayed. Momentum is not mentioned there.
    "lab": Recipe(lr=1e-4, momentum=0.0, weight_decay=0.0, warmup=0.0, max_norm=0.0),
    "good": Recipe(),
}


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
