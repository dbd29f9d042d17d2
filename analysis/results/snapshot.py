"""A look at a study's folder while it runs: which trials are where."""

import datetime
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.storage.files import read_json
from core.storage.lock import is_alive

Json = Mapping[str, Any]  # an object of a JSON file
SKEW = 5.0  # seconds by which the clocks of two hosts may differ


@dataclass(frozen=True)
class Trial:
    """One trial as its files have it."""

    name: str  # its folder under `trials/`
    # finished, stopped, failed or diverged when it has ended; running, interrupted (begun, and
    # nothing runs the study), or waiting when it has not
    state: str
    epoch: int  # the last epoch that was reported, 0 before the first
    epochs: int | None  # how many it will have; None when the study does not say
    last: float | None  # the metric at that epoch, None when it was not finite
    best: float | None  # the best metric so far
    best_epoch: int | None  # the first epoch that had it
    seconds: float  # spent on it up to its last epoch or its end
    quiet: float | None  # seconds since the last epoch or the process began, for a running trial
    ended: float  # when it ended (Unix time), for one that has
    error: str  # why it failed or diverged
    host: str  # where its last process is or was
    pid: str  # that process
    gpus: str  # the GPUs that process was given, e.g. "0"
    node: str  # the id of that node
    attempt: int  # how many processes have begun it
    metric: str = ""  # the name of what it is scored by


@dataclass(frozen=True)
class Node:
    """A machine of the study: how many trials it was planned to run at once, how many it runs."""

    host: str
    gpus: int
    slots: int
    used: int


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    folder: Path
    declared: dict[str, Any]  # the content of study.json
    state: str  # "running", "interrupted" or "done"
    driver: dict[str, Any]  # the content of driver.json, empty when there is none
    trials: list[Trial]  # in the order of the study
    nodes: list[Node]  # from driver.json, of a running study
    elapsed: float | None  # seconds of this run, of the whole study when it is done, if known
    left: float | None  # seconds it will still take, a guess; None when there is nothing to go by
    changed: float  # when a file of the study was last written (Unix time)
    damaged: list[Path]  # files that are there and cannot be read

    def best(self) -> Trial | None:
        """Return the trial with the best metric of those that did not fail.

        The study's metric goes before the one that a search is scored by.
        """
        good = [t for t in self.trials if t.best is not None and t.state not in BAD]
        good = [t for t in good if t.metric == self.declared.get("metric")] or good
        pick = min if self.declared.get("mode") == "min" else max
        return pick(good, key=lambda t: t.best or 0.0) if good else None

    def count(self, *states: str) -> int:
        """Return how many trials are in one of `states`."""
        return sum(t.state in states for t in self.trials)


BAD = ("failed", "diverged")


class Files:
    """JSON files that come, go and change while they are read.

    A file is parsed again only when it has been replaced, so that a study of a thousand trials
    costs a stat per file and refresh.
    """

    def __init__(self):
        self.damaged: list[Path] = []  # were there and could not be read, since last emptied
        self._known: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}

    def read(self, path: Path) -> dict[str, Any]:
        """Return the content of a JSON file that holds an object; empty when there is none."""
        try:
            stat = path.stat()
        except (OSError, ValueError):  # a null byte in a trial's name is a ValueError
            self._known.pop(path, None)
            return {}
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if path in self._known and self._known[path][0] == signature:
            return self._known[path][1]
        try:
            content = read_json(path)
        except (UserError, RecursionError):
            content = None
        if not isinstance(content, dict):
            if _mtime(path):  # else it went between the two looks
                self.damaged.append(path)
            return {}
        self._known[path] = (signature, content)
        return content


def find_studies(path: Path) -> list[Path]:
    """Return the result folders at or below `path`, the one that changed last first.

    Raises UserError: there is none.
    """
    path = path.parent if path.name == "study.json" else path
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give a result folder such as results/norms/demo")
    found, seen = [], set()
    for at, below, files in os.walk(path, followlinks=True):
        try:
            stat = os.stat(at)
        except OSError:
            below.clear()
            continue
        this, study = (stat.st_dev, stat.st_ino), "study.json" in files
        if study and this not in seen:
            found.append(Path(at))
        ends = study or this in seen  # a link may lead back up
        below[:] = [name for name in below if not (ends or name.startswith("."))]
        seen.add(this)
    if not found:
        raise UserError(
            f"no study at or below {path}: give a result folder such as results/norms/demo, or"
            " start the study first"
        )
    return sorted(found, key=lambda folder: (-last_change(folder), str(folder)))


def last_change(folder: Path) -> float:
    """Return when a file of the study in `folder` was last written (Unix time)."""
    times = [_mtime(folder / name) for name in ("", "study.json", "driver.json")]
    try:
        with os.scandir(folder / "trials") as entries:  # each write renames a file in its folder
            times += [_mtime(Path(entry.path)) for entry in entries]
    except OSError:
        pass  # nothing has begun yet, or the folder has just gone
    return max(times)


def read_declaration(folder: Path) -> dict[str, Any]:
    """Return the content of study.json.

    Raises UserError: it is missing, damaged, or not a study's declaration.
    """
    file = folder / "study.json"
    declared = read_json(file)
    known = declared if isinstance(declared, dict) else {}
    trials = known.get("trials")
    if (
        not isinstance(trials, list)
        or not all(isinstance(t, dict) and isinstance(t.get("trial"), str) for t in trials)
        or not all(isinstance(known.get(key), str) for key in ("study", "metric", "mode"))
    ):
        raise UserError(
            f"{file} is damaged (not a study's declaration): restore it or start a new study name"
        )
    return known


def look(
    folder: Path, files: Files, now: float, declared: dict[str, Any] | None = None
) -> Snapshot:
    """Read a study as it is at the Unix time `now`; `files` keeps what has been read before.

    `declared` is taken for study.json should that not be readable. Raises UserError: study.json
    cannot be read and `declared` is None, or the folder has gone.
    """
    try:
        declared = read_declaration(folder)
    except UserError:
        if declared is None or not folder.is_dir():
            raise
    files.damaged.clear()
    driver = files.read(folder / "driver.json")
    alive = is_alive(driver, now)
    begun = _moment(driver.get("started")) or 0.0 if alive else None
    trials = [_trial(folder, t, declared, files, now, begun) for t in declared["trials"]]
    open_ = any(t.state in ("running", "interrupted", "waiting") for t in trials)
    state = "running" if alive else "interrupted" if open_ else "done"
    nodes = _nodes(driver, declared, trials) if alive else []
    left = time_left(trials, sum(node.slots for node in nodes)) if alive else None
    elapsed = _elapsed(state, declared, driver, now)
    at, damaged = last_change(folder), list(files.damaged)
    return Snapshot(folder, declared, state, driver, trials, nodes, elapsed, left, at, damaged)


def time_left(trials: Sequence[Trial], slots: int) -> float | None:
    """Guess the seconds until every trial has ended; None when there is nothing to go by.

    A running trial needs its remaining epochs at its own speed. A waiting one needs its epochs at
    the mean speed, cut to the share of their epochs that ended trials have run (a scheduler stops
    some early). `slots` trials share the work, and no trial is faster than itself.

    Args:
        trials: all of the study.
        slots: how many run at once; 0 when that is not known.
    """
    ended = [t for t in trials if t.state in ("finished", "stopped", "diverged")]
    open_ = [t for t in trials if t.state in ("running", "waiting")]
    timed = [t for t in trials if t.epoch and t.seconds > 0]
    if not open_:
        return 0.0
    if not timed:
        return None
    speed = sum(t.seconds for t in timed) / sum(t.epoch for t in timed)
    planned = sum(t.epochs or t.epoch for t in ended)
    share = sum(t.epoch for t in ended) / planned if planned else 1.0
    usual = sum(t.seconds for t in ended) / len(ended) if ended else None
    work = []
    for t in open_:
        own = t.seconds / t.epoch if t.epoch and t.seconds > 0 else speed
        if t.epochs is not None:
            due = t.epochs if t.epoch else t.epochs * share
            work.append(max(due - t.epoch, 0.0) * own)
        elif usual is not None:
            work.append(max(usual - t.seconds, 0.0))
        else:
            return None
    running = sum(t.state == "running" for t in open_)
    return max(sum(work) / min(slots or running or 1, len(open_)), *work)


def _trial(
    folder: Path, planned: Json, declared: Json, files: Files, now: float, begun: float | None
) -> Trial:
    """Read one trial; `begun` is when the driver began that is alive, 0 if that is not known."""
    at = folder / "trials" / planned["trial"]
    attempt = files.read(at / "attempt.json")
    # The end is read before the epochs: a trial that ends in between then has all of them.
    result = files.read(at / "result.json")
    history = files.read(at / "history.json")
    started = _moment(attempt.get("started"))
    state, quiet = _state(result, attempt, history, started, begun), None
    if state == "running":
        since = max(_mtime(at / "history.json"), started or 0.0)
        quiet = max(now - since, 0.0) if since else None
    config, gpus = planned.get("config"), attempt.get("gpus")
    epochs = config.get("epochs") if isinstance(config, dict) else None
    metric = planned.get("metric", declared["metric"])  # a search's trials have their own
    return Trial(
        name=plain(planned["trial"]),
        state=state,
        epochs=epochs if isinstance(epochs, int) else None,
        **_scored(_rows(history), metric, declared["mode"]),
        seconds=_number(result.get("seconds")) or _number(history.get("seconds")) or 0.0,
        quiet=quiet,
        ended=(_mtime(at / "result.json") or now) if result else 0.0,
        error=plain(result.get("error")),
        host=plain(attempt.get("host")),
        pid=plain(attempt.get("pid")),
        gpus=",".join(map(plain, gpus)) if isinstance(gpus, list) else "",
        node=plain(attempt.get("node")),
        attempt=int(_number(attempt.get("attempt")) or 1),
        metric=str(metric),
    )


def _scored(rows: Sequence[dict[str, Any]], metric: str, mode: str) -> dict[str, Any]:
    """Return the last epoch with its metric, and the best metric with its first epoch."""
    values = [(_number(row.get(metric)), row["epoch"]) for row in rows]
    last, epoch = values[-1] if values else (None, 0)
    known = [pair for pair in values if pair[0] is not None]
    sign = -1 if mode == "min" else 1
    best, at = max(known, key=lambda pair: sign * (pair[0] or 0.0), default=(None, None))
    return {"epoch": epoch, "last": last, "best": best, "best_epoch": at}


def _state(
    result: Json, attempt: Json, history: Json, started: float | None, begun: float | None
) -> str:
    if result:
        return plain(result.get("state")) or "failed"
    if begun is None:
        return "interrupted" if attempt or history else "waiting"
    # After a resume the attempt of the run before is still there until the trial's turn comes.
    old = started is not None and started < begun - SKEW
    return "running" if attempt and not old else "waiting"


def _rows(history: Json) -> list[dict[str, Any]]:
    rows = [r for r in _list(history.get("rows")) if isinstance(r.get("epoch"), int)]
    return sorted(rows, key=lambda row: row["epoch"])


def _list(content: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; none of anything else."""
    return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []


def _nodes(driver: Json, declared: Json, trials: Sequence[Trial]) -> list[Node]:
    slots = declared.get("slots")
    recorded = slots.get("nodes") if isinstance(slots, dict) else None
    running = [t for t in trials if t.state == "running"]
    nodes = []
    # The driver's first sign of life is older than its nodes; study.json has them by then.
    for node in _list(driver.get("nodes") or recorded):
        host = plain(node.get("host"))
        id_ = plain(node.get("id", node.get("node")))
        # A trial may give a shortened id; without one it is known by its host.
        used = sum(id_.startswith(t.node) if t.node else t.host == host for t in running)
        count = int(_number(node.get("slots", node.get("count"))) or 0)
        gpus = int(_number(node.get("gpus")) or 0)
        nodes.append(Node(host or id_[:8], gpus, count, used))
    return nodes


def _elapsed(state: str, declared: Json, driver: Json, now: float) -> float | None:
    if state == "done":
        return _number(declared.get("seconds"))
    started = _moment(driver.get("started"))
    until = now if state == "running" else _moment(driver.get("beat"))
    return None if started is None or until is None else until - started


def plain(value: Any) -> str:
    """Return text without what would move the cursor or colour the terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def _moment(text: Any) -> float | None:
    """Return an ISO time, UTC unless it says otherwise, as Unix time."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return 0.0
