"""Image folders, decoded once into an array on disk that all trials of a machine share.

A root holds `train/<class>/*` and `val/<class>/*` (or `test` in place of `val`). `load` lists the
files, decodes what the cache does not hold yet, and returns memory-mapped arrays. The data root is
only read; the cache lies in `cache_dir()`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
import PIL
from filelock import FileLock
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from core.errors import UserError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
# A file is what its content says, not its extension. PIL's other readers are left out on purpose:
# one of them hands the file to Ghostscript. All are registered here, before there are threads.
Image.preinit()
assert TiffImagePlugin and WebPImagePlugin
_FORMATS = tuple({"JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"} & Image.OPEN.keys())
_JUNK = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_STAND_INS = {"val": ("val", "valid", "validation", "test")}
# Part of every cache key: raise the number when a change below can move a pixel.
_RULES = {
    "squash": f"1: RGB, upright, squashed, bilinear with antialiasing; Pillow {PIL.__version__}",
    "crop": f"1: RGB, upright, cropped, bilinear with antialiasing; Pillow {PIL.__version__}",
}
Fit = Literal["squash", "crop"]
_CHUNK = 256  # images decoded before they are written: bounds the memory of a build
_DIGITS = 32  # hexadecimal digits kept of a SHA-256

_Root = str | os.PathLike[str]
S = TypeVar("S", bound="ImageSet")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one split.

    Attributes:
        images: (N, 3, S, S) uint8, memory-mapped and read-only.
        labels: (N,) int64, indices into `classes`.
        files: paths relative to the data root, with forward slashes, in a fixed order.
        classes: names, sorted; the same for all splits of a root.
        folder: the split's folder in the root ("test" where there is no "val").
        sources: SHA-256 of each file, 32 digits.
        digests: SHA-256 of each decoded image, 32 digits.
        skipped: broken files that were left out, as relative paths.
        left_out: how many files were passed over as no images, by their extension.
    """

    images: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]
    classes: tuple[str, ...]
    folder: str = ""
    sources: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)


class ImageFile(NamedTuple):
    """A file of a data root: relative path, index of its class, size in bytes, time of change."""

    path: str
    label: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """What a data root holds.

    Attributes:
        root: the data root, absolute.
        classes: names of the class folders, sorted; where splits write a name differently
            ("House Crow", "house_crow") it is the first split's.
        files: per split, sorted by class and path.
        folders: per split the folder that was used.
        left_out: per split, how many files were passed over, by their extension.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, tuple[ImageFile, ...]]
    folders: dict[str, str]
    left_out: dict[str, Counter[str]]


def load(
    root: _Root,
    image_size: int,
    splits: Sequence[str] = ("train", "val"),
    *,
    limit: Mapping[str, int | None] | None = None,
    skip_broken: bool = False,
    fit: Fit = "squash",
) -> dict[str, ImageSet]:
    """Return the decoded images of each split, from the cache if it has them.

    Images are resized with PIL's bilinear filter, which averages when it shrinks.

    Args:
        root: folder with a folder per split.
        image_size: S, in pixels.
        splits: names of the splits.
        limit: per split, use this many images only, balanced over classes; the same ones each time.
        skip_broken: leave files out that cannot be decoded, instead of refusing the data.
        fit: see `decoded`.

    Raises:
        UserError: the folders cannot be used (see `scan`), a limit is below one image per class,
            files cannot be decoded (all are named), or the cache cannot be written.
    """
    listing = scan(root, splits)
    limit = limit or {}
    chosen = {
        split: _balanced(files, limit.get(split), split, len(listing.classes))
        for split, files in listing.files.items()
    }
    opened = {
        split: decoded(listing.root, files, image_size, fit) for split, files in chosen.items()
    }
    broken = {path: why for _, manifest in opened.values() for path, why in manifest["broken"]}
    if broken and not skip_broken:
        raise UserError(broken_sentence(broken, sum(map(len, chosen.values()))))
    sets = {
        split: _image_set(listing, split, chosen[split], *cache) for split, cache in opened.items()
    }
    gone = [
        f"{s.folder}/{name}"
        for s in sets.values()
        for label, name in enumerate(s.classes)
        if not (s.labels == label).any()
    ]
    if gone:
        raise UserError(f"--data-dir {root}: no readable image is left in {some(gone)}")
    return sets


def _image_set(
    listing: Listing,
    split: str,
    files: Sequence[ImageFile],
    images: np.ndarray,
    manifest: dict[str, Any],
) -> ImageSet:
    """Join decoded images with the listing they came from."""
    label = {file.path: file.label for file in files}
    return ImageSet(
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


class Rows:
    """Some images of an array (a memory map), read when they are asked for: (M, 3, S, S) uint8.

    Args:
        images: (N, 3, S, S).
        rows: M indices into them.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._images[self._rows[index]]


def part(whole: S, rows: np.ndarray) -> S:
    """Return some images of a set, as a set.

    Args:
        whole: an `ImageSet` or one of a kind of it.
        rows: indices, ascending so that a memory map is read forwards.
    """
    told = [name for name in ("files", "sources", "digests", "boxes") if getattr(whole, name, ())]
    cut: dict[str, Any] = {n: tuple(getattr(whole, n)[i] for i in rows) for n in told}
    return replace(whole, images=Rows(whole.images, rows), labels=whole.labels[rows], **cut)


def describe(sets: Mapping[str, ImageSet], synthetic: str | None = None) -> dict[str, Any]:
    """Return what a report says about its data, ready for JSON and without any absolute path.

    Args:
        sets: the image sets of each split.
        synthetic: description of generated images; None for a user's folder.
    """
    first = next(iter(sets.values()))
    used = [f"{s.folder}/ serves as {split}" for split, s in sets.items() if s.folder != split]
    pairs = duplicates(sets["train"], sets["val"]) if {"train", "val"} <= sets.keys() else []
    counts = {s: np.bincount(x.labels, minlength=len(x.classes)) for s, x in sets.items()}
    left_out = sum((Counter(s.left_out) for s in sets.values()), Counter())
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
        "notes": [left_out_sentence(left_out)] if left_out else [],
    }


def left_out_sentence(left_out: Mapping[str, int]) -> str:
    """Say how many files of which extension were passed over."""
    each = [f"{count:,} {kind}" for kind, count in sorted(left_out.items())]
    return f"files that count as no images are left out: {some(each)}"


def fingerprint(sets: Mapping[str, ImageSet]) -> str:
    """Return a SHA-256 of names and bytes of all files used: equal for copies of the same data."""
    digest = hashlib.sha256()
    for split, images in sorted(sets.items()):
        for path, source in zip(images.files, images.sources, strict=True):
            digest.update(f"{split}\0{path}\0{source}\n".encode())
    return f"sha256:{digest.hexdigest()[:_DIGITS]}"


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


def match_class(name: str, classes: Sequence[str]) -> str | None:
    """Return the class that `name` means, ignoring case, hyphens, spaces and underscores.

    Returns:
        The class as `classes` spells it, or None if there is none.
    """
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


def _fold(name: str) -> str:
    return re.sub(r"[-\s_]+", "", unicodedata.normalize("NFKC", name)).casefold()


# --- folders ---


def scan(root: _Root, splits: Sequence[str] = ("train", "val")) -> Listing:
    """List the images of a root by split and class, without opening them.

    Class folders may have folders inside, also linked ones. Hidden files and what file managers
    leave behind are passed over; files with other extensions, and images in no class folder, are
    counted in `Listing.left_out`. Where there is no `val` folder, `valid`, `validation` or `test`
    is used, and `Listing.folders` says so.

    Raises:
        UserError: no such root or split, a class folder without images, fewer than two classes, or
            splits with different classes; one sentence that names the folders.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        what = "is not a folder" if base.exists() else "does not exist"
        raise UserError(f"--data-dir {root} {what}: give the folder that holds train/ and val/")
    base = base.resolve()
    try:
        folders = {split: _split_folder(base, split) for split in splits}
        names = {folder: _class_folders(base / folder) for folder in folders.values()}
        first, *others = folders.values()
        _check_classes(names, first, others)
        label = {_fold(name): label for label, name in enumerate(names[first])}
        left_out = {folder: _stray(base / folder) for folder in names}
        found = {
            f"{folder}/{name}": _images(
                base, f"{folder}/{name}", label[_fold(name)], left_out[folder]
            )
            for folder in names
            for name in names[folder]
        }
        _check_filled(found)
    except OSError as e:
        raise UserError(f"--data-dir {root}: cannot read {e.filename} ({e.strerror})") from e
    except UserError as e:
        raise UserError(f"--data-dir {root}: {e}") from None
    files = {
        split: tuple(
            sorted(
                (file for name in names[folder] for file in found[f"{folder}/{name}"]),
                key=lambda file: (file.label, file.path),
            )
        )
        for split, folder in folders.items()
    }
    passed = {split: left_out[folder] for split, folder in folders.items()}
    return Listing(base, tuple(names[first]), files, folders, passed)


def _split_folder(base: Path, split: str) -> str:
    for folder in _STAND_INS.get(split, (split,)):
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


def _check_classes(names: Mapping[str, list[str]], first: str, others: Sequence[str]) -> None:
    """Refuse fewer than two classes, unreadable or twin names, or other classes elsewhere."""
    for folder in (first, *others):
        strange = [name for name in names[folder] if name.encode(errors="replace").decode() != name]
        if strange:
            raise UserError(f"folders in {folder}/ without a name in UTF-8: rename {some(strange)}")
    if len(names[first]) < 2:
        raise UserError(
            f"{first}/ needs a folder for each of at least two classes"
            f" (found: {some(names[first]) or 'none'})"
        )
    for folder in (first, *others):
        if (same := twins(names[folder])) is not None:
            raise UserError(twins_sentence(*(f"{folder}/{name}" for name in same)))
    for other in others:
        one, two = ({_fold(name) for name in names[folder]} for folder in (first, other))
        if one != two:
            here = [name for name in names[first] if _fold(name) not in two]
            there = [name for name in names[other] if _fold(name) not in one]
            raise UserError(
                f"{first}/ and {other}/ have different classes (only in {first}:"
                f" {some(here) or 'none'}; only in {other}: {some(there) or 'none'}):"
                " each class needs a folder in both"
            )


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
            continue
        try:
            status = entry.stat()
            found.append(ImageFile(path, label, status.st_size, status.st_mtime_ns))
        except OSError:  # a link to nowhere: named later, with the other broken files
            found.append(ImageFile(path, label, -1, 0))
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

    Linked folders count too, each folder once: those that are no links come first, and links that
    lead back to where they lie are passed over.

    Args:
        base: what the paths are relative to.
        folder: relative to `base`, with forward slashes.

    Raises:
        OSError: a folder cannot be read.
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


def _balanced(
    files: Sequence[ImageFile], limit: int | None, split: str, classes: int
) -> tuple[ImageFile, ...]:
    """Choose `limit` files, as many of each class as possible, by a hash of their names."""
    if limit is None or limit >= len(files):
        return tuple(files)
    if limit < classes:
        raise UserError(
            f"--set {split}_images={limit}: at least {classes}, one for each class, are needed"
        )
    seen = dict.fromkeys(range(classes), 0)
    ranked = []
    for file in sorted(files, key=lambda f: hashlib.sha256(os.fsencode(f.path)).digest()):
        ranked.append((seen[file.label], file.label, file.path))
        seen[file.label] += 1
    chosen = {path for _, _, path in sorted(ranked)[:limit]}
    return tuple(file for file in files if file.path in chosen)


def some(names: Sequence[str], most: int = 10) -> str:
    """Join the first names and count the rest; undecodable bytes become escapes."""
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in names[:most]]
    rest = len(names) - most
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


# --- cache ---


def cache_dir() -> Path:
    """Return the folder of what can be made again: LABTUNE_CACHE, or else ~/.cache/labtune.

    Raises:
        UserError: there is no home.
    """
    try:
        return Path(os.environ.get("LABTUNE_CACHE") or "~/.cache/labtune").expanduser()
    except RuntimeError as e:
        raise UserError("there is no home for the cache: set LABTUNE_CACHE to a folder") from e


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Say in one sentence why the cache cannot be written.

    Raises:
        UserError: in place of any OSError inside.
    """
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "disk full" if full else e.strerror or str(e)
        raise UserError(
            f"cannot write the cache {cache_dir()} ({why}): make room there, or set LABTUNE_CACHE"
            " to another folder"
        ) from e


def decoded(
    root: Path, files: Sequence[ImageFile], image_size: int, fit: Fit = "squash"
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return decoded images and their manifest, building the cache if need be.

    Args:
        root: absolute; what the files' paths are relative to.
        files: in the order of the result.
        image_size: S, in pixels.
        fit: "squash" resizes to S x S without keeping the aspect ratio, as the birds lab asks;
            "crop" resizes the shorter side to S x 256 / 224 and cuts out the middle, as ImageNet's
            validation images are prepared.

    Returns:
        Images (N, 3, S, S) uint8, memory-mapped, of the files that could be read, and the lists
        `files`, `sources`, `digests` (see `ImageSet`) and `broken` (path and reason).

    Raises:
        UserError: the cache cannot be written or is damaged.
    """
    listed = [(file.path, file.size, file.mtime_ns) for file in files]
    told = json.dumps([_RULES[fit], image_size, str(root), listed])
    key = hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]
    array = cache_dir() / "images" / f"{key}.npy"
    manifest = array.with_suffix(".json")  # written last: where it is, the array is complete
    if not manifest.exists():
        with cache_errors():
            array.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(array.with_suffix(".lock")):
                if not manifest.exists():
                    _build(root, [file.path for file in files], image_size, fit, array, manifest)
    return _open(array, manifest)


@functools.lru_cache(maxsize=16)
def _open(array: Path, manifest: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Map a cache into memory; once per process, as the key changes with the files."""
    try:
        content = json.loads(manifest.read_text())
        images = np.load(array, mmap_mode="r")
        if len(images) != len(content["files"]):
            raise ValueError("array and manifest differ")
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"the cache file {array} is damaged ({e}): delete {manifest.name} beside it and run"
            " the same command again"
        ) from e
    return images, content


def _build(
    root: Path, paths: list[str], image_size: int, fit: Fit, array: Path, manifest: Path
) -> None:
    """Decode all files and publish the array, then its manifest.

    The array is written as a stream, not through a memory map: on a full disk a map kills the
    process, a stream raises.
    """
    content: dict[str, Any] = {"rule": _RULES[fit], "image_size": image_size}
    content |= {"files": [], "sources": [], "digests": [], "broken": []}

    def write_array(stream: BinaryIO) -> None:
        _write_header(stream, 0, image_size)
        for read in _decode_all(root, paths, image_size, fit):
            if read.pixels:
                stream.write(read.pixels)
                content["files"].append(read.path)
                content["sources"].append(read.source)
                content["digests"].append(hashlib.sha256(read.pixels).hexdigest()[:_DIGITS])
            else:
                content["broken"].append((read.path, read.problem))
        stream.seek(0)
        _write_header(stream, len(content["files"]), image_size)

    _publish(array, write_array)
    _publish(manifest, lambda stream: stream.write(json.dumps(content).encode()))


def _write_header(stream: BinaryIO, count: int, size: int) -> None:
    """Write an .npy header, whose length is the same for every `count` (numpy leaves room)."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(stream, header)


def _publish(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file, and give it its name once it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")  # one writer at a time: the lock is held
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


# --- decoding ---


class _Decoded(NamedTuple):
    path: str
    pixels: bytes  # of a (3, S, S) uint8 array; empty if there is a problem
    source: str
    problem: str


def _decode_all(root: Path, paths: Sequence[str], image_size: int, fit: Fit) -> Iterator[_Decoded]:
    """Decode in threads (PIL lets go of the interpreter's lock), in the order of `paths`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(min(16, cores or 1)) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            yield from pool.map(lambda path: _decode(root, path, image_size, fit), chunk)


def _decode(root: Path, path: str, image_size: int, fit: Fit) -> _Decoded:
    """Read one file; what is wrong with it comes back as words, so that all can be named."""
    try:
        path.encode()
    except UnicodeEncodeError:  # could not be written into a table of files
        return _Decoded(some([path]), b"", "", "file name is not UTF-8")
    try:
        content = (root / path).read_bytes()
        if not content:
            return _Decoded(path, b"", "", "empty")
        pixels = _square(content, image_size, fit).tobytes()
    except Exception as e:  # damaged files raise almost anything inside PIL's readers
        return _Decoded(path, b"", "", _problem(e))
    return _Decoded(path, pixels, hashlib.sha256(content).hexdigest()[:_DIGITS], "")


def _problem(e: Exception) -> str:
    if isinstance(e, UnidentifiedImageError):
        return "not an image"
    if isinstance(e, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    if "truncated" in str(e).lower():
        return "truncated"
    return str(e).splitlines()[0] if str(e) else type(e).__name__


def _square(content: bytes, size: int, fit: Fit) -> np.ndarray:
    """Decode an image file to (3, size, size) uint8 RGB."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.load()
        upright: Image.Image = image
        # a damaged EXIF block must not cost the picture: it then stays as it lies
        with contextlib.suppress(Exception):
            upright = ImageOps.exif_transpose(image)
        rgb = _rgb(upright)
        box = None if fit == "squash" else _middle(*rgb.size, size)
        rgb = rgb.resize((size, size) if box is None else box, Image.Resampling.BILINEAR)
        if box is not None:
            left, top = round((box[0] - size) / 2), round((box[1] - size) / 2)
            rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb).transpose(2, 0, 1)


def _middle(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the size whose middle is cut out: as torchvision's Resize, then CenterCrop."""
    short = size * 256 // 224
    if width <= height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB: transparency is dropped, 16-bit grey keeps its upper byte."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns if it has to drop a palette's transparency itself
    return image.convert("RGB")


def broken_sentence(broken: Mapping[str, str], total: int) -> str:
    """Return the refusal of images that cannot be read: path -> what is wrong."""
    named = some([f"{path} ({why})" for path, why in broken.items()])
    return (
        f"{len(broken):,} of {total:,} images cannot be read: {named}; repair or remove them, or"
        " leave them out with --skip-broken"
    )
