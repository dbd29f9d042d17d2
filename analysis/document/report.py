"""A report as data, written as one self-contained HTML page and as a PDF of a few pages.

Both forms are made from the same blocks: `Text`, `Table` (`analysis.document.tables`), `Figure`,
`Equation`, `Code`. The PDF comes from typst with its own fonts, so neither form needs a network,
a browser or anything installed on the machine, and the same results give the same bytes.
"""

import base64
import json
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.document import figures, markup
from analysis.document.tables import Table
from core.errors import printable
from core.storage.files import remove, write_bytes, write_text

MAX_PAGES = 10
BOX = "\u25a1"  # stands in the PDF for a character that none of its fonts has
_TEMPLATES = Path(__file__).parent / "templates"
_SIGNS = """#set document(title: "signs")
#set text(font: "Libertinus Serif")
#for sign in json("signs.json") [#sign ]
"""


@dataclass(frozen=True)
class Text:
    """Paragraphs and lists in the markup of `analysis.document.markup`."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    path: Path  # an .svg, .png or .jpg file
    caption: str  # markup; says what is shown, n and seeds
    alt: str  # what the picture tells, for those who cannot see it
    width: Literal["full", "half"] = "full"  # of the text; two halves in a row stand side by side


@dataclass(frozen=True)
class Equation:
    """A formula in Matplotlib's TeX subset, with its reading in words as `alt`."""

    tex: str
    alt: str


@dataclass(frozen=True)
class Code:
    """Text shown as it is, in a fixed-width font."""

    text: str


Block = Text | Table | Figure | Equation | Code


@dataclass(frozen=True)
class Section:
    """A heading in plain text and what stands under it, top to bottom."""

    title: str
    blocks: tuple[Block, ...]
    # May be left out of the PDF, from the last such section on, when it gets too long.
    optional: bool = False


def section(title: str, *blocks: Block | str | None, optional: bool = False) -> Section | None:
    """A section of what there is of `blocks`, strings as `Text`; None where there is nothing."""
    kept = [Text(block) if isinstance(block, str) else block for block in blocks if block]
    return Section(title, tuple(kept), optional) if kept else None


@dataclass(frozen=True)
class Report:
    """Title, question, warnings and sections."""

    title: str  # plain text
    question: str  # what the study asks, markup
    sections: tuple[Section, ...]  # top to bottom
    banners: tuple[str, ...] = ()  # warnings above everything, markup (as of synthetic data)
    footer: str = ""  # one line of markup at the end


class _Files(dict[str, bytes]):
    """Pictures of a report by short names."""

    def add(self, data: bytes, suffix: str) -> str:
        name = f"picture-{len(self) + 1}{suffix}"
        self[name] = data
        return name


def write(report: Report, path: Path, max_pages: int = MAX_PAGES, name: str = "report") -> None:
    """Write `name`.html and `name`.pdf into the folder `path`.

    The PDF is set smaller, then loses optional sections, then pictures and tables from the end,
    until it has `max_pages` or is as short as it gets; it says what is in the HTML only.

    The HTML is what counts: where no PDF can be made of it, that is said on the terminal, and a
    study that has run is not lost for it.
    """
    files = _Files()
    document = _document(report, files)
    write_text(path / f"{name}.html", _html(document, files))
    try:
        pdf = _pdf(document, files, max_pages)
    except RuntimeError as e:  # of typst, as for a picture that it cannot read
        remove(path / f"{name}.pdf")  # it would be of an earlier report
        first = printable(str(e).partition("\n")[0])
        print(f"no {name}.pdf ({first}): {name}.html holds all of it", file=sys.stderr)
        return
    write_bytes(path / f"{name}.pdf", pdf)


def page_count(pdf: bytes) -> int:
    """Number of pages of a PDF made by `write`."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def _document(report: Report, files: _Files) -> dict[str, Any]:
    numbers: Counter[str] = Counter()
    sections = []
    for index, section in enumerate(report.sections, start=1):
        blocks: list[dict[str, Any]] = []
        for block in section.blocks:
            _append(blocks, _block(block, files, numbers))
        told = {"title": section.title, "id": f"s{index}", "optional": section.optional}
        sections.append({**told, "blocks": blocks})
    document = {
        "title": report.title,
        "question": markup.spans(report.question),
        "banners": [markup.spans(banner) for banner in report.banners],
        "sections": sections,
        "footer": markup.spans(report.footer),
    }
    # Neither a page nor a PDF may hold control characters.
    return each_text(document, printable)


def each_text(content: Any, change: Callable[[str], str]) -> Any:
    """What a JSON file holds with every text in it changed."""
    if isinstance(content, dict):
        return {key: each_text(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [each_text(value, change) for value in content]
    return change(content) if isinstance(content, str) else content


def _append(blocks: list[dict[str, Any]], block: dict[str, Any]) -> None:
    """Add a block; half-width pictures that follow each other share a row."""
    last = blocks[-1] if blocks else {}
    if (
        block["kind"] == last.get("kind") == "figures"
        and block["width"] == last["width"] == "half"
        and len(last["items"]) < 2
    ):
        last["items"] += block["items"]
    else:
        blocks.append(block)


def _block(block: Block, files: _Files, numbers: Counter[str]) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"kind": "text", "nodes": markup.blocks(block.text)}
    if isinstance(block, Code):
        return {"kind": "code", "text": block.text}
    if isinstance(block, Equation):
        source = files.add(figures.equation(block.tex).encode(), ".svg")
        return {"kind": "equation", "file": source, "alt": block.alt}
    if isinstance(block, Figure):
        item = {
            "file": files.add(block.path.read_bytes(), block.path.suffix.lower()),
            "name": _numbered("Figure", numbers),
            "caption": markup.spans(block.caption),
            "alt": block.alt,
        }
        return {"kind": "figures", "width": block.width, "items": [item]}
    return {
        "kind": "table",
        "name": _numbered("Table", numbers),
        "caption": markup.spans(block.caption),
        "note": markup.spans(block.note),
        "headed": any(column.header for column in block.columns),
        **{key: [getattr(c, key) for c in block.columns] for key in ("header", "align", "wrap")},
        "rows": block.cells(),
    }


def _numbered(kind: str, numbers: Counter[str]) -> str:
    numbers[kind] += 1
    return f"{kind} {numbers[kind]}"


def _html(document: dict[str, Any], files: _Files) -> str:
    from markupsafe import Markup

    def picture(name: str, alt: str) -> Markup:
        data = files[name]
        if name.endswith(".svg"):
            return Markup(_inline_svg(data.decode(), Path(name).stem, alt))
        kind = "png" if name.endswith(".png") else "jpeg"
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return Markup('<img src="{}" alt="{}">').format(source, alt)

    environment = markup.environment(_TEMPLATES, keep_trailing_newline=True)
    return environment.get_template("report.html.j2").render(document=document, picture=picture)


def _inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of the page: own ids, no prolog, no style sheet that leaks out."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    # Matplotlib breaks paths into a line per point; as one line the page is a third smaller.
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def _pdf(document: dict[str, Any], files: _Files, max_pages: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="labtune-report-") as folder:
        root = Path(folder)
        typ = (_TEMPLATES / "report.typ").read_bytes()
        for name, data in {**files, "report.typ": typ}.items():
            (root / name).write_bytes(data)
        pdf = b""
        for attempt in _shorter(_drawable(document, root)):
            (root / "report.json").write_text(json.dumps(attempt, sort_keys=True), "utf-8")
            pdf = _compile(root / "report.typ")
            if page_count(pdf) <= max_pages:
                break
    return pdf


def _drawable(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """Put a box in place of each character that no font of the PDF has, which typst refuses."""
    text = json.dumps(document, ensure_ascii=False)
    unusual = sorted({sign for sign in text if not sign.isascii()})
    changed = {ord(sign): BOX for sign in _without_font(unusual, root)}
    # Some signs can be drawn alone and not together, as a digit in a keycap: the marks go.
    marked = {word.translate(changed) for word in text.split() if any(map(_is_mark, word))}
    for word in _without_font(sorted(marked), root):
        changed |= {ord(sign): "" for sign in filter(_is_mark, word)}
    drawn = each_text(document, lambda words: words.translate(changed))
    return {**drawn, "boxes": BOX if changed else ""}


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign) in ("Mn", "Me", "Cf")


def _without_font(signs: list[str], root: Path) -> list[str]:
    """Those of `signs` that typst cannot draw: it names only the first, so they are halved."""
    if not signs:
        return []
    (root / "signs.json").write_text(json.dumps(signs))
    (root / "signs.typ").write_text(_SIGNS)
    try:
        _compile(root / "signs.typ")
        return []
    except RuntimeError:  # typst's own is one
        half = len(signs) // 2
        if not half:
            return signs
        return _without_font(signs[:half], root) + _without_font(signs[half:], root)


def _compile(file: Path) -> bytes:
    import typst

    # With the standard, typst refuses a picture without alt text, and a sign that no font has.
    how: dict[str, Any] = {"ignore_system_fonts": True, "pdf_standards": ["ua-1"]}
    return typst.compile(str(file), root=str(file.parent), format="pdf", **how)


def _shorter(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document, then ever shorter forms of it, each with a list of what it leaves out."""
    yield {**document, "size": 10, "omitted": []}
    yield {**document, "size": 9, "omitted": []}
    sections, omitted = document["sections"], []
    for gone in [section for section in reversed(sections) if section["optional"]]:
        sections = [section for section in sections if section is not gone]
        omitted = [f"section “{gone['title']}”", *omitted]
        yield {**document, "sections": sections, "size": 9, "omitted": omitted}
    blocks = [block for section in sections for block in section["blocks"]]
    for gone in [block for block in reversed(blocks) if block["kind"] in ("figures", "table")]:
        sections = [
            {**section, "blocks": [block for block in section["blocks"] if block is not gone]}
            for section in sections
        ]
        omitted = [*(item["name"] for item in gone.get("items", [gone])), *omitted]
        yield {**document, "sections": sections, "size": 9, "omitted": omitted}


def join(words: Sequence[object]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    shown = [str(word) for word in words]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
