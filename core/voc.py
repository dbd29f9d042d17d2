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

import functools
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_UNQUOTED = re.compile("^[\"']|[\"']$")
_SIGNED = re.compile(r"(.*?)[\s,;]+([+-]?[01])")
_COLUMNS = re.compile(r"[,;\t]|\s+\S+\.xml$")
_FLAGS = dict.fromkeys(("", "0", "0.0", "false", "no", "n", "none", "unspecified"), False)
_FLAGS |= dict.fromkeys(("1", "1.0", "true", "yes", "y"), True)
_NO_CLASSES = ("background", "__background__", "_background_")  # as converters list them
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
        skipped: per split the images left out for want of a file or for a broken annotation.
        notes: sentences on what was not as in the published kits.
    """

    root: Path
    folder: str
    classes: tuple[str, ...]
    own: bool
    lists: dict[str, str]
    files: dict[str, tuple[data.ImageFile, ...]]
    boxes: dict[str, tuple[tuple[Box, ...], ...]]
    skipped: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


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
        skip_broken: leave images out that are missing or cannot be decoded, or whose annotation
            cannot be used, instead of refusing the data.

    Raises:
        UserError: no devkit or several, files missing or damaged (all are named), a class without
            an example, or the cache cannot be written.
    """
    kit = read_devkit(open_root(root), year, skip_broken)
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
        if not data.is_junk(Path(path).name):
            yield from _year_folders(Path(path), depth - 1)


# --- lists and annotations ---


def read_devkit(root: Path, year: str | None = None, skip_broken: bool = False) -> Devkit:
    """Read the lists and annotations of a devkit, without opening any image.

    Args:
        root: absolute.
        year: see `load`.
        skip_broken: leave out images that are missing or whose annotation cannot be used.

    Raises:
        UserError: one sentence for all that is wrong, with the paths.
    """
    return _read_devkit(root, find_year(root, year), skip_broken)


@functools.lru_cache(maxsize=4)  # once per process: VOC 2012 has 11,540 annotations
def _read_devkit(root: Path, folder: Path, skip_broken: bool) -> Devkit:
    missing = [d for d in ("Annotations", "JPEGImages") if not (folder / d).is_dir()]
    if missing:
        raise UserError(f"{folder}: no folder {' and '.join(missing)} in it")
    place = "" if folder == root else f"{_inside(root, folder)}/"
    lists = {"train": "train.txt", "val": _val_list(folder)}
    pictures = _Files(folder / "JPEGImages", data.EXTENSIONS)
    names, gone = {}, {}
    for split, name in lists.items():
        names[split], gone[split] = _read_list(folder / _MAIN / name, pictures)
    if any(gone.values()) and not skip_broken:
        told = [
            f"{folder}/{_MAIN}/{lists[split]} names {data.some([pictures.told(n) for n in absent])}"
            for split, absent in gone.items()
            if absent
        ]
        raise UserError(f"{'; '.join(told)}: no such image in JPEGImages/")
    both = sorted(set(names["train"]) & set(names["val"]))
    if both:
        raise UserError(
            f"{folder}/{_MAIN}: {data.some(both)} in both {lists['train']} and {lists['val']}: what"
            " is trained on cannot be scored, so take them out of one"
        )
    listed = _class_lists(folder / _MAIN, pictures)
    found, broken, notes = _annotations(folder, [*names["train"], *names["val"]], listed)
    if broken and not skip_broken:
        raise UserError(
            f"annotations that cannot be used: {data.some(list(broken.values()))}; repair them, or"
            " leave their images out with --skip-broken"
        )
    classes, own, more = _classes(root, folder, found, listed)
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
    kept = {split: [name for name in names[split] if name in found] for split in names}
    files = {
        split: tuple(_image_file(place, pictures.entry(name)) for name in kept[split])
        for split in kept
    }
    boxes = {
        split: tuple(
            tuple(Box(index[o.name], o.box, o.difficult) for o in found[name])
            for name in kept[split]
        )
        for split in kept
    }
    skipped = {
        split: (
            *(f"{place}Annotations/{name}.xml" for name in names[split] if name in broken),
            *(f"{place}JPEGImages/{name}" for name in gone[split]),
        )
        for split in names
    }
    notes += [*more, *pictures.several(sorted(found))]
    inside = place.rstrip("/") or "."
    return Devkit(root, inside, classes, own, lists, files, boxes, skipped, tuple(notes))


class _Files:
    """The files of a folder by their names without ending, in either Unicode form.

    Of several files with one name a .jpg counts, or else the first in the alphabet.
    """

    def __init__(self, folder: Path, endings: Sequence[str]):
        self._by_stem: dict[str, list[os.DirEntry[str]]] = {}
        self._other: dict[str, str] = {}
        for entry in os.scandir(folder):
            stem, ending = os.path.splitext(entry.name)
            if data.is_junk(entry.name) or entry.is_dir():
                continue
            if ending.lower() in endings:
                self._by_stem.setdefault(stem, []).append(entry)
            else:
                self._other |= {stem: entry.name, entry.name: entry.name}
        for entries in self._by_stem.values():
            entries.sort(key=lambda e: (not e.name.lower().endswith((".jpg", ".jpeg")), e.name))
        self._composed = {_composed(stem): stem for stem in self._by_stem}

    def stem(self, name: str) -> str | None:
        """Return the file name without ending that `name` means, None if there is none."""
        return name if name in self._by_stem else self._composed.get(_composed(name))

    def entry(self, stem: str) -> os.DirEntry[str]:
        """Return the file that counts."""
        return self._by_stem[stem][0]

    def told(self, name: str) -> str:
        """Return a name that has no file, with the file that has it but for the ending."""
        other = self._other.get(name)
        return name if other is None else f"{name} (there is {other}, no image by its ending)"

    def several(self, stems: Iterable[str]) -> list[str]:
        """Say which of the names have several files."""
        rivals = [[e.name for e in self._by_stem[stem]] for stem in stems]
        told = [f"{names[0]} (not {', '.join(names[1:])})" for names in rivals if len(names) > 1]
        return [f"of several files with one name counts: {data.some(told, 3)}"] if told else []


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


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
        raise UserError(f"{path} cannot be read as text ({e}): save it in UTF-8") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_list(path: Path, pictures: _Files) -> tuple[list[str], list[str]]:
    """Return the image names in a list, each once, sorted; and those without an image."""
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path} is empty: list its images there, a name a line")
    signed = all(_SIGNED.fullmatch(line) for line in lines)
    meant = {line: _meant(line, pictures, signed) for line in lines}
    gone = sorted({_UNQUOTED.sub("", line) for line, stem in meant.items() if stem is None})
    bad = [name for name in gone if re.search(r"[/\\\x00]", name) or name in (".", "..")]
    if bad:
        raise UserError(
            f"{path}: {data.some(bad)}: write names of images, without folder and ending"
        )
    return sorted({stem for stem in meant.values() if stem is not None}), gone


def _meant(line: str, pictures: _Files, signed: bool = False) -> str | None:
    """Return the image that a line of a list names, whatever program wrote it.

    The whole line, what stands before a last column of 1, 0 or -1 where every line has one
    (`signed`), or before a comma, semicolon, tab or annotation; in quotes or not, with or without
    the folder JPEGImages, with or without ending.
    """
    sign = _SIGNED.fullmatch(line) if signed else None
    columns = [line, *([sign[1]] if sign else []), _COLUMNS.split(line)[0]]
    for name in (line, *(_UNQUOTED.sub("", column).replace("\\", "/") for column in columns)):
        folder, _, file = name.rpartition("/")
        if folder and folder.split("/")[-1] != "JPEGImages":
            continue
        stem, ending = os.path.splitext(file)
        for form in (file, stem) if ending.lower() in data.EXTENSIONS else (file,):
            found = pictures.stem(form)
            if found is not None:
                return found
    return None


def _class_lists(main: Path, pictures: _Files) -> dict[str, set[str]]:
    """Return the classes that have lists (cat_train.txt and cat_val.txt) with the images they show.

    A class's list says 1, 0 or -1 behind each name; others, as fold1_train.txt, name images only.
    """
    shown: dict[str, dict[str, set[str]]] = {"train": {}, "val": {}}
    for split, of_split in shown.items():
        for path in main.glob(f"?*_{split}.txt"):
            if data.is_junk(path.name):
                continue
            lines = _lines(path)
            signs = [_SIGNED.fullmatch(line) for line in lines]
            if all(signs) and not any(pictures.stem(line) for line in lines[:1]):
                name = _composed(path.name[: -len(split) - 5])
                told = (_meant(s[1], pictures) for s in signs if s and s[2] != "-1")
                of_split[name] = {stem for stem in told if stem is not None}
    both = sorted(shown["train"].keys() & shown["val"].keys())
    return {name: shown["train"][name] | shown["val"][name] for name in both}


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
    turned: bool  # its corners stood the wrong way round


def _annotations(
    folder: Path, names: Sequence[str], listed: Mapping[str, set[str]]
) -> tuple[dict[str, list[_Object]], dict[str, str], list[str]]:
    """Return the objects of each image, what is wrong with others' annotations, and notes.

    An image without annotation shows nothing, unless a class's list says that it does.

    Raises:
        UserError: no image has an annotation.
    """
    files = _Files(folder / "Annotations", (".xml",))
    shown = {name for images in listed.values() for name in images}
    found: dict[str, list[_Object]] = {}
    broken: dict[str, str] = {}
    bare, turned = [], []
    for name in names:
        stem = files.stem(name)
        if stem is not None:
            path = folder / "Annotations" / files.entry(stem).name
            try:
                found[name] = _annotation(path)
            except ValueError as e:
                broken[name] = f"{path} ({e})"
                continue
            turned += [path.name for o in found[name] if o.turned]
        elif name in shown:
            path = folder / "Annotations" / f"{name}.xml"
            broken[name] = f"{path} (missing, though the list of a class says what the image shows)"
        else:
            found[name] = []
            bare.append(name)
    if len(bare) == len(names):
        raise UserError(f"{folder}/Annotations: no annotation of any listed image in it")
    notes = []
    if bare:
        notes.append(
            f"images without annotation count as showing none of the classes: {len(bare):,} of"
            f" {len(names):,} ({data.some(bare, 3)})"
        )
    if turned:
        notes.append(
            f"boxes that ended before they started were turned round: {len(turned):,}"
            f" ({data.some(list(dict.fromkeys(turned)), 3)})"
        )
    return found, broken, notes


def _annotation(path: Path) -> list[_Object]:
    """Return the objects of an annotation.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    try:
        if path.stat().st_size > _LARGEST_XML:
            raise ValueError("larger than 1 MB")
        content = path.read_bytes()
        if not content.strip():
            raise ValueError("empty")
        tree = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as e:
        raise ValueError("it defines a DOCTYPE or entities, which is refused") from e
    except ParseError as e:
        raise ValueError(f"no whole XML: {e}") from e
    except (OSError, LookupError) as e:  # a link to nowhere; an encoding that nobody knows
        raise ValueError(getattr(e, "strerror", None) or str(e)) from e
    if tree.tag != "annotation":
        raise ValueError(f"its element is {tree.tag[:40]}, not annotation")
    return [_object(node) for node in tree.findall("object")]


def _object(node: Element) -> _Object:
    """Read an object; `difficult` may be left out, as some labelling programs do.

    Raises:
        ValueError: a field is missing or is no number.
    """
    name = _composed((node.findtext("name") or "").strip())
    if not name:
        raise ValueError("an object without a name")
    flag = (node.findtext("difficult") or "").strip()
    difficult = _FLAGS.get(flag.lower())
    if difficult is None:
        raise ValueError(f"{name}: difficult is {flag[:20]}, not 0 or 1")
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
    (left, right), (top, bottom) = sorted(sides[::2]), sorted(sides[1::2])
    box = (left, top, right, bottom)
    return _Object(name, box, difficult, list(box) != sides)


def _classes(
    root: Path,
    folder: Path,
    found: Mapping[str, Sequence[_Object]],
    listed: Mapping[str, set[str]],
) -> tuple[tuple[str, ...], bool, list[str]]:
    """Return the names of the classes, whether they are the data set's own, and notes.

    They are those of `classes.txt` in the root or the year's folder; or else those that have lists
    (cat_train.txt and cat_val.txt); or else VOC's, if these are all that occur or most of them do;
    or else those that occur, sorted. A background that no object is called is no class.

    Raises:
        UserError: no class, or one twice.
    """
    first: dict[str, str] = {}  # class -> where it occurs
    for image, objects in found.items():
        for obj in objects:
            first.setdefault(obj.name, f"{folder}/Annotations/{image}.xml ({obj.name})")
    paths = [p for p in (root / "classes.txt", folder / "classes.txt") if p.exists()]
    if paths:
        names = [_composed(line) for line in _lines(paths[0])]
        if not names or len(set(names)) < len(names):
            raise UserError(f"{paths[0]}: list each class once, a name a line")
    else:
        names = list(listed)
    empty = [name for name in names if name.lower() in _NO_CLASSES and name not in first]
    names = [name for name in names if name not in empty]
    if not names:
        is_voc = first.keys() <= set(VOC_CLASSES) or len(first.keys() & VOC_CLASSES) >= _MOSTLY
        names = list(VOC_CLASSES) if is_voc else sorted(first)
    if (same := data.twins(names)) is not None:
        raise UserError(data.twins_sentence(*(first.get(name, name) for name in same)))
    notes = [f"{data.some(empty)} is listed as a class, but no object is called so: it is none"]
    return tuple(names), set(names) != set(VOC_CLASSES), notes if empty else []


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
        skipped=(*kit.skipped[split], *(path for path, _ in manifest["broken"])),
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
    notes += kit.notes
    for split, s in sets.items():
        always = (s.labels == 1).any(0) & ~(s.labels == -1).any(0)
        if always.any():
            says = {
                "train": "there is no image to tell such a class from, and class_weights=balanced"
                " leaves its weight at 1",
                "val": "whatever the network says, its average precision is 100 %",
            }[split]
            named = data.some([name for name, a in zip(classes, always, strict=True) if a])
            notes.append(f"every image of {kit.lists[split]} that counts shows {named}: {says}")
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
