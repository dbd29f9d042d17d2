"""Files of a study that appear complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from core.errors import FULL, DamagedError, StorageError, refused
from core.storage import mirror

READ_AGAIN_AFTER = (0.2, 1.0)  # seconds; network file systems fail for moments
T = TypeVar("T")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one.

    The bytes go to a temporary file in the same folder, reach the disk, then take the name; a
    process killed at any point leaves at most a `.tmp` file behind. Raises StorageError: the folder
    cannot be written or the disk is full; no half file is left.
    """
    with refused(lambda e: _refusal(path, e, len(data))):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files other nodes' users cannot read.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _flush_folder(path.parent)
    if remote := mirror.of(path):
        remote.push(path)


@contextlib.contextmanager
def reserve(path: Path, size: int) -> Iterator[None]:
    """Hold `size` bytes of the disk in the file `path`, and free them at the end.

    So a disk that fills up meanwhile still takes the record of the failure. Raises StorageError:
    the folder cannot be written or the disk is full.
    """
    try:
        with refused(lambda e: _refusal(path, e, size)):
            path.write_bytes(b"\0" * size)
        yield
    finally:
        path.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; what cannot be read for a moment is tried again.

    Raises FileNotFoundError: it is not there; StorageError: it is there, as far as can be seen, and
    cannot be read.
    """
    return _patiently(path, path.read_bytes)


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it is not there (see `read_bytes`)."""
    try:
        return sorted(_patiently(folder, lambda: os.listdir(folder)))
    except FileNotFoundError:
        return []


def _patiently(path: Path, read: Callable[[], T]) -> T:
    pauses = iter(READ_AGAIN_AFTER)
    while True:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError) as e:
            raise FileNotFoundError(*e.args) from e
        except OSError as e:
            pause = next(pauses, None)
            if pause is None:
                raise StorageError(
                    f"cannot read {path} ({e.strerror}): nothing of it is lost or changed; see to"
                    " its disk, then run the same command again, a study with --resume"
                ) from e
            time.sleep(pause)


def remove(path: Path) -> None:
    """Delete a file that may be gone already.

    Raises StorageError: it is there and cannot be deleted.
    """
    with refused(lambda e: StorageError(f"cannot delete {path} ({e.strerror}): see to its disk")):
        path.unlink(missing_ok=True)
    if remote := mirror.of(path):
        remote.remove(path)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` as UTF-8, bytes of file names that are none as `\udcff`; see `write_bytes`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that every reader accepts: not-a-number becomes null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises DamagedError: the file is missing or holds no JSON; StorageError: it cannot be read now,
    which says nothing about what it holds.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError as e:
        raise DamagedError(f"{path} is missing: this is not a study's result folder") from e
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise DamagedError(f"{path} is damaged ({e}): restore it or start a new study name") from e


def finite(content: Any) -> Any:
    """Return `content` with every float that is nan or infinite replaced by None."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and content - content != 0:  # inf - inf and nan are not 0
        return None
    return content


def _refusal(path: Path, error: OSError, size: int) -> StorageError:
    if error.errno in FULL:
        return StorageError(
            f"disk full writing {path} (needs {size / 2**20:.1f} MiB): nothing finished is lost;"
            " free space and run the same command with --resume"
        )
    return StorageError(f"cannot write {path} ({error.strerror}): choose another --results-dir")


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a loss of power (not every file system can)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
