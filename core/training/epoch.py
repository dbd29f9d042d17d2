"""One pass over a data set: in training, and to score it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from core.data.batches import Batch
from core.errors import Diverged
from core.training.metrics import ConfusionMatrix
from core.training.recipe import Precision

CHECK_EVERY = 32  # steps between looks at the loss on a GPU, where each look waits for the device


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
