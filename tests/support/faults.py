"""Ends a process in the middle of a write, at a chosen step; reads that fail."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

STEPS = ("before-fsync", "after-fsync", "before-replace", "after-replace")


def watch_writes(reached: Callable[[str], None]) -> Callable[[], None]:
    """Call `reached` with the name of each step of each write of this process; return the undo."""
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle) -> None:
        reached("before-fsync")
        fsync(handle)
        reached("after-fsync")

    def watched_replace(source, target, **options) -> None:
        reached("before-replace")
        replace(source, target, **options)
        reached("after-replace")

    def undo() -> None:
        os.fsync, os.replace = fsync, replace

    os.fsync, os.replace = watched_fsync, watched_replace  # type: ignore[assignment]
    return undo


def fail_reads(
    name: str, number: int, times: float = float("inf")
) -> tuple[Callable[[], None], list[str]]:
    """Have files whose names start with `name` fail to be opened for reading, as on a sick disk.

    Args:
        name: start of the files' names.
        number: of the error, as in `errno`.
        times: how often it fails before it works again.

    Returns:
        The undo, and a list to which the name of each such file is added when it is asked for.
    """
    opened, asked = io.open, []

    def watched(file, mode="r", *arguments, **options):
        if "r" in mode and isinstance(file, str | os.PathLike):
            found = os.path.basename(os.fspath(file))
            if isinstance(found, str) and found.startswith(name):
                asked.append(found)
                if len(asked) <= times:
                    raise OSError(number, os.strerror(number), os.fspath(file))
        return opened(file, mode, *arguments, **options)

    def undo() -> None:
        io.open = opened

    io.open = watched  # type: ignore[assignment]
    return undo, asked


def arm(marker: Path) -> None:
    """Have this process killed at the step that the file `marker` names, once it exists."""

    def reached(step: str) -> None:
        try:
            if marker.read_text() != step:
                return
            marker.unlink()  # who removes it is the one that dies
        except OSError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(reached)
