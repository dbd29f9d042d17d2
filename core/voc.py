"""Images with several labels each, from a folder in the layout of Pascal VOC's development kit.

A year's folder (VOC2012, or any other name) holds `JPEGImages/`, `Annotations/*.xml` and the lists
`ImageSets/Main/train.txt` and `val.txt`. The root that a user gives is that folder, or a folder at
most three levels above it, or the archive as it is published. Nothing in the root is written.

A label is 1 where a class has an object that is not marked difficult, 0 where all its objects are,
-1 where it has none, as in the kit's own lists (Everingham et al. 2010, "The Pascal Visual Object
Classes (VOC) Challenge", section 4.1 on difficult objects).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from core import data
from core.errors import UserError
from core.voc_archive import is_archive, unpacked

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
Difficult = Literal["ignore", "negative", "positive"]
_MAIN = "ImageSets/Main"
_DEPTH = 3  # folders between a root and a year's folder
_LARGEST_XML = 1 << 20  # bytes; the largest of VOC 2012 has 15 thousand
_MOSTLY = 10  # so many of the 20 names make a data set VOC's, in which others are mistakes


class Box(NamedTuple):
    """An object: class index, (xmin, ymin, xmax, ymax) in pixels of the file, marked difficult."""

    label: int
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, eq=False)
class VocSet(data.ImageSet):
    """Decoded images of one list; attributes as in `core.data.ImageSet`, but for two.

    Attributes:
        labels: (N, C) int8: 1 present, 0 ignored (only difficult objects), -1 absent.
        boxes: the objects of each image.
    """

    boxes: tuple[tuple[Box, ...], ...] = ()


@dataclass(frozen=True)
class Devkit:
    """What the lists and annotations of a root say, before any image is opened.

    Attributes:
        root: absolute; file names are relative to it.
        folder: the year's folder, relative to the root ("." if it is the root).
        classes: names, in the order of the labels.
        own: the list of classes is the data set's own, not VOC's.
        lists: "train" and "val" -> name of the list in ImageSets/Main.
        files: per split the images, sorted by name.
        boxes: per split the objects of each image.
    """

    root: Path
    folder: str
    classes: tuple[str, ...]
    own: bool
    lists: dict[str, str]
    files: dict[str, tuple[data.ImageFile, ...]]
    boxes: dict[str, tuple[tuple[Box, ...], ...]]


def load(
    root: str | os.PathLike[str],
    image_size: int,
    *,
    year: str | None = None,
    difficult: Difficult = "ignore",
    fit: data.Fit = "squash",
    limit: Mapping[str, int | None] | None = None,
    untrained: Literal["refuse", "keep"] | None = None,
    skip_broken: bool = False,
) -> dict[str, VocSet]:
    """Return the decoded images of the lists "train" and "val", each image once.

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
        skip_broken: leave images out that cannot be decoded, instead of refusing the data.

    Raises:
        UserError: no devkit or several, files missing or damaged (all are named), a class without
            an example, or the cache cannot be written.
    """
    kit = read_devkit(open_root(root), year)
    check_examples(kit, difficult, untrained)
    kept, opened = {}, {}
    for split, files in kit.files.items():
        kept[split] = _some_of(files, (limit or {}).get(split))
        opened[split] = data.decoded(kit.root, kept[split], image_size, fit)
    broken = {path: why for _, manifest in opened.values() for path, why in manifest["broken"]}
    if broken and not skip_broken:
        raise UserError(data.broken_sentence(broken, sum(map(len, kept.values()))))
    return {split: _voc_set(kit, split, difficult, *cache) for split, cache in opened.items()}


def open_root(root: str | os.PathLike[str]) -> Path:
    """Return the folder that file names are relative to: `root`, or what its archive holds.

    Raises:
        UserError: it does not exist, or the archive is refused.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file() and is_archive(path):
        return unpacked(path.resolve())
    what = "is neither a folder nor a tar archive" if path.exists() else "does not exist"
    raise UserError(f"--data-dir {root} {what}: give the folder VOCdevkit, or --download into it")


def find_year(root: str | os.PathLike[str], year: str | None = None) -> Path:
    """Return the one folder with ImageSets/Main that is `root` or lies below it.

    Args:
        root: a folder.
        year: take the folder of this name, or VOC<year>, where there are several.

    Raises:
        UserError: none, or several and no word on which.
    """
    base = Path(root)
    found = sorted(_year_folders(base))
    if not found:
        raise UserError(
            f"--data-dir {root}: no {_MAIN}/ in it or below: give the folder VOCdevkit, or the one"
            " with Annotations/, ImageSets/ and JPEGImages/"
        )
    named = found
    if year is not None:
        named = [f for f in found if f.name in (year, f"VOC{year}")]
    if len(named) == 1:
        return named[0]
    shown = ", ".join(_inside(base, f) for f in found)
    if year is not None and not named:
        raise UserError(f"--set year={year}: --data-dir {root} holds {shown}")
    same = len({f.name for f in named}) < len(named)
    say = f"say which, as in --set year={named[-1].name.removeprefix('VOC')}"
    choose = "give one of them as --data-dir" if same else say
    raise UserError(f"--data-dir {root} holds {len(named)} devkits ({shown}): {choose}")


def _inside(base: Path, folder: Path) -> str:
    return folder.relative_to(base).as_posix()


def _year_folders(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders with ImageSets/Main, and nothing that lies inside one."""
    if (folder / _MAIN).is_dir():
        yield folder
        return
    if depth == 0:
        return
    try:
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return
    for path in inside:
        if not Path(path).name.startswith("."):
            yield from _year_folders(Path(path), depth - 1)


# --- lists and annotations ---


def read_devkit(root: Path, year: str | None = None) -> Devkit:
    """Read the lists and annotations of a devkit, without opening any image.

    Raises:
        UserError: one sentence for all that is wrong, with the paths.
    """
    return _read_devkit(root, find_year(root, year))


@functools.lru_cache(maxsize=4)  # once per process: VOC 2012 has 11,540 annotations
def _read_devkit(root: Path, folder: Path) -> Devkit:
    missing = [d for d in ("Annotations", "JPEGImages") if not (folder / d).is_dir()]
    if missing:
        raise UserError(f"{folder}: no folder {' and '.join(missing)} in it")
    lists = {"train": "train.txt", "val": _val_list(folder)}
    names = {split: _read_list(folder / _MAIN / name) for split, name in lists.items()}
    both = sorted(set(names["train"]) & set(names["val"]))
    if both:
        raise UserError(
            f"{folder}/{_MAIN}: {data.some(both)} in both {lists['train']} and {lists['val']}: what"
            " is trained on cannot be scored, so take them out of one"
        )
    place = "" if folder == root else f"{_inside(root, folder)}/"
    files = _image_files(folder, place, lists, names)
    found, problems = {}, []
    for split in names:
        for name in names[split]:
            found[name] = _annotation(folder / "Annotations" / f"{name}.xml", problems)
    if problems:
        raise UserError(f"annotations that cannot be used: {data.some(problems)}")
    classes, own = _classes(root, folder, found)
    index = {name: label for label, name in enumerate(classes)}
    unknown = [
        f"{folder}/Annotations/{name}.xml ({obj.name})"
        for name, objects in found.items()
        for obj in objects
        if obj.name not in index
    ]
    if unknown:
        raise UserError(
            f"{data.some(unknown)}: no such class among {data.some(classes, 20)}: correct the name,"
            " or list all classes in a file classes.txt in the root"
        )
    boxes = {
        split: tuple(
            tuple(Box(index[o.name], o.box, o.difficult) for o in found[name])
            for name in names[split]
        )
        for split in names
    }
    return Devkit(root, place.rstrip("/") or ".", classes, own, lists, files, boxes)


def _val_list(folder: Path) -> str:
    """Return the name of the list to score: of a test kit, `test.txt`."""
    main = folder / _MAIN
    return (
        "test.txt"
        if not (main / "val.txt").exists() and (main / "test.txt").exists()
        else "val.txt"
    )


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that hold something."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: list its images there, a name a line") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read as text ({e})") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_list(path: Path) -> list[str]:
    """Return the image names in a list, each once, sorted."""
    names = sorted(set(_lines(path)))
    if not names:
        raise UserError(f"{path} is empty: list its images there, a name a line")
    bad = [name for name in names if re.search(r"[/\\\x00]", name) or name in (".", "..")]
    if bad:
        raise UserError(
            f"{path}: {data.some(bad)}: write names of images, without folder and ending"
        )
    return names


def _image_files(
    folder: Path, place: str, lists: Mapping[str, str], names: Mapping[str, Sequence[str]]
) -> dict[str, tuple[data.ImageFile, ...]]:
    """Find the image of each name.

    Raises:
        UserError: some are not there.
    """
    by_stem: dict[str, os.DirEntry[str]] = {}
    for entry in sorted(os.scandir(folder / "JPEGImages"), key=lambda e: e.name, reverse=True):
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() in data.EXTENSIONS and not entry.is_dir():
            by_stem[stem] = entry  # the first in the alphabet, if there are several
    missing, files = [], {}
    for split, listed in names.items():
        gone = [name for name in listed if name not in by_stem]
        if gone:
            missing.append(f"{folder}/{_MAIN}/{lists[split]} names {data.some(gone)}")
            continue
        files[split] = tuple(_image_file(place, by_stem[name]) for name in listed)
    if missing:
        raise UserError(f"{'; '.join(missing)}: no such image in JPEGImages/")
    return files


def _image_file(place: str, entry: os.DirEntry[str]) -> data.ImageFile:
    path = f"{place}JPEGImages/{entry.name}"
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: named with the other broken images
        return data.ImageFile(path, 0, -1, 0)
    return data.ImageFile(path, 0, status.st_size, status.st_mtime_ns)


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def _annotation(path: Path, problems: list[str]) -> list[_Object]:
    """Return the objects of an annotation; what is wrong with it is added to `problems`."""
    try:
        if path.stat().st_size > _LARGEST_XML:
            raise ValueError("larger than 1 MB")
        content = path.read_bytes()
        if not content.strip():
            raise ValueError("empty")
        tree = fromstring(content, forbid_dtd=True)
        if tree.tag != "annotation":
            raise ValueError(f"its element is {tree.tag[:40]}, not annotation")
        return [_object(node) for node in tree.findall("object")]
    except DefusedXmlException:
        problems.append(f"{path} (it defines a DOCTYPE or entities, which is refused)")
    except ParseError as e:
        problems.append(f"{path} (no whole XML: {e})")
    except OSError as e:
        problems.append(f"{path} ({'missing' if isinstance(e, FileNotFoundError) else e.strerror})")
    except (ValueError, LookupError) as e:
        problems.append(f"{path} ({e})")
    return []


def _object(node: Element) -> _Object:
    """Read an object; `difficult` may be left out, as some labelling programs do.

    Raises:
        ValueError: a field is missing or is no number.
    """
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object without a name")
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"{name}: difficult is {difficult[:20]}, not 0 or 1")
    sides = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{side}")
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"{name}: bndbox/{side} is {'missing' if text is None else 'no number'}"
            )
        sides.append(value)
    if sides[0] > sides[2] or sides[1] > sides[3]:
        raise ValueError(f"{name}: its bndbox ends before it starts")
    return _Object(name, (sides[0], sides[1], sides[2], sides[3]), difficult == "1")


def _classes(
    root: Path, folder: Path, found: Mapping[str, Sequence[_Object]]
) -> tuple[tuple[str, ...], bool]:
    """Return the names of the classes, and whether they are the data set's own.

    They are those of `classes.txt` in the root or the year's folder; or else those that have lists
    (cat_train.txt and cat_val.txt); or else VOC's, if these are all that occur or most of them do;
    or else those that occur, sorted.

    Raises:
        UserError: no class, or one twice.
    """
    for path in dict.fromkeys((root / "classes.txt", folder / "classes.txt")):
        if path.exists():
            names = _lines(path)
            if not names or len(set(names)) < len(names):
                raise UserError(f"{path}: list each class once, a name a line")
            return tuple(names), set(names) != set(VOC_CLASSES)
    listed = {
        split: {p.name[: -len(split) - 5] for p in (folder / _MAIN).glob(f"?*_{split}.txt")}
        for split in ("train", "val")
    }
    names = sorted(listed["train"] & listed["val"])
    used = {o.name for objects in found.values() for o in objects}
    if not names:
        is_voc = used <= set(VOC_CLASSES) or len(used & set(VOC_CLASSES)) >= _MOSTLY
        names = list(VOC_CLASSES) if is_voc else sorted(used)
    return tuple(names), set(names) != set(VOC_CLASSES)


def check_examples(
    kit: Devkit, difficult: Difficult, untrained: Literal["refuse", "keep"] | None
) -> None:
    """Refuse classes without any training example, and a list to score without any label.

    Raises:
        UserError: see above.
    """
    for split, name in kit.lists.items():
        if not (labels_of(kit.boxes[split], len(kit.classes), difficult) == 1).any():
            raise UserError(f"{kit.root}: no image in {name} has an object that counts")
    names = without_example(kit, difficult)
    if names and (untrained == "refuse" or (untrained is None and kit.own)):
        raise UserError(
            f"{kit.root}: no training example of {data.some(names)} in {kit.lists['train']}: add"
            " some, take the class out of the list of classes, or keep it with --set untrained=keep"
        )


def without_example(kit: Devkit, difficult: Difficult) -> list[str]:
    """Return the classes that no training image shows."""
    shown = (labels_of(kit.boxes["train"], len(kit.classes), difficult) == 1).any(0)
    return [name for name, known in zip(kit.classes, shown, strict=True) if not known]


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


def _some_of(files: Sequence[data.ImageFile], limit: int | None) -> tuple[data.ImageFile, ...]:
    """Choose `limit` files by a hash of their names, in the order they have."""
    if limit is None or limit >= len(files):
        return tuple(files)
    ranked = sorted(files, key=lambda f: hashlib.sha256(os.fsencode(f.path)).digest())
    chosen = {f.path for f in ranked[:limit]}
    return tuple(f for f in files if f.path in chosen)


def _voc_set(
    kit: Devkit, split: str, difficult: Difficult, images: np.ndarray, manifest: dict[str, Any]
) -> VocSet:
    """Join decoded images with the annotations of their files."""
    of_file = {f.path: b for f, b in zip(kit.files[split], kit.boxes[split], strict=True)}
    boxes = tuple(of_file[path] for path in manifest["files"])
    if not boxes:
        raise UserError(f"{kit.root}: no readable image is left of {kit.lists[split]}")
    return VocSet(
        images=images,
        labels=labels_of(boxes, len(kit.classes), difficult),
        files=tuple(manifest["files"]),
        classes=kit.classes,
        folder=kit.lists[split],
        sources=tuple(manifest["sources"]),
        digests=tuple(manifest["digests"]),
        skipped=tuple(path for path, _ in manifest["broken"]),
        boxes=boxes,
    )


def describe(sets: Mapping[str, VocSet], kit: Devkit, synthetic: str | None) -> dict[str, Any]:
    """Return what a report says about its data, ready for JSON and without any absolute path.

    Args:
        sets: the images of each list.
        kit: what they were read from.
        synthetic: description of generated images; None for a user's.
    """
    classes = kit.classes
    pairs = data.duplicates(sets["train"], sets["val"])
    digest = hashlib.sha256(data.fingerprint(sets).encode())
    for split, s in sorted(sets.items()):
        digest.update(f"{split}{s.labels.shape}".encode() + s.labels.tobytes())

    def counted(value: int) -> dict[str, dict[str, int]]:
        return {
            split: dict(zip(classes, (s.labels == value).sum(0).tolist(), strict=True))
            for split, s in sets.items()
        }

    untrained = [c for c, n in counted(1)["train"].items() if n == 0]
    notes = []
    if untrained:
        notes.append(
            f"no training image shows {data.some(untrained)}: what the network says of such a class"
            " means nothing, though its average precision counts as it comes out"
        )
    return {
        "kind": "synthetic" if synthetic else "folder",
        "description": synthetic or f"{kit.folder} in the layout of Pascal VOC",
        "classes": list(classes),
        "counts": counted(1),
        "difficult_counts": counted(0),
        "images": {split: len(s) for split, s in sets.items()},
        "image_size": int(sets["train"].images.shape[-1]),
        "fingerprint": f"sha256:{digest.hexdigest()[:32]}",
        "duplicates": len(pairs),
        "duplicate_examples": [list(pair) for pair in pairs[:5]],
        "skipped": [path for s in sets.values() for path in s.skipped],
        "year_folder": kit.folder,
        "lists": dict(kit.lists),
        "untrained": untrained,
        "notes": notes,
    }
