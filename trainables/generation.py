"""Images like those of a data set: a VAE, a DCGAN or flow matching, judged without any download."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Interval, MultipleOf
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from core import trial
from core.data import images as data
from core.data import small
from core.data.images import ImageSet
from core.errors import Diverged, UserError
from core.generation import families
from core.generation import family as generators_family
from core.generation import features as sample_features
from core.generation.copies import threshold
from core.generation.family import Draws, Family, slerp, stream
from core.generation.features import Reference, copying, quantised, scaled
from core.generation.quality import NEIGHBOURS, frechet, moments
from core.models import memory, pretrained
from core.settings import Amount, Count, Natural, Says, Settings
from core.training.recipe import OptimizerName
from core.trial import worker

SHOWN = 4  # images of each class in a grid, at most `GRID` in all
GRID = 40
MOST_COMPARED = 2000  # samples for each report, unless `eval_samples` says otherwise
STORED = 1000  # samples kept per trial for the report
PAIRS = 12  # samples shown beside their nearest training images
ROWS, STEPS = 4, 9  # of interpolations
STATES = 6  # of the way from noise to image that are kept
CHECK_EVERY = 50  # steps between looks at the losses
_ORDER, _NOISE, _SAMPLES, _SHOWS, _PATHS = range(5)  # streams of a trial's seed

Two = Annotated[int, Ge(2)]
Fraction = Annotated[float, Interval(ge=0, lt=1), Says("{name} is in [0, 1)")]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of one trial; the defaults are the full scale.

    Attributes:
        family: vae, dcgan or flow (flow matching with a small U-Net).
        width: channels of the layer at the highest resolution, a multiple of 8.
        seed: of weights, order, noise and samples.
        epochs: rounds of training, each followed by a report.
        epoch_steps: batches in a round; none: as many as one pass over the training images has.
        batch_size: images per step.
        optimizer: adam, adamw, sgd or rmsprop.
        lr: learning rate; none: the family's own of adam, converted for another optimiser.
        ema: decay of the moving average of weights that samples are made with; 0: none.
        conditional: tell the family the class of each image.
        latent: entries of a latent (vae, dcgan); none: the family's own.
        patch: flow: squares of so many pixels are one position (1, 2 or 4): faster, coarser.
        guidance: flow: weight of the class while sampling; 1: as learnt, above: stronger.
        label_dropout: flow: share of training images whose class is hidden, for guidance.
        sampler: flow: heun (two network calls a step) or euler (one).
        sampler_steps: flow: steps of the sampler.
        flip: mirror training images at random; none: photographs only.
        eval_samples: images made for each report; none: as many as there are held-out images, at
            most 2000.
        neighbours: k of precision, recall, density and coverage.
        samples: write so many images of the best trial to samples/ (PNG files and an .npz).
        dataset: digits, mnist, cifar10, folder, or auto (what --data-dir holds; digits without).
        image_size: pixels, 8 to 128, a power of 2; none: 16 for the embedded digits, otherwise 32.
        channels: grey, rgb, or auto (grey if every image is).
        train_images: use this many training images, balanced over classes.
        val_images: use this many held-out images, balanced over classes.
        inception: state dict of torchvision's inception_v3, for a distance in its features too.
        data_dir: where the data are; none: the embedded digits.
        skip_broken: leave unreadable images out.
        download: fetch mnist or cifar10 with torchvision where they are missing.
    """

    family: families.Name = "flow"
    width: Annotated[int, Ge(8), MultipleOf(8), Says("{name} must be a multiple of 8")] = 64
    seed: int = 0
    epochs: Count = 100
    epoch_steps: Count | None = None
    batch_size: Two = 128
    optimizer: OptimizerName = "adam"
    lr: Amount | None = None
    ema: Fraction = 0.999
    conditional: bool = True
    latent: Count | None = None
    patch: int = 1
    guidance: Amount = 1.0
    label_dropout: Fraction = 0.1
    sampler: Literal["euler", "heun"] = "heun"
    sampler_steps: Count = 25
    flip: bool | None = None
    eval_samples: Two | None = None
    neighbours: Count = NEIGHBOURS
    samples: Natural = 0
    dataset: small.Name = "auto"
    image_size: int | None = None
    channels: Literal["auto", "grey", "rgb"] = "auto"
    train_images: Count | None = None
    val_images: Count | None = None
    inception: str | None = None
    data_dir: str | None = None
    skip_broken: bool = False
    download: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None and self.image_size not in generators_family.SIZES:
            sizes = ", ".join(map(str, generators_family.SIZES))
            raise UserError(f"--set image_size={self.image_size}: give one of {sizes}")
        if self.patch not in (1, 2, 4) or (self.image_size or 16) // self.patch < 4:
            raise UserError(f"--set patch={self.patch}: give 1, 2 or 4, at most image_size / 4")

    @property
    def size(self) -> int:
        """Return the side of the images in pixels."""
        own = 16 if small.resolve(self.dataset, self.data_dir) == "digits" else 32
        return self.image_size or own

    @property
    def flips(self) -> bool:
        """Return whether training images are mirrored."""
        name = small.resolve(self.dataset, self.data_dir)
        return small.MIRRORED[name] if self.flip is None else self.flip


class Grids:
    """The pictures made after each epoch from the same latents, as part of a checkpoint."""

    def __init__(self):
        self.images: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the grids so far."""
        return {"images": list(self.images)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the grids of a checkpoint."""
        self.images = list(state_dict["images"])


class Pictures(NamedTuple):
    """A data set on the device.

    Attributes:
        train: (N, C, S, S) uint8.
        labels: (N,) int64.
        names: of the classes.
        reference: what samples are held against.
    """

    train: Tensor
    labels: Tensor
    names: tuple[str, ...]
    reference: Reference


def train_generator(config: dict[str, Any], report: trial.Report = trial.report) -> None:
    """Train one family; report its losses and the quality of its samples each epoch."""
    cfg = Config(**config)
    device = worker.device()
    torch.manual_seed(cfg.seed)
    pictures = opened(cfg)
    family = build(cfg, pictures).to(device)
    draws = Draws(cfg.seed, ("order", "noise"))
    grids, kept = Grids(), trial.Best()
    trial.note(
        parameters=family.parameters(), channels_used=family.shape[0], size_used=family.shape[1]
    )
    optimizer = next(iter(family.optimizers.values()))
    trial.note(base_lr=optimizer.param_groups[0]["lr"])
    state = {"model": family.average.network, "family": family, "draws": draws, "grids": grids}
    state |= {"kept": kept}
    asked = wanted(pictures.labels.cpu(), pictures.reference.count)
    columns = shown_labels(len(pictures.names))
    for row in trial.epochs(state, cfg.epochs, report):
        epoch = row["epoch"]
        row |= train_epoch(cfg, family, pictures, draws, epoch)
        trained = time.monotonic()
        made = quantised(family.sample(asked, _generator(cfg, _SAMPLES)))
        row["sample_seconds"] = time.monotonic() - trained
        row |= pictures.reference.measure(made, asked if cfg.conditional else None)
        grids.images.append(quantised(family.sample(columns, _generator(cfg, _SHOWS))))
        trial.save_picture("samples", epoch, grid_png(grids.images[-1]))
        kept.add(row)
    trial.load_best(family.average.network)
    trial.note(scores_epoch=kept.epoch)
    keep(cfg, family, pictures, grids, asked, columns, kept)


def train_epoch(
    cfg: Config, family: Family, pictures: Pictures, draws: Draws, epoch: int
) -> dict[str, float]:
    """Train for one round of steps and return the mean of each loss, named train_*.

    Raises:
        Diverged: a loss is not finite.
    """
    sums: dict[str, Tensor] = {}
    steps = 0
    networks = (*family.networks.values(), family.average.network)
    shown = batches(cfg, pictures, draws["order"])
    for images, labels in memory.counted(shown, trial.step_counter(), *networks):
        losses = family.train_step(images, labels, draws["noise"])
        steps += 1
        for name, value in losses.items():
            sums[name] = sums[name] + value if name in sums else value.clone()
        if steps % CHECK_EVERY == 0:
            _check_finite(sums, epoch, steps)
    _check_finite(sums, epoch, steps)
    return {f"train_{name}": (total / steps).item() for name, total in sums.items()}


def batches(
    cfg: Config, pictures: Pictures, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the (images in [-1, 1], labels) of one round: shuffled passes, whole batches only.

    A data set smaller than a batch gives batches of all its images.
    """
    count, device = len(pictures.train), pictures.train.device
    size = min(cfg.batch_size, count)
    steps = cfg.epoch_steps or count // size
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < size:
            left = torch.randperm(count, generator=generator)
        index, left = left[:size].to(device), left[size:]
        images = pictures.train[index]
        if cfg.flips:
            mirrored = torch.rand(size, generator=generator).to(device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        yield scaled(images), pictures.labels[index]


def build(cfg: Config, pictures: Pictures) -> Family:
    """Return the family that a config describes for these images, with fresh weights."""
    channels, size, _ = pictures.train.shape[1:]
    options = {name: getattr(cfg, name) for name in families.OPTIONS}
    labels = len(pictures.names) if cfg.conditional else 0
    return families.build(cfg.family, (channels, size, size), cfg.width, labels, **options)


def keep(
    cfg: Config,
    family: Family,
    pictures: Pictures,
    grids: Grids,
    asked: Tensor,
    columns: Tensor,
    kept: trial.Best,
) -> None:
    """Store what the report shows: samples, grids, neighbours, interpolations, trajectories.

    All but the grids, of which every epoch has one, are of the epoch whose weights are kept.
    """
    reference = pictures.reference
    made = quantised(family.sample(asked, _generator(cfg, _SAMPLES)))
    features, logits = reference.classifier.look(made.to(reference.train.device))
    near, ratios = reference.nearest(made), reference.check.ratios(made)
    trial.note(**copying(near, ratios, threshold(reference.unseen)))
    if cfg.inception:
        trial.note(inception_frechet=inception_distance(cfg.inception, pictures, made))
    pairs = torch.arange(PAIRS) * len(made) // PAIRS
    latents = family.latents(2 * ROWS, _generator(cfg, _PATHS))
    row_labels = torch.arange(ROWS) * len(pictures.names) // ROWS
    between = [
        family.decode(slerp(latents[:ROWS], latents[ROWS:], step / (STEPS - 1)), row_labels)
        for step in range(STEPS)
    ]
    times, states = family.trajectory(latents[:ROWS], row_labels)
    few = np.unique(np.linspace(0, len(times) - 1, STATES).round().astype(int))
    stored = min(len(made), STORED)
    trial.save_predictions(
        logits.cpu().numpy()[:stored],
        asked.numpy()[:stored],
        tuple(f"sample-{number:05d}" for number in range(stored)),
        pictures.names,
        more={
            **kept.named(),
            "samples": made.numpy()[:stored],
            "grids": torch.stack(grids.images).numpy() if grids.images else np.zeros(0, np.uint8),
            "grid_labels": columns.numpy(),
            "features": features.cpu().numpy(),
            "real_features": reference.real.cpu().numpy(),
            "real_mean": reference.moments.mean.cpu().numpy(),
            "real_covariance": reference.moments.covariance.cpu().numpy(),
            "nearest_distance": near.distance[:, 0].numpy(),
            "nearest_ratio": ratios.cpu().numpy(),
            "pairs": pairs.numpy(),
            "pair_images": reference.train.cpu()[near.index[pairs, 0]].numpy(),
            "interpolation": quantised(torch.stack(between, 1)).numpy(),
            "trajectory": quantised(states[few].clamp(-1, 1)).numpy(),
            "trajectory_times": np.array(times)[few],
            **_real(reference, columns),
        },
    )


def _real(reference: Reference, columns: Tensor) -> dict[str, np.ndarray]:
    """Return real images in the order of a grid, and how near held-out ones are to training's."""
    labels, images = reference.labels.cpu(), reference.train.cpu()
    seen = dict.fromkeys(range(reference.classes), 0)
    chosen = []
    for label in columns.tolist():
        of_class = (labels == label).nonzero()[:, 0]
        chosen.append(int(of_class[seen[label] % len(of_class)]))
        seen[label] += 1
    few = torch.arange(min(len(reference.held_out), reference.count))
    near = reference.nearest(reference.held_out.cpu()[few])
    pairs = few[:: max(1, len(few) // PAIRS)][:PAIRS]
    return {
        "real": images[chosen].numpy(),
        "held_out_distance": near.distance[:, 0].numpy(),
        "held_out_ratio": reference.unseen.cpu().numpy(),
        "held_out_pairs": pairs.numpy(),
        "held_out_images": reference.held_out.cpu()[pairs].numpy(),
        "held_out_nearest": images[near.index[pairs, 0]].numpy(),
    }


def wanted(labels: Tensor, count: int) -> Tensor:
    """Return `count` labels that are as frequent as among the training images."""
    ordered = labels.sort().values
    places = (torch.arange(count) * len(labels)) // count
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return ordered[places][mixed]


def shown_labels(classes: int) -> Tensor:
    """Return the labels of a grid: each class a column, for up to `GRID` classes."""
    columns = torch.arange(min(classes, GRID))
    return columns.repeat(max(1, min(SHOWN, GRID // len(columns))))


def grid_png(images: Tensor) -> bytes:
    """Return a grid of uint8 images as a PNG file, ten (or a class each) in a row, enlarged."""
    scale = max(1, 64 // images.shape[-1])
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(large, nrow=10 if len(images) % 10 == 0 else 8, pad_value=128)
    buffer = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def inception_distance(path: str, pictures: Pictures, made: Tensor) -> float:
    """Return the Frechet distance of samples to all training images in Inception's features."""
    features, real = _inception(path, pictures.reference.digest, len(pictures.train))(
        pictures.train.cpu()
    )
    return frechet(moments(features(made)), real)


@functools.lru_cache(maxsize=1)  # a warm worker looks at the training images once
def _inception(path: str, digest: str, count: int):
    features = sample_features.inception(path)
    known: list[Any] = []

    def both(train: Tensor):
        if not known:
            known.append(moments(features(train)))
        return features, known[0]

    return both


def opened(cfg: Config) -> Pictures:
    """Return the images of a trial on its device, with what samples are held against."""
    sets = images(cfg)
    grey = is_grey(sets) if cfg.channels == "auto" else cfg.channels == "grey"
    fingerprint = data.fingerprint(sets)
    held = _Held(sets, fingerprint, grey, cfg.flips, _compared(cfg, sets), cfg.neighbours)
    return _opened(held)


@dataclass(frozen=True, eq=False)
class _Held:
    """Image sets that are told apart by their fingerprint."""

    sets: Mapping[str, ImageSet]
    fingerprint: str
    grey: bool
    flips: bool
    count: int
    neighbours: int

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        shape = self.sets["train"].images.shape
        return self.fingerprint, shape, self.grey, self.flips, self.count, self.neighbours


@functools.lru_cache(maxsize=1)  # a warm worker keeps the data set of the trials before
def _opened(held: _Held) -> Pictures:
    device = worker.device()
    train, val = (_tensor(held.sets[split], held.grey, device) for split in ("train", "val"))
    labels, val_labels = (
        torch.from_numpy(np.array(held.sets[split].labels, dtype=np.int64)).to(device)
        for split in ("train", "val")
    )
    names = held.sets["train"].classes
    found = sample_features.reference(
        train,
        labels,
        val,
        val_labels,
        len(names),
        flip=held.flips,
        count=held.count,
        neighbours=held.neighbours,
        fingerprint=held.fingerprint,
    )
    return Pictures(train, labels, names, found)


def images(cfg: Config) -> dict[str, ImageSet]:
    """Return the decoded training and held-out images of a trial."""
    limit = {"train": cfg.train_images, "val": cfg.val_images}
    return small.load(
        cfg.dataset,
        cfg.data_dir,
        cfg.size,
        limit,
        download=cfg.download,
        skip_broken=cfg.skip_broken,
    )


def is_grey(sets: Mapping[str, ImageSet]) -> bool:
    """Return whether every image has three equal channels."""
    return all(
        bool((part[:, :1] == part[:, 1:]).all())
        for s in sets.values()
        for part in np.array_split(s.images, max(1, len(s) // 1000))
    )


def describe_pictures(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the images, train the classifier once, and return what the report says about both.

    Raises:
        UserError: data, weights or settings that cannot be used.
    """
    cfg = Config(**settings)
    weights = ""
    if cfg.inception:
        sample_features.inception(cfg.inception)  # refuses other weights
        weights = f"+inception:{pretrained.digest(cfg.inception)}"
    sets = images(cfg)
    _check_counts(cfg, sets)
    described = small.describe(cfg.dataset, cfg.data_dir, sets)
    pictures = opened(cfg)
    build(cfg, pictures)
    found = pictures.reference
    yardsticks = sample_features.yardsticks(found)
    return described | {
        "channels": pictures.train.shape[1],
        "fingerprint": f"{described['fingerprint']}+classifier:{found.digest}{weights}",
        "compared": found.count,
        "classifier": {
            "digest": found.digest,
            "features": sample_features.FEATURES,
            "held_out_accuracy": yardsticks["held_out"]["class_agreement"],
        },
        "yardsticks": yardsticks,
        "copy_check": {
            "threshold": threshold(found.unseen),
            "calibrated_on": len(found.unseen),
            "found": found.found(),
        },
    }


def _check_counts(cfg: Config, sets: Mapping[str, ImageSet]) -> None:
    """Refuse comparisons of fewer images than they need neighbours."""
    fewest = min(_compared(cfg, sets), *(len(s) for s in sets.values()))
    if fewest <= cfg.neighbours:
        raise UserError(
            f"--set neighbours={cfg.neighbours}: only {fewest} images are compared: give more"
            " eval_samples, train_images or val_images, or fewer neighbours"
        )


def _compared(cfg: Config, sets: Mapping[str, ImageSet]) -> int:
    """Return how many samples are compared with real images at a time."""
    return cfg.eval_samples or min(MOST_COMPARED, len(sets["val"]))


def _tensor(images: ImageSet, grey: bool, device: torch.device) -> Tensor:
    pixels = images.images[:, :1] if grey else images.images
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device)


def _generator(cfg: Config, number: int) -> torch.Generator:
    """Return a fresh generator: the same latents after every epoch, whatever was drawn before."""
    return torch.Generator().manual_seed(stream(cfg.seed, number))


def _check_finite(sums: Mapping[str, Tensor], epoch: int, steps: int) -> None:
    wrong = [name for name, value in sums.items() if not value.isfinite()]
    if wrong:
        raise Diverged(
            f"{wrong[0]} is no longer finite at epoch {epoch}, by step {steps}: lower lr"
        )
