"""The two written forms of a report: self-contained, escaped, accessible, at most ten pages."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.document import figures, markup, tables
from analysis.document import report as reports
from analysis.document.provenance import duration, relative, wrap_command
from analysis.document.report import Code, Equation, Figure, Report, Section, Text
from tests.support.reports import assert_self_contained


@pytest.fixture
def picture(tmp_path):
    figure, (axes,) = figures.panels(width=figures.HALF, height=2.0)
    axes.set_xlabel("updates")
    return figures.save(figure, tmp_path, "picture")


@pytest.fixture
def everything(picture, tmp_path):
    Image.new("RGB", (60, 20), "red").save(tmp_path / "photo.jpg")
    frame = pd.DataFrame({"name": ["<b>&", "x"], "value": [1.5, float("nan")]})
    columns = (tables.text("name", "<i>"), tables.number("value", "v", 2))
    blocks = (
        Text("**Bold** `code_x` <script>alert(1)</script> #hash $x$ *y*\n\n- one\n- two"),
        tables.Table("t", frame, columns, "Cap <u>", "See [paper](https://arxiv.org/abs/1)."),
        Equation(r"y = \frac{a}{b}", "y is a over b"),
        Code("python x.py --a '<b>' #c"),
        Figure(picture, "left", 'quoted "alt" <x>', "half"),
        Figure(picture, "right", "other", "half"),
        Figure(tmp_path / "photo.jpg", "photo", "a red field"),
    )
    return Report("Title <t>", "Question?", (Section("One & two", blocks),), ("**Warn**",), "end")


def test_both_forms_are_whole_escaped_and_the_same_bytes_each_time(everything, tmp_path):
    for folder in ("one", "two"):
        reports.write(everything, tmp_path / folder)
    html, pdf = ((tmp_path / "one" / f"report.{form}").read_bytes() for form in ("html", "pdf"))
    assert html == (tmp_path / "two" / "report.html").read_bytes()
    assert pdf == (tmp_path / "two" / "report.pdf").read_bytes()
    html = html.decode()
    page = assert_self_contained(html)
    assert "<script>alert" not in html
    for words in ("&lt;script&gt;alert(1)", "<strong>Bold</strong>", "prefers-color-scheme: dark",
                  "@media print"):  # fmt: skip
        assert words in html
    assert page.links == ["#main", "#s1", "https://arxiv.org/abs/1"]
    assert [image["alt"] for image in page.named("img")] == ["a red field"]
    labels = [svg["aria-label"] for svg in page.named("svg")]
    assert labels == ["y is a over b", 'quoted "alt" <x>', "other"]
    assert pdf.startswith(b"%PDF-") and b"/StructTreeRoot" in pdf and b"Title <t>" in pdf
    assert reports.page_count(pdf) == 1


def test_a_long_report_loses_optional_sections_then_pictures(picture, tmp_path):
    words = "word " * 400
    blocks = (Text(words), Figure(picture, "c", "a"))
    sections = tuple(Section(f"Part {n}", blocks, optional=n in (1, 9)) for n in range(1, 16))
    long = Report("Long", "q", sections)
    reports.write(long, tmp_path)
    assert reports.page_count((tmp_path / "report.pdf").read_bytes()) <= reports.MAX_PAGES
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 15
    document = reports._document(long, reports._Files())
    shorter = list(reports._shorter(document))
    assert shorter[2]["omitted"] == ["section “Part 9”"]
    assert shorter[3]["omitted"] == ["section “Part 1”", "section “Part 9”"]
    assert "Figure 15" in shorter[4]["omitted"]


def test_a_text_too_long_for_the_pages_is_written_all_the_same(tmp_path):
    long = Report("L", "q", (Section("S", (Text("word " * 9000),)),))
    reports.write(long, tmp_path, max_pages=1)
    assert reports.page_count((tmp_path / "report.pdf").read_bytes()) > 1


NAMES = (
    "中文鸟", "قطة صغيرة", "😀🐕", "👨\u200d👩\u200d👧", "हिन्दी", "z\u0334\u031balgo", "a$b$c",
    "<b>&", "esc\x1b[31mred", "\x07bell", "left\u202eright", "x|y`z*", "two\nlines", "~#^_{}%",
)  # fmt: skip


def test_names_in_any_script_cost_at_most_their_glyphs(tmp_path, capsys):
    """Of classes, files or messages, in every place of a report."""
    frame = pd.DataFrame({"name": NAMES, "value": range(len(NAMES))})
    columns = (tables.text("name", "class"), tables.number("value", "n"))
    caption, note = markup.escape(NAMES[0]), markup.escape("esc\x1b[31mred")
    table = tables.Table("t", frame, columns, caption, note)
    figure, (axes,) = figures.panels()
    names = [figures.literal(name) for name in NAMES]
    figures.heatmap(axes, np.eye(len(NAMES)), list(NAMES), list(NAMES), str)
    picture = figures.save(figure, tmp_path, "picture")
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    every = markup.escape(" ".join(NAMES))
    text = Text(f"**{markup.escape(NAMES[2])}** {every}")
    blocks = (text, table, Code("\n".join(NAMES)), Figure(picture, every, every))
    sections = (Section("esc\x1b[31mred", blocks),)
    reports.write(Report(NAMES[0], every, sections, (every,), every), tmp_path)
    assert reports.page_count((tmp_path / "report.pdf").read_bytes()) >= 1
    html = (tmp_path / "report.html").read_text()
    for shown in ("中文鸟", "قطة صغيرة", "👨\u200d👩\u200d👧", r"esc\x1b[31mred", r"\x07bell"):
        assert shown in html
    assert not set(html) & {"\x1b", "\x07", "\u202e"}
    assert capsys.readouterr().err == ""
    tables.write(table, tmp_path)
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(NAMES) + 2
    tables.print_table(table)
    assert "\x1b[31m" not in capsys.readouterr().out


def test_what_no_font_has_is_a_box_and_said_once(tmp_path):
    document = reports._document(Report("t", "bird 鸟 − dog 🐕", ()), reports._Files())
    drawn = reports._drawable(document, tmp_path)
    assert drawn["question"] == [{"kind": "text", "text": "bird □ − dog □"}]
    assert drawn["boxes"] == reports.BOX
    plain = reports._document(Report("t", "bird − 5 %", ()), reports._Files())
    assert reports._drawable(plain, tmp_path) == {**plain, "boxes": ""}


def test_a_picture_that_typst_cannot_read_costs_the_pdf_alone(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "report.pdf").write_bytes(b"of an earlier report")
    blocks = (Figure(tmp_path / "broken.png", "c", "a"),)
    reports.write(Report("T", "q", (Section("S", blocks),)), tmp_path)
    assert (tmp_path / "report.html").is_file() and not (tmp_path / "report.pdf").exists()
    error = capsys.readouterr().err
    assert error.startswith("no report.pdf (") and error.endswith("report.html holds all of it\n")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a **b** `c`", ["text", "strong", "text", "code"]),
        ("[x](https://a.b/c)", ["link"]),
        ("[x](javascript:alert)", ["text"]),
        (r"\*\*a\*\* \`b\`", ["text"]),
        ("torch_bn * 3", ["text"]),
    ],
)
def test_markup_kinds(text, kinds):
    assert [piece["kind"] for piece in markup.spans(text)] == kinds


def test_escaped_text_stands_for_itself_and_blocks_are_told_apart():
    for text in ("**x** `y` [a](https://b.c)", r"a\b *c* [d]", "plain"):
        assert markup.spans(markup.escape(text)) == [{"kind": "text", "text": text}]
    found = markup.blocks("one\ntwo\n\n- a\n- **b**\n\nlast")
    assert [block["kind"] for block in found] == ["paragraph", "list", "paragraph"]
    assert found[0]["spans"] == [{"kind": "text", "text": "one two"}]
    assert len(found[1]["items"]) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/birds", "…/birds"), ("--data-dir=/home/me/data", "--data-dir=…/data"),
        ("cannot read '/a/b c.jpg', gone", "cannot read '…/b c.jpg', gone"),
        (r"C:\Users\me\x.jpg", "…/x.jpg"), ("~/data/x", "…/x"),
        ("train/Hoopoe/x.jpg and/or 1/2", "train/Hoopoe/x.jpg and/or 1/2"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"), ("images/s", "images/s"),
    ],
)  # fmt: skip
def test_absolute_paths_are_cut(text, shown):
    assert relative(text) == shown


def test_commands_wrap_and_durations_read_well():
    wrapped = wrap_command(["python", "x.py", *(f"--set=a{n}" for n in range(30)), "two words"])
    assert all(line.endswith(" \\") for line in wrapped.splitlines()[:-1])
    assert len(wrapped.splitlines()) > 2 and "'two words'" in wrapped
    spans = {3.21: "3.2 s", 48.4: "48 s", 200: "3 min 20 s", 7500: "2 h 5 min"}
    assert [duration(seconds) for seconds in spans] == list(spans.values())
