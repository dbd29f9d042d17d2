"""The lists and images of a Pascal VOC devkit, as VOC and its imitators write them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.data import folders
from core.data.annotations import Object, classes_of, read_annotations
from core.data.archive import is_archive, unpacked
from core.data.spelling import Files, composed, lines_of
from core.errors import UserError, some

_MAIN = "ImageSets/Main"
_DEPTH = 3  # folders between a root and a year's folder
_UNQUOTED = re.compile("^[\"']|[\"']$")
_SIGNED = re.compile(r"(.*?)[\s,;]+([+-]?[01])")
_COLUMNS = re.compile(r"[,;\t]|\s+\S+\.xml$")


class Box(NamedTuple):
    """An object: class index, (xmin, ymin, xmax, ymax) in pixels of the file, marked difficult."""

    label: int
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Devkit:
    """What the lists and annotations of a root say, before any image is opened."""

    root: Path  # absolute; file names are relative to it
    folder: str  # the year's folder, relative to the root ("." if it is the root)
    classes: tuple[str, ...]  # names, in the order of the labels
    own: bool  # the list of classes is the data set's own, not VOC's
    lists: dict[str, str]  # "train" and "val" -> name of the list in ImageSets/Main
    files: dict[str, tuple[folders.ImageFile, ...]]  # per split the images, sorted by name
    boxes: dict[str, tuple[tuple[Box, ...], ...]]  # per split the objects of each image
    # per split the images left out for want of a file or for a broken annotation
    skipped: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]  # sentences on what was not as in the published kits


def open_root(root: str | os.PathLike[str]) -> Path:
    """Return the folder that file names are relative to: `root`, or what its archive holds.

    Raises UserError: it does not exist, or the archive is refused.
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

    Where there are several, that of the name `year` or VOC<year>. Raises UserError: none, or
    several and no word on which.
    """
    base = Path(root)
    found = sorted(_year_folders(base))
    if not found:
        raise UserError(
            f"--data-dir {root}: no {_MAIN}/ in it or below: give the folder VOCdevkit, or the one"
            " with Annotations/, ImageSets/ and JPEGImages/"
        )
    named = [f for f in found if year is None or f.name in (year, f"VOC{year}")]
    if len(named) == 1:
        return named[0]
    shown = ", ".join(_inside(base, f) for f in found)
    if not named:
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
        if not folders.is_junk(Path(path).name):
            yield from _year_folders(Path(path), depth - 1)


# --- lists and annotations ---


def read_devkit(root: Path, year: str | None = None, skip_broken: bool = False) -> Devkit:
    """Read the lists and annotations of a devkit, without opening any image; `root` is absolute.

    With `skip_broken` images are left out that are missing or whose annotation cannot be used.
    Raises UserError: one sentence for all that is wrong, with the paths.
    """
    return _read_devkit(root, find_year(root, year), skip_broken)


@functools.lru_cache(maxsize=4)  # once per process: VOC 2012 has 11,540 annotations
def _read_devkit(root: Path, folder: Path, skip_broken: bool) -> Devkit:
    missing = [d for d in ("Annotations", "JPEGImages") if not (folder / d).is_dir()]
    if missing:
        raise UserError(f"{folder}: no folder {' and '.join(missing)} in it")
    place = "" if folder == root else f"{_inside(root, folder)}/"
    main = folder / _MAIN
    test_kit = not (main / "val.txt").exists() and (main / "test.txt").exists()
    lists = {"train": "train.txt", "val": "test.txt" if test_kit else "val.txt"}
    pictures = Files(folder / "JPEGImages", folders.EXTENSIONS)
    names, gone = _read_lists(main, lists, pictures, skip_broken)
    listed = _class_lists(main, pictures)
    found, broken, notes = read_annotations(folder, [*names["train"], *names["val"]], listed)
    if broken and not skip_broken:
        raise UserError(
            f"annotations that cannot be used: {some(list(broken.values()))}; repair them, or"
            " leave their images out with --skip-broken"
        )
    classes, own, more = classes_of(root, folder, found, listed)
    known = _boxes(folder, classes, found)
    files, boxes, skipped = {}, {}, {}
    for split, all_of in names.items():
        kept = [name for name in all_of if name in found]
        entries = [pictures.entry(name) for name in kept]
        files[split] = tuple(folders.file_of(e, f"{place}JPEGImages/{e.name}") for e in entries)
        boxes[split] = tuple(known[name] for name in kept)
        unread = [f"{place}Annotations/{name}.xml" for name in all_of if name in broken]
        skipped[split] = (*unread, *(f"{place}JPEGImages/{name}" for name in gone[split]))
    notes += [*more, *pictures.several(sorted(found))]
    inside = place.rstrip("/") or "."
    return Devkit(root, inside, classes, own, lists, files, boxes, skipped, tuple(notes))


def _boxes(
    folder: Path, classes: Sequence[str], found: Mapping[str, Sequence[Object]]
) -> dict[str, tuple[Box, ...]]:
    """Return the objects of each image by the numbers of their classes, which all must have."""
    index = {name: label for label, name in enumerate(classes)}
    unknown = [
        f"{folder}/Annotations/{name}.xml ({obj.name})"
        for name, objects in found.items()
        for obj in objects
        if obj.name not in index
    ]
    if unknown:
        raise UserError(
            f"{some(unknown)}: no such class among {some(classes, 20)}: correct the name,"
            " or list all classes in a file classes.txt in the root"
        )
    return {
        name: tuple(Box(index[o.name], o.box, o.difficult) for o in objects)
        for name, objects in found.items()
    }


def _read_lists(
    main: Path, lists: Mapping[str, str], pictures: Files, skip_broken: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return per split what `_read_list` does; refuse missing images, and one in both lists."""
    names, gone = {}, {}
    for split, name in lists.items():
        names[split], gone[split] = _read_list(main / name, pictures)
    if any(gone.values()) and not skip_broken:
        told = [
            f"{main}/{lists[split]} names {some([pictures.told(n) for n in absent])}"
            for split, absent in gone.items()
            if absent
        ]
        raise UserError(f"{'; '.join(told)}: no such image in JPEGImages/")
    both = sorted(set(names["train"]) & set(names["val"]))
    if both:
        raise UserError(
            f"{main}: {some(both)} in both {lists['train']} and {lists['val']}: what"
            " is trained on cannot be scored, so take them out of one"
        )
    return names, gone


def _read_list(path: Path, pictures: Files) -> tuple[list[str], list[str]]:
    """Return the image names in a list, each once, sorted; and those without an image."""
    lines = lines_of(path)
    if not lines:
        raise UserError(f"{path} is empty: list its images there, a name a line")
    signed = all(_SIGNED.fullmatch(line) for line in lines)
    meant = {line: _meant(line, pictures, signed) for line in lines}
    gone = sorted({_UNQUOTED.sub("", line) for line, stem in meant.items() if stem is None})
    bad = [name for name in gone if re.search(r"[/\\\x00]", name) or name in (".", "..")]
    if bad:
        raise UserError(f"{path}: {some(bad)}: write names of images, without folder and ending")
    return sorted({stem for stem in meant.values() if stem is not None}), gone


def _meant(line: str, pictures: Files, signed: bool = False) -> str | None:
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
        for form in (file, stem) if ending.lower() in folders.EXTENSIONS else (file,):
            found = pictures.stem(form)
            if found is not None:
                return found
    return None


def _class_lists(main: Path, pictures: Files) -> dict[str, set[str]]:
    """Return the classes that have lists (cat_train.txt and cat_val.txt) with the images they show.

    A class's list says 1, 0 or -1 behind each name; others, as fold1_train.txt, name images only.
    """
    shown: dict[str, dict[str, set[str]]] = {"train": {}, "val": {}}
    for split, of_split in shown.items():
        for path in main.glob(f"?*_{split}.txt"):
            if folders.is_junk(path.name):
                continue
            lines = lines_of(path)
            signs = [_SIGNED.fullmatch(line) for line in lines]
            if all(signs) and not any(pictures.stem(line) for line in lines[:1]):
                name = composed(path.name[: -len(split) - 5])
                told = (_meant(s[1], pictures) for s in signs if s and s[2] != "-1")
                of_split[name] = {stem for stem in told if stem is not None}
    both = sorted(shown["train"].keys() & shown["val"].keys())
    return {name: shown["train"][name] | shown["val"][name] for name in both}
