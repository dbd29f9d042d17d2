"""Data sets that labtune generates: made once in the cache, and again when they are not whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from core.data import cache_errors
from core.errors import DamagedError
from core.storage import read_json

_CONTENTS = "contents.json"


def folder(cache: Path, name: str, source: Path, make: Callable[[Path], Path]) -> Path:
    """Return the folder of a generated data set, making it if need be.

    It is made again when its source changes, or when files are missing (caches get tidied up).

    Args:
        cache: where it goes.
        name: the start of the folder's name.
        source: the module that draws it; its digest ends the folder's name.
        make: fills the folder it is given, calls `note_contents` last and returns the folder.

    Raises:
        UserError: the cache cannot be written.
    """
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    made = cache / f"{name}-{version}"
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
