"""Cells, and the written forms of a table."""

import csv
import io
import math

import pandas as pd
import pytest

from analysis.document import tables
from tests.support.reports import assert_says, printed

NAN = float("nan")


@pytest.fixture
def table():
    numbers = pd.DataFrame(
        {
            "name": ["a|b_%", "=SUM(A1)", None], "mean": [0.8123456789012345, 0.5, NAN],
            "low": [0.8, NAN, NAN], "high": [0.8246913578024690, NAN, NAN], "n": [3, 1, 0],
            "of": [3, 3, 3],
        }
    )  # fmt: skip
    accuracy = tables.interval("mean", "accuracy (%)", prefix="")
    columns = (tables.text("name", "what"), tables.count_of("n", "of"), accuracy)
    return tables.Table("demo", numbers, columns, "A **caption** & more", "n as `given`")


ROW = {"d": 0.012, "d_low": -0.001, "d_high": 0.025, "p": 0.0004}


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (tables.decimal(1234.567, 1), "1,234.6"), (tables.decimal(-0.04, 1), "0.0"),
        (tables.decimal(-0.04, 1, True), "0.0"), (tables.decimal(0.26, 1, True), "+0.3"),
        (tables.decimal(-2.0, 1, True), "−2.0"), (tables.decimal(NAN, 1, True), "-"),
        (tables.significant(1000.4), "1,000"), (tables.significant(0.1), "0.1"),
        (tables.significant(0.012345), "0.0123"), (tables.significant(7.41e-5), "7.4e-5"),
        (tables.significant(1e-4), "1e-4"), (tables.significant(0.0), "0"),
        (tables.significant(-0.5), "−0.5"), (tables.significant(NAN), "-"),
        (tables.difference("d", "x").cell(ROW), "+1.2 [−0.1, +2.5]"),
        (tables.plus_minus("d", "x").cell(ROW), "1.2 ± 1.3"),
        (tables.plus_minus("d", "x").cell({**ROW, "d_high": NAN}), "1.2"),
        (tables.p_value("p").cell(ROW), "< 0.001"),
        (tables.p_value("p").cell({"p": 0.05}), "0.050"),
        (tables.p_value("p").cell({"p": NAN}), "-"),
    ],
)  # fmt: skip
def test_other_cells(found, shown):
    assert found == shown


def test_csv_keeps_every_digit_and_defuses_formulas(table):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(table.numbers))))
    assert float(rows[0]["mean"]) == 0.8123456789012345
    assert rows[1]["name"] == "'=SUM(A1)"
    assert rows[1]["low"] == ""
    assert rows[0]["n"] == "3"


def test_cells_and_markdown(table):
    assert tables.to_markdown(table) == (
        "**A **caption** & more**\n\n"
        "| what     |  seeds |      accuracy (%) |\n"
        "| -------- | -----: | ----------------: |\n"
        "| a\\|b_%   |      3 | 81.2 [80.0, 82.5] |\n"
        "| =SUM(A1) | 1 of 3 |              50.0 |\n"
        "| -        | 0 of 3 |                 - |\n\n"
        "n as `given`\n"
    )
    assert table.show("accuracy (%)", "what").cells()[1] == ["50.0", "=SUM(A1)"]


def test_latex_is_booktabs_and_escaped(table):
    tex = tables.to_latex(table)
    assert r"\caption{A caption \& more}" in tex
    assert r"\begin{tabular}{lrr}" in tex
    assert r"    a|b\_\% & 3 & 81.2 [80.0, 82.5] \\" in tex
    assert r"accuracy (\%)" in tex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tex.count(rule) == 1
    assert tables.escape_latex("−1 ± 2 {#$&~^\\}") == (
        r"$-$1 $\pm$ 2 \{\#\$\&\textasciitilde{}\textasciicircum{}\textbackslash{}\}"
    )


def test_terminal_shows_cells_literally_within_the_width(table):
    numbers = pd.DataFrame({"name": ["[bold]x[/bold]"], "mean": [math.pi / 4]})
    columns = (tables.text("name", "[red]what"), tables.number("mean", "m", 2))
    shown = printed(tables.Table("t", numbers, columns, "cap", "note " * 30))
    assert_says("\n".join(shown), "[bold]x[/bold]", "[red]what", "0.79")
