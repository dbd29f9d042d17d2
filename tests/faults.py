"""Ends a process in the middle of a write, at a chosen step."""

from __future__ import annotations

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
