"""Tables for people: one frame of numbers, written as CSV, Markdown, LaTeX, HTML and terminal text.

The CSV keeps the numbers in full precision; all other forms show the same rounded cells.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analysis.document import markup
from core.errors import printable
from core.storage.files import write_text

MISSING = "-"
Cell = Callable[[Mapping[Any, Any]], str]


@dataclass(frozen=True)
class Column:
    """One shown column."""

    header: str  # what stands above it, with the unit
    cell: Cell  # from a row of numbers to the text shown
    align: Literal["left", "right"] = "right"  # of numbers
    wrap: bool = False  # long text may break over lines; the column takes the width that is left


@dataclass(frozen=True)
class Table:
    """Numbers and how they are shown."""

    name: str  # file name without extension
    numbers: pd.DataFrame  # a row per line of the table
    columns: tuple[Column, ...]  # what is shown of it, left to right
    caption: str  # one line of markup (`analysis.document.markup`)
    note: str = ""  # markup below the table: n, spread, units, what is left out

    def cells(self) -> list[list[str]]:
        """The shown text, row by row."""
        return [
            [column.cell(row) for column in self.columns] for row in self.numbers.to_dict("records")
        ]

    def show(self, *headers: str) -> "Table":
        """The same table with only these columns shown, in this order."""
        by_header = {column.header: column for column in self.columns}
        return replace(self, columns=tuple(by_header[header] for header in headers))


def text(key: str, header: str, wrap: bool = False) -> Column:
    """A column of text."""
    return Column(header, lambda row: _text(row[key]), "left", wrap)


def number(key: str, header: str, digits: int = 0, scale: float = 1.0) -> Column:
    """A column of numbers times `scale`, rounded to `digits` decimals."""
    return Column(header, lambda row: decimal(row[key] * scale, digits))


def blank(key: str, column: Column) -> Column:
    """The same column with nothing in its cells where `key` is NaN."""
    return replace(column, cell=lambda row: "" if math.isnan(row[key]) else column.cell(row))


def scientific(key: str, header: str) -> Column:
    """A column of numbers over several magnitudes, in three significant digits."""
    return Column(header, lambda row: significant(row[key]))


def interval(
    mean: str,
    header: str,
    digits: int = 1,
    scale: float = 100.0,
    prefix: str | None = None,
    signed: bool = False,
) -> Column:
    """A column "mean [low, high]"; the mean alone where the interval is undefined.

    Args:
        mean: key of the middle.
        header: what stands above it, with the unit.
        digits: decimals.
        scale: factor on all three, 100 for per cent.
        prefix: of the keys of the ends, `prefix`low and `prefix`high; by default `mean`_.
        signed: with a plus before what is above 0.
    """
    before = f"{mean}_" if prefix is None else prefix
    keys = (mean, f"{before}low", f"{before}high")

    def cell(row: Mapping[Any, Any]) -> str:
        return bracketed(*(row[key] * scale for key in keys), digits=digits, signed=signed)

    return Column(header, cell)


def plus_minus(mean: str, header: str, digits: int = 1, scale: float = 100.0) -> Column:
    """A narrow column "mean ± half the interval", for symmetric intervals up to `mean`_high."""

    def cell(row: Mapping[Any, Any]) -> str:
        half = (row[f"{mean}_high"] - row[mean]) * scale
        middle = decimal(row[mean] * scale, digits)
        return middle if math.isnan(half) else f"{middle} ± {decimal(half, digits)}"

    return Column(header, cell)


def difference(mean: str, header: str, prefix: str | None = None) -> Column:
    """A column of signed differences of shares in points "+mean [low, high]"; see `interval`."""
    return interval(mean, header, prefix=prefix, signed=True)


def p_value(key: str, header: str = "p (Holm)") -> Column:
    """A column of p values in three decimals."""
    return Column(header, lambda row: show_p(row[key]))


def count_of(n: str, of: str) -> Column:
    """A column of seeds "3", or "2 of 3" where some could not be counted; "-" for NaN."""

    def cell(row: Mapping[Any, Any]) -> str:
        if math.isnan(row[n]):
            return MISSING
        return f"{row[n]:.0f}" if row[n] == row[of] else f"{row[n]:.0f} of {row[of]:.0f}"

    return Column("seeds", cell)


def published(
    rows: Iterable[Sequence[str]],
    links: str,
    caption: str = "**Other people's results**, not measured here.",
    result: Column | None = None,
) -> Table:
    """Figures of other people, for orientation.

    Args:
        rows: source, setting and result, as their authors give them.
        links: where they stand, in markup.
        caption: of the table.
        result: how results are shown, where they are no text that may wrap.
    """
    # A per cent sign stays with its number: cells are not markup, which sees to that elsewhere.
    cells = [[cell.replace(" %", "\u00a0%") for cell in row] for row in rows]
    columns = (
        text("source", "source"),
        text("setting", "setting", wrap=True),
        result or text("result", "result", wrap=True),
    )
    frame = pd.DataFrame(cells, columns=["source", "setting", "result"])
    return Table("published", frame, columns, caption, links)


def decimal(value: float, digits: int, signed: bool = False) -> str:
    """A rounded number with a real minus sign; "-" for NaN; never "-0.0"."""
    if value is None or math.isnan(value):
        return MISSING
    shown = f"{value:{'+' if signed else ''},.{digits}f}"
    if not re.search("[1-9]", shown):
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def significant(value: float) -> str:
    """A number in three significant digits, such as 0.0123, 1,000 or 7.4e-5; "-" for NaN."""
    if value is None or math.isnan(value):
        return MISSING
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        shown = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        shown = f"{float(f'{value:.3g}'):,}".removesuffix(".0")
    return shown.replace("-", "−") if value < 0 else shown


def bracketed(mean: float, low: float, high: float, digits: int = 1, signed: bool = False) -> str:
    """The text "mean [low, high]", or "mean" when the interval is undefined."""
    middle = decimal(mean, digits, signed)
    if math.isnan(low):
        return middle
    return f"{middle} [{decimal(low, digits, signed)}, {decimal(high, digits, signed)}]"


def show_p(p: float) -> str:
    """A p value in three decimals, "< 0.001" below, "-" where undefined."""
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def write(table: Table, folder: Path) -> None:
    """Write `table` as .csv (full precision), .md and .tex into `folder`."""
    write_text(folder / f"{table.name}.csv", to_csv(table.numbers))
    write_text(folder / f"{table.name}.md", to_markdown(table))
    write_text(folder / f"{table.name}.tex", to_latex(table))


def to_csv(numbers: pd.DataFrame) -> str:
    """CSV with numbers in full precision; text a spreadsheet would run as a formula is quoted."""
    return numbers.map(_csv_cell).to_csv(index=False, lineterminator="\n")


def to_markdown(table: Table) -> str:
    """GitHub's table, the caption above it and the note below."""
    rows = [[column.header for column in table.columns], *table.cells()]
    rows = [[_markdown_cell(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    right = [column.align == "right" for column in table.columns]
    rule = [(":" * side).rjust(width, "-") for width, side in zip(widths, right, strict=True)]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        places = zip(row, widths, right, strict=True)
        cells = [cell.rjust(width) if side else cell.ljust(width) for cell, width, side in places]
        lines.append(f"| {' | '.join(cells)} |")
    parts = [f"**{table.caption}**", "\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(table: Table) -> str:
    """A floating booktabs table (needs the package booktabs), everything escaped."""
    sides = "".join("r" if column.align == "right" else "l" for column in table.columns)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(markup.plain(table.caption))}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{sides}}}",
        r"    \toprule",
        _latex_row([column.header for column in table.columns]),
        r"    \midrule",
        *(_latex_row(row) for row in table.cells()),
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    if table.note:
        lines.append(rf"  \par\smallskip\footnotesize {escape_latex(markup.plain(table.note))}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def print_table(table: Table, console: Any = None) -> None:
    """Print `table` on a rich Console, by default standard output: a terminal, a pipe or a log.

    Where it is too wide, each cell gets a line of its own.
    """
    from rich.measure import Measurement
    from rich.text import Text

    console = console or _terminal()
    rows = [[printable(cell) for cell in row] for row in table.cells()]
    grid = _grid(table.columns, rows)
    # Not as the grid's own title and caption: those break lines at its width, however narrow.
    console.print(Text(printable(markup.plain(table.caption)), style="bold"))
    free = console.options.update(max_width=10_000)
    if Measurement.get(console, free, grid).minimum <= console.width:
        console.print(grid)
    else:  # rich would cut numbers in the middle, and names down to nothing
        for name, *cells in rows:
            console.print(Text(name))
            for column, cell in zip(table.columns[1:], cells, strict=True):
                console.print(Text(f"  {column.header}: {cell}"))
    if table.note:
        console.print(Text(printable(markup.plain(table.note))))


def _grid(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Any:
    """What rich prints; Text throughout, as it would read "[bold]" in a class name as markup."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, *cells in zip(columns, *rows, strict=True):
        needed = None if column.wrap else max(map(cell_len, (column.header, *cells)))
        shown = Text(column.header)
        grid.add_column(shown, justify=column.align, no_wrap=not column.wrap, min_width=needed)
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _terminal() -> Any:
    """A rich Console on standard output, 100 columns wide where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=100, highlight=False)


def escape_latex(words: str) -> str:
    """Replace what LaTeX would read as a command, and signs that its fonts lack."""
    return "".join(_LATEX.get(sign, sign) for sign in printable(words).replace("\n", " "))


_LATEX = {
    **{sign: f"\\{sign}" for sign in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "\u00a0": "~",
}


def _latex_row(cells: Iterable[str]) -> str:
    return "    " + " & ".join(escape_latex(cell) for cell in cells) + r" \\"


def _markdown_cell(words: str) -> str:
    return printable(words).replace("\n", " ").replace("\\", "\\\\").replace("|", "\\|")


def _csv_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return f"'{value}" if value[:1] in "=+-@\t\r" and len(value) > 1 else value
    return repr(value.item() if hasattr(value, "item") else value)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return str(value) or MISSING
