"""How far a study is, from the files of its result folder alone.

    python analysis/watch.py results/norms/demo   one study, refreshed until it is done
    python analysis/watch.py results              the study below that changed last
    python analysis/watch.py results --all        a line for each study below
    python analysis/watch.py results --once       print it once (all rows with: | less)

Any machine that sees the folder will do: neither Ray nor the cluster is asked. Ctrl-C ends the
view and leaves the study alone.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

import analysis  # noqa: F401  before core, so that it is ours
from analysis.document.terminal import overview, view
from analysis.results.snapshot import Files, Snapshot, find_studies, look, plain
from core.errors import UserError


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


def main(argv: Sequence[str] | None = None) -> int:
    """Watch as `argv` says; return 0, or 2 when there is nothing to watch."""
    opts = tyro.cli(Options, args=argv, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        _watch(opts)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _watch(opts: Options) -> None:
    if not 0.1 <= opts.every <= 3600:
        raise UserError(f"--every {opts.every}: give seconds from 0.1 to 3600")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a question may hold what LANG=C cannot print
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # a file has no edge to cut names at
    seen = _pictures(opts, console)
    content, done = next(seen)
    if not opts.once and not done and console.is_terminal and not console.is_dumb_terminal:
        # On a screen of its own: a window that is resized leaves no torn lines behind.
        live = Live(content, console=console, screen=True, auto_refresh=False)
        try:  # `with` would not give the terminal back after a Ctrl-C while it is taken
            live.start(refresh=True)
            while not done:
                time.sleep(opts.every)
                content, done = next(seen)
                live.update(content, refresh=True)
        except KeyboardInterrupt:
            pass  # what was last seen stays on the terminal
        finally:
            live.stop()
    console.print(content)


def _pictures(opts: Options, console: Console) -> Iterator[tuple[RenderableType, bool]]:
    """Yield what to show at the time, and whether it will not change any more."""
    folders, files, declared = find_studies(opts.results), Files(), None
    below = Text(f"\n{len(folders)} studies below {plain(opts.results)}: --all lists them", "dim")
    note = [below] if len(folders) > 1 else []
    while True:
        now = time.time()
        if opts.all and len(folders) > 1:
            studies = [_try_look(folder, files, now) for folder in folders]
            done = all(isinstance(s, tuple) or s.state == "done" for s in studies)
            yield overview(studies, console.width, now), done
            continue
        latest = look(folders[0], files, now, declared)
        declared = latest.declared
        height = console.height - 1 - 2 * len(note) if console.is_terminal else None
        yield Group(view(latest, console, now, height), *note), latest.state == "done"


def _try_look(folder: Path, files: Files, now: float) -> Snapshot | tuple[Path, str]:
    try:
        return look(folder, files, now)
    except UserError:
        return folder, "study.json is missing or damaged"


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
