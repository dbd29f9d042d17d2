"""What a trial's folder says of it: where it was begun, its rows, how it ended."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DamagedError, StorageError, printable
from core.storage.files import names, read_json, remove, write_json
from core.trial.running import UNKNOWN_MEMORY, Attempt, Row, Spec, Trial


def attempt_record(attempt: Attempt) -> dict[str, Any]:
    """Return what `attempt.json` says: where a trial was begun."""
    here = {"host": os.uname().nodename, "pid": os.getpid(), "gpus": list(attempt.gpus)}
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return here | {"node": attempt.node, "attempt": attempt.number, "started": started}


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return how the trial in `folder` ended, or None while it has not (or the file is damaged)."""
    return _recorded(folder / "result.json")


def read_attempt(folder: Path) -> dict[str, Any]:
    """Return where the trial in `folder` was begun last: host, pid, gpus; empty if nowhere."""
    return _recorded(folder / "attempt.json") or {}


def read_rows(folder: Path) -> list[Row]:
    """Return the rows reported so far by the trial in `folder`."""
    return (_recorded(folder / "history.json") or {"rows": []})["rows"]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of the trial in `folder`, the newest first."""
    # Not by `glob`, which finds nothing in a folder that cannot be read.
    found = [name for name in names(folder) if name.startswith("epoch-") and name.endswith(".pt")]
    return [folder / name for name in reversed(found)]


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of the trial in `folder`; one that stays takes room, no more."""
    with contextlib.suppress(StorageError):
        for path in checkpoints(folder):
            remove(path)


def write_result(spec: Spec, state: str, error: str) -> None:
    """Record the end of a trial whose process could not do so itself."""
    known = _recorded(spec.folder / "history.json") or {"rows": [], "seconds": 0.0}
    trial = Trial(spec, lambda row: None, known["rows"], known["seconds"])
    trial.facts = known.get("facts", {})
    memory = UNKNOWN_MEMORY if state == "failed" else known.get("memory", {})
    write_json(spec.folder / "result.json", ended(trial, state, error, memory))
    if state == "stopped":
        remove_checkpoints(spec.folder)


def _recorded(path: Path) -> dict[str, Any] | None:
    """Return a trial's JSON file; None if it is not there or damaged, which running it mends.

    Raises StorageError: it cannot be read now; to run a trial again for that would lose its result.
    """
    try:
        content = read_json(path)
    except DamagedError:
        return None
    return content if isinstance(content, dict) else None


def ended(trial: Trial, state: str, error: str, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `result.json` says: how a trial ended."""
    known = {"state": state, "error": printable(error), "seconds": trial.seconds()}
    return known | {"facts": trial.facts, **memory}
