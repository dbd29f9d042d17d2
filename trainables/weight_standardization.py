"""Fine-tuning of a network as it is, and of the same network with standardised weights.

The task, its images, loss and metrics are those of `trainables.voc`. A trial also watches its
first steps: how large each norm's output, its parameters and the gradient of its convolution are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from core import trial
from core.errors import TrialError
from core.layers import pairing
from core.layers.convert import conversion, convert
from core.models import conversion_check, memory, pretrained
from core.settings import Count, Settings, borrows
from core.training.epoch import grad_scaler, score, train_epoch
from core.training.multilabel import LabelledImages, Loss, make_loss, pair_loss
from core.training.recipe import lr_schedule
from core.trial import worker
from trainables import voc as voc_task

# What is watched, per step and norm.
WATCHED = ("activation", "gradient", "weight", "bias")
CHECK_IMAGES = 40  # of the short check that every report shows


@dataclass(frozen=True)
@borrows(
    voc_task.Config,
    "variant seed weights image_size fit batch_size epochs optimizer lr head_lr momentum"
    " weight_decay schedule warmup max_norm augment difficult watch_steps train_images val_images"
    " train_eval year precision channels_last data_dir skip_broken",
)
class Config(Settings):
    """Settings of one trial; the defaults are the full scale. Most are those of the VOC task.

    Attributes:
        variant: original, or weights standardised with the norms compensated in mode A or B.
        weights: of the body before training: default (torchvision's, learnt on ImageNet), embedded
            (learnt on synthetic birds), none (random), or a file; for --check any ResNet's file.
        watch_steps: steps at the start whose layers are recorded.
        val_images: use this many validation images, or images of --check.
    """

    variant: Literal["original", "A", "B"] = "original"
    epochs: Count = 3
    watch_steps: Count = 10
    channels_last: bool = True

    def task(self) -> voc_task.Config:
        """Return the settings of the VOC task that this one consists of."""
        known = {field.name for field in dataclasses.fields(voc_task.Config)}
        return voc_task.Config(**{k: v for k, v in vars(self).items() if k in known})


def train_converted(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Fine-tune one variant; report loss (nats per pair), mAP and accuracy each epoch.

    Raises:
        TrialError: the network cannot be converted.
    """
    cfg = Config(**config)
    task = cfg.task()
    device = worker.device()
    torch.manual_seed(task.seed)
    train_set, val_set = voc_task.images(task)
    everything = np.arange(len(train_set))
    shared = {"device": device, "seed": task.seed, "channels_last": task.channels_last}
    train = LabelledImages(
        train_set.images,
        train_set.labels,
        everything,
        task.batch_size,
        augment=task.augment,
        **shared,
    )
    seen, val = (
        LabelledImages(
            s.images, s.labels, np.arange(len(s)), voc_task.EVAL_FACTOR * task.batch_size, **shared
        )
        for s in (train_set, val_set)
    )
    model = pretrained.resnet18(task.weights, len(train_set.classes))
    model = converted(model, cfg.variant).to(device)
    if task.channels_last:
        model = model.to(memory_format=torch.channels_last)
    loss = make_loss("bce", None, device)
    optimizer = voc_task.make_optimizer(task, model)
    schedule = lr_schedule(optimizer, task.epochs * len(train), task.warmup, task.schedule)
    scaler = grad_scaler(device, task.precision)
    kept, watch = trial.Best(), Watch(model, loss, cfg.watch_steps)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state |= {"kept": kept, "watch": watch}
    pairs, watched = pair_loss(loss), pair_loss(watch.loss)
    epochs = trial.epochs(state, task.epochs, report)
    if not kept.epoch:
        before = score(model, {"start": val}, pairs, task.precision)[0]
        trial.note(start_loss=before["start_loss"], start_map=before["start_map"])
    scored = {"train": seen, "val": val} if task.train_eval else {"val": val}
    for row in epochs:
        row["body_lr"] = schedule.get_last_lr()[0]
        row |= train_epoch(
            model,
            memory.counted(train.epoch(row["epoch"]), trial.step_counter(), model),
            optimizer,
            schedule,
            watched,
            epoch=row["epoch"],
            precision=task.precision,
            scaler=scaler,
            max_norm=task.max_norm,
        )
        metrics, logits = score(model, scored, pairs, task.precision)
        row |= metrics
        kept.add(row, logits["val"])
    trial.load_best(model)
    best = score(model, {"best_train": seen}, pairs, task.precision)[0]
    trial.note(scores_epoch=kept.epoch, **best)
    more = {**kept.named(), **watch.arrays()}
    trial.save_predictions(
        kept.scores.numpy(), val_set.labels, val_set.files, val_set.classes, more
    )


def converted(model: nn.Module, variant: str) -> nn.Module:
    """Return the network as it is ("original"), or with standardised weights in mode A or B.

    Raises:
        TrialError: it cannot be converted.
    """
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


class Watch:
    """What happens in the layers in the first steps, and the loss of every step.

    Per step and norm: `activation`, the standard deviation of the norm's output over the batch and
    the pixels, mean over channels; `gradient`, the L2 norm of the gradient of its convolution's
    weight; `weight` and `bias`, the mean absolute value of the norm's own, before the step. It
    goes through checkpoints.

    Args:
        model: its convolutions are paired with its norms (`core.layers.pairing`).
        loss: that of training; `self.loss` is the same and takes notes.
        steps: how many are watched in full.
    """

    def __init__(self, model: nn.Module, loss: Loss, steps: int):
        self._loss, self._steps = loss, steps
        self.losses: list[float] = []
        pairs = pairing.pairs(model).pairs
        self.layers = [pair.norm for pair in pairs]
        self.values = {name: np.full((steps, len(pairs)), np.nan, np.float32) for name in WATCHED}
        for place, pair in enumerate(pairs):
            norm, conv = model.get_submodule(pair.norm), model.get_submodule(pair.conv)
            norm.register_forward_hook(self._after_norm(place))
            conv.get_parameter("weight").register_post_accumulate_grad_hook(self._gradient(place))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of the pairs (B, C), and note their mean over those that count."""
        each = self._loss(logits, labels)
        counted = labels != 0
        mean = (each.detach() * counted).sum() / counted.sum().clamp(min=1)
        self.losses.append(float(mean))
        return each

    def arrays(self) -> dict[str, np.ndarray]:
        """Return `watch_layers` (L,), `watch_loss` (steps,) and `watch_<what>` (watched, L)."""
        watched = {f"watch_{name}": values for name, values in self.values.items()}
        losses = np.array(self.losses, np.float64)
        return {"watch_layers": np.array(self.layers), "watch_loss": losses, **watched}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        values = {name: torch.from_numpy(v.copy()) for name, v in self.values.items()}
        return {"losses": list(self.losses), "values": values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.losses = list(state_dict["losses"])
        self.values = {name: v.numpy().copy() for name, v in state_dict["values"].items()}

    def _after_norm(self, place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            step = len(self.losses)  # the loss of this step comes after it
            if module.training and step < self._steps:
                spread = output.detach().float().std(dim=(0, 2, 3)).mean()
                self.values["activation"][step, place] = float(spread)
                for name in ("weight", "bias"):
                    size = module.get_parameter(name).detach().abs().mean()
                    self.values[name][step, place] = float(size)

        return hook

    def _gradient(self, place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            step = len(self.losses) - 1  # the loss of this step was before it
            if 0 <= step < self._steps and parameter.grad is not None:
                self.values["gradient"][step, place] = float(parameter.grad.float().norm())

        return hook


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode images and weights; return what the report says, with a short check of both.

    Raises:
        UserError: data or weights that cannot be used.
    """
    cfg = Config(**settings)
    described = voc_task.describe_images(vars(cfg.task()))
    images = voc_task.images(cfg.task())[1].images[:CHECK_IMAGES]
    model, _, _ = conversion_check.network(cfg.task().weights)
    photos = conversion_check.Photos(np.asarray(images))
    rows = [r for r in conversion_check.check(model, photos) if r.layer == conversion_check.OUTPUT]
    described["check"] = [dataclasses.asdict(row) for row in rows]
    return described


def check_sizes(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training images do not fill; see `trainables.voc.check_sizes`."""
    voc_task.check_sizes([{**config, "fold": None} for config in configs], described)


def follow(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return what follows from a user's settings: without ImageNet weights, a demo's own."""
    if "weights" in settings or scale == "full":
        return {}
    return {"weights": "embedded" if scale == "demo" else "none"}
