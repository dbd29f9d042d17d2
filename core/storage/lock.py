"""One driver per result folder: who it is, where, and since when."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import DamagedError, StorageError, UserError
from core.storage import files, mirror

BEAT = 30.0  # seconds between signs of life
DEAD_AFTER = 120.0  # seconds without one
SETTLE = 1.0  # seconds in which two drivers that start together see each other in an object store


@contextlib.contextmanager
def only_driver(
    folder: Path, nodes: Callable[[], list[dict[str, Any]]]
) -> Iterator[Callable[[], None]]:
    """Be the one process that runs trials in `folder`; say so in `driver.json` all the while.

    A lock tells drivers on file systems apart. An object store has none: there the last sign of
    life in `driver.json` counts, so that a study whose driver was killed on another machine can be
    taken over two minutes later. Raises UserError: another driver is at work; the message names its
    host and process.

    Args:
        folder: the result folder.
        nodes: gives the slots of every node, for who watches.

    Yields:
        Gives a sign of life at once, as when the nodes have changed.
    """
    lock = FileLock(folder / "study.lock", timeout=0)
    with _held(lock, mirror.shown(folder), folder), _announced(folder, nodes) as beat:
        yield beat


@contextlib.contextmanager
def only_user(remote: mirror.Mirror) -> Iterator[mirror.Mirror]:
    """Be the one driver here that uses the local folder of `remote`, or raise UserError."""
    with _held(remote.lock(), remote.shown, remote.local):
        yield remote


@contextlib.contextmanager
def _held(lock: FileLock, place: str, folder: Path) -> Iterator[None]:
    try:
        with lock:
            yield
    except Timeout as e:
        raise UserError(_in_use(place, _read(folder))) from e


@contextlib.contextmanager
def _announced(
    folder: Path, nodes: Callable[[], list[dict[str, Any]]]
) -> Iterator[Callable[[], None]]:
    me = {"host": os.uname().nodename, "pid": os.getpid(), "started": _now()}
    stop = threading.Event()

    def beat() -> None:
        with contextlib.suppress(StorageError):  # a full disk must not end the study
            files.write_json(folder / "driver.json", {**me, "beat": _now(), "nodes": nodes()})

    def keep_beating() -> None:
        while not stop.wait(BEAT):
            beat()

    _claim(folder, me, beat)
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(StorageError, OSError):
            files.remove(folder / "driver.json")


def _claim(folder: Path, me: dict[str, Any], beat: Callable[[], None]) -> None:
    """Give the first sign of life; in an object store only if no other driver gives one there."""
    remote = mirror.of(folder / "driver.json")
    if remote is not None:
        remote.pull("", only=("driver.json",))
        if is_alive(other := _read(folder)):
            raise UserError(_in_use(remote.shown, other))
    beat()
    if remote is not None:
        time.sleep(SETTLE)
        remote.pull("", only=("driver.json",))
        other = _read(folder)
        if (other.get("host"), other.get("pid")) != (me["host"], me["pid"]):
            raise UserError(_in_use(remote.shown, other))


def is_alive(driver: dict[str, Any], now: float | None = None) -> bool:
    """Return whether who wrote this `driver.json` runs, as far as is seen at Unix time `now`."""
    try:
        beat, pid = datetime.datetime.fromisoformat(driver["beat"]), int(driver["pid"])
    except (KeyError, TypeError, ValueError):
        return False
    if (time.time() if now is None else now) - beat.timestamp() > DEAD_AFTER:
        return False
    if driver.get("host") != os.uname().nodename:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _in_use(place: str, driver: dict[str, Any]) -> str:
    pid, host, started = (driver.get(key) for key in ("pid", "host", "started"))
    who = f" (process {pid} on {host}, since {started} UTC)" if driver else ""
    return f"{place} is in use by another run of this study{who}: wait for it or stop it"


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = files.read_json(folder / "driver.json")
    except DamagedError:
        return {}
    return content if isinstance(content, dict) else {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
