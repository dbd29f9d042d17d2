"""Several labels per photograph: a pretrained ResNet-18 with one output per class."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval, Lt
from torch import Tensor, nn

from core import trial
from core.data import archive, devkit, folds, voc
from core.data import images as data
from core.data.decoding import Fit
from core.data.synthetic import scenes
from core.errors import UserError
from core.models import memory, pretrained
from core.settings import Amount, Count, Says, Settings
from core.training import recipe
from core.training.epoch import grad_scaler, score, train_epoch
from core.training.multilabel import LabelledImages, balance, make_loss, pair_loss
from core.training.recipe import OptimizerName, Precision, Shape, lr_schedule
from core.trial import worker

HEAD_FACTOR = 10  # the new head learns so much faster than the pretrained body
EVAL_FACTOR = 4  # batches without gradients take less memory

Below1 = Annotated[Amount, Lt(1), Says("{name} must be below 1")]
Strength = Annotated[float, Interval(ge=0, le=1), Says("{name} must be 0 to 1")]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of one trial; the defaults are the full scale.

    Attributes:
        seed: of the head, the order and the augmentation.
        weights: of the body before training: default (torchvision's, learnt on ImageNet), embedded
            (learnt on synthetic birds), none (random), or a file.
        image_size: pixels; images are made image_size x image_size.
        fit: squash the whole image into the square, or crop its middle.
        batch_size: images per step.
        epochs: passes over the training images.
        optimizer: sgd (with Nesterov momentum), adam, adamw or rmsprop.
        lr: highest learning rate of the body.
        head_lr: highest learning rate of the head; none: ten times lr.
        momentum: of sgd.
        weight_decay: L2 penalty (decoupled for adamw).
        schedule: of the learning rates: cosine, step (a tenth after each third) or constant.
        warmup: share of the steps with rising learning rates.
        max_norm: largest L2 norm of the gradient (0: any).
        augment: strength of zoom, shift and recolouring, 0 (mirroring only) to 1.
        loss: bce (binary cross-entropy) or asymmetric (Ridnik et al. 2021).
        class_weights: none, or balanced (present pairs weigh absent over present).
        difficult: a class with difficult objects only is left out (ignore), absent or present.
        folds: K of a K-fold cross-validation; 0: none.
        fold: train without this fold and score it; none: train on all training images.
        holdout: share of the training images that is scored in place of the validation images,
            which are then not read; a search sets it, to 0.1 unless told otherwise.
        train_images: use this many training images.
        val_images: use this many validation images.
        train_eval: score the training images with fixed weights after each epoch, not only those
            of the epoch whose weights are kept.
        untrained: refuse or keep classes without training example; none: keep VOC's own only.
        year: which year's folder of a root with several.
        precision: float32, bfloat16 or float16 (mixed precision).
        channels_last: memory format of images and weights.
        data_dir: root of a data set in VOC's layout, or its archive; none: the embedded one.
        download: fetch VOC into data_dir first.
        skip_broken: leave unreadable images out.
    """

    seed: int = 0
    weights: str = "default"
    image_size: Count = 224
    fit: Fit = "squash"
    batch_size: Count = 16
    epochs: Count = 15
    optimizer: OptimizerName = "sgd"
    lr: Amount = 0.01
    head_lr: Amount | None = None
    momentum: Below1 = 0.9
    weight_decay: Amount = 1e-4
    schedule: Shape = "cosine"
    warmup: Below1 = 0.05
    max_norm: Amount = 0.0
    augment: Strength = 0.5
    loss: Literal["bce", "asymmetric"] = "bce"
    class_weights: Literal["none", "balanced"] = "none"
    difficult: voc.Difficult = "ignore"
    folds: int = 0
    fold: int | None = None
    holdout: float = 0.0
    train_images: Count | None = None
    val_images: Count | None = None
    train_eval: bool = False
    untrained: Literal["refuse", "keep"] | None = None
    year: str | None = None
    precision: Precision = "float32"
    channels_last: bool = False
    data_dir: str | None = None
    download: bool = False
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"--folds {self.folds}: give at least 2, or 0 for none")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise UserError(f"--set fold={self.fold}: there are --folds {self.folds}, from 0 on")
        if not 0 <= self.holdout <= (0.5 if self.fold is None else 0):
            raise UserError(
                f"--set holdout={self.holdout}: holdout is a share of at most 0.5, without a fold"
            )


def train_voc(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Train one network; report loss (nats per pair), mAP and accuracy each epoch.

    Without a fold, the validation images are scored after each epoch, and the scores of the epoch
    with the best mAP on them are kept, with the mAP of the training images under the weights of
    that epoch: the lab's short cut. With a fold, this fold is scored (it
    tells which epoch is best), and the scores of the validation images are kept of every epoch,
    unseen: nothing about them is reported. With `holdout`, the images held out take the place of
    the validation images, and their metrics are named heldout_ in place of val_.
    """
    cfg = Config(**config)
    device = worker.device()
    torch.manual_seed(cfg.seed)
    train_set, val_set = images(cfg)
    chosen, held = split(cfg, train_set)
    classes = len(train_set.classes)
    shared = {"device": device, "seed": cfg.seed, "channels_last": cfg.channels_last}
    train = LabelledImages(
        train_set.images, train_set.labels, chosen, cfg.batch_size, augment=cfg.augment, **shared
    )
    name = "heldout" if cfg.holdout else "val"
    sources = {name: (val_set, np.arange(len(val_set)))}
    if cfg.fold is not None:
        sources = {"heldout": (train_set, held), **sources}
    if cfg.train_eval:
        sources["train"] = (train_set, chosen)
    scored = {
        key: LabelledImages(s.images, s.labels, index, EVAL_FACTOR * cfg.batch_size, **shared)
        for key, (s, index) in sources.items()
    }
    model = pretrained.resnet18(cfg.weights, classes).to(device)
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    weight = balance(train_set.labels[chosen]) if cfg.class_weights == "balanced" else None
    loss = make_loss(cfg.loss, weight, device)
    optimizer = make_optimizer(cfg, model)
    schedule = lr_schedule(optimizer, cfg.epochs * len(train), cfg.warmup, cfg.schedule)
    scaler = grad_scaler(device, cfg.precision)
    kept: trial.Best | Every = trial.Best() if cfg.fold is None else Every()
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state |= {"kept": kept}
    task = pair_loss(loss)
    for row in trial.epochs(state, cfg.epochs, report):
        row["lr"], row["head_lr"] = schedule.get_last_lr()
        row |= train_epoch(
            model,
            memory.counted(train.epoch(row["epoch"]), trial.step_counter(), model),
            optimizer,
            schedule,
            task,
            epoch=row["epoch"],
            precision=cfg.precision,
            scaler=scaler,
            max_norm=cfg.max_norm,
        )
        metrics, logits = score(model, scored, task, cfg.precision)
        if isinstance(kept, Every):
            kept.add(logits)
            row |= {key: value for key, value in metrics.items() if not key.startswith("val_")}
        else:
            row |= metrics
            kept.add(row, logits[name])
    if isinstance(kept, trial.Best):
        trial.load_best(model)
        seen = dataclasses.replace(train, augment=None, batch_size=EVAL_FACTOR * cfg.batch_size)
        trial.note(**score(model, {"best_train": seen}, task, cfg.precision)[0])
    keep_predictions(kept, train_set, val_set, chosen, held, cfg)


def make_optimizer(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser with two groups: the body, then the head.

    Fused: eleven million weights in one pass of memory, a sixth of a small batch's time on a CPU.
    """
    head = list(model.get_submodule("fc").parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    head_lr = HEAD_FACTOR * cfg.lr if cfg.head_lr is None else cfg.head_lr
    groups = [{"params": body, "lr": cfg.lr}, {"params": head, "lr": head_lr}]
    return recipe.make_optimizer(
        cfg.optimizer,
        groups,
        cfg.lr,
        momentum=cfg.momentum,
        weight_decay=cfg.weight_decay,
        fused=True,
    )


class Every:
    """The scores of the held-out fold and of the validation images after every epoch."""

    def __init__(self) -> None:
        self.scores: dict[str, list[Tensor]] = {"heldout": [], "val": []}

    def add(self, logits: Mapping[str, Tensor]) -> None:
        """Take an epoch's scores."""
        for name, scores in self.scores.items():
            scores.append(logits[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {name: list(scores) for name, scores in self.scores.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.scores = {name: list(state_dict[name]) for name in self.scores}


def keep_predictions(
    kept: trial.Best | Every,
    train_set: voc.VocSet,
    val_set: voc.VocSet,
    chosen: np.ndarray,
    held: np.ndarray,
    cfg: Config,
) -> None:
    """Save the scores with the names of the images they belong to, and of those trained on.

    Of a fold the main arrays are its held-out images at the last epoch; `heldout_scores` and
    `val_scores` (epochs, images, classes) hold every epoch's.
    """
    trained = np.array([train_set.files[i] for i in chosen])
    if isinstance(kept, trial.Best):
        trial.note(scores_epoch=kept.epoch)
        more = {**kept.named(), "train_files": trained}
        trial.save_predictions(
            kept.scores.numpy(), val_set.labels, val_set.files, val_set.classes, more
        )
        return
    every = {name: torch.stack(scores).numpy() for name, scores in kept.scores.items()}
    epochs = len(every["val"])
    trial.note(scores_epoch=epochs)
    more = {
        "epoch": np.array(epochs),
        "fold": np.array(-1 if cfg.fold is None else cfg.fold),
        "folds": np.array(cfg.folds),
        "train_files": trained,
        "heldout_scores": every["heldout"],
        "val_scores": every["val"],
        "val_labels": val_set.labels,
        "val_files": np.array(val_set.files),
    }
    files = tuple(train_set.files[i] for i in held)
    last = every["heldout"][-1]
    trial.save_predictions(last, train_set.labels[held], files, train_set.classes, more)


def split(cfg: Config, train_set: voc.VocSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images that are trained on, and of those held out.

    Raises:
        UserError: more folds than images.
    """
    count = len(train_set)
    if cfg.fold is None:
        return np.arange(count), np.arange(0)
    fold = assign(cfg, train_set)
    return np.flatnonzero(fold != cfg.fold), np.flatnonzero(fold == cfg.fold)


def assign(cfg: Config, train_set: voc.VocSet) -> np.ndarray:
    """Return the fold of each training image, the same for every seed.

    Raises:
        UserError: fewer images than folds.
    """
    if cfg.folds > len(train_set):
        raise UserError(f"--folds {cfg.folds}: there are only {len(train_set)} training images")
    return folds.stratified_folds(train_set.labels, cfg.folds, train_set.digests)


# --- data ---


def images(cfg: Config) -> tuple[voc.VocSet, voc.VocSet]:
    """Return the decoded images that a trial is trained on, and those that it is scored on."""
    root = scenes.default_voc() if cfg.data_dir is None else cfg.data_dir
    sets = voc.load(
        root,
        cfg.image_size,
        year=cfg.year,
        difficult=cfg.difficult,
        fit=cfg.fit,
        limit={"train": cfg.train_images, "val": cfg.val_images},
        untrained=cfg.untrained,
        skip_broken=cfg.skip_broken,
    )
    train = sets["train"]
    if not cfg.holdout:
        return train, sets["val"]
    kept, held = folds.hold_out(train.labels, cfg.holdout, train.digests)
    return data.part(train, kept), data.part(train, held)


def describe_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check, fetch and decode what trials need, and return what the report says about it.

    Raises:
        UserError: data or weights that cannot be used or fetched.
    """
    cfg = Config(**settings)
    if cfg.download:
        if cfg.data_dir is None:
            raise UserError("--download: say with --data-dir into which folder")
        archive.download(Path(cfg.data_dir), cfg.year or "2012")
    root = devkit.open_root(cfg.data_dir or scenes.default_voc())
    kit = devkit.read_devkit(root, cfg.year, cfg.skip_broken)
    named = cfg.weights if cfg.weights in pretrained.NAMES else Path(cfg.weights).name
    weights = {"given": named, "digest": pretrained.digest(cfg.weights)}
    train_set, val_set = images(replace(cfg, holdout=0.0))
    synthetic = None if cfg.data_dir else scenes.SYNTHETIC
    described = voc.describe({"train": train_set, "val": val_set}, kit, synthetic)
    told = f"{described['fingerprint']} {weights['digest']}"
    described |= {"weights": weights, "difficult": cfg.difficult}
    described["fingerprint"] = f"sha256:{hashlib.sha256(told.encode()).hexdigest()[:32]}"
    if cfg.folds:
        fold = assign(cfg, train_set)
        missing = folds.missing(train_set.labels, fold, train_set.classes)
        absent = set(described["untrained"])
        described["folds"] = {
            "number": cfg.folds,
            "sizes": np.bincount(fold, minlength=cfg.folds).tolist(),
            "missing": [pair for pair in missing if pair[0] not in absent],
        }
    if cfg.holdout:
        described["holdout"] = folds.describe_hold_out(
            train_set.labels, cfg.holdout, train_set.digests, train_set.classes
        )
    return described


def check_sizes(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches that no trial's training images fill.

    Args:
        configs: of all trials.
        described: what `describe_images` returned.

    Raises:
        UserError: a batch is larger than the training images of a trial.
    """
    for config in configs:
        count = described["images"]["train"]
        count = described.get("holdout", {"trained": count})["trained"]
        if config["fold"] is not None:
            count -= described["folds"]["sizes"][config["fold"]]
        if config["batch_size"] > count:
            raise UserError(
                f"--set batch_size={config['batch_size']}: there are only {count} training images:"
                f" give at most {count}"
            )


def follow(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return what follows from a user's settings: the folds of --folds, a demo's weights."""
    folds_asked = settings.get("folds", 0)
    followed: dict[str, Any] = {"fold": list(range(folds_asked))} if folds_asked >= 2 else {}
    if "weights" not in settings and scale != "full":
        followed["weights"] = "embedded" if scale == "demo" else "none"
    return followed
