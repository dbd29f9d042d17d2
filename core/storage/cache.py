"""The cache: what labtune makes once, and again when it is not whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from core.errors import DamagedError, UserError
from core.storage.files import read_json

_CONTENTS = "contents.json"


def folder(
    cache: Path, name: str, rule: int, sources: Sequence[Path], make: Callable[[Path], Path]
) -> Path:
    """Return the folder of a generated data set, making it if need be.

    It is made again when its sources change, or when files are missing (caches get tidied up).

    Args:
        cache: where it goes.
        name: the start of the folder's name.
        rule: raised by hand when something else than the sources moves a pixel.
        sources: all modules that draw it; their digest ends the folder's name.
        make: fills the folder it is given, calls `note_contents` last and returns the folder.

    Raises:
        UserError: the cache cannot be written.
    """
    text = b"".join(path.read_bytes() for path in sources)
    made = cache / f"{name}-{rule}-{hashlib.sha256(text).hexdigest()[:12]}"
    if _is_complete(made):
        return made
    with cache_errors():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{made.name}.lock"):
            if not _is_complete(made):
                unfinished = cache / f".{made.name}.tmp"
                for old in (unfinished, made):
                    if old.exists():
                        shutil.rmtree(old)
                os.replace(make(unfinished), made)
    return made


def note_contents(root: Path) -> None:
    """Write what the folders below `root` hold, by which a later look finds files missing."""
    (root / _CONTENTS).write_text(json.dumps(_contents(root)))


def _contents(root: Path) -> dict[str, int]:
    """Return the number and bytes of all files in folders, to tell when some have gone."""
    sizes = [
        entry.stat().st_size
        for folder, _, _ in os.walk(root)
        if Path(folder) != root
        for entry in os.scandir(folder)
        if entry.is_file()
    ]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_complete(folder: Path) -> bool:
    """Return whether nothing is missing; what cannot be read now is not taken for missing.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        noted = read_json(folder / _CONTENTS)
    except DamagedError:
        return False
    with cache_errors():
        return noted == _contents(folder)


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
