"""Browse the images of a study by the score of a class, in a web browser on this machine.

    python analysis/browse.py results/voc/demo                      embedded images
    python analysis/browse.py results/voc/full --data-dir VOCdevkit photographs of your own
    python analysis/browse.py results/norms/demo                    the birds, scores per species
    python analysis/browse.py results/voc/demo --export top50       pages for a zip, no server

Needs no network and listens on 127.0.0.1 only. From another machine: start it there with
--no-open --port 8000, then `ssh -L 8000:127.0.0.1:8000 HOST` here and open the address it printed.
Everyone who is logged in on that machine can reach it while it runs.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from analysis.browser import page as ranking_page
from analysis.browser import server as ranking_server
from analysis.browser.page import Shown, View
from analysis.results import pictures
from analysis.results.folder import load
from core.errors import UserError
from core.output import patient_output
from core.storage.files import write_bytes, write_text

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer


@dataclass(frozen=True)
class Options:
    """Browse the images of a study by the score of a class.

    Attributes:
        results: a study's result folder.
        data_dir: root of the study's images; the embedded ones need none.
        trial: whose scores to show first; by default the best trial's.
        port: where the page is served on 127.0.0.1; 0: any free one.
        open: open a browser.
        export: write the top 50 and bottom 50 of each class as pages into this new folder.
    """

    results: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RESULTS")]]
    data_dir: Path | None = None
    trial: str | None = None
    port: int = 0
    open: bool = True
    export: Path | None = None


@patient_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Serve or export the page as `argv` says; return 0, or 2 when something cannot be used."""
    opts = tyro.cli(Options, args=argv, description=__doc__)
    try:
        results = load(opts.results)
        shown = Shown(results, pictures.find_root(results, opts.data_dir), opts.trial)
        if opts.export is not None:
            print(f"pages: {export(shown, opts.export)}")
            return 0
        with serving(shown, opts.port) as server:
            address = f"http://127.0.0.1:{server.port}/"
            print(f"{shown.title}: {address} (Ctrl-C ends it)", flush=True)
            if opts.open:
                webbrowser.open(address)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def serving(shown: Shown, port: int = 0) -> Iterator[BaseWSGIServer]:
    """Yield a server of the page that listens on 127.0.0.1; `serve_forever` answers.

    Raises:
        UserError: the port is taken or not allowed.
    """
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Requests without a line for each on the terminal."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    try:
        listener = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise UserError(f"--port {port}: {why}; choose another, or leave it out") from e
    with listener:
        place = listener.getsockname()
        server = make_server(
            place[0],
            place[1],
            ranking_server.make_app(shown),
            threaded=True,
            request_handler=Quiet,
            fd=listener.fileno(),
        )
        try:
            yield server
        finally:
            server.server_close()


def export(shown: Shown, folder: Path) -> Path:
    """Write pages with the top 50 and bottom 50 of each class that open without a server.

    Args:
        shown: the study; the trial it starts with is written.
        folder: made now; pages refer to each other and to `images/` relatively.

    Returns:
        The page to open first.

    Raises:
        UserError: `folder` holds something already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export {folder}: it is there already; name a new folder")
    ranked, place = shown.ranked(shown.first), shown.trials.index(shown.first)
    template = ranking_page.environment().get_template("browse.html.j2")
    css = (ranking_page.TEMPLATES / "browse.css").read_text(encoding="utf-8")
    names = [_page_name(label, name) for label, name in enumerate(ranked.classes)]
    links = [
        {"name": name, "top": f"{page}-top.html"}
        for name, page in zip(ranked.classes, names, strict=True)
    ]
    needed: set[int] = set()
    for label, page in enumerate(names):
        for order in ranking_page.ORDERS:
            view = View(shown.first, label, order)
            told = ranking_page.context(shown, view) | {
                "class_links": links,
                "top": f"{page}-top.html",
                "bottom": f"{page}-bottom.html",
            }
            needed |= {tile["number"] for tile in told["tiles"] if tile["there"]}
            text = template.render(static=True, css=_Raw(css), **told)
            write_text(folder / f"{page}-{order}.html", text)
    for number in sorted(needed):
        found = ranked.pictures.thumbnail(ranked.files[number])
        if found is not None:
            write_bytes(folder / "images" / f"{place}-{number}.jpg", found)
    first = folder / "index.html"
    write_text(first, (folder / f"{names[0]}-top.html").read_text(encoding="utf-8"))
    return first


class _Raw(str):
    """The style sheet, which is not to be escaped."""

    def __html__(self) -> str:
        return self


def _page_name(label: int, name: str) -> str:
    """Return a file name for a class that every system takes."""
    return f"{label:03d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:40] or 'class'}"


if __name__ == "__main__":
    sys.exit(main())
