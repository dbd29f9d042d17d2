"""One pass over a data set: in training, and to score it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from core.data.batches import Batch
from core.errors import Diverged
from core.training.metrics import ConfusionMatrix
from core.training.recipe import Precision

CHECK_EVERY = 32  # steps between looks at the loss on a GPU, where each look waits for the device


class Objective(Protocol):
    """A loss, and the metrics of the batches of one pass."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch in training, or of a part of it."""
        ...

    def add(self, logits: Tensor, labels: Tensor, mean: Tensor | None = None) -> None:
        """Count a batch in; in training, `mean` is the loss that was returned for it."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the loss and the other metrics of all batches."""
        ...


Task = Callable[[torch.device], Objective]  # makes the objective of a pass


class Images(Protocol):
    """Images that come in batches, in another order and augmentation in each epoch."""

    def epoch(self, epoch: int) -> Iterable[Batch]:
        """Return the batches of an epoch."""
        ...


class CrossEntropy:
    """Cross-entropy in nats per image, and accuracy, error, micro_f1 and macro_f1.

    Logits are (B, C) float32, labels (B,) integers, C is `num_classes`.
    """

    def __init__(self, num_classes: int, device: torch.device):
        self._confusion = ConfusionMatrix(num_classes, device)
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch in training, or of a part of it."""
        return F.cross_entropy(logits, labels)

    def add(self, logits: Tensor, labels: Tensor, mean: Tensor | None = None) -> None:
        """Count a batch in."""
        if mean is None:
            self._total += F.cross_entropy(logits, labels, reduction="sum")
        else:
            self._total += mean * len(labels)
        self._confusion.update(logits.argmax(1), labels)
        self._count += len(labels)

    def metrics(self) -> dict[str, float]:
        """Return loss, accuracy, error, micro_f1 and macro_f1."""
        return {"loss": self._total.item() / self._count, **self._confusion.metrics()}


def cross_entropy(num_classes: int) -> Task:
    """Return the task of telling `num_classes` classes apart."""
    return functools.partial(CrossEntropy, num_classes)


@dataclass(frozen=True)
class Learner:
    """A network in training."""

    network: nn.Module  # on its device
    optimizer: torch.optim.Optimizer  # of its weights
    schedule: LambdaLR  # of the learning rates, stepped after each batch
    task: Task  # loss and metrics
    precision: Precision = "float32"  # of the forward pass
    max_norm: float = 0.0  # largest L2 norm of the gradient; 0: any
    # parts in which a batch is run; their gradients add up to those of the whole, each image
    # weighing the same. Only norms that look at one image at a time compute the same then: batch
    # norm sees the parts
    accumulate: int = 1
    # of the loss: float16 needs it (its gradients underflow); idle otherwise
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        object.__setattr__(self, "scaler", scaler)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(self.network.parameters()).device

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the weights."""
        return {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def train_epoch(self, batches: Iterable[Batch], epoch: int) -> dict[str, float]:
        """Train on every batch once and return the task's metrics, as train_<metric>_running.

        They are of the predictions made while training, with augmented images and the weights of
        each step; `score` gives those of fixed weights. Raises Diverged: the loss is not finite;
        the message names epoch, step and learning rate.
        """
        self.network.train()
        objective = self.task(self.device)
        losses, lrs = list[Tensor](), list[float]()
        for step, (x, y) in enumerate(batches, 1):
            self.optimizer.zero_grad(set_to_none=True)
            logits, mean = self._backward(objective, x, y)
            lrs.append(self.optimizer.param_groups[0]["lr"])
            losses.append(mean)
            if self.device.type == "cpu" or step % CHECK_EVERY == 0:
                check_finite(losses, lrs, epoch)
            if self.max_norm:
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            objective.add(logits, y, mean)
        check_finite(losses, lrs, epoch)
        return {f"train_{key}_running": value for key, value in objective.metrics().items()}

    def _backward(self, objective: Objective, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch's gradients up; return its logits and mean loss."""
        logits, mean = [], torch.zeros((), device=self.device)
        parts = zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True)
        for part_x, part_y in parts:
            scores = forward(self.network, part_x, self.precision)
            loss = objective.loss(scores, part_y)
            if self.accumulate > 1:
                loss = loss * (len(part_y) / len(y))
            mean += loss.detach()
            self.scaler.scale(loss).backward()
            logits.append(scores.detach())
        return torch.cat(logits), mean

    def score(self, scored: Mapping[str, Images]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Evaluate sets of images, as they are in epoch 0.

        Returns the metrics, their names led by those of the sets, and the logits of each set.
        """
        metrics, logits = {}, {}
        for name, images in scored.items():
            batches = images.epoch(0)
            found, logits[name] = evaluate(
                self.network, batches, self.task, prefix=f"{name}_", precision=self.precision
            )
            metrics |= found
        return metrics, logits


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    *,
    prefix: str = "val_",
    precision: Precision = "float32",
) -> tuple[dict[str, float], Tensor]:
    """Score every batch in evaluation mode.

    Returns the task's metrics, each with `prefix`, and the logits (N, C) in float32 on the CPU, in
    the order of the batches. Raises Diverged: the task needs finite scores, and one is not.
    """
    model.eval()
    device = next(model.parameters()).device
    objective, scores = task(device), []
    for x, y in batches:
        scores.append(forward(model, x, precision))
        objective.add(scores[-1], y)
    metrics = {f"{prefix}{key}": value for key, value in objective.metrics().items()}
    return metrics, torch.cat(scores).cpu()


def forward(model: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    """Return the logits (B, C), in float32, of a forward pass in `precision`."""
    with autocast(images.device, precision):
        logits = model(images)
    return logits.float()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Return the context in which a forward pass runs in `precision`."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def check_finite(losses: list[Tensor], lrs: list[float], epoch: int) -> None:
    """Raise `Diverged` at the first loss that is not finite, then forget those that were.

    `losses` has one number per step since the last look, `lrs` the learning rate of every step of
    the epoch so far; the message names epoch, step and learning rate.
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
