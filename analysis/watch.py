"""How far a study is, from the files of its result folder alone.

    python analysis/watch.py results/norms/demo   one study, refreshed until it is done
    python analysis/watch.py results              the study below that changed last
    python analysis/watch.py results --all        a line for each study below
    python analysis/watch.py results --once       print it once (all rows with: | less)

Any machine that sees the folder will do: neither Ray nor the cluster is asked. Ctrl-C ends the
view and leaves the study alone.
"""

from __future__ import annotations

import datetime
import math
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

import analysis  # noqa: F401  before core, so that it is ours
from core.errors import UserError
from core.storage.files import read_json

BEAT = 120.0  # seconds without a sign of life after which a driver counts as gone (it beats at 30)
SKEW = 5.0  # seconds by which the clocks of two hosts may differ
LAST_ENDED = 5  # ended trials that are shown
MOST_NODES = 8  # nodes that are named on a terminal
NAME_WIDTH = 28  # a trial's name keeps this much before less important columns give way
ORDER = ("finished", "stopped", "running", "interrupted", "waiting", "failed", "diverged")
STYLES = {
    "finished": "green",
    "running": "cyan",
    "done": "green",
    "interrupted": "yellow",
    "failed": "red",
    "diverged": "red",
}


@dataclass(frozen=True)
class Options:
    """Show how far a study is.

    Attributes:
        results: a study's result folder, or any folder above it.
        every: seconds between two looks at the files.
        once: print once and end, as when the output is not a terminal.
        all: a line for each study below the folder, when there are several.
    """

    results: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RESULTS")]] = Path(
        "results"
    )
    every: float = 2.0
    once: bool = False
    all: bool = False


@dataclass(frozen=True)
class Trial:
    """One trial as its files have it.

    Attributes:
        name: its folder under `trials/`.
        state: finished, stopped, failed or diverged when it has ended; running, interrupted (begun,
            and nothing runs the study), or waiting when it has not.
        epoch: the last epoch that was reported, 0 before the first.
        epochs: how many it will have; None when the study does not say.
        last: the metric at that epoch, None when it was not finite.
        best: the best metric so far.
        best_epoch: the first epoch that had it.
        seconds: spent on it up to its last epoch or its end.
        quiet: seconds since the last epoch or since the process began, for a running trial.
        ended: when it ended (Unix time), for one that has.
        error: why it failed or diverged.
        host: where its last process is or was.
        pid: that process.
        gpus: the GPUs that process was given, e.g. "0".
        node: the id of that node.
        attempt: how many processes have begun it.
        metric: the name of what it is scored by.
    """

    name: str
    state: str
    epoch: int
    epochs: int | None
    last: float | None
    best: float | None
    best_epoch: int | None
    seconds: float
    quiet: float | None
    ended: float
    error: str
    host: str
    pid: str
    gpus: str
    node: str
    attempt: int
    metric: str = ""


@dataclass(frozen=True)
class Node:
    """A machine of the study: how many trials it was planned to run at once, how many it runs."""

    host: str
    gpus: int
    slots: int
    used: int


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        folder: its result folder.
        declared: the content of study.json.
        state: "running", "interrupted" or "done".
        driver: the content of driver.json, empty when there is none.
        trials: in the order of the study.
        nodes: from driver.json, of a running study.
        elapsed: seconds of this run, of the whole study when it is done; None when not known.
        left: seconds it will still take, a guess; None when there is nothing to go by.
        changed: when a file of the study was last written (Unix time).
        damaged: files that are there and cannot be read.
    """

    folder: Path
    declared: dict[str, Any]
    state: str
    driver: dict[str, Any]
    trials: list[Trial]
    nodes: list[Node]
    elapsed: float | None
    left: float | None
    changed: float
    damaged: list[Path]

    def best(self) -> Trial | None:
        """Return the trial with the best metric of those that did not fail.

        The study's metric goes before the one that a search is scored by.
        """
        good = [t for t in self.trials if t.best is not None and t.state not in _BAD]
        good = [t for t in good if t.metric == self.declared.get("metric")] or good
        pick = min if self.declared.get("mode") == "min" else max
        return pick(good, key=lambda t: t.best or 0.0) if good else None

    def count(self, *states: str) -> int:
        """Return how many trials are in one of `states`."""
        return sum(t.state in states for t in self.trials)


_BAD = ("failed", "diverged")


class Files:
    """JSON files that come, go and change while they are read.

    A file is parsed again only when it has been replaced, so that a study of a thousand trials
    costs a stat per file and refresh.

    Attributes:
        damaged: files that were there and could not be read, since `damaged` was last emptied.
    """

    def __init__(self):
        self.damaged: list[Path] = []
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

    Raises:
        UserError: there is none.
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
        if "study.json" in files or (stat.st_dev, stat.st_ino) in seen:  # a link may lead back up
            below.clear()
        if "study.json" in files and (stat.st_dev, stat.st_ino) not in seen:
            found.append(Path(at))
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
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

    Raises:
        UserError: it is missing, damaged, or not a study's declaration.
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


def is_alive(driver: Mapping[str, Any], now: float) -> bool:
    """Return whether the process that wrote driver.json still runs the study."""
    beat = _moment(driver.get("beat"))
    if beat is None or now - beat > BEAT:
        return False
    pid = driver.get("pid")
    if driver.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return True  # its pid says nothing here
    try:
        os.kill(pid, 0)  # signal 0 asks and does nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's process is alive too
    return True


def look(
    folder: Path, files: Files, now: float, declared: dict[str, Any] | None = None
) -> Snapshot:
    """Read a study as it is now.

    Args:
        folder: its result folder.
        files: keeps what has been read before.
        now: the Unix time.
        declared: taken for study.json should that not be readable.

    Raises:
        UserError: study.json cannot be read and `declared` is None, or the folder has gone.
    """
    try:
        declared = read_declaration(folder)
    except UserError:
        if declared is None or not folder.is_dir():
            raise
    files.damaged.clear()
    driver = files.read(folder / "driver.json")
    alive = is_alive(driver, now)
    begun = _moment(driver.get("started")) if alive else None
    trials = [
        _trial(folder, planned, declared, files, now, alive, begun)
        for planned in _planned(declared)
    ]
    open_ = [t for t in trials if t.state in ("running", "interrupted", "waiting")]
    state = "running" if alive else "interrupted" if open_ else "done"
    nodes = _nodes(driver, declared, trials) if alive else []
    changed = last_change(folder)
    return Snapshot(
        folder=folder,
        declared=declared,
        state=state,
        driver=driver,
        trials=trials,
        nodes=nodes,
        elapsed=_elapsed(state, declared, driver, now),
        left=time_left(trials, sum(node.slots for node in nodes)) if alive else None,
        changed=changed,
        damaged=list(files.damaged),
    )


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


def view(snapshot: Snapshot, console: Console, now: float, height: int | None) -> RenderableType:
    """Return a study as what rich prints.

    Args:
        snapshot: of the study.
        console: for its width.
        now: the Unix time.
        height: lines there are room for; None for as many as it takes.
    """
    width = console.width
    head = _head(snapshot, now, cut=height is not None)
    active = [t for t in snapshot.trials if t.state in ("running", "interrupted")]
    active.sort(key=lambda t: t.state != "running")
    ended = sorted((t for t in snapshot.trials if t.ended), key=lambda t: -t.ended)
    bad = [_reason(t) for t in ended if t.state in _BAD]
    last = ended[:LAST_ENDED]
    shown = [len(active), len(bad), len(last)]
    if height is not None:
        sizes = [[1] * len(active), [_lines(text, console) for text in bad], [1] * len(last)]
        room = height - sum(_lines(text, console) for text in head)
        shown = share_room(sizes, [3, 2, 3], room)  # a blank line, a title, a table's header
    parts: list[RenderableType] = [*head]
    if shown[0]:
        title = "Running" if snapshot.state == "running" else "Interrupted"
        table = _active_table(active[: shown[0]], snapshot, width)
        parts += [*_title(f"{title} ({len(active)})"), table, *_more(len(active) - shown[0])]
    if shown[1]:
        parts += _title(f"Failed ({len(bad)}), tracebacks in trials/*/error.txt")
        parts += [*bad[: shown[1]], *_more(len(bad) - shown[1])]
    if shown[2]:
        parts += [*_title("Last ended"), _ended_table(last[: shown[2]], snapshot, width, now)]
    return Group(*parts)


def share_room(sizes: Sequence[Sequence[int]], heads: Sequence[int], room: int) -> list[int]:
    """Return how many entries of each section are shown in `room` lines.

    Sections take turns, so that a long one leaves the others their first entries; a section that
    is cut needs one more line to say so. Where there is no room for an entry of each, the last
    sections are left out.

    Args:
        sizes: the lines of each entry of each section.
        heads: the lines above the entries of each section.
        room: lines for all of them.
    """
    shown = [min(1, len(entries)) for entries in sizes]

    def lines() -> int:
        return sum(
            head + sum(entries[:n]) + (n < len(entries))
            for entries, head, n in zip(sizes, heads, shown, strict=True)
            if n
        )

    for i in reversed(range(len(sizes))):
        if lines() > room:
            shown[i] = 0
    grew = True
    while grew:
        grew = False
        for i, entries in enumerate(sizes):
            if 0 < shown[i] < len(entries):
                shown[i] += 1
                if lines() <= room:
                    grew = True
                else:
                    shown[i] -= 1
    return shown


def overview(snapshots: Sequence[Snapshot | tuple[Path, str]], width: int, now: float) -> Table:
    """Return one line per study.

    Args:
        snapshots: of the studies; the folder and what is wrong for one that cannot be read.
        width: of the terminal.
        now: the Unix time.
    """
    names, rows = [], []
    for s in snapshots:
        if isinstance(s, tuple):
            names.append(str(s[0]))
            rows.append((Text(s[1], "red"), "", "", "", "", ""))
            continue
        best = s.best()
        bad = s.count(*_BAD)
        names.append(str(s.folder))
        rows.append(
            (
                Text(s.state, STYLES[s.state]),
                f"{sum(t.ended > 0 for t in s.trials)} of {len(s.trials)}",
                str(s.count("running") or ""),
                Text(str(bad or ""), "red"),
                f"{_plain(best.metric)} {_value(best.best)}" if best else "",
                f"{clock(now - s.changed)} ago",
            )
        )
    headers = (
        ("state", 0),
        ("ended", 0),
        ("running", 1),
        ("failed", 1),
        ("best", 2),
        ("changed", 3),
    )
    return _table("study", names, headers, rows, width)


def clock(seconds: float) -> str:
    """Return seconds as `m:ss`, `h:mm:ss` or, from two days on, `3 d 4 h`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shorten(name: str, width: int) -> str:
    """Cut the middle out of a name that is wider than `width`: seeds stand at its end."""
    if len(name) <= width:
        return name
    tail = max(0, (width - 2) // 2)
    return (name[: max(0, width - 2 - tail)] + ".." + name[len(name) - tail :])[:width]


def main(argv: Sequence[str] | None = None) -> int:
    """Watch as `argv` says; return 0, or 2 when there is nothing to watch."""
    opts = tyro.cli(Options, args=argv, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _watch(opts)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _watch(opts: Options) -> int:
    if not 0.1 <= opts.every <= 3600:
        raise UserError(f"--every {opts.every}: give seconds from 0.1 to 3600")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a question may hold what LANG=C cannot print
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=200)  # a file has no edge to cut names at
    folders = find_studies(opts.results)
    files = Files()
    latest = look(folders[0], files, time.time()) if not opts.all or len(folders) == 1 else None

    def picture() -> tuple[RenderableType, bool]:
        """Return what to show now, and whether it will not change any more."""
        nonlocal latest
        now = time.time()
        height = console.height - 1 if console.is_terminal else None
        if latest is None:
            studies = [_try_look(folder, files, now) for folder in folders]
            still = all(isinstance(s, tuple) or s.state == "done" for s in studies)
            return overview(studies, console.width, now), still
        latest = look(latest.folder, files, now, latest.declared)
        note = []
        if len(folders) > 1:
            below = f"\n{len(folders)} studies below {_plain(opts.results)}: --all lists them"
            note = [Text(below, "dim")]
        height = None if height is None else height - 2 * len(note)
        return Group(view(latest, console, now, height), *note), latest.state == "done"

    content, done = picture()
    if not opts.once and not done and console.is_terminal and not console.is_dumb_terminal:
        # On a screen of its own: a window that is resized leaves no torn lines behind.
        live = Live(content, console=console, screen=True, auto_refresh=False)
        try:  # `with` would not give the terminal back after a Ctrl-C while it is taken
            live.start(refresh=True)
            while not done:
                time.sleep(opts.every)
                content, done = picture()
                live.update(content, refresh=True)
        except KeyboardInterrupt:
            pass  # what was last seen stays on the terminal
        finally:
            live.stop()
    console.print(content)
    return 0


def _try_look(folder: Path, files: Files, now: float) -> Snapshot | tuple[Path, str]:
    try:
        return look(folder, files, now)
    except UserError:
        return folder, "study.json is missing or damaged"


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _planned(declared: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return declared["trials"]


def _trial(
    folder: Path,
    planned: Mapping[str, Any],
    declared: Mapping[str, Any],
    files: Files,
    now: float,
    alive: bool,
    begun: float | None,
) -> Trial:
    """Read one trial; `begun` is when the driver that is alive began."""
    at = folder / "trials" / planned["trial"]
    attempt = files.read(at / "attempt.json")
    # The end is read before the epochs: a trial that ends in between then has all of them.
    result = files.read(at / "result.json")
    history = files.read(at / "history.json")
    rows = _rows(history)
    config = planned.get("config")
    epochs = config.get("epochs") if isinstance(config, dict) else None
    metric = planned.get("metric", declared["metric"])  # a search's trials have their own
    values = [(_number(row.get(metric)), row["epoch"]) for row in rows]
    known = [pair for pair in values if pair[0] is not None]
    sign = -1 if declared["mode"] == "min" else 1
    best = max(known, key=lambda pair: sign * (pair[0] or 0.0), default=(None, None))
    started = _moment(attempt.get("started"))
    state, quiet = _state(result, attempt, history, started, alive, begun), None
    if state == "running":
        since = max(_mtime(at / "history.json"), started or 0.0)
        quiet = max(now - since, 0.0) if since else None
    gpus = attempt.get("gpus")
    return Trial(
        name=_plain(planned["trial"]),
        state=state,
        epoch=rows[-1]["epoch"] if rows else 0,
        epochs=epochs if isinstance(epochs, int) else None,
        last=values[-1][0] if values else None,
        best=best[0],
        best_epoch=best[1],
        seconds=_number(result.get("seconds")) or _number(history.get("seconds")) or 0.0,
        quiet=quiet,
        ended=(_mtime(at / "result.json") or now) if result else 0.0,
        error=_plain(result.get("error")),
        host=_plain(attempt.get("host")),
        pid=_plain(attempt.get("pid")),
        gpus=",".join(map(_plain, gpus)) if isinstance(gpus, list) else "",
        node=_plain(attempt.get("node")),
        attempt=int(_number(attempt.get("attempt")) or 1),
        metric=str(metric),
    )


def _state(
    result: Mapping[str, Any],
    attempt: Mapping[str, Any],
    history: Mapping[str, Any],
    started: float | None,
    alive: bool,
    begun: float | None,
) -> str:
    if result:
        return _plain(result.get("state")) or "failed"
    if not alive:
        return "interrupted" if attempt or history else "waiting"
    # After a resume the attempt of the run before is still there until the trial's turn comes.
    old = started is not None and begun is not None and started < begun - SKEW
    return "running" if attempt and not old else "waiting"


def _rows(history: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = history.get("rows")
    rows = rows if isinstance(rows, list) else []
    rows = [r for r in rows if isinstance(r, dict) and isinstance(r.get("epoch"), int)]
    return sorted(rows, key=lambda row: row["epoch"])


def _nodes(
    driver: Mapping[str, Any], declared: Mapping[str, Any], trials: Sequence[Trial]
) -> list[Node]:
    slots = declared.get("slots")
    recorded = slots.get("nodes") if isinstance(slots, dict) else None
    # The driver's first sign of life is older than its nodes; study.json has them by then.
    listed = driver.get("nodes") or recorded
    running = [t for t in trials if t.state == "running"]
    nodes = []
    for node in listed if isinstance(listed, list) else []:
        if isinstance(node, dict):
            host = _plain(node.get("host"))
            id_ = _plain(node.get("id", node.get("node")))
            # A trial may give a shortened id; without one it is known by its host.
            used = sum(id_.startswith(t.node) if t.node else t.host == host for t in running)
            count = int(_number(node.get("slots", node.get("count"))) or 0)
            gpus = int(_number(node.get("gpus")) or 0)
            nodes.append(Node(host or id_[:8], gpus, count, used))
    return nodes


def _elapsed(
    state: str, declared: Mapping[str, Any], driver: Mapping[str, Any], now: float
) -> float | None:
    started = _moment(driver.get("started"))
    if state == "running":
        return None if started is None else now - started
    if state == "done":
        return _number(declared.get("seconds"))
    beat = _moment(driver.get("beat"))
    return None if started is None or beat is None else beat - started


def _head(s: Snapshot, now: float, cut: bool) -> list[Text]:
    """Return the lines above the tables."""
    study, question = _plain(s.declared["study"]), _plain(s.declared.get("question"))
    head = [Text.assemble((study, "bold"), "  ", (_plain(s.folder), "dim"))]
    if question:
        head.append(Text(question))
    head += [Text(line, STYLES[s.state]) for line in _state_lines(s, now)]
    names = [*ORDER, *sorted({t.state for t in s.trials} - set(ORDER))]
    counts = [(f"{s.count(n)} {n}", STYLES.get(n, "")) for n in names if s.count(n)]
    total = Text(f"{len(s.trials)} trial{'s' * (len(s.trials) != 1)}")
    for i, (text, style) in enumerate(counts):
        total.append(": " if i == 0 else ", ").append(text, style)
    head.append(total)
    times = [f"{clock(s.elapsed)} elapsed"] if s.elapsed is not None else []
    if s.state == "running" and s.left is None:
        times.append("time left not known before the first epoch")
    elif s.left:
        times.append(f"about {clock(s.left)} left")
    if times:
        head.append(Text(", ".join(times)))
    if s.state == "running":
        head.append(_slots(s, cut))
    best = s.best()
    if best is not None:
        text = f"best {_plain(best.metric)} {_value(best.best)}"
        head.append(Text.assemble((text, "bold"), f" ({best.name}, epoch {best.best_epoch})"))
    head += [Text(f"cannot be read: {_plain(path)}", "yellow") for path in s.damaged[:3]]
    head += _more(len(s.damaged) - 3, "unreadable files")
    return head


def _state_lines(s: Snapshot, now: float) -> list[str]:
    who = f"{_plain(s.driver.get('host'))} pid {_plain(s.driver.get('pid'))}"
    if s.state == "running":
        last = ": all trials have ended, the report is being written"
        return [f"running on {who}" + (last if all(t.ended for t in s.trials) else "")]
    if s.state == "done":
        again = s.count("failed")
        return ["done" + (f", {again} failed: --resume tries them again" if again else "")]
    seen = f"last change {clock(now - s.changed)} ago"
    if s.driver:
        seen = f"was on {who}, {seen}"
    lines = [f"not running: interrupted, go on with --resume ({seen})"]
    command = s.declared.get("command")
    if isinstance(command, list) and command:
        words = [_plain(word) for word in command]
        lines.append("  " + shlex.join(words + ["--resume"] * ("--resume" not in words)))
    return lines


def _slots(s: Snapshot, cut: bool) -> Text:
    used = s.count("running")
    if not s.nodes:
        return Text(f"slots: {used} used")
    named = s.nodes[:MOST_NODES] if cut else s.nodes
    each = [
        f"{n.host} {n.used} of {n.slots}"
        + (f" ({n.gpus} GPU{'s' * (n.gpus != 1)})" if n.gpus else "")
        for n in named
    ]
    if len(named) < len(s.nodes):
        each.append(f"{len(s.nodes) - len(named)} more nodes")
    elsewhere = used - sum(n.used for n in s.nodes)
    if elsewhere > 0:
        each.append(f"{elsewhere} on nodes that are not listed")
    total = sum(n.slots for n in s.nodes)
    return Text(f"slots: {used} of {total} used: " + ", ".join(each))


def _metric(trials: Sequence[Trial], s: Snapshot) -> str:
    """Return what these trials are scored by, if it is the same for all."""
    named = {t.metric for t in trials} or {str(s.declared["metric"])}
    return named.pop() if len(named) == 1 else "metric"


def _active_table(trials: Sequence[Trial], s: Snapshot, width: int) -> Table:
    metric = _plain(_metric(trials, s))
    headers = (
        ("host", 3),
        ("process", 5),
        ("GPU", 4),
        ("epoch", 0),
        (metric, 1),
        ("best", 2),
        ("since epoch", 0),
        ("attempt", 2),
    )
    rows = [
        (
            t.host,
            t.pid,
            t.gpus,
            _progress(t),
            _value(t.last),
            _value(t.best),
            "" if t.quiet is None else clock(t.quiet),
            str(t.attempt) if t.attempt > 1 else "",
        )
        for t in trials
    ]
    return _table("trial", [t.name for t in trials], headers, rows, width)


def _ended_table(trials: Sequence[Trial], s: Snapshot, width: int, now: float) -> Table:
    headers = (
        ("state", 0),
        ("epochs", 2),
        (_plain(_metric(trials, s)), 1),
        ("best", 1),
        ("took", 3),
        ("ended", 2),
    )
    rows = [
        (
            Text(t.state, STYLES.get(t.state, "")),
            _progress(t),
            _value(t.last),
            _value(t.best),
            clock(t.seconds),
            f"{clock(now - t.ended)} ago",
        )
        for t in trials
    ]
    return _table("trial", [t.name for t in trials], headers, rows, width)


def _table(
    first: str,
    names: Sequence[str],
    headers: Sequence[tuple[str, int]],
    rows: Sequence[Sequence[str | Text]],
    width: int,
) -> Table:
    """Return a table whose rows take one line each, however narrow the terminal.

    Columns without content are left out; then those with the highest number go, one by one, until
    the names in the first column have room.
    """
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    columns = {
        header: (rank, [row[i] for row in cells])
        for i, (header, rank) in enumerate(headers)
        if any(row[i].plain for row in cells)
    }
    longest = max((cell_len(name) for name in [first, *names]), default=0)

    def room() -> int:
        taken = [max(cell_len(h), *(c.cell_len for c in col)) for h, (_, col) in columns.items()]
        return width - sum(taken) - 2 * len(taken)

    while columns and room() < min(longest, NAME_WIDTH):
        header = max(columns, key=lambda header: columns[header][0])
        if columns[header][0] == 0:
            break
        del columns[header]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for header in columns:
        left = header in ("host", "state")
        table.add_column(Text(header), justify="left" if left else "right", no_wrap=True)
    for i, name in enumerate(names):
        short = Text(shorten(_plain(name), max(room(), 8)))
        table.add_row(short, *(column[i] for _, column in columns.values()))
    return table


def _title(text: str) -> list[Text]:
    return [Text(), Text(text, "bold", no_wrap=True, overflow="crop")]


def _more(count: int, what: str = "more") -> list[Text]:
    if count <= 0:
        return []
    return [Text(f"and {count} {what}", "dim")]


def _reason(t: Trial) -> Text:
    return Text.assemble((f"{t.name} {t.state}", "red"), f": {t.error or 'no reason recorded'}")


def _progress(t: Trial) -> str:
    return f"{t.epoch} of {t.epochs}" if t.epochs is not None else str(t.epoch or "")


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _lines(text: Text, console: Console) -> int:
    return max(1, len(text.wrap(console, console.width)))


def _plain(value: Any) -> str:
    """Return text without what would move the cursor or colour the terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _number(value: Any) -> float | None:
    try:
        ok = isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        ok = False
    return float(value) if ok else None


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


if __name__ == "__main__":
    sys.exit(main())
