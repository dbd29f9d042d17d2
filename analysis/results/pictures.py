"""The images behind stored scores, as small JPEG files; nothing outside the data root is opened.

Names of images come from prediction files that somebody else may have made, so each is held
against the data root, with its symbolic links followed, before it is opened.
"""

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from analysis.results.folder import Results, private
from core.data.synthetic import birds
from core.errors import UserError
from core.storage import cache
from core.storage.files import write_bytes

SMALL, LARGE = 256, 1024  # longer side in pixels
_QUALITY = 80  # of JPEG: 14 kB for a photograph of 256 pixels
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
_TRIED = 20  # names that are looked for in each place
_RULE = "1"  # part of every cache key: raise it when a change below can move a pixel

_VOC = ("", "VOC2012/", "VOC2007/", "VOCdevkit/VOC2012/", "VOCdevkit/VOC2007/")
# Where an image may lie below the root, the likeliest first: by its stored name or the last of it.
_PLACES = (
    "{file}",
    *(f"{folder}JPEGImages/{{name}}{suffix}" for suffix in ("", ".jpg") for folder in _VOC),
)


class Pictures:
    """Images below one root, by their names relative to it.

    A root one level above or below the one that the names are relative to does as well, and so do
    the bare names of the VOC image lists.

    Args:
        root: the data root; None where the images are not there.
        files: some or all of the names that will be asked for, to find out where they lie.
    """

    def __init__(self, root: Path | None, files: Sequence[str] = ()):
        self.root = None if root is None else root.resolve()
        self._place = _PLACES[0]
        for place in _PLACES:
            if any(self._inside(file, place) for file in files[:_TRIED]):
                self._place = place
                break

    def path(self, file: str) -> Path | None:
        """Return where the image lies; None if it is not there or not inside the root."""
        return self._inside(file, self._place)

    def _inside(self, file: str, place: str) -> Path | None:
        if self.root is None or not file or "\0" in file:
            return None
        name = PurePosixPath(place.format(file=file, name=PurePosixPath(file).name))
        if name.is_absolute() or ".." in name.parts:
            return None
        try:
            found = (self.root / name).resolve(strict=True)
            return found if found.is_relative_to(self.root) and found.is_file() else None
        except (OSError, RuntimeError, ValueError):  # absent, a loop of links, not a name
            return None

    def thumbnail(self, file: str) -> bytes | None:
        """Return a JPEG of at most 256 x 256 pixels, from the cache if it has it; None if absent.

        The cache knows an image by its place, size and time of change.
        """
        path = self.path(file)
        if path is None:
            return None
        try:
            about = path.stat()
        except OSError:
            return None
        told = f"{_RULE}\0{path}\0{about.st_size}\0{about.st_mtime_ns}\0{SMALL}\0{_QUALITY}"
        key = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        kept = cache.cache_dir() / "thumbnails" / key[:2] / f"{key}.jpg"
        with contextlib.suppress(OSError):
            return kept.read_bytes()
        made = jpeg(path, SMALL)
        if made is not None:
            with contextlib.suppress(UserError):  # a cache that cannot be written has none
                write_bytes(kept, made)
        return made

    def large(self, file: str) -> bytes | None:
        """Return a JPEG of at most 1024 x 1024 pixels; None if there is no such image."""
        path = self.path(file)
        return None if path is None else jpeg(path, LARGE)


def jpeg(path: Path, side: int) -> bytes | None:
    """Decode an image, shrink it into `side` x `side` pixels, and return it as JPEG.

    The bytes of the file itself are never handed out: whatever it is, a picture comes back, or None
    where it cannot be read as one.
    """
    out = io.BytesIO()
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.draft("RGB", (side, side))  # a JPEG is decoded no larger than it is needed
            image.load()
            upright: Image.Image = image
            # a damaged EXIF block must not cost the picture: it then stays as it lies
            with contextlib.suppress(Exception):
                upright = ImageOps.exif_transpose(image)
            small = upright.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.BILINEAR)
            small.save(out, "JPEG", quality=_QUALITY)
    except Exception:  # damaged files raise almost anything inside PIL's readers
        return None
    return out.getvalue()


def find_root(results: Results, given: Path | None = None) -> Path | None:
    """Return where the images of a study are; None where nobody knows.

    `given` is its data root (or, of VOC, the archive), if the user named it. Raises UserError:
    `given` is neither.
    """
    if given is not None:
        return _opened(given)
    if results.synthetic:
        return _embedded(str(results.study["study"]))
    recorded = private(results.path).get("data_dir")
    return _opened(Path(recorded)) if recorded is not None and Path(recorded).exists() else None


def _opened(root: Path) -> Path:
    if root.is_file():
        from core.data import devkit

        return devkit.open_root(root)
    if not root.is_dir():
        raise UserError(f"--data-dir {root}: there is no such folder; give the study's images")
    return root


def _embedded(study: str) -> Path | None:
    """Return the root of a study's embedded images, made now if the cache does not have them."""
    if study == "voc":
        from core.data.synthetic import scenes

        return scenes.default_voc()
    return birds.default_birds() if study in ("norms", "batch_size") else None
