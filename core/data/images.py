"""Image folders, decoded once into an array on disk that all trials of a machine share.

A root holds `train/<class>/*` and `val/<class>/*` (or `test` in place of `val`). `load` lists the
files, decodes what the cache does not hold yet, and returns memory-mapped arrays. The data root is
only read; the cache lies in `cache_dir()`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from core.data.decoding import DIGITS, Fit, decoded_splits
from core.data.folders import ImageFile, Listing, Root, scan
from core.errors import UserError, some

S = TypeVar("S", bound="ImageSet")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one split."""

    images: np.ndarray  # (N, 3, S, S) uint8, memory-mapped and read-only
    labels: np.ndarray  # (N,) int64, indices into `classes`
    # paths relative to the data root, with forward slashes, in a fixed order
    files: tuple[str, ...]
    classes: tuple[str, ...]  # names, sorted; the same for all splits of a root
    folder: str = ""  # the split's folder in the root ("test" where there is no "val")
    sources: tuple[str, ...] = ()  # SHA-256 of each file, 32 digits
    digests: tuple[str, ...] = ()  # SHA-256 of each decoded image, 32 digits
    skipped: tuple[str, ...] = ()  # broken files that were left out, as relative paths
    # how many files were passed over as no images, by their extension
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)


def load(
    root: Root,
    image_size: int,
    splits: Sequence[str] = ("train", "val"),
    *,
    limit: Mapping[str, int | None] | None = None,
    skip_broken: bool = False,
) -> dict[str, ImageSet]:
    """Return the decoded images of each split, from the cache if it has them.

    Images are resized with PIL's bilinear filter, which averages when it shrinks. Raises UserError:
    the folders cannot be used (see `scan`), a limit is below one image per class, files cannot be
    decoded (all are named), or the cache cannot be written.

    Args:
        root: folder with a folder per split.
        image_size: S, in pixels.
        splits: names of the splits.
        limit: per split, use this many images only, balanced over classes; the same ones each time.
        skip_broken: leave files out that cannot be decoded, instead of refusing the data.
    """
    listing, limit = scan(root, splits), limit or {}
    chosen = {
        split: choose_files(files, limit.get(split), split, len(listing.classes))
        for split, files in listing.files.items()
    }
    sets = read(listing, chosen, image_size, "squash", skip_broken)
    left = {f"{s.folder}/{s.classes[k]}" for s in sets.values() for k in np.unique(s.labels)}
    every = [f"{s.folder}/{name}" for s in sets.values() for name in s.classes]
    if gone := [place for place in every if place not in left]:
        raise UserError(f"--data-dir {root}: no readable image is left in {some(gone)}")
    return sets


def read(
    listing: Listing, chosen: Mapping[str, Sequence[ImageFile]], size: int, fit: Fit, skip: bool
) -> dict[str, ImageSet]:
    """Return the decoded images of the chosen files of each split, in their order.

    Raises UserError: files cannot be decoded (all are named) and not to be skipped, or the cache
    cannot be written.
    """
    opened = decoded_splits(listing.root, chosen, size, fit, skip)
    sets = {}
    for split, (images, manifest) in opened.items():
        label = {file.path: file.label for file in chosen[split]}
        sets[split] = ImageSet(
            images=images,
            labels=np.array([label[path] for path in manifest["files"]], dtype=np.int64),
            files=tuple(manifest["files"]),
            classes=listing.classes,
            folder=listing.folders[split],
            sources=tuple(manifest["sources"]),
            digests=tuple(manifest["digests"]),
            skipped=tuple(path for path, _ in manifest["broken"]),
            left_out=listing.left_out[split],
        )
    return sets


class Rows:
    """The images (M, 3, S, S) uint8 that M indices `rows` name, read when they are asked for."""

    def __init__(self, images: np.ndarray, rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._images[self._rows[index]]


def part(whole: S, rows: np.ndarray, *, lazily: bool = False) -> S:
    """Return the images of a set at the indices `rows`, as a set of its kind.

    Best they ascend, so that a memory map is read forwards. Images that are wanted `lazily` are
    read when they are asked for (`Rows`), not at once.
    """
    told = [name for name in ("files", "sources", "digests", "boxes") if getattr(whole, name, ())]
    cut: dict[str, Any] = {n: tuple(getattr(whole, n)[i] for i in rows) for n in told}
    images = Rows(whole.images, rows) if lazily else whole.images[rows]
    return replace(whole, images=images, labels=whole.labels[rows], **cut)


def describe(sets: Mapping[str, ImageSet], synthetic: str | None = None) -> dict[str, Any]:
    """Return what a report says about its data, ready for JSON and without any absolute path.

    `synthetic` describes generated images; None: they are of a user's folder.
    """
    first = next(iter(sets.values()))
    used = [f"{s.folder}/ serves as {split}" for split, s in sets.items() if s.folder != split]
    pairs = duplicates(sets["train"], sets["val"]) if {"train", "val"} <= sets.keys() else []
    counts = {s: np.bincount(x.labels, minlength=len(x.classes)) for s, x in sets.items()}
    left_out = sum((Counter(s.left_out) for s in sets.values()), Counter())
    each = [f"{count:,} {kind}" for kind, count in sorted(left_out.items())]
    return {
        "kind": "synthetic" if synthetic else "folder",
        "description": synthetic or "; ".join(used),
        "classes": list(first.classes),
        "counts": {s: dict(zip(first.classes, c.tolist(), strict=True)) for s, c in counts.items()},
        "image_size": int(first.images.shape[-1]),
        "fingerprint": fingerprint(sets),
        "duplicates": len(pairs),
        "duplicate_examples": [list(pair) for pair in pairs[:5]],
        "skipped": [path for s in sets.values() for path in s.skipped],
        "notes": [f"files that count as no images are left out: {some(each)}"] if each else [],
    }


def fingerprint(sets: Mapping[str, ImageSet]) -> str:
    """Return a SHA-256 of names and bytes of all files used: equal for copies of the same data."""
    digest = hashlib.sha256()
    for split, images in sorted(sets.items()):
        for path, source in zip(images.files, images.sources, strict=True):
            digest.update(f"{split}\0{path}\0{source}\n".encode())
    return f"sha256:{digest.hexdigest()[:DIGITS]}"


def duplicates(train: ImageSet, val: ImageSet) -> list[tuple[str, str]]:
    """Return (train file, val file) for each validation image with a pixel-equal training image.

    The decoded, resized images are compared, so that copies in another lossless format count too.
    """
    known = dict(zip(train.digests, train.files, strict=True))
    return [
        (known[digest], path)
        for digest, path in zip(val.digests, val.files, strict=True)
        if digest in known
    ]


# --- fewer images ---


def choose_files(
    files: Sequence[ImageFile], limit: int | None, split: str, classes: int
) -> tuple[ImageFile, ...]:
    """Return `limit` of the files in their order, chosen by a hash of their names; see `choose`."""
    names = [os.fsencode(file.path) for file in files]
    labels = np.array([file.label for file in files])
    rows = choose(labels, limit, split, classes, lambda k: hashlib.sha256(names[k]).digest())
    return tuple(files[k] for k in rows)


def choose(
    labels: np.ndarray, limit: int | None, split: str, classes: int, key: Callable[[int], Any]
) -> np.ndarray:
    """Choose images, as many of each class as possible; the same ones each time.

    Returns their places, ascending. Raises UserError: fewer than one image for each class.

    Args:
        labels: (N,) class of each image.
        limit: how many; None: all.
        split: for the message.
        classes: at least so many are needed.
        key: which images of a class come first, by their places.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    if limit < classes:
        raise UserError(
            f"--set {split}_images={limit}: at least {classes}, one for each class, are needed"
        )
    first = np.array(sorted(range(len(labels)), key=key))
    return np.sort(first[turns(labels[first])[:limit]])


def turns(labels: np.ndarray) -> np.ndarray:
    """Return the places of the first image of each class, of the second of each, and so on."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.lexsort((labels, rank))
