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
import logging
import re
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from markupsafe import Markup

from analysis.browser.page import ORDERS, TEMPLATES, Shown, View, context
from analysis.browser.server import make_app
from analysis.command import run
from analysis.document.markup import environment
from analysis.results.folder import load
from analysis.results.pictures import find_root
from core.errors import UserError
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


def main(argv: Sequence[str] | None = None) -> int:
    """Serve or export the page as `argv` says; return 0, or 2 when something cannot be used."""
    return run(_browse, Options, __doc__, argv)


def _browse(opts: Options) -> None:
    results = load(opts.results)
    shown = Shown(results, find_root(results, opts.data_dir), opts.trial)
    if opts.export is not None:
        print(f"pages: {export(shown, opts.export)}")
        return
    with serving(shown, opts.port) as server:
        address = f"http://127.0.0.1:{server.port}/"
        print(f"{shown.title}: {address} (Ctrl-C ends it)", flush=True)
        if opts.open:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@contextlib.contextmanager
def serving(shown: Shown, port: int = 0) -> Iterator[BaseWSGIServer]:
    """Yield a server of the page that listens on 127.0.0.1; `serve_forever` answers.

    Raises UserError: the port is taken or not allowed.
    """
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise UserError(f"--port {port}: {why}; choose another, or leave it out") from e
    with listener:
        host, port = listener.getsockname()
        server = make_server(host, port, make_app(shown), threaded=True, fd=listener.fileno())
        try:
            yield server
        finally:
            server.server_close()


def export(shown: Shown, folder: Path) -> Path:
    """Write pages with the top 50 and bottom 50 of each class that open without a server.

    Raises UserError: `folder` holds something already, or cannot be written.

    Args:
        shown: the study; the trial it starts with is written.
        folder: made now; pages refer to each other and to `images/` relatively.

    Returns:
        The page to open first.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export {folder}: it is there already; name a new folder")
    ranked, place = shown.ranked(shown.first), shown.trials.index(shown.first)
    template = environment(TEMPLATES).get_template("browse.html.j2")
    css = Markup((TEMPLATES / "browse.css").read_text(encoding="utf-8"))
    pages = [_pages_of(label, name) for label, name in enumerate(ranked.classes)]
    needed: set[int] = set()
    for label, page in enumerate(pages):
        for order in ORDERS:
            told = context(shown, View(shown.first, label, order))
            needed |= {tile["number"] for tile in told["tiles"] if tile["there"]}
            told |= {"static": True, "css": css, "class_links": pages, **page}
            write_text(folder / page[order], template.render(told))
    for number in sorted(needed):
        found = ranked.pictures.thumbnail(ranked.files[number])
        if found is not None:
            write_bytes(folder / "images" / f"{place}-{number}.jpg", found)
    first = folder / "index.html"
    write_text(first, (folder / pages[0]["top"]).read_text(encoding="utf-8"))
    return first


def _pages_of(label: int, name: str) -> dict[str, str]:
    """Return a class's name and, by order, names for its files that every system takes."""
    short = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "class"
    return {"name": name, **{order: f"{label:03d}-{short}-{order}.html" for order in ORDERS}}


if __name__ == "__main__":
    sys.exit(main())
