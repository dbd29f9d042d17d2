"""How far a study is: one live line on a terminal, a line a minute in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from core.cluster.work import Listener
from core.errors import printable

LOG_EVERY = 60.0  # seconds between lines when the output is not a terminal


class Progress(Listener):
    """Counts ended, running and failed trials and the best metric so far.

    Args:
        total: trials of the study.
        done: trials that had ended before.
        metric: what is best, and `mode` "max" or "min" says which way.
        console: where lines go; standard output by default.
    """

    def __init__(
        self, total: int, done: int, metric: str, mode: str, console: Console | None = None
    ):
        self.total, self.done, self.before, self.failed = total, done, done, 0
        self.metric, self.sign = metric, 1 if mode == "max" else -1
        self.best: tuple[float, str] | None = None
        self.running: dict[str, Any] = {}
        self.console = console or Console(soft_wrap=True, highlight=False)
        self.started = self.printed = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        # FORCE_COLOR has rich take a file for a terminal; a dumb one shows no live line.
        shown = self.console.is_terminal and not self.console.is_dumb_terminal
        if shown and self.console.file.isatty():
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._text)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self.announce(self.line())

    def announce(self, text: str) -> None:
        """Print a line above the live one, as it is: rich would read "[/data]" as markup."""
        self.console.print(Text(printable(text)))

    def row(self, name: str, row: dict[str, Any]) -> None:
        """Note an epoch."""
        self.running[name] = row.get("epoch")
        self.recall(name, [row])
        self.tick()

    def recall(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Let epochs count for the best, also those of an earlier run that this one resumes."""
        values = [row[self.metric] for row in rows if row.get(self.metric) is not None]
        for value in (value for value in values if value == value):
            if self.best is None or self.sign * value > self.sign * self.best[0]:
                self.best = (value, name)

    def ended(self, name: str, state: str, error: str) -> None:
        """Note the end of a trial; a failure or an early stop gets a line of its own."""
        self.running.pop(name, None)
        self.done += 1
        if state not in ("finished", "stopped"):
            self.failed += 1
        if state != "finished":
            self.announce(f"{name} {state}: {error}")
        self.tick()

    def tick(self) -> None:
        """Print the line of a log file when it is time."""
        if self._live is None and time.monotonic() - self.printed >= LOG_EVERY:
            self.printed = time.monotonic()
            self.announce(self.line())

    def line(self) -> str:
        """Return the state of the study in one line."""
        elapsed = time.monotonic() - self.started
        ended, left = self.done - self.before, self.total - self.done
        parts = [
            f"{self.done} of {self.total} trials",
            f"{len(self.running)} running" if self.running else "",
            f"{self.failed} failed" if self.failed else "",
            _clock(elapsed),
            f"about {_clock(elapsed / ended * left)} left" if ended and left > 0 else "",
            f"best {self.metric} {self.best[0]:.4g} ({self.best[1]})" if self.best else "",
        ]
        return ", ".join(filter(None, parts))

    def _text(self) -> Text:
        return Text(printable(self.line()), no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
