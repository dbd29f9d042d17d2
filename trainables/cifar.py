"""The CIFAR-10 lab: a small CNN with and without batch norm, and a ResNet-18 fine-tuned in part."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from core import trial
from core.data import small
from core.data.batches import Batch, Batches
from core.data.images import ImageSet
from core.errors import UserError
from core.layers.freezing import (
    PartlyFrozen,
    Stem,
    Variant,
    counts,
    freeze,
    small_stem,
    statistics_digest,
    trained_part,
    weights_digest,
)
from core.models import memory, pretrained
from core.models.small_cnn import Form, SmallCNN, without_gradient
from core.settings import Amount, Count, Settings, Share
from core.training.epoch import cross_entropy, grad_scaler, score, train_epoch
from core.training.recipe import RECIPES, OptimizerName, Precision, optimizer_and_schedule, override
from core.trial import worker

CNN_SIZE = 32  # pixels: the CNN's first linear layer is made for them
WEIGHTS = {
    "default": "torchvision's ImageNet weights",
    "embedded": "weights that labtune learnt from drawn birds (not ImageNet's)",
    "none": "random weights",
    "file": "weights in a file of the user's",
}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of one trial; the defaults are the lab's full scale.

    Attributes:
        model: cnn (the lab's two convolutions and three linear layers) or resnet18.
        bn: of cnn: none, listing (bn3 and bn4 are made but never used) or meant (all four used).
        variant: of resnet18: all (retrained from the weights), layer4 (that and the head), head, or
            scratch (all, from random weights).
        conv1: of resnet18, the new 3x3 first convolution: printed (random, and frozen with the
            rest, as in the lab's snippet), trained (random), averaged (from the 7x7 kernel, and
            frozen with the rest).
        statistics: of batch norms that are frozen: frozen (evaluation mode) or moving.
        maxpool: keep the pool behind the first convolution of resnet18, as the lab does.
        weights: of resnet18: default (torchvision's, of ImageNet), embedded (learnt from drawn
            birds), none (random), or the path of a state dict.
        seed: of weights, order and augmentation.
        dataset: digits, mnist, cifar10, folder, or auto (what --data-dir holds; digits without).
        image_size: pixels; cnn needs 32.
        batch_size: images per step, at least 2; a last batch of one image joins the one before.
        epochs: passes over the training set.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: highest learning rate of cnn (warm-up, then cosine).
        tune_lr: highest learning rate of resnet18.
        momentum: of SGD, in place of the recipe's 0.9.
        weight_decay: in place of the recipe's 0.0005.
        warmup: share of the steps with rising learning rate, in place of the recipe's 0.1.
        max_norm: largest L2 norm of the gradient (0: any), in place of the recipe's 1.
        augment: shift the training images, and mirror them unless they are digits.
        train_images: use this many training images, balanced over classes.
        val_images: use this many validation images, balanced over classes.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        precision: float32, bfloat16 or float16 (mixed precision).
        data_dir: where the data are; none: the embedded digits.
        skip_broken: leave unreadable images out.
        download: fetch mnist or cifar10 with torchvision where they are missing.
    """

    model: Literal["cnn", "resnet18"] = "cnn"
    bn: Form = "meant"
    variant: Variant = "all"
    conv1: Stem = "printed"
    statistics: Literal["frozen", "moving"] = "frozen"
    maxpool: bool = True
    weights: str = "default"
    seed: int = 0
    dataset: small.Name = "auto"
    image_size: Annotated[int, Ge(8)] = CNN_SIZE
    batch_size: Annotated[int, Ge(2)] = 64
    epochs: Count = 30
    optimizer: OptimizerName = "sgd"
    lr: Amount = 0.05
    tune_lr: Amount = 0.02
    momentum: Amount | None = None
    weight_decay: Amount | None = None
    warmup: Share | None = None
    max_norm: Amount | None = None
    augment: bool = True
    train_images: Count | None = None
    val_images: Count | None = None
    train_eval: bool = False
    precision: Precision = "float32"
    data_dir: str | None = None
    skip_broken: bool = False
    download: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.model == "cnn" and self.image_size != CNN_SIZE:
            raise UserError(
                f"--set image_size={self.image_size}: model=cnn is made for {CNN_SIZE} pixels:"
                " leave image_size out, or use --part resnet18"
            )


def train_cifar(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Train one network; report loss (nats), accuracy, error and F1 on train and val each epoch."""
    cfg = Config(**config)
    device = worker.device()
    torch.manual_seed(cfg.seed)
    sets = images(cfg)
    classes = len(sets["train"].classes)
    train, seen, val = batches(cfg, sets, device)

    network = build(cfg, classes).to(device)
    model = PartlyFrozen(network, cfg.statistics)
    fields = ("optimizer", "momentum", "weight_decay", "warmup", "max_norm")
    recipe = override(RECIPES["good"], **{name: getattr(cfg, name) for name in fields})
    recipe = override(recipe, lr=cfg.lr if cfg.model == "cnn" else cfg.tune_lr)
    steps = cfg.epochs * steps_of(len(sets["train"]), cfg.batch_size)
    optimizer, schedule = optimizer_and_schedule(trained_part(network), recipe, steps)
    scaler, kept = grad_scaler(device, cfg.precision), trial.Best()
    trial.note(base_lr=recipe.lr)
    trial.note(**facts(cfg, network))
    trial.note(**digests(network, "before"))  # of the start, also when the trial is resumed
    state = {"model": network, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state |= {"kept": kept}
    task = cross_entropy(classes)
    scored = {"train": seen, "val": val} if cfg.train_eval else {"val": val}
    for row in trial.epochs(state, cfg.epochs, report):
        start = time.monotonic()
        row["step_lr"] = schedule.get_last_lr()[0]
        shown = merge_single(train.epoch(row["epoch"]))
        row |= train_epoch(
            model,
            memory.counted(shown, trial.step_counter(), network),
            optimizer,
            schedule,
            task,
            epoch=row["epoch"],
            precision=cfg.precision,
            scaler=scaler,
            max_norm=recipe.max_norm,
        )
        trained = time.monotonic() - start
        metrics, logits = score(model, scored, task, cfg.precision)
        row |= metrics | {"train_seconds": trained}
        kept.add(row, logits["val"])
    trial.note(**digests(network, "after"))
    trial.load_best(network)
    if cfg.model == "cnn":  # of the weights whose scores are stored, with which it is compared
        trial.note(training_mode_accuracy=training_mode_accuracy(network, val.epoch(0)))
    best = score(model, {"best_train": seen}, task, cfg.precision)[0]
    trial.note(scores_epoch=kept.epoch, **best)
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


def batches(
    cfg: Config, sets: Mapping[str, ImageSet], device: torch.device
) -> tuple[Batches, Batches, Batches]:
    """Return the training batches, augmented as the data allow, those as they are, and val's."""
    mirrored = small.MIRRORED[small.resolve(cfg.dataset, cfg.data_dir)]
    flip, shift = cfg.augment and mirrored, -1 if cfg.augment else 0
    shared = {"device": device, "seed": cfg.seed}
    train = Batches(sets["train"], cfg.batch_size, train=True, flip=flip, shift=shift, **shared)
    seen, val = (Batches(sets[split], cfg.batch_size, **shared) for split in ("train", "val"))
    return train, seen, val


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


def merge_single(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join a last batch of one image to the one before it.

    Batch norm over one number per feature is undefined, and torch refuses it in training mode.
    """
    held: Batch | None = None
    for x, y in batches:
        if held is not None and len(y) == 1:
            x, y = torch.cat([held[0], x]), torch.cat([held[1], y])
        elif held is not None:
            yield held
        held = x, y
    if held is not None:
        yield held


def steps_of(images: int, batch_size: int) -> int:
    """Return how many batches `merge_single` makes of an epoch."""
    whole, rest = divmod(images, batch_size)
    return max(1, whole + (rest > 1))


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


def images(cfg: Config) -> dict[str, ImageSet]:
    """Return the decoded images of a trial, "train" and "val"."""
    return small.load(
        cfg.dataset,
        cfg.data_dir,
        cfg.image_size,
        {"train": cfg.train_images, "val": cfg.val_images},
        download=cfg.download,
        skip_broken=cfg.skip_broken,
    )


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check and decode all images once, and return what the report says about them.

    Where the first trial starts from weights, they are made or fetched here too, and belong to the
    fingerprint.

    Raises:
        UserError: data or weights that cannot be used.
    """
    cfg = dataclasses.replace(Config(**settings), train_images=None, val_images=None)
    described = small.describe(cfg.dataset, cfg.data_dir, images(cfg))
    if cfg.model == "resnet18" and cfg.variant != "scratch":
        pretrained.resnet18(cfg.weights, len(described["classes"]))  # refuses what does not fit
        named = cfg.weights if cfg.weights in pretrained.NAMES else "file"
        described["weights"] = named
        described["description"] += f"; ResNet-18 starts from {WEIGHTS[named]}"
        described["fingerprint"] += f", weights {pretrained.digest(cfg.weights)}"
    return described


def follow(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return what follows from a user's settings: the weights of a demonstration."""
    if "weights" in settings or scale == "full":
        return {}
    return {"weights": "embedded" if scale == "demo" else "none"}


def check_batches(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that the training set does not fill, and too few images.

    Raises:
        UserError: a batch is larger than the training set of its trial, or a limit leaves less than
            an image for each class.
    """
    count, classes = sum(described["counts"]["train"].values()), len(described["classes"])
    for config in configs:
        for name in ("train_images", "val_images"):
            if config[name] is not None and config[name] < classes:
                raise UserError(
                    f"--set {name}={config[name]}: at least {classes}, one for each class, are"
                    " needed"
                )
        least = min(count, config["train_images"] or count)
        if config["batch_size"] > least:
            raise UserError(
                f"--set batch_size={config['batch_size']}: there are only {least} training images:"
                f" give at most {least}"
            )
