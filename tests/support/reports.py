"""What a report of a result folder says: its words, its tables."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path


def words_of(folder: Path) -> str:
    """Return the text of report.html without tags, on one line."""
    page = (folder / "report.html").read_text()
    text = re.sub(r"<[^>]+>", "", re.sub(r"<(svg|style).*?</\1>", "", page, flags=re.S))
    return " ".join(html.unescape(text).split())


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of tables/<name>.csv as they are written."""
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))
