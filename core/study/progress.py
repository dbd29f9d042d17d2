"""How far a study is: one live line on a terminal, a line a minute in a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from core.cluster.work import Listener
from core.errors import FULL, printable

LOG_EVERY = 60.0  # seconds between lines when the output is not a terminal
PLAIN = str.maketrans(
    {"−": "-", "–": "-", "…": "...", "±": "+-", "×": "x", "’": "'", "“": '"', "”": '"'}
)


class Patient:
    """A text stream that ends nothing: what cannot be written is left out.

    Its reader may have left (`| head`), its terminal have closed, its disk be full, its encoding
    lack a sign.

    Args:
        stream: the stream, such as `sys.stdout`.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # signs that the encoding lacks, as with LANG=C
            encoding = self._stream.encoding
            self.write(text.translate(PLAIN).encode(encoding, "replace").decode(encoding))
        except OSError as e:
            self._drop(e)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self._stream.flush()
        except OSError as e:
            self._drop(e)

    def settle(self) -> None:
        """Flush for the last time; what is left would end the interpreter with an error."""
        try:
            self._stream.flush()
        except OSError:
            self._close()

    def _drop(self, error: OSError) -> None:
        if error.errno not in FULL:  # there may be room again later
            self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Let nothing that happens to standard output or error end what runs inside."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file opened would get what is written to it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    streams = [Patient(s or open(os.devnull, "w")) for s in (sys.stdout, sys.stderr)]  # noqa: SIM115
    out, err = (cast(TextIO, stream) for stream in streams)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for stream in streams:
            stream.settle()


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
