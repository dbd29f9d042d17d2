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
from collections.abc import Sequence
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
            below = f"\n{len(folders)} studies below {plain(opts.results)}: --all lists them"
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


if __name__ == "__main__":
    sys.exit(main())
