"""The images of a study and its source model, which its cells share."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from core.choices import Normalisation
from core.data import decoding, folders, small
from core.data import images as data_images
from core.data.synthetic import birds
from core.errors import UserError
from core.layers import running
from core.models.classifier import Classifier, embedded_images, load_classifier
from core.models.normalisation import OWN, Settled, settle
from core.training.device import device_here
from trainables.adaptation import SMALLEST, Config


@dataclass(frozen=True, eq=False)
class Task:
    """What the cells of a study share: the images, and the source model on its device."""

    images: data_images.ImageSet
    source: Classifier
    model: nn.Module
    normalisation: Normalisation = OWN


def describe_cells(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check data, model and frost pictures once, and return what the report says about them.

    `settled` is what auto comes to; the engine puts it to every trial. Raises UserError: data or
    weights that cannot be used, weights for other classes, or a model without batch norm.
    """
    cfg = Config(**settings)
    task, settled = task_of(cfg), _settled(cfg)
    layers = running.bn_layers(task.model)
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


def task_of(cfg: Config) -> Task:
    """Return images and model of a cell, with the normalisation that it comes to."""
    wanted = cfg.normalisation
    name = _settled(cfg).name if wanted == "auto" else wanted
    return replace(_task(_places(cfg)), normalisation=name)


class Key(NamedTuple):
    """Settings of which those are at their defaults that play no part, and the weights' `stamp`."""

    cfg: Config
    stamp: int


def only(cfg: Config, *names: str) -> Key:
    """Return the named settings of a cell, by which a worker keeps what depends on them alone."""
    return Key(Config(**{name: getattr(cfg, name) for name in names}), stamp(cfg.checkpoint))


def _places(cfg: Config) -> Key:
    return only(cfg, "checkpoint", "data_dir", "images", "image_size", "skip_broken")


def _settled(cfg: Config) -> Settled:
    return _settled_of(cfg.normalisation, _places(cfg))


@functools.lru_cache(maxsize=2)
def _settled_of(wanted: Literal["auto", Normalisation], places: Key) -> Settled:
    task = _task(places)
    try:
        known = task.source.normalisation
        return settle(task.model, task.images.images, task.images.labels, wanted, known)
    except UserError as e:
        raise UserError(f"--set checkpoint={places.cfg.checkpoint or 'none'}: {e}") from e


def stamp(checkpoint: str | None) -> int:
    """Return when a file of weights was written, so that another file of its name is read anew."""
    path = Path((checkpoint or "").rpartition(":")[2])
    return path.stat().st_mtime_ns if checkpoint and path.exists() else 0


@functools.lru_cache(maxsize=2)
def _task(places: Key) -> Task:
    cfg, root = places.cfg, places.cfg.data_dir
    if root is not None and cfg.checkpoint is None:
        raise UserError(
            f"--data-dir {root}: the embedded model knows the embedded birds only: give weights"
            " for these classes with --set checkpoint=..."
        )
    if cfg.checkpoint is None:
        whole = embedded_images()["val"]
    else:
        root = str(birds.default_birds()) if root is None else root
        whole = small.cifar10_test(root)
    if whole is not None:
        images = _first_evenly(whole, cfg.images)
        source = load_classifier(cfg.checkpoint, len(images.classes))
    else:
        listing = folders.scan(str(root), ["val"])
        source = load_classifier(cfg.checkpoint, len(listing.classes))
        images = _from_folder(listing, source, cfg)
    # in this memory format convolutions on a CPU take a third less time
    model = source.model.to(memory_format=torch.channels_last)  # pyrefly: ignore
    return Task(images, source, model.to(device_here()))


def _from_folder(listing: folders.Listing, source: Classifier, cfg: Config) -> data_images.ImageSet:
    """Return the images of a folder evenly over its classes, decoded as the model takes them."""
    listed = listing.files["val"]
    order = _even_order(np.array([f.label for f in listed]), cfg.images, len(listing.classes))
    files = [listed[k] for k in order]
    native = _common_size(listing.root, files)
    size = cfg.image_size or source.image_size or (native if native == SMALLEST else 224)
    fit: decoding.Fit = "crop" if source.fit == "crop" and native != size else "squash"
    return data_images.read(listing, {"val": files}, size, fit, cfg.skip_broken)["val"]


def _even_order(labels: np.ndarray, count: int | None, classes: int) -> np.ndarray:
    """Return the places of the first image of each class, of the second, and so on, to `count`."""
    if count is not None and not classes <= count <= len(labels):
        raise UserError(
            f"--set images={count}: give {classes:,} (one for each class) to {len(labels):,} (all)"
        )
    return data_images.turns(labels)[:count]


def _first_evenly(images: data_images.ImageSet, count: int | None) -> data_images.ImageSet:
    return data_images.part(images, _even_order(images.labels, count, len(images.classes)))


def _common_size(root: Path, files: Sequence[folders.ImageFile]) -> int | None:
    """Return the side of images that are all squares of one size; only their headers are read."""
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
