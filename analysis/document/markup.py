"""The little markup of report texts, parsed once for HTML, PDF and plain text.

`**bold**`, `` `code` ``, `[text](https://...)`; a blank line starts a paragraph, lines that start
with "- " are a list. A backslash takes the meaning from the next character; `escape` does that for
text that comes from data (class names, error messages).
"""

import re
from pathlib import Path
from typing import Any

_INLINE = re.compile(
    r"\\(?P<literal>[\\*`\[\]])"
    r"|\*\*(?P<strong>(?:[^*\\]|\\.)+?)\*\*"
    r"|`(?P<code>[^`]+)`"
    r"|\[(?P<label>[^\]]+)\]\((?P<href>https?://[^\s)]+)\)"
)

Span = dict[str, str]


def spans(text: str) -> list[Span]:
    """Split one line of markup into pieces {"kind": text | strong | code | link, "text": ...}."""
    pieces: list[Span] = []
    end = 0
    for match in _INLINE.finditer(text):
        _add(pieces, "text", text[end : match.start()])
        end = match.end()
        if match["literal"]:
            _add(pieces, "text", match["literal"])
        elif match["strong"]:
            _add(pieces, "strong", re.sub(r"\\(.)|`", r"\1", match["strong"]))
        elif match["code"]:
            _add(pieces, "code", match["code"])
        else:
            pieces.append({"kind": "link", "text": match["label"], "href": match["href"]})
    _add(pieces, "text", text[end:])
    return pieces


def blocks(text: str) -> list[dict[str, Any]]:
    """Split a text into {"kind": "paragraph", "spans"} and {"kind": "list", "items"}."""
    found: list[dict[str, Any]] = []
    for chunk in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in chunk.splitlines()]
        if lines and all(line.startswith("- ") for line in lines):
            found.append({"kind": "list", "items": [spans(line[2:]) for line in lines]})
        elif any(lines):
            found.append({"kind": "paragraph", "spans": spans(" ".join(lines))})
    return found


def plain(text: str) -> str:
    """The words of a line of markup without its marks."""
    return "".join(piece["text"] for piece in spans(text))


def escape(text: object) -> str:
    """Make `text` stand for itself inside markup, on one line."""
    return re.sub(r"([\\*`\[\]])", r"\\\1", " ".join(str(text).split()))


def environment(templates: Path, **options: Any) -> Any:
    """Jinja's environment for the pages in a folder: everything from data is escaped."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _add(pieces: list[Span], kind: str, text: str) -> None:
    if not text:
        return
    if kind != "code":
        text = text.replace(" %", "\u00a0%")  # a number and its per cent sign stay on one line
    if pieces and kind == "text" and pieces[-1]["kind"] == "text":
        pieces[-1]["text"] += text
    else:
        pieces.append({"kind": kind, "text": text})
