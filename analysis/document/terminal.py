"""A running study drawn as lines of a terminal."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.results.snapshot import BAD, Snapshot, Trial, plain

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
# A header, how readily the column goes where there is little room (0: never), its cells.
Column = tuple[str, int, Sequence[str | Text]]


def view(snapshot: Snapshot, console: Console, now: float, height: int | None) -> RenderableType:
    """Return a study at the Unix time `now` as what rich prints in `height` lines; None: in all."""
    width = console.width
    head = _head(snapshot, now, cut=height is not None)
    active = [t for t in snapshot.trials if t.state in ("running", "interrupted")]
    active.sort(key=lambda t: t.state != "running")
    ended = sorted((t for t in snapshot.trials if t.ended), key=lambda t: -t.ended)
    bad = [_reason(t) for t in ended if t.state in BAD]
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
    """Return one line per study; of one that cannot be read, its folder and what is wrong."""

    def each(cell: Callable[[Snapshot], str | Text]) -> list[str | Text]:
        return ["" if isinstance(s, tuple) else cell(s) for s in snapshots]

    columns = [
        ("state", 0, [_state(s) for s in snapshots]),
        ("ended", 0, each(lambda s: f"{sum(t.ended > 0 for t in s.trials)} of {len(s.trials)}")),
        ("running", 1, each(lambda s: str(s.count("running") or ""))),
        ("failed", 1, each(lambda s: Text(str(s.count(*BAD) or ""), "red"))),
        ("best", 2, each(_best)),
        ("changed", 3, each(lambda s: f"{clock(now - s.changed)} ago")),
    ]
    names = [str(s[0] if isinstance(s, tuple) else s.folder) for s in snapshots]
    return _table("study", names, columns, width)


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


def _state(s: Snapshot | tuple[Path, str]) -> Text:
    return Text(s[1], "red") if isinstance(s, tuple) else Text(s.state, STYLES[s.state])


def _best(s: Snapshot) -> str:
    best = s.best()
    return f"{plain(best.metric)} {_value(best.best)}" if best else ""


def _head(s: Snapshot, now: float, cut: bool) -> list[Text]:
    """Return the lines above the tables."""
    study, question = plain(s.declared["study"]), plain(s.declared.get("question"))
    head = [Text.assemble((study, "bold"), "  ", (plain(s.folder), "dim"))]
    head += [Text(question)] if question else []
    head += [Text(line, STYLES[s.state]) for line in _state_lines(s, now)]
    head.append(_counts(s))
    times = [f"{clock(s.elapsed)} elapsed"] if s.elapsed is not None else []
    if s.state == "running" and s.left is None:
        times.append("time left not known before the first epoch")
    elif s.left:
        times.append(f"about {clock(s.left)} left")
    head += [Text(", ".join(times))] if times else []
    head += [_slots(s, cut)] if s.state == "running" else []
    best = s.best()
    if best is not None:
        trial = f" ({best.name}, epoch {best.best_epoch})"
        head.append(Text.assemble((f"best {_best(s)}", "bold"), trial))
    head += [Text(f"cannot be read: {plain(path)}", "yellow") for path in s.damaged[:3]]
    head += _more(len(s.damaged) - 3, "unreadable files")
    return head


def _counts(s: Snapshot) -> Text:
    total = Text(f"{len(s.trials)} trial{'s' * (len(s.trials) != 1)}")
    names = [*ORDER, *sorted({t.state for t in s.trials} - set(ORDER))]
    for i, name in enumerate(filter(s.count, names)):
        total.append(", " if i else ": ").append(f"{s.count(name)} {name}", STYLES.get(name, ""))
    return total


def _state_lines(s: Snapshot, now: float) -> list[str]:
    who = f"{plain(s.driver.get('host'))} pid {plain(s.driver.get('pid'))}"
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
        words = [plain(word) for word in command]
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
    return plain(named.pop()) if len(named) == 1 else "metric"


def _active_table(trials: Sequence[Trial], s: Snapshot, width: int) -> Table:
    columns = [
        ("host", 3, [t.host for t in trials]),
        ("process", 5, [t.pid for t in trials]),
        ("GPU", 4, [t.gpus for t in trials]),
        ("epoch", 0, [_progress(t) for t in trials]),
        (_metric(trials, s), 1, [_value(t.last) for t in trials]),
        ("best", 2, [_value(t.best) for t in trials]),
        ("since epoch", 0, ["" if t.quiet is None else clock(t.quiet) for t in trials]),
        ("attempt", 2, [str(t.attempt) if t.attempt > 1 else "" for t in trials]),
    ]
    return _table("trial", [t.name for t in trials], columns, width)


def _ended_table(trials: Sequence[Trial], s: Snapshot, width: int, now: float) -> Table:
    columns = [
        ("state", 0, [Text(t.state, STYLES.get(t.state, "")) for t in trials]),
        ("epochs", 2, [_progress(t) for t in trials]),
        (_metric(trials, s), 1, [_value(t.last) for t in trials]),
        ("best", 1, [_value(t.best) for t in trials]),
        ("took", 3, [clock(t.seconds) for t in trials]),
        ("ended", 2, [f"{clock(now - t.ended)} ago" for t in trials]),
    ]
    return _table("trial", [t.name for t in trials], columns, width)


def _table(first: str, names: Sequence[str], columns: Sequence[Column], width: int) -> Table:
    """Return a table whose rows take one line each, however narrow the terminal.

    Columns without content are left out; then those with the highest number go, one by one, until
    the names in the first column have room.
    """
    kept = [column for column in columns if any(map(len, column[2]))]
    longest = max(map(cell_len, [first, *names]))

    def room() -> int:
        cells = [[header, *map(str, column)] for header, _, column in kept]
        return width - sum(max(map(cell_len, column)) + 2 for column in cells)

    while room() < min(longest, NAME_WIDTH) and any(rank for _, rank, _ in kept):
        kept.remove(max(kept, key=lambda column: column[1]))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for header, _, _ in kept:
        left = header in ("host", "state")
        table.add_column(Text(header), justify="left" if left else "right", no_wrap=True)
    space = max(room(), 8)
    for name, *cells in zip(names, *(column for _, _, column in kept), strict=True):
        row = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        table.add_row(Text(shorten(plain(name), space)), *row)
    return table


def _title(text: str) -> list[Text]:
    return [Text(), Text(text, "bold", no_wrap=True, overflow="crop")]


def _more(count: int, what: str = "more") -> list[Text]:
    return [Text(f"and {count} {what}", "dim")] if count > 0 else []


def _reason(t: Trial) -> Text:
    return Text.assemble((f"{t.name} {t.state}", "red"), f": {t.error or 'no reason recorded'}")


def _progress(t: Trial) -> str:
    return f"{t.epoch} of {t.epochs}" if t.epochs is not None else str(t.epoch or "")


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _lines(text: Text, console: Console) -> int:
    return max(1, len(text.wrap(console, console.width)))
