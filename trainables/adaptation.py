"""One cell of a robustness table: a corruption at a severity, without and with adaptation."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from PIL import Image
from torch import Tensor, nn

from core import trial
from core.data import decoding, folders
from core.data import images as data_images
from core.data.augment import normalise
from core.data.synthetic import birds
from core.errors import Diverged, UserError
from core.models.classifier import Classifier, embedded_images, load_classifier, subset
from core.models.normalisation import NORMALISATIONS, OWN, Normalisation, Settled, settle
from core.settings import Count, Natural, Says, Settings
from core.shift import adaptation
from core.shift.adaptation import Method, Order
from core.shift.corruptions import corrupt
from core.trial import worker

CLEAN = "clean"
EVAL_BATCH = 125  # images; a measure of speed only, as the model is in evaluation mode
SMALLEST = 32  # pixels; the corruptions are defined from there on
_CHUNK = 256  # images corrupted at once
_KEPT_BYTES = 2**30  # corrupted images that are kept; of more, batches are corrupted as they come
_KEPT_SCORES = 250_000  # scores of a trial that go to predictions/

Corruption = Literal[
    "clean", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness",
]  # fmt: skip

INFINITY = float("inf")
Side = Annotated[int, Ge(SMALLEST), Says(f"the corruptions need at least {SMALLEST}")]
Momentum = Annotated[float, Interval(gt=0, le=1), Says("give a number above 0, at most 1")]
Images = Annotated[float, Interval(ge=0, lt=INFINITY), Says("give a number of at least 0")]
Rate = Annotated[float, Interval(gt=0, lt=INFINITY), Says("give a number above 0")]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of one trial, which is one cell: the defaults are the lab's.

    Attributes:
        corruption: one of the eight, or clean.
        severity: 1 to 5; of clean images 0.
        method: none, running (num_bn_updates batches move the running statistics), batch (each
            batch by its own statistics), prior (blended with the source's) or tent (own statistics,
            and scale and shift by the entropy of the predictions).
        num_bn_updates: batches that move the statistics under running; 0 changes nothing.
        batch_size: images in a batch of adaptation.
        order: in which images come: shuffled (by the seed), sorted (by class) or dirichlet (classes
            in bursts).
        seed: of the order of the images; the corrupted images are those of corruption_seed.
        momentum: weight of the newest batch under running; none: as in the model.
        cumulative: under running forget the source and average all batches.
        prior_n: images that the source's statistics count for under prior.
        tent_lr: learning rate of tent.
        wrap: go through the images again where the updates need more than there are.
        clean_reference: adapt to the clean images too, to see what adaptation costs there.
        corruption_seed: of what is random in a corruption.
        images: use so many images, taken evenly over the classes; none: all.
        image_size: pixels; none: as the model was trained, else 32 where all images are 32x32, else
            224 cropped as for ImageNet.
        checkpoint: weights: a file, a result folder, resnet18 and the like, or NAME:PATH; none: the
            embedded model.
        normalisation: mean and std of the pixels: imagenet, cifar10 or none (0 to 1); auto: that of
            the weights' training where it is known (torchvision's, labtune's, the public CIFAR
            ResNets), else the one under which the unadapted model is best on clean images.
        frost_dir: folder of frost photographs, in place of labtune's textures.
        data_dir: root with val/<class>/ or test/<class>/, or of CIFAR-10's python batches; none:
            the embedded synthetic birds.
        skip_broken: leave unreadable images out.
    """

    corruption: Corruption = "frost"
    severity: int = 2
    method: Method = "running"
    num_bn_updates: Natural = 50
    batch_size: Count = 64
    order: Order = "shuffled"
    seed: Natural = 0
    momentum: Momentum | None = None
    cumulative: bool = False
    prior_n: Images = 16.0
    tent_lr: Rate = 1e-3
    wrap: bool = False
    clean_reference: bool = False
    corruption_seed: Natural = 0
    images: Count | None = None
    image_size: Side | None = None
    checkpoint: str | None = None
    normalisation: Literal["auto", Normalisation] = "auto"
    frost_dir: str | None = None
    data_dir: str | None = None
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.corruption == CLEAN and self.severity != 0:
            raise UserError(f"--set severity={self.severity}: clean images have severity 0")
        if self.corruption != CLEAN and not 1 <= self.severity <= 5:
            raise UserError(f"--set severity={self.severity}: give 1, 2, 3, 4 or 5")


@dataclass(frozen=True, eq=False)
class Task:
    """What the cells of a study share: the images, and the source model on its device."""

    images: data_images.ImageSet
    source: Classifier
    model: nn.Module
    normalisation: Normalisation = OWN


class Scored(NamedTuple):
    """How a model did on a cell's images.

    Attributes:
        right: (N,) bool, in the order of the images.
        loss: cross-entropy, nats per image.
        logits: (N, C) float32 on the CPU.
    """

    right: np.ndarray
    loss: float
    logits: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the images that were told right."""
        return float(self.right.mean())


def adapt_cell(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Score the model on one cell without and with adaptation; report once.

    Reports accuracies and losses (nats) before and after, the number of images, those told right
    before and after, those that adaptation put right (`gained`) and wrong (`lost`), the updates
    made, the accuracy on clean images, and where the time went.
    """
    start = time.monotonic()
    cfg = Config(**config)
    task = _task_of(cfg)
    before = _unadapted(cfg)
    after, adapted = _adapted(cfg, task)
    if cfg.method in ("none", "running"):
        _note_changes(task, adapted.model)
    clean = _unadapted(_clean(cfg))
    row: dict[str, Any] = {"epoch": 1, "acc_unadapted": before.accuracy}
    row |= {"acc_adapted": after.accuracy, "gain": after.accuracy - before.accuracy}
    row |= {"loss_unadapted": before.loss, "loss_adapted": after.loss, "n": len(after.right)}
    row |= _counts(before, after) | {
        "updates": adapted.updates,
        "clean_acc_unadapted": clean.accuracy,
    }
    if cfg.clean_reference:
        again = _clean_adapted(_clean(cfg))
        row |= {"clean_acc_adapted": again.accuracy}
        row |= {f"clean_{key}": value for key, value in _counts(clean, again).items()}
    seconds = time.monotonic() - start
    row |= {"corruption_seconds": _shifted(cfg).take_seconds(), "seconds": seconds}
    if after.logits.numel() <= _KEPT_SCORES:
        images = task.images
        trial.save_predictions(after.logits.numpy(), images.labels, images.files, images.classes)
    report(row)


def describe_cells(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check data, model and frost pictures once, and return what the report says about them.

    `settled` is what auto comes to; the engine puts it to every trial.

    Raises:
        UserError: data or weights that cannot be used, weights for other classes, or a model
            without batch norm.
    """
    cfg = Config(**settings)
    task, settled = _task_of(cfg), _settled(cfg)
    layers = adaptation.bn_layers(task.model)
    if settled.far or settled.how in ("guessed", "assumed"):
        print(settled.sentence(), flush=True)
    synthetic = None if cfg.data_dir else birds.SYNTHETIC
    described = data_images.describe({"val": task.images}, synthetic=synthetic)
    frost = _frost_digest(cfg.frost_dir)
    told = f"{described['fingerprint']} {task.source.digest} {frost}"
    return described | {
        "fingerprint": f"sha256:{hashlib.sha256(told.encode()).hexdigest()[:32]}",
        "model": task.source.name,
        "model_digest": task.source.digest,
        "bn_layers": len(layers),
        "bn_momentum": next(iter(layers.values())).momentum,
        "frost": "the user's photographs" if cfg.frost_dir else "textures drawn by labtune",
        "normalisation": settled.record(),
        "settled": {"normalisation": settled.name} if cfg.normalisation == "auto" else {},
    }


def check_cells(configs: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Refuse batches, and without wrapping updates, that need more images than there are.

    Raises:
        UserError: see above.
    """
    labels = np.zeros(sum(described["counts"]["val"].values()), dtype=np.int64)
    for config in configs:
        try:
            if config["method"] == "running":
                _update_batches(Config(**config), labels)
            else:
                adaptation.stream(labels, "shuffled", 0, config["batch_size"])
        except UserError as e:
            raise UserError(f"--set {e}") from e


def no_silent_wrap(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return the settings that follow from the user's own: their updates wrap only if they say so.

    The lab's 50 x 64 may go through fewer images again; a number that the user gives may not.
    """
    return {"wrap": False} if "num_bn_updates" in settings else {}


# --- scoring ---


def _adapted(cfg: Config, task: Task) -> tuple[Scored, adaptation.Adapted]:
    """Return the scores with adaptation, and the model after it."""
    shifted = _shifted(cfg)
    labels = task.images.labels
    moving = _update_batches(cfg, labels) if cfg.method == "running" else []
    adapted = adaptation.adapt(
        task.model,
        (_batch(task, shifted, index) for index in moving),
        cfg.method,
        num_bn_updates=cfg.num_bn_updates,
        momentum=cfg.momentum,
        cumulative=cfg.cumulative,
        prior=cfg.prior_n,
        lr=cfg.tent_lr,
    )
    if cfg.method in ("none", "running"):
        batches = _in_order(len(labels))
    else:
        batches = adaptation.stream(labels, cfg.order, cfg.seed, cfg.batch_size)
    return _score(task, adapted.model, shifted, batches), adapted


def _note_changes(task: Task, adapted: nn.Module) -> None:
    """Keep which tensors adaptation changed, and how far the statistics of each layer moved."""
    names = adaptation.changed_tensors(task.model, adapted)
    kinds = Counter(name.rpartition(".")[2] for name in names)
    moved = [
        [change.layer, round(change.shift, 4), round(change.ratio, 4)]
        for change in adaptation.changes(task.model, adapted)
    ]
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    trial.note(tensors_changed=told, bn_change=json.dumps(moved))


def _update_batches(cfg: Config, labels: np.ndarray) -> list[np.ndarray]:
    """Return the images of each update."""
    return adaptation.stream(
        labels, cfg.order, cfg.seed, cfg.batch_size, cfg.num_bn_updates, cfg.wrap
    )


def _in_order(count: int) -> list[np.ndarray]:
    return [np.arange(k, min(k + EVAL_BATCH, count)) for k in range(0, count, EVAL_BATCH)]


@torch.inference_mode()
def _score(task: Task, model: nn.Module, shifted: Shifted, batches: list[np.ndarray]) -> Scored:
    """Predict the images batch by batch; every image is in one batch.

    Raises:
        Diverged: a score is not finite.
    """
    logits = torch.cat([model(_batch(task, shifted, index)).float() for index in batches]).cpu()
    if not logits.isfinite().all():
        raise Diverged(
            "a score is not finite: the weights or what adaptation made of them overflow"
        )
    ordered = torch.empty_like(logits)
    ordered[torch.from_numpy(np.concatenate(batches))] = logits
    labels = torch.from_numpy(task.images.labels)
    loss = F.cross_entropy(ordered, labels).item()
    return Scored((ordered.argmax(1) == labels).numpy(), loss, ordered)


def _batch(task: Task, shifted: Shifted, index: np.ndarray) -> Tensor:
    pixels = shifted(index).to(worker.device(), non_blocking=True)
    return normalise(pixels, *NORMALISATIONS[task.normalisation], channels_last=True)


def _counts(before: Scored, after: Scored) -> dict[str, int]:
    return {
        "right_unadapted": int(before.right.sum()),
        "right_adapted": int(after.right.sum()),
        "gained": int((after.right & ~before.right).sum()),
        "lost": int((before.right & ~after.right).sum()),
    }


# --- what a worker keeps between trials ---


class Shifted:
    """The images of a cell, corrupted once where they fit, else batch by batch.

    The result for an image depends on the image, its place in the set and the corruption's seed:
    both ways give the same bytes.
    """

    def __init__(self, cfg: Config, images: np.ndarray):
        self.cfg, self.images = cfg, images
        self.seconds = 0.0  # spent on corrupting
        self.kept: Tensor | None = None
        if images.nbytes <= _KEPT_BYTES:
            count = len(images)
            chunks = [np.arange(k, min(k + _CHUNK, count)) for k in range(0, count, _CHUNK)]
            self.kept = torch.cat([self._corrupted(chunk).cpu() for chunk in chunks])

    def __call__(self, index: np.ndarray) -> Tensor:
        """Return the corrupted images (B, 3, S, S) uint8 with these places in the set."""
        if self.kept is not None:
            return self.kept[torch.from_numpy(index)]
        return self._corrupted(index)

    def take_seconds(self) -> float:
        """Return the seconds spent on corrupting since this was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _corrupted(self, index: np.ndarray) -> Tensor:
        start = time.monotonic()
        images = torch.from_numpy(self.images[index])
        if self.cfg.corruption != CLEAN:
            images = corrupt(
                images.to(worker.device()),
                self.cfg.corruption,
                self.cfg.severity,
                self.cfg.corruption_seed,
                torch.from_numpy(index),
                frost_dir=self.cfg.frost_dir,
            )
        self.seconds += time.monotonic() - start
        return images


def _task_of(cfg: Config) -> Task:
    wanted = cfg.normalisation
    name = _settled(cfg).name if wanted == "auto" else wanted
    return replace(_task(*_places(cfg)), normalisation=name)


def _places(cfg: Config) -> tuple[Any, ...]:
    known = (cfg.checkpoint, cfg.data_dir, cfg.images, cfg.image_size, cfg.skip_broken)
    return (*known, _stamp(cfg.checkpoint))


def _settled(cfg: Config) -> Settled:
    return _settled_of(cfg.normalisation, *_places(cfg))


@functools.lru_cache(maxsize=2)
def _settled_of(wanted: Literal["auto", Normalisation], *places: Any) -> Settled:
    task = _task(*places)
    try:
        known = task.source.normalisation
        return settle(task.model, task.images.images, task.images.labels, wanted, known)
    except UserError as e:
        raise UserError(f"--set checkpoint={places[0] or 'none'}: {e}") from e


def _stamp(checkpoint: str | None) -> int:
    """Return when a file of weights was written, so that another file of its name is read anew."""
    path = Path((checkpoint or "").rpartition(":")[2])
    return path.stat().st_mtime_ns if checkpoint and path.exists() else 0


@functools.lru_cache(maxsize=2)
def _task(
    checkpoint: str | None,
    data_dir: str | None,
    count: int | None,
    image_size: int | None,
    skip_broken: bool,
    stamp: int,
) -> Task:
    if data_dir is not None and checkpoint is None:
        raise UserError(
            f"--data-dir {data_dir}: the embedded model knows the embedded birds only: give weights"
            " for these classes with --set checkpoint=..."
        )
    if data_dir is None and checkpoint is not None:
        data_dir = str(birds.default_birds())
    if data_dir is None:
        source = load_classifier(None, len(embedded_images()["val"].classes))
        images = _first_evenly(embedded_images()["val"], count)
    elif (folder := _python_batches(Path(data_dir))) is not None:
        images = _first_evenly(_cifar10(folder), count)
        source = load_classifier(checkpoint, len(images.classes))
    else:
        listing = folders.scan(data_dir, ["val"])
        source = load_classifier(checkpoint, len(listing.classes))
        images = _from_folder(listing, source, count, image_size, skip_broken)
    # in this memory format convolutions on a CPU take a third less time
    model = source.model.to(memory_format=torch.channels_last)  # pyrefly: ignore
    return Task(images, source, model.to(worker.device()))


def _key(cfg: Config) -> Config:
    """Return `cfg` with every setting at its default that plays no part in corrupted images."""
    parts = ("corruption", "severity", "corruption_seed", "images", "image_size", "checkpoint")
    places = ("normalisation", "frost_dir", "data_dir", "skip_broken")
    return Config(**{name: getattr(cfg, name) for name in (*parts, *places)})


def _clean(cfg: Config) -> Config:
    return replace(cfg, corruption=CLEAN, severity=0)


def _shifted(cfg: Config) -> Shifted:
    return _shifted_of(_key(cfg), _stamp(cfg.checkpoint))


@functools.lru_cache(maxsize=2)  # this cell's images, and the clean ones
def _shifted_of(cfg: Config, stamp: int) -> Shifted:
    return Shifted(cfg, _task_of(cfg).images.images)


def _unadapted(cfg: Config) -> Scored:
    return _unadapted_of(_key(cfg), _stamp(cfg.checkpoint))


@functools.lru_cache(maxsize=64)
def _unadapted_of(cfg: Config, stamp: int) -> Scored:
    task = _task_of(cfg)
    return _score(task, task.model, _shifted(cfg), _in_order(len(task.images)))


def _clean_adapted(cfg: Config) -> Scored:
    return _clean_adapted_of(cfg, _stamp(cfg.checkpoint))


@functools.lru_cache(maxsize=64)
def _clean_adapted_of(cfg: Config, stamp: int) -> Scored:
    return _adapted(cfg, _task_of(cfg))[0]


# --- data ---


def _from_folder(
    listing: folders.Listing,
    source: Classifier,
    count: int | None,
    image_size: int | None,
    skip_broken: bool,
) -> data_images.ImageSet:
    """Return the images of a folder in the order of `evenly`, decoded as the model takes them."""
    files = evenly(listing.files["val"], count, len(listing.classes))
    native = _common_size(listing.root, files)
    size = image_size or source.image_size or (native if native == SMALLEST else 224)
    fit: decoding.Fit = "crop" if source.fit == "crop" and native != size else "squash"
    images, manifest = decoding.decoded(listing.root, files, size, fit)
    broken = dict(manifest["broken"])
    if broken and not skip_broken:
        raise UserError(decoding.broken_sentence(broken, len(files)))
    label = {file.path: file.label for file in files}
    return data_images.ImageSet(
        images=images,
        labels=np.array([label[path] for path in manifest["files"]], dtype=np.int64),
        files=tuple(manifest["files"]),
        classes=listing.classes,
        folder=listing.folders["val"],
        sources=tuple(manifest["sources"]),
        digests=tuple(manifest["digests"]),
        skipped=tuple(broken),
        left_out=listing.left_out["val"],
    )


def evenly(
    files: Sequence[folders.ImageFile], count: int | None, classes: int
) -> tuple[folders.ImageFile, ...]:
    """Return the first file of each class, the second of each, and so on, up to `count`.

    Raises:
        UserError: `count` is below one image per class or above the number of files.
    """
    order = _even_order(np.array([file.label for file in files]), count, classes)
    return tuple(files[k] for k in order)


def _even_order(labels: np.ndarray, count: int | None, classes: int) -> np.ndarray:
    if count is not None and not classes <= count <= len(labels):
        raise UserError(
            f"--set images={count}: give {classes:,} (one for each class) to {len(labels):,} (all)"
        )
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.lexsort((labels, rank))[:count]


def _first_evenly(images: data_images.ImageSet, count: int | None) -> data_images.ImageSet:
    return subset(images, _even_order(images.labels, count, len(images.classes)))


def _common_size(root: Path, files: Sequence[folders.ImageFile]) -> int | None:
    """Return the side of images that are all squares of one size; only their headers are read.

    Raises:
        UserError: an image is smaller than the corruptions need.
    """
    sizes = set()
    for file in files:
        try:
            with Image.open(root / file.path) as image:
                sizes.add(image.size)
        except Exception:  # a damaged file: decoding it says what is wrong
            continue
        if min(image.size) < SMALLEST:
            raise UserError(
                f"{file.path} has {image.size[0]}x{image.size[1]} pixels: the corruptions need"
                f" {SMALLEST} or more each way: remove or enlarge it"
            )
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return width if width == height else None


def _python_batches(root: Path) -> Path | None:
    """Return the folder that holds `cifar-10-batches-py`, if `root` is it or that folder itself."""
    if (root / "cifar-10-batches-py").is_dir():
        return root
    return root.parent if root.name == "cifar-10-batches-py" and root.is_dir() else None


def _cifar10(root: Path) -> data_images.ImageSet:
    """Return CIFAR-10's test images from its python batches, whose checksums torchvision knows.

    Raises:
        UserError: a batch is missing or not the published one.
    """
    from torchvision.datasets import CIFAR10

    try:
        known = CIFAR10(str(root), train=False, download=False)
    except (RuntimeError, OSError) as e:
        raise UserError(
            f"--data-dir {root}: cifar-10-batches-py is not whole ({str(e).splitlines()[0]}):"
            " unpack cifar-10-python.tar.gz there again"
        ) from e
    images = np.ascontiguousarray(known.data.transpose(0, 3, 1, 2))
    digests = tuple(hashlib.sha256(image.tobytes()).hexdigest()[:32] for image in images)
    labels = np.array(known.targets, dtype=np.int64)
    files = tuple(f"test_batch/{k:05}" for k in range(len(labels)))
    return data_images.ImageSet(
        images, labels, files, tuple(known.classes), "test", sources=digests, digests=digests
    )


def _frost_digest(folder: str | None) -> str:
    """Return a SHA-256 of the frost pictures, so that a resumed study notices other ones."""
    digest = hashlib.sha256()
    if folder is not None:
        try:
            for path in sorted(Path(folder).iterdir()):
                if path.is_file():
                    digest.update(path.name.encode() + b"\0" + path.read_bytes())
        except OSError as e:
            raise UserError(
                f"--set frost_dir={folder}: cannot read it ({e.strerror}): give a folder of"
                " pictures of frost"
            ) from e
    return digest.hexdigest()[:32]
