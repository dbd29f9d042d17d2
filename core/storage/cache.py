"""The cache: what labtune makes once, and again when it is not whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock

from core.errors import FULL, DamagedError, UserError, refused
from core.storage.files import read_json

_CONTENTS = "contents.json"


def once(
    path: Path, make: Callable[[], object], whole: Callable[[Path], bool] = Path.exists
) -> Path:
    """Return a file or folder of the cache, which the first to ask makes while others wait.

    Raises UserError: the cache cannot be written.

    Args:
        path: where it goes; its lock stays beside it.
        make: puts it there, whole, as its last step.
        whole: tells whether `path` is there and need not be made.
    """
    if not whole(path):
        with cache_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not whole(path):
                    make()
    return path


def filled(
    path: Path, fill: Callable[[Path], object], whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Return a folder of the cache, see `once`; it appears by one rename.

    Args:
        path: the folder.
        fill: makes the folder that it is given, which is not there yet, and what lies in it.
        whole: see `once`; a folder that is not whole is replaced.
    """

    def make() -> None:
        unfinished = path.with_name(f".{path.name}.tmp")
        for old in (unfinished, path):
            if old.exists():
                shutil.rmtree(old)
        try:
            fill(unfinished)
            os.replace(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    return once(path, make, whole)


def folder(
    cache: Path, name: str, rule: int, sources: Sequence[Path], make: Callable[[Path], object]
) -> Path:
    """Return the folder of a generated data set, making it if need be.

    It is made again when its sources change, or when files are missing (caches get tidied up).
    Raises UserError: the cache cannot be written.

    Args:
        cache: where it goes.
        name: the start of the folder's name.
        rule: raised by hand when something else than the sources moves a pixel.
        sources: all modules that draw it; their digest ends the folder's name.
        make: fills the folder it is given and calls `note_contents` last.
    """
    text = b"".join(path.read_bytes() for path in sources)
    drawn = cache / f"{name}-{rule}-{hashlib.sha256(text).hexdigest()[:12]}"
    return filled(drawn, make, _is_complete)


def note_contents(root: Path) -> None:
    """Write what the folders below `root` hold, by which a later look finds files missing."""
    (root / _CONTENTS).write_text(json.dumps(_contents(root)))


def _contents(root: Path) -> dict[str, int]:
    """Return the number and bytes of all files in folders, to tell when some have gone."""
    sizes = [path.stat().st_size for path in root.glob("*/**/*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_complete(folder: Path) -> bool:
    """Return whether nothing is missing; what cannot be read now is not taken for missing.

    Raises StorageError: it cannot be read.
    """
    try:
        noted = read_json(folder / _CONTENTS)
    except DamagedError:
        return False
    with cache_errors():
        return noted == _contents(folder)


def cache_dir() -> Path:
    """Return the folder of what can be made again: LABTUNE_CACHE, or else ~/.cache/labtune.

    Raises UserError: there is no home.
    """
    try:
        return Path(os.environ.get("LABTUNE_CACHE") or "~/.cache/labtune").expanduser()
    except RuntimeError as e:
        raise UserError("there is no home for the cache: set LABTUNE_CACHE to a folder") from e


def cache_errors() -> AbstractContextManager[None]:
    """Say in a UserError, in place of any OSError inside, why the cache cannot be written."""

    def say(error: OSError) -> UserError:
        why = "disk full" if error.errno in FULL else error.strerror or str(error)
        return UserError(
            f"cannot write the cache {cache_dir()} ({why}): make room there, or set LABTUNE_CACHE"
            " to another folder"
        )

    return refused(say)
