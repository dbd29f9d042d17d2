"""What a report of a result folder says: its words, its tables; and that it is whole."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.document import figures, tables
from analysis.document import report as reports
from core.storage.files import write_text
from tests.support.calls import ROOT


def words_of(folder: Path) -> str:
    """Return the text of report.html without tags, on one line."""
    page = (folder / "report.html").read_text().replace("</td>", " ").replace("</th>", " ")
    text = re.sub(r"<[^>]+>", "", re.sub(r"<(svg|style).*?</\1>", "", page, flags=re.S))
    return " ".join(html.unescape(text).split())


@contextlib.contextmanager
def blank_figures() -> Iterator[None]:
    """Have every figure saved as an empty one of its size: drawing is most of a report's time."""

    def blank(figure, place: Path, name: str) -> Path:
        width, height = 72 * figure.get_size_inches()
        size = f'width="{width}pt" height="{height}pt" viewBox="0 0 {width} {height}"'
        for form in ("png", "svg"):
            path = place / f"{name}.{form}"
            write_text(path, f'<svg xmlns="http://www.w3.org/2000/svg" {size}></svg>')
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", blank)
        yield


def told(report: Callable[[Path], object], folder: Path, pdf: bool = False) -> str:
    """Make a report with blank figures, and an empty PDF if it is not asked for; return its words.

    A report that fits no ten pages is set again and again, which takes as long as all the rest.
    """
    with blank_figures(), pytest.MonkeyPatch.context() as patch:
        if not pdf:
            patch.setattr(reports, "_pdf", lambda *_: b"")
        report(folder)
    return words_of(folder)


def assert_says(words: str, *sentences: str, never: str = "") -> None:
    """Check that a text holds each of these sentences, and not `never`."""
    assert [sentence for sentence in sentences if sentence not in words] == []
    assert not never or never not in words


def printed(table: tables.Table) -> list[str]:
    """Return the lines of a table printed 100 columns wide, having checked that it fits them."""
    out = io.StringIO()
    tables.print_table(table, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    return lines


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of tables/<name>.csv as they are written."""
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def table_of(folder: Path, name: str) -> pd.DataFrame:
    """Return tables/<name>.csv with numbers as such."""
    return pd.read_csv(folder / "tables" / f"{name}.csv")


class Page(HTMLParser):
    """Collects tags, addresses and ids of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.loaded, self.links, self.ids = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.loaded += [found[key] for key in ("src", "srcset", "data", "poster") if key in found]
        if "href" in found or "xlink:href" in found:
            address = found.get("href", found.get("xlink:href"))
            (self.links if tag == "a" else self.loaded).append(address)
        if "id" in found:
            self.ids.append(found["id"])

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def assert_self_contained(html: str) -> Page:
    """No request leaves the page, ids are unique, pictures and tables are labelled."""
    page = Page(html)
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert all(address.startswith(("#", "https://")) for address in page.links)
    assert not page.named("script")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.named("h1")) == len(page.named("main")) == len(page.named("title")) == 1
    assert page.named("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.named("svg"))
    assert all("scope" in cell for cell in page.named("th"))
    for address in page.links:
        assert not address.startswith("#") or address[1:] in page.ids
    return page


def assert_whole(folder: Path, written: str, drawn: str, equations: int = 0) -> None:
    """Check what a report wrote: every form, short, self-contained, no name of this machine.

    Args:
        folder: the result folder.
        written: names of all tables.
        drawn: names of all figures.
        equations: how many the page shows beside them.
    """
    for kind, names, forms in (("tables", written, "csv md tex"), ("figures", drawn, "svg png")):
        found = {file.name for file in (folder / kind).iterdir()}
        assert found == {f"{name}.{form}" for name in names.split() for form in forms.split()}
    page = assert_self_contained((folder / "report.html").read_text())
    assert len(page.named("svg")) == len(drawn.split()) + equations
    assert 1 < reports.page_count((folder / "report.pdf").read_bytes()) <= 10
    files = [*folder.glob("report.*"), *folder.glob("tables/*"), *folder.glob("figures/*")]
    for file in files:
        for path in (str(folder), str(ROOT), "/home/someone"):
            assert path.encode() not in file.read_bytes(), file.name
