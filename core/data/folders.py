"""Folders of images: which files there are, and of which class."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError, some

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
_JUNK = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
STAND_INS = {"val": ("val", "valid", "validation", "test")}

Root = str | os.PathLike[str]


class ImageFile(NamedTuple):
    """A file of a data root: relative path, index of its class, size in bytes, time of change."""

    path: str
    label: int
    size: int
    mtime_ns: int


def file_of(entry: os.DirEntry[str] | Path, path: str, label: int = 0) -> ImageFile:
    """Return a file of a data root by its place there."""
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: named later, with the other broken files
        return ImageFile(path, label, -1, 0)
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Listing:
    """What a data root holds."""

    root: Path  # the data root, absolute
    # names of the class folders, sorted; where splits write a name differently ("House Crow",
    # "house_crow") it is the first split's
    classes: tuple[str, ...]
    files: dict[str, tuple[ImageFile, ...]]  # per split, sorted by class and path
    folders: dict[str, str]  # per split the folder that was used
    # per split, how many files were passed over, by their extension
    left_out: dict[str, Counter[str]]


def match_class(name: str, classes: Sequence[str]) -> str | None:
    """Return the class that `name` means but for case, hyphens, spaces and underscores, if any."""
    return {_fold(c): c for c in classes}.get(_fold(name))


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that `match_class` takes for one class, None if there are none."""
    spelled: dict[str, str] = {}
    for name in names:
        twin = spelled.setdefault(_fold(name), name)
        if twin != name:
            return twin, name
    return None


def twins_sentence(one: str, other: str) -> str:
    """Return the refusal of two spellings of one class, each with its place."""
    return (
        f"{one} and {other} are the same class name but for case, hyphens, spaces and underscores:"
        " merge or rename them"
    )


def new(root: Root, maker: str) -> Path:
    """Return the path of a folder to make, which must not hold anything yet (UserError)."""
    path = Path(root)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{maker}: {path} is not empty: choose another folder or empty it")
    return path


def _fold(name: str) -> str:
    return re.sub(r"[-\s_]+", "", unicodedata.normalize("NFKC", name)).casefold()


# --- folders ---


def scan(root: Root, splits: Sequence[str] = ("train", "val")) -> Listing:
    """List the images of a root by split and class, without opening them.

    Class folders may have folders inside, also linked ones. Hidden files and what file managers
    leave behind are passed over; files with other extensions, and images in no class folder, are
    counted in `Listing.left_out`. Where there is no `val` folder, `valid`, `validation` or `test`
    is used, and `Listing.folders` says so. Raises UserError: no such root or split, a class folder
    without images, fewer than two classes, or splits with different classes; one sentence that
    names the folders.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        what = "is not a folder" if base.exists() else "does not exist"
        raise UserError(f"--data-dir {root} {what}: give the folder that holds train/ and val/")
    try:
        return _listing(base.resolve(), splits)
    except OSError as e:
        raise UserError(f"--data-dir {root}: cannot read {e.filename} ({e.strerror})") from e
    except UserError as e:
        raise UserError(f"--data-dir {root}: {e}") from None


def _listing(base: Path, splits: Sequence[str]) -> Listing:
    folders = {split: _split_folder(base, split) for split in splits}
    names = {folder: _class_folders(base / folder) for folder in folders.values()}
    _check_classes(names)
    classes = names[folders[splits[0]]]
    label = {_fold(name): label for label, name in enumerate(classes)}
    left_out = {folder: _stray(base / folder) for folder in names}
    found = {
        f"{folder}/{name}": _images(base, f"{folder}/{name}", label[_fold(name)], left_out[folder])
        for folder in names
        for name in names[folder]
    }
    _check_filled(found)
    files, passed = {}, {}
    for split, folder in folders.items():
        all_of = [file for name in names[folder] for file in found[f"{folder}/{name}"]]
        files[split] = tuple(sorted(all_of, key=lambda file: (file.label, file.path)))
        passed[split] = left_out[folder]
    return Listing(base, tuple(classes), files, folders, passed)


def _split_folder(base: Path, split: str) -> str:
    for folder in STAND_INS.get(split, (split,)):
        if (base / folder).is_dir():
            return folder
    found = sorted(entry.name for entry in base.iterdir() if entry.is_dir())
    raise UserError(
        f"no folder {split}/ in it (found: {some(found) or 'no folder'});"
        " images belong in train/<class>/ and val/<class>/"
    )


def is_junk(name: str) -> bool:
    """Tell whether a file manager or an archiver left this behind."""
    return name.startswith(".") or name.lower() in _JUNK


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))


def _check_classes(names: Mapping[str, list[str]]) -> None:
    """Refuse fewer than two classes, unreadable or twin names, or other classes elsewhere."""
    first, *others = names
    for folder, listed in names.items():
        strange = [name for name in listed if name.encode(errors="replace").decode() != name]
        if strange:
            raise UserError(f"folders in {folder}/ without a name in UTF-8: rename {some(strange)}")
    if len(names[first]) < 2:
        raise UserError(
            f"{first}/ needs a folder for each of at least two classes"
            f" (found: {some(names[first]) or 'none'})"
        )
    for folder, listed in names.items():
        if (same := twins(listed)) is not None:
            raise UserError(twins_sentence(*(f"{folder}/{name}" for name in same)))
    for other in others:
        here, there = _apart(names[first], names[other]), _apart(names[other], names[first])
        if here or there:
            raise UserError(
                f"{first}/ and {other}/ have different classes (only in {first}:"
                f" {some(here) or 'none'}; only in {other}: {some(there) or 'none'}):"
                " each class needs a folder in both"
            )


def _apart(names: list[str], others: list[str]) -> list[str]:
    known = {_fold(name) for name in others}
    return [name for name in names if _fold(name) not in known]


def _check_filled(found: Mapping[str, list[ImageFile]]) -> None:
    """Refuse class folders without images."""
    empty = [folder for folder, files in found.items() if not files]
    if empty:
        raise UserError(
            f"no images in {some(empty)}: add some ({', '.join(EXTENSIONS[:5])}, ...) or remove"
            " the folder"
        )


def _images(base: Path, folder: str, label: int, left_out: Counter[str]) -> list[ImageFile]:
    """List the image files under a class folder, in any order; others are counted in `left_out`."""
    found: list[ImageFile] = []
    for path, entry in files_below(base, folder):
        if not entry.name.lower().endswith(EXTENSIONS):
            left_out[_kind(entry.name)] += 1
        else:
            found.append(file_of(entry, path, label))
    return found


def _stray(folder: Path) -> Counter[str]:
    """Count the images of a split's folder that lie beside its class folders."""
    with os.scandir(folder) as entries:
        return Counter(
            f"{_kind(entry.name)} in no class folder"
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS)
            and not (is_junk(entry.name) or entry.is_dir())
        )


def _kind(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without extension"


def files_below(base: Path, folder: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files in a folder and the folders inside, but for junk, with their paths.

    Paths and `folder` are relative to `base`, with forward slashes. Linked folders count too, each
    folder once: those that are no links come first, and links that lead back to where they lie are
    passed over. Raises OSError: a folder cannot be read.
    """
    start = Path(os.path.realpath(base / folder))
    seen: set[str] = set()
    inside, linked = [folder], list[str]()
    while inside or linked:
        place = inside.pop() if inside else linked.pop(0)
        real = os.path.realpath(base / place)
        if real in seen or (start != Path(real) and start.is_relative_to(real)):
            continue
        seen.add(real)
        with os.scandir(base / place) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = f"{place}/{entry.name}" if place else entry.name
                if is_junk(entry.name):
                    continue
                if entry.is_dir():
                    (linked if entry.is_symlink() else inside).append(path)
                else:
                    yield path, entry
