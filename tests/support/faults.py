"""Ends a process in the middle of a write, at a chosen step; reads that fail."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STEPS = ("before-fsync", "after-fsync", "before-replace", "after-replace")
_armed = contextlib.ExitStack()  # for as long as the process lives


class Lost(BaseException):
    """The process is gone: nothing can be recorded."""


@contextlib.contextmanager
def losing(when: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    """Raise `Lost` where a trial of this process has saved an epoch and `when` says so.

    Args:
        when: is given the epochs saved so far, of all trials; so is the caller.
    """
    from core.trial import api

    save, seen = api.save, []

    def saving(state, row) -> None:
        save(state, row)
        seen.append(row["epoch"])
        if when(seen):
            raise Lost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "save", saving)
        yield seen


@contextlib.contextmanager
def watched_writes(reached: Callable[[str], None]) -> Iterator[None]:
    """Call `reached` with the name of each step of each write of this process."""

    def watched(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments, **options) -> None:
            reached(f"before-{name}")
            call(*arguments, **options)
            reached(f"after-{name}")

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield


@contextlib.contextmanager
def fail_reads(name: str, number: int, times: float = float("inf")) -> Iterator[list[str]]:
    """Have files whose names start with `name` fail to be opened for reading, as on a sick disk.

    Args:
        name: start of the files' names.
        number: of the error, as in `errno`.
        times: how often it fails before it works again.

    Yields:
        A list to which the name of each such file is added when it is asked for.
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", watched)
        yield asked


@functools.cache
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

    _armed.enter_context(watched_writes(reached))
