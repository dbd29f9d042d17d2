"""Files of a study that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from core.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one.

    The bytes go to a temporary file in the same folder, reach the disk, then take the name; a
    process killed at any point leaves at most a `.tmp` file behind.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left half written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600, unreadable to other nodes
        os.replace(temporary, path)
    except OSError as e:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = len(data) / 2**20
            raise UserError(
                f"disk full writing {path} (needs {needed:.1f} MiB): nothing finished is lost;"
                " free space and run the same command with --resume"
            ) from e
        raise UserError(f"cannot write {path} ({e.strerror}): choose another --results-dir") from e


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that every reader accepts: not-a-number becomes null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: this is not a study's result folder") from e
    except (ValueError, OSError) as e:
        raise UserError(f"{path} is damaged ({e}): restore it or start a new study name") from e


def finite(content: Any) -> Any:
    """Return `content` with every float that is nan or infinite replaced by None."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and content - content != 0:  # inf - inf and nan are not 0
        return None
    return content


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
