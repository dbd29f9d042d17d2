"""One epoch of training, one pass of evaluation, and the recipes that drive them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from core.augment import augment, normalise
from core.data import ImageSet
from core.errors import Diverged
from core.metrics import ConfusionMatrix
from core.norms import parameter_groups

Precision = Literal["float32", "bfloat16", "float16"]
Shape = Literal["cosine", "step", "constant"]
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
Batch = tuple[Tensor, Tensor]
CHECK_EVERY = 32  # steps between looks at the loss on a GPU, where each look waits for the device

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
        model: its gates (`core.norms`) get ten times the learning rate and no weight decay.
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


@dataclass(frozen=True)
class Batches:
    """An `ImageSet` as normalised float batches on a device.

    Attributes:
        data: decoded images and labels.
        batch_size: images per batch; the last batch holds the rest.
        device: where batches are put; augmentation and normalisation run there.
        seed: fixes order and augmentation of each epoch.
        train: shuffle and augment.
        flip: augment by mirroring left-right.
        shift: augment by moving up to this many pixels; -1 means an eighth of the width.
        channels_last: memory format of the batches.
    """

    data: ImageSet
    batch_size: int
    device: torch.device
    seed: int = 0
    train: bool = False
    flip: bool = True
    shift: int = -1
    channels_last: bool = False
    _labels: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        labels = torch.from_numpy(np.array(self.data.labels, dtype=np.int64))
        object.__setattr__(self, "_labels", labels)

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield (images (B, 3, H, W) float32, labels (B,) int64) of one pass.

        The order and the augmentation depend on `seed` and `epoch` alone, so that a resumed trial
        sees what an unbroken one would have seen.
        """
        count = len(self._labels)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(count, generator=generator) if self.train else torch.arange(count)
        shift = self.data.images.shape[-1] // 8 if self.shift < 0 else self.shift
        for index in order.split(self.batch_size):
            # A sorted gather reads the memory map forwards; order within a batch does not matter.
            chosen = index.sort().values if self.train else index
            images = torch.from_numpy(self.data.images[chosen.numpy()]).to(self.device)
            if self.train:
                images = augment(images, generator, flip=self.flip, padding=shift)
            x = normalise(images, channels_last=self.channels_last)
            yield x, self._labels[chosen].to(self.device)


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    *,
    epoch: int,
    num_classes: int,
    precision: Precision = "float32",
    scaler: torch.amp.GradScaler | None = None,
    max_norm: float = 0.0,
    accumulate: int = 1,
) -> dict[str, float]:
    """Train on every batch once with cross-entropy.

    Each batch may be run in `accumulate` parts whose gradients add up to those of the whole. Only
    norms that look at one image at a time compute the same then: batch norm sees the parts.

    Returns:
        train_loss_running (nats per image) and train_accuracy_running, train_error_running,
        train_micro_f1_running, train_macro_f1_running of the predictions made while training:
        augmented images, the weights of each step. `evaluate` gives those of fixed weights.

    Raises:
        Diverged: the loss is not finite; the message names epoch, step and learning rate.
    """
    model.train()
    device = next(model.parameters()).device
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    confusion = ConfusionMatrix(num_classes, device)
    losses: list[Tensor] = []
    lrs: list[float] = []
    count = torch.zeros((), dtype=torch.int64)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for step, (x, y) in enumerate(batches, 1):
        optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=device)
        for part_x, part_y in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            with autocast(device, precision):
                logits = model(part_x)
                loss = F.cross_entropy(logits, part_y)
            if accumulate > 1:
                loss = loss * (len(part_y) / len(y))
            mean += loss.detach()
            scaler.scale(loss).backward()
            confusion.update(logits.detach().argmax(1), part_y)
        lrs.append(optimizer.param_groups[0]["lr"])
        losses.append(mean)
        if device.type == "cpu" or step % CHECK_EVERY == 0:
            check_finite(losses, lrs, epoch)
        if max_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total += mean * len(y)
        count += len(y)
    check_finite(losses, lrs, epoch)
    metrics = {"loss": (total.cpu() / count).item(), **confusion.metrics()}
    return {f"train_{key}_running": value for key, value in metrics.items()}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    prefix: str = "val_",
    precision: Precision = "float32",
) -> tuple[dict[str, float], Tensor]:
    """Score every batch in evaluation mode.

    Returns:
        loss (nats per image), accuracy, error, micro_f1 and macro_f1, each with `prefix`, and the
        logits (N, num_classes) in float32 on the CPU, in the order of the batches.
    """
    model.eval()
    device = next(model.parameters()).device
    confusion = ConfusionMatrix(num_classes, device)
    scores, total = [], torch.zeros((), dtype=torch.float64, device=device)
    for x, y in batches:
        with autocast(device, precision):
            logits = model(x)
        logits = logits.float()
        total += F.cross_entropy(logits, y, reduction="sum")
        confusion.update(logits.argmax(1), y)
        scores.append(logits)
    logits = torch.cat(scores).cpu()
    metrics = {"loss": total.item() / len(logits), **confusion.metrics()}
    return {f"{prefix}{key}": value for key, value in metrics.items()}, logits


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Return the context in which a forward pass runs in `precision`."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def grad_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return the loss scaler that float16 needs (its gradients underflow); idle otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


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


def check_finite(losses: list[Tensor], lrs: list[float], epoch: int) -> None:
    """Raise at the first loss that is not finite, then forget those that were.

    Args:
        losses: one number per step since the last look; emptied.
        lrs: learning rate of every step of the epoch so far.
        epoch: for the message.

    Raises:
        Diverged: see above; the message names epoch, step and learning rate.
    """
    start = len(lrs) - len(losses)
    values = torch.stack(losses).isfinite().tolist() if losses else []
    if not all(values):
        first = values.index(False)
        raise Diverged(
            f"the loss is {losses[first].item()} at epoch {epoch}, step {start + first + 1}"
            f" (lr {lrs[start + first]:.3g}): lower lr or set max_norm"
        )
    losses.clear()
