"""Images decoded once, into an array on disk that all processes map."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from core.data.folders import ImageFile
from core.errors import UserError, some
from core.storage import cache

# A file is what its content says, not its extension. PIL's other readers are left out on purpose:
# one of them hands the file to Ghostscript. All are registered here, before there are threads.
Image.preinit()
assert TiffImagePlugin and WebPImagePlugin
_FORMATS = tuple({"JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"} & Image.OPEN.keys())
# Part of every cache key: raise the number when a change below can move a pixel.
_RULES = {
    "squash": f"1: RGB, upright, squashed, bilinear with antialiasing; Pillow {PIL.__version__}",
    "crop": f"1: RGB, upright, cropped, bilinear with antialiasing; Pillow {PIL.__version__}",
}
Fit = Literal["squash", "crop"]
_CHUNK = 256  # images decoded before they are written: bounds the memory of a build
DIGITS = 32  # hexadecimal digits kept of a SHA-256


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

    Returns images (N, 3, S, S) uint8, memory-mapped, of the files that could be read, and the lists
    `files`, `sources`, `digests` (see `ImageSet`) and `broken` (path and reason). Raises UserError:
    the cache cannot be written or is damaged.
    """
    listed = [(file.path, file.size, file.mtime_ns) for file in files]
    told = json.dumps([_RULES[fit], image_size, str(root), listed])
    key = hashlib.sha256(told.encode()).hexdigest()[:DIGITS]
    array = cache.cache_dir() / "images" / f"{key}.npy"
    manifest = array.with_suffix(".json")  # written last: where it is, the array is complete
    paths = [file.path for file in files]
    cache.once(manifest, lambda: _build(root, paths, image_size, fit, array, manifest))
    return _open(array, manifest)


def decoded_splits(
    root: Path,
    files: Mapping[str, Sequence[ImageFile]],
    image_size: int,
    fit: Fit = "squash",
    skip_broken: bool = False,
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return what `decoded` does for the files of each split.

    Raises UserError: files cannot be decoded (all are named) and are not to be left out.
    """
    opened = {split: decoded(root, part, image_size, fit) for split, part in files.items()}
    broken = {path: why for _, manifest in opened.values() for path, why in manifest["broken"]}
    if broken and not skip_broken:
        named = some([f"{path} ({why})" for path, why in broken.items()])
        raise UserError(
            f"{len(broken):,} of {sum(map(len, files.values())):,} images cannot be read: {named};"
            " repair or remove them, or leave them out with --skip-broken"
        )
    return opened


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

    with _published(array) as stream:
        _write_header(stream, 0, image_size)
        for read in _decode_all(root, paths, image_size, fit):
            if read.pixels:
                stream.write(read.pixels)
                content["files"].append(read.path)
                content["sources"].append(read.source)
                content["digests"].append(hashlib.sha256(read.pixels).hexdigest()[:DIGITS])
            else:
                content["broken"].append((read.path, read.problem))
        stream.seek(0)
        _write_header(stream, len(content["files"]), image_size)
    with _published(manifest) as stream:
        stream.write(json.dumps(content).encode())


def _write_header(stream: BinaryIO, count: int, size: int) -> None:
    """Write an .npy header, whose length is the same for every `count` (numpy leaves room)."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(stream, header)


@contextlib.contextmanager
def _published(path: Path) -> Iterator[BinaryIO]:
    """Give a temporary file to fill, which takes its name once it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")  # one writer at a time: the lock is held
    try:
        with temporary.open("wb") as stream:
            yield stream
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
    return _Decoded(path, pixels, hashlib.sha256(content).hexdigest()[:DIGITS], "")


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
        width, height = (size, size) if fit == "squash" else _middle(*rgb.size, size)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
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
