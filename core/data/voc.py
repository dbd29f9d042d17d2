"""Images with several labels each, from a folder in the layout of Pascal VOC's development kit.

A year's folder (VOC2012, or any other name) holds `JPEGImages/`, `Annotations/*.xml` and the lists
`ImageSets/Main/train.txt` and `val.txt`. The root that a user gives is that folder, or a folder at
most three levels above it, or the archive as it is published. Nothing in the root is written.

Lists and annotations are taken as programs write them: names with an ending, in quotes, in another
Unicode form or beside further columns; images without an annotation show nothing, and are counted
in a note.

A label is 1 where a class has an object that is not marked difficult, 0 where all its objects are,
-1 where it has none, as in the kit's own lists (Everingham et al. 2010, "The Pascal Visual Object
Classes (VOC) Challenge", section 4.1 on difficult objects).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.data import decoding, images
from core.data.devkit import Box, Devkit, open_root, read_devkit
from core.errors import UserError, some

Difficult = Literal["ignore", "negative", "positive"]


@dataclass(frozen=True, eq=False)
class VocSet(images.ImageSet):
    """Decoded images of one list; attributes as in `core.data.images.ImageSet`, but for two.

    Labels are (N, C) int8: 1 present, 0 ignored (only difficult objects), -1 absent.
    """

    boxes: tuple[tuple[Box, ...], ...] = ()  # the objects of each image


def load(
    root: str | os.PathLike[str],
    image_size: int,
    *,
    year: str | None = None,
    difficult: Difficult = "ignore",
    fit: decoding.Fit = "squash",
    limit: Mapping[str, int | None] | None = None,
    untrained: Literal["refuse", "keep"] | None = None,
    skip_broken: bool = False,
) -> dict[str, VocSet]:
    """Return the decoded images of the lists "train" and "val", each image once.

    Raises UserError: no devkit or several, files missing or damaged (all are named), a class
    without an example, or the cache cannot be written.

    Args:
        root: see the module; a published archive is unpacked in the cache.
        image_size: S, in pixels.
        year: which year's folder, such as 2012, where there are several.
        difficult: what a class counts as whose objects in an image are all marked difficult.
        fit: "squash" to S x S, so that every labelled object stays in the picture (default), or
            "crop" the centre.
        limit: per list, use this many images only; the same ones each time.
        untrained: what happens if a class has no training example; None refuses this for a data
            set's own classes and keeps it for VOC's twenty, which are the same for every subset.
        skip_broken: leave images out that are missing or cannot be decoded, or whose annotation
            cannot be used, instead of refusing the data.
    """
    kit = read_devkit(open_root(root), year, skip_broken)
    check_examples(kit, difficult, untrained)
    chosen = {
        split: images.choose_files(files, (limit or {}).get(split), split, classes=0)
        for split, files in kit.files.items()
    }
    opened = decoding.decoded_splits(kit.root, chosen, image_size, fit, skip_broken)
    return {split: _voc_set(kit, split, difficult, *cache) for split, cache in opened.items()}


def check_examples(
    kit: Devkit, difficult: Difficult, untrained: Literal["refuse", "keep"] | None
) -> None:
    """Refuse, by a UserError, classes without training example and a list without any label."""
    shown = {
        split: (labels_of(boxes, len(kit.classes), difficult) == 1).any(0)
        for split, boxes in kit.boxes.items()
    }
    for split, name in kit.lists.items():
        if not shown[split].any():
            raise UserError(f"{kit.root}: no image in {name} has an object that counts")
    names = [name for name, known in zip(kit.classes, shown["train"], strict=True) if not known]
    if names and (untrained == "refuse" or (untrained is None and kit.own)):
        raise UserError(
            f"{kit.root}: no training example of {some(names)} in {kit.lists['train']}: add"
            " some, take the class out of the list of classes, or keep it with --set untrained=keep"
        )


def labels_of(
    boxes: Sequence[Sequence[Box]], classes: int, difficult: Difficult = "ignore"
) -> np.ndarray:
    """Return the labels (N, C) int8 of images with these objects: 1, 0 (ignored) or -1."""
    labels = np.full((len(boxes), classes), -1, dtype=np.int8)
    only = {"ignore": 0, "negative": -1, "positive": 1}[difficult]
    for row, objects in zip(labels, boxes, strict=True):
        for obj in objects:
            row[obj.label] = max(row[obj.label], only if obj.difficult else 1)
    return labels


# --- images ---


def _voc_set(
    kit: Devkit, split: str, difficult: Difficult, pixels: np.ndarray, manifest: dict[str, Any]
) -> VocSet:
    """Join decoded images with the annotations of their files."""
    of_file = {f.path: b for f, b in zip(kit.files[split], kit.boxes[split], strict=True)}
    boxes = tuple(of_file[path] for path in manifest["files"])
    if not boxes:
        raise UserError(f"{kit.root}: no readable image is left of {kit.lists[split]}")
    return VocSet(
        images=pixels,
        labels=labels_of(boxes, len(kit.classes), difficult),
        files=tuple(manifest["files"]),
        classes=kit.classes,
        folder=kit.lists[split],
        sources=tuple(manifest["sources"]),
        digests=tuple(manifest["digests"]),
        skipped=(*kit.skipped[split], *(path for path, _ in manifest["broken"])),
        boxes=boxes,
    )


def describe(sets: Mapping[str, VocSet], kit: Devkit, synthetic: str | None) -> dict[str, Any]:
    """Return what a report says about its data, ready for JSON and without any absolute path.

    `kit` is what the sets were read from; `synthetic` describes generated images, None: a user's.
    """
    pairs = images.duplicates(sets["train"], sets["val"])
    digest = hashlib.sha256(images.fingerprint(sets).encode())
    for split, s in sorted(sets.items()):
        digest.update(f"{split}{s.labels.shape}".encode() + s.labels.tobytes())
    counts, difficult = ({split: _counts(s, of) for split, s in sets.items()} for of in (1, 0))
    untrained = [c for c, n in counts["train"].items() if n == 0]
    return {
        "kind": "synthetic" if synthetic else "folder",
        "description": synthetic or f"{kit.folder} in the layout of Pascal VOC",
        "classes": list(kit.classes),
        "counts": counts,
        "difficult_counts": difficult,
        "images": {split: len(s) for split, s in sets.items()},
        "image_size": int(sets["train"].images.shape[-1]),
        "fingerprint": f"sha256:{digest.hexdigest()[:32]}",
        "duplicates": len(pairs),
        "duplicate_examples": [list(pair) for pair in pairs[:5]],
        "skipped": [path for s in sets.values() for path in s.skipped],
        "year_folder": kit.folder,
        "lists": dict(kit.lists),
        "untrained": untrained,
        "notes": _notes(sets, kit, untrained),
    }


def _counts(images: VocSet, value: int) -> dict[str, int]:
    return dict(zip(images.classes, (images.labels == value).sum(0).tolist(), strict=True))


def _notes(sets: Mapping[str, VocSet], kit: Devkit, untrained: Sequence[str]) -> list[str]:
    notes = list(kit.notes)
    if untrained:
        notes.insert(
            0,
            f"no training image shows {some(untrained)}: what the network says of such a class"
            " means nothing, though its average precision counts as it comes out",
        )
    says = {
        "train": "there is no image to tell such a class from, and class_weights=balanced"
        " leaves its weight at 1",
        "val": "whatever the network says, its average precision is 100 %",
    }
    for split, s in sets.items():
        always = (s.labels == 1).any(0) & ~(s.labels == -1).any(0)
        named = [name for name, a in zip(kit.classes, always, strict=True) if a]
        if named:
            shown = f"every image of {kit.lists[split]} that counts shows {some(named)}"
            notes.append(f"{shown}: {says[split]}")
    return notes
