"""Folders that a driver needs while it runs, and what is left of those that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError

MARK = "in-use"  # a file in such a folder, locked by the driver for as long as it lives
LONGEST = 40  # bytes of a path to which Ray adds 65 for its sockets, whose paths may have 107


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, short enough for sockets; remove it at the end.

    It lies in RAY_TMPDIR, in /tmp, or else where TMPDIR says (UserError: none can be written).
    Folders of drivers that were killed are removed there. A lock tells those that live, as a
    process id says nothing where containers share /tmp.
    """
    made = _make()
    try:
        with _locked(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make() -> Path:
    reasons = []
    for base in _places():
        try:
            _remove_stale(base)
            made = Path(tempfile.mkdtemp(prefix="labtune-", dir=base))
        except OSError as e:
            reasons.append(f"{base}: {e.strerror}")
            continue
        if len(os.fsencode(made)) <= LONGEST:
            return made
        made.rmdir()
        reasons.append(f"{base}: its path is too long for sockets")
    raise UserError(
        f"no folder for temporary files ({'; '.join(reasons)}): set RAY_TMPDIR to one that can be"
        " written and has a short path, or run with --local"
    )


def _places() -> list[Path]:
    named = [os.environ.get("RAY_TMPDIR"), "/tmp", os.environ.get("TMPDIR"), "/var/tmp"]
    return list(dict.fromkeys(Path(place).absolute() for place in named if place))


@contextlib.contextmanager
def _locked(made: Path) -> Iterator[None]:
    """Hold a lock on the mark of a folder, which gets its name once it is locked."""
    fresh = made / f".{MARK}"
    handle = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):  # no locks here: without a mark nobody removes it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(made / MARK)
        yield
    finally:
        os.close(handle)


def _remove_stale(base: Path) -> None:
    for mark in base.glob(f"labtune-*/{MARK}"):
        with contextlib.suppress(OSError):  # in use, or someone else's
            handle = os.open(mark, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
            finally:
                os.close(handle)
