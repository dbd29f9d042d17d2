"""Species from photographs: a 6n+2 ResNet with a chosen normalisation layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Interval
from torch import nn

from core import trial
from core.data import folds
from core.data import images as data
from core.data.batches import Batches
from core.data.synthetic import birds
from core.errors import UserError
from core.models import memory
from core.models.resnet import resnet
from core.settings import Amount, Count, Says, Settings, Share
from core.training.epoch import cross_entropy, grad_scaler, score, train_epoch
from core.training.recipe import RECIPES, OptimizerName, Precision, optimizer_and_schedule, override
from core.trial import worker

LAB_BATCH = 32  # images; the learning rates of the recipes are meant for it
SCALING = {"linear": lambda ratio: ratio, "sqrt": math.sqrt, "none": lambda ratio: 1.0}

Holdout = Annotated[float, Interval(ge=0, le=0.5), Says("{name} is a share of at most 0.5")]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of one trial; the defaults are the lab's full scale.

    Attributes:
        norm: normalisation layer after each convolution.
        seed: of weights, order and augmentation.
        n: blocks per stage; the network has 6n + 2 weighted layers.
        image_size: pixels; images are resized to image_size x image_size.
        batch_size: images per step.
        epochs: passes over the training set.
        recipe: lab (learning rate 1e-4, as in the lab's text) or good (momentum, warm-up, cosine).
        optimizer: sgd, adam, adamw or rmsprop.
        lr: highest learning rate; none: 1e-4 of recipe lab, of good the optimiser's (sgd 0.1).
        lr_scaling: how lr follows the batch size, from 32 images on: linear, sqrt or none.
        momentum: of SGD, in place of the recipe's.
        weight_decay: in place of the recipe's.
        warmup: share of the steps with rising learning rate, in place of the recipe's.
        max_norm: largest L2 norm of the gradient (0: any), in place of the recipe's.
        augment: mirror and shift the training images.
        train_images: use this many training images, balanced over classes.
        val_images: use this many validation images, balanced over classes.
        holdout: share of the training images that is scored in place of the validation images,
            which are then not read; a search sets it, to 0.1 unless told otherwise.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        precision: float32, bfloat16 or float16 (mixed precision).
        channels_last: memory format of images and weights.
        compile: compile the network with torch.compile.
        recompute: keep few activations and compute the others again (less memory, slower).
        fit: let all trials recompute, then use half precision too, where one would not fit its
            slot otherwise.
        accumulate: run each batch in so many parts (with batch norm another computation).
        data_dir: root of an image folder; none: the embedded synthetic birds.
        skip_broken: leave unreadable images out.
    """

    norm: Literal["torch_bn", "bn", "in", "bin", "ln", "gn", "none"] = "bn"
    seed: int = 0
    n: Count = 2
    image_size: Count = 256
    batch_size: Count = 32
    epochs: Count = 50
    recipe: Literal["lab", "good"] = "good"
    optimizer: OptimizerName = "sgd"
    lr: Amount | None = None
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    momentum: Amount | None = None
    weight_decay: Amount | None = None
    warmup: Share | None = None
    max_norm: Amount | None = None
    augment: bool = True
    train_images: Count | None = None
    val_images: Count | None = None
    holdout: Holdout = 0.0
    train_eval: bool = False
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    fit: bool = True
    accumulate: Count = 1
    data_dir: str | None = None
    skip_broken: bool = False


def train_birds(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Train one network; report loss (nats), accuracy, error and F1 on train and val each epoch.

    With `holdout` the metrics of the images held out are named heldout_ in place of val_.
    """
    cfg = Config(**config)
    device = worker.device()
    torch.manual_seed(cfg.seed)
    train_set, val_set = images(cfg)
    classes = len(train_set.classes)
    shared = {"device": device, "seed": cfg.seed, "channels_last": cfg.channels_last}
    shift = -1 if cfg.augment else 0
    train = Batches(train_set, cfg.batch_size, train=True, flip=cfg.augment, shift=shift, **shared)
    seen = Batches(train_set, cfg.batch_size, **shared)
    val = Batches(val_set, cfg.batch_size, **shared)

    way = step(cfg, classes).fit()
    model = resnet(cfg.n, classes, cfg.norm).to(device)
    model.recompute = way.recompute
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    fields = ("optimizer", "lr", "momentum", "weight_decay", "warmup", "max_norm")
    recipe = override(RECIPES[cfg.recipe], **{name: getattr(cfg, name) for name in fields})
    base_lr = recipe.lr
    recipe = override(recipe, lr=base_lr * SCALING[cfg.lr_scaling](cfg.batch_size / LAB_BATCH))
    trial.note(base_lr=base_lr, scaled_lr=recipe.lr, **way.facts())
    optimizer, schedule = optimizer_and_schedule(model, recipe, cfg.epochs * len(train))
    scaler, kept = grad_scaler(device, way.precision), trial.Best()
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state |= {"kept": kept}
    network = cast(nn.Module, torch.compile(model)) if cfg.compile else model
    task, name = cross_entropy(classes), "heldout" if cfg.holdout else "val"
    scored = ({"train": seen} if cfg.train_eval else {}) | {name: val}
    for row in trial.epochs(state, cfg.epochs, report):
        row["lr"] = schedule.get_last_lr()[0]
        shown = train.epoch(row["epoch"])
        if not cfg.compile:  # the compiler would stand back while steps are counted
            shown = memory.counted(shown, trial.step_counter(), model)
        row |= train_epoch(
            network,
            shown,
            optimizer,
            schedule,
            task,
            epoch=row["epoch"],
            precision=way.precision,
            scaler=scaler,
            max_norm=recipe.max_norm,
            accumulate=cfg.accumulate,
        )
        metrics, logits = score(network, scored, task, way.precision)
        row |= metrics
        kept.add(row, logits[name])
    trial.load_best(model)
    best = score(network, {"best_train": seen}, task, way.precision)[0]
    trial.note(scores_epoch=kept.epoch, **best)
    trial.save_predictions(
        kept.scores.numpy(), val_set.labels, val_set.files, val_set.classes, kept.named()
    )


def share_slot(
    configs: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    slot: int | None,
    bfloat16: bool,
) -> tuple[dict[str, Any], int]:
    """Choose how all trials run so that the largest fits the smallest slot.

    Args:
        configs: of all trials.
        described: what `describe_images` returned.
        slot: bytes of the smallest slot; None: as asked.
        bfloat16: all cards compute in bfloat16; float16, with scaled gradients, otherwise.

    Returns:
        Settings for all trials, and the bytes that the largest then needs (0 with fit=false).

    Raises:
        UserError: the largest fits in no way; the message gives its estimate.
    """
    cfgs = [Config(**config) for config in configs]
    if not cfgs[0].fit:
        return {}, 0
    classes = len(described["classes"])
    half = cfgs[0].precision
    if half == "float32":
        half = "bfloat16" if bfloat16 else "float16"

    steps = {
        f"norm={cfg.norm}: batch {cfg.batch_size} at {cfg.image_size}x{cfg.image_size}": step(
            cfg, classes
        )
        for cfg in cfgs
    }
    return memory.share(steps, slot, half)


def step(cfg: Config, classes: int) -> memory.Step:
    """Return the training step of a trial."""
    part = -(-cfg.batch_size // cfg.accumulate)
    model = (cfg.n, classes, cfg.norm)
    return memory.Step(resnet, model, cfg.image_size, part, cfg.precision, cfg.recompute)


def check_batches(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training set does not fill.

    Args:
        configs: of all trials.
        described: what `describe_images` returned.

    Raises:
        UserError: a batch is larger than the training set.
    """
    count = sum(described["counts"]["train"].values())
    count = described.get("holdout", {"trained": count})["trained"]
    for config in configs:
        if config["batch_size"] > count:
            raise UserError(
                f"--set batch_size={config['batch_size']}: there are only {count} training images:"
                f" give at most {count}"
            )


def images(cfg: Config) -> tuple[data.ImageSet, data.ImageSet]:
    """Return the decoded images that a trial is trained on, and those that it is scored on."""
    root = birds.default_birds() if cfg.data_dir is None else cfg.data_dir
    sets = data.load(
        root,
        cfg.image_size,
        ("train",) if cfg.holdout else ("train", "val"),
        limit={"train": cfg.train_images, "val": cfg.val_images},
        skip_broken=cfg.skip_broken,
    )
    train = sets["train"]
    if not cfg.holdout:
        return train, sets["val"]
    kept, held = folds.hold_out(train.labels, cfg.holdout, train.digests)
    return data.part(train, kept), data.part(train, held)


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode the images once, and return what the report says about them.

    Raises:
        UserError: folders or images that cannot be used, all named.
    """
    cfg = Config(**settings)
    train, val = images(replace(cfg, holdout=0.0))
    described = data.describe(
        {"train": train, "val": val}, synthetic=None if cfg.data_dir else birds.SYNTHETIC
    )
    if cfg.holdout:
        described["holdout"] = folds.describe_hold_out(
            train.labels, cfg.holdout, train.digests, train.classes
        )
    return described
