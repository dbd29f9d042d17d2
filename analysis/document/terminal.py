"""A running study drawn as lines of a terminal."""

import shlex
from collections.abc import Sequence
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
        bad = s.count(*BAD)
        names.append(str(s.folder))
        rows.append(
            (
                Text(s.state, STYLES[s.state]),
                f"{sum(t.ended > 0 for t in s.trials)} of {len(s.trials)}",
                str(s.count("running") or ""),
                Text(str(bad or ""), "red"),
                f"{plain(best.metric)} {_value(best.best)}" if best else "",
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


def _head(s: Snapshot, now: float, cut: bool) -> list[Text]:
    """Return the lines above the tables."""
    study, question = plain(s.declared["study"]), plain(s.declared.get("question"))
    head = [Text.assemble((study, "bold"), "  ", (plain(s.folder), "dim"))]
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
        text = f"best {plain(best.metric)} {_value(best.best)}"
        head.append(Text.assemble((text, "bold"), f" ({best.name}, epoch {best.best_epoch})"))
    head += [Text(f"cannot be read: {plain(path)}", "yellow") for path in s.damaged[:3]]
    head += _more(len(s.damaged) - 3, "unreadable files")
    return head


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
    return named.pop() if len(named) == 1 else "metric"


def _active_table(trials: Sequence[Trial], s: Snapshot, width: int) -> Table:
    metric = plain(_metric(trials, s))
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
        (plain(_metric(trials, s)), 1),
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
        short = Text(shorten(plain(name), max(room(), 8)))
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
