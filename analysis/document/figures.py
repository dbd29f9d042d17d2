"""Figures in one style: sized as printed, text of 8 points, colours safe for the colour-blind.

Each norm has one colour and marker in every figure of every study. Matplotlib is loaded when the
first figure is made: importing this module stays quick.
"""

import functools
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.results.statistics import FINISHED, t_interval
from core.errors import printable
from core.storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches on an A4 page with 18 mm margins: the whole text width, and half of it less the gutter.
FULL, HALF = 6.85, 3.3


class Style(NamedTuple):
    """Colour, marker and line width (points) of one category."""

    color: str
    marker: str
    width: float = 1.3


# Okabe & Ito's palette (jfly.uni-koeln.de/color) without its yellow, too pale for a line on white.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "v", "D", "P", "X")
NORM_STYLES = {
    # Wide, because bn runs on top of it: it shows as a black rim.
    "torch_bn": Style("#000000", "X", 3.0),
    "bn": Style("#0072B2", "o"),
    "in": Style("#E69F00", "s"),
    "bin": Style("#D55E00", "D"),
    "ln": Style("#009E73", "^"),
    "gn": Style("#CC79A7", "v"),
    "none": Style("#56B4E9", "P"),
}

_RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    **dict.fromkeys(("font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("axes.titlesize", "axes.labelsize"), 8.5),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "axes.prop_cycle": f"cycler('color', {list(_PALETTE)})",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "svg.hashsalt": "labtune",  # the ids in an SVG come from this, not from a random number
    "svg.fonttype": "path",
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for everything drawn inside, none of the user's; restored after."""
    with matplotlib().rc_context():
        matplotlib().rcdefaults()
        matplotlib().rcParams.update(_RC)
        yield


styled = house_style()  # decorates functions that draw: in house style, whoever calls them


@functools.cache
def matplotlib() -> Any:
    """Matplotlib, loaded without the backend of a notebook or window, of which it may know none."""
    backend = os.environ.pop("MPLBACKEND", None)
    if os.path.expanduser("~") == "~":  # no home: it then takes a temporary folder
        os.environ.setdefault("MPLCONFIGDIR", os.devnull)
    try:
        import matplotlib as loaded
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return loaded


# Without these four an SVG carries no date and no program version: the same bytes every time.
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def styles(values: Iterable[Any]) -> dict[Any, Style]:
    """A style for each value: fixed for norms, by position for other categories.

    Pass all values of a grid key, so that a figure of some of them keeps their colours. After seven
    values the colours repeat with the next marker.
    """
    others = (
        Style(color, _MARKERS[(index + turn) % len(_MARKERS)])
        for turn in itertools.count()
        for index, color in enumerate(_PALETTE)
    )
    return {value: NORM_STYLES.get(value) or next(others) for value in values}


@styled
def panels(
    columns: int = 1, rows: int = 1, width: float = FULL, height: float = 2.2, **subplots: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure of `rows` x `columns` axes in house style; sizes in inches as printed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)


@styled
def save(figure: "Figure", folder: Path, name: str) -> Path:
    """Write `name`.svg, whose path is returned, and .png (160 dpi): the same bytes every time."""
    svg, png = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a box is drawn where the font lacks one
        figure.savefig(svg, format="svg", metadata=_NO_METADATA)
        figure.set_layout_engine("none")  # keep the layout just found: it takes a second
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    write_bytes(folder / f"{name}.png", png.getvalue())
    write_bytes(folder / f"{name}.svg", svg.getvalue())
    return folder / f"{name}.svg"


@styled
def curve(
    axes: "Axes",
    history: pd.DataFrame,
    y: str,
    style: Style,
    *,
    label: str | None = None,
    linestyle: str = "-",
    scale: float = 1.0,
    states: Sequence[str] = FINISHED,
) -> None:
    """Draw one group of trials: mean line over seeds and a band around it.

    The band is the 95 % t interval from three seeds on, the range of two, none for one. The line
    ends where the first of the seeds ends, so that its mean is always over the same trials. Trials
    in other states (diverged, failed, unfinished) are thin lines of their own that end in a cross.

    Args:
        axes: where to draw.
        history: rows of this group only: trial, state, epoch, `y`.
        y: metric column.
        style: colour and marker.
        label: name in the legend.
        linestyle: "-" for validation, "--" for training by the house's habit.
        scale: factor on `y`, 100 for per cent.
        states: trials that count for the mean.
    """
    counted = history["state"].isin(states)
    wide = history[counted].pivot(index="epoch", columns="trial", values=y).dropna() * scale
    look = {"color": style.color, "linewidth": style.width, "marker": style.marker}
    marks = {"markevery": max(1, len(wide) // 8), "markeredgewidth": 0}
    # No legend entry without a line, where no trial of the group has finished.
    name = label if len(wide) else None
    axes.plot(wide.index, wide.mean(axis=1), linestyle, label=name, **look, **marks)
    if wide.shape[1] > 1 and len(wide):
        low, high = _band(wide)
        axes.fill_between(wide.index, low, high, color=style.color, alpha=0.13, linewidth=0)
    for _, broken in history[~counted].groupby("trial", sort=False):
        known = broken[np.isfinite(broken[y].astype(float))]
        x, values = known["epoch"], known[y].astype(float) * scale
        axes.plot(x, values, linestyle, color=style.color, linewidth=0.7)
        axes.plot(x.tail(1), values.tail(1), "x", color=style.color)


@styled
def curves(
    shown: Iterable[tuple[str, pd.DataFrame, str]],
    by: str,
    order: Sequence[Any],
    ylabel: str,
    *,
    scale: float = 1.0,
    height: float = 2.25,
    look: Mapping[Any, Style] | None = None,
    label: Callable[[Any], str] = str,
    columns: int = 7,
    dashed: str = "train_",
) -> "Figure":
    """Curves of several groups in panels side by side, one legend below.

    Args:
        shown: of each panel its title, its rows (one per trial and epoch, with `state`) and the
            metric column.
        by: column that tells the groups apart.
        order: its values, in the order of the legend.
        ylabel: what is shown, with its unit.
        scale: factor on the values, 100 for per cent.
        height: inches.
        look: styles by value instead of `styles(order)`.
        label: from a value to its name in the legend.
        columns: of the legend, at most.
        dashed: how the names of metrics begin whose lines are dashed.
    """
    shown, look = list(shown), look or styles(order)
    figure, axes = panels(len(shown), height=height, sharey=True)
    for panel, (title, rows, metric) in zip(axes, shown, strict=True):
        line = "--" if metric.startswith(dashed) else "-"
        for value in order:
            group, style = rows[rows[by] == value], look[value]
            if len(group):
                name = label(value)
                curve(panel, group, metric, style, label=name, linestyle=line, scale=scale)
        panel.set_title(title, loc="left")
        whole_numbers(panel, "epoch")
    axes[0].set_ylabel(ylabel)
    fit_to_lines(axes[0], np.concatenate([rows[metric] for _, rows, metric in shown]), scale)
    fullest = max(reversed(axes), key=lambda panel: len(panel.get_legend_handles_labels()[1]))
    legend_below(figure, fullest, min(len(order), columns))
    return figure


def splits(
    history: pd.DataFrame, metrics: Mapping[str, str], by: str
) -> list[tuple[str, pd.DataFrame, str]]:
    """What `curves` draws for {column: title}: a panel per column, with how many seeds it holds."""
    seen = seeds_text(history, by)
    seen = f" ({seen})" if seen else ""
    return [(f"{title}{seen}", history, metric) for metric, title in metrics.items()]


def fit_to_lines(axes: "Axes", values: np.ndarray | pd.Series, scale: float = 1.0) -> None:
    """Limit the vertical axis to the measured values: a wide band must not flatten all curves."""
    values = np.asarray(values, dtype=float) * scale
    values = values[np.isfinite(values)]
    if len(values):
        low, high = values.min(), np.quantile(values, 0.995)
        room = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)


def whole_numbers(axes: "Axes", label: str) -> None:
    """Name the horizontal axis and tick it at integers only (epochs, updates)."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def named_rows(axes: "Axes", names: Sequence[str], **text: Any) -> None:
    """Name the rows of a figure of horizontal bars, from the top down."""
    axes.set_yticks(range(len(names)), names, **text)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


@styled
def legend_below(figure: "Figure", axes: "Axes", columns: int) -> None:
    """Put the legend of one panel under the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        place: Any = {"loc": "outside lower center", "ncols": columns}
        figure.legend(handles, labels, **place, handlelength=2.4, columnspacing=1.4)


@styled
def dots(
    axes: "Axes",
    trials: pd.DataFrame,
    by: str,
    order: Sequence[Any],
    metric: str,
    label: str,
    scale: float = 1.0,
) -> None:
    """A row per group: every seed a dot, the mean a bar; the axis starts at 0.

    Args:
        axes: where to draw.
        trials: a row per trial, with `state`.
        by: column that tells the groups apart.
        order: its values, top to bottom.
        metric: column to show.
        label: name of the horizontal axis, with the unit.
        scale: factor on the values.
    """
    for row, (value, style) in enumerate(styles(order).items()):
        group = trials[(trials[by] == value) & trials["state"].isin(FINISHED)]
        values = group[metric].dropna().to_numpy(dtype=float) * scale
        if len(values):
            rows, color = np.full(len(values), row), style.color
            axes.barh(row, values.mean(), color=color, alpha=0.3, height=0.6)
            axes.plot(values, rows, style.marker, color=color, linestyle="none")
    named_rows(axes, [literal(value) for value in order])
    axes.set_xlim(left=0)
    axes.set_xlabel(label)


@styled
def heatmap(
    axes: "Axes",
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    show: Callable[[float], str],
    *,
    low: float | None = None,
    high: float | None = None,
    label: str = "",
) -> None:
    """A matrix as coloured cells with their numbers; NaN stays white and says "n/a".

    Args:
        axes: where to draw.
        matrix: (len(rows), len(columns)).
        rows: names, top to bottom.
        columns: names, left to right.
        show: from a number to the text in its cell.
        low: number of the lightest colour.
        high: number of the darkest colour.
        label: name of the colour bar, with the unit; none without it.
    """
    # cividis runs from dark to light in lightness alone, so it also works without colour.
    image = axes.imshow(matrix, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    bottom, top = image.get_clim()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(rows)), [literal(name) for name in rows])
    axes.set_xticks(range(len(columns)), [literal(name) for name in columns])
    axes.xaxis.tick_top()
    for (row, column), value in np.ndenumerate(matrix):
        dark = math.isfinite(value) and value < bottom + 0.55 * (top - bottom)
        words = show(value) if math.isfinite(value) else "n/a"
        axes.text(column, row, words, ha="center", va="center", color="white" if dark else "black")
    if label:
        axes.figure.colorbar(image, ax=axes, label=label, fraction=0.03, pad=0.01)


@styled
def equation(tex: str) -> str:
    r"""An SVG of a formula in Matplotlib's TeX subset, such as y = \frac{x - \mu}{\sigma}."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["mathtext.fontset"] = "stix"
    figure = Figure(figsize=(0.1, 0.1))
    figure.text(0, 0, f"${tex}$", fontsize=12.0)
    buffer, tight = io.BytesIO(), {"bbox_inches": "tight", "pad_inches": 0.03}
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True, **tight)
    return buffer.getvalue().decode()


def literal(name: object) -> str:
    """Make a name that comes from data stand for itself: Matplotlib reads `$...$` as a formula."""
    return printable(name).replace("$", r"\$")


def seeds_text(table: pd.DataFrame, by: str, states: Sequence[str] = FINISHED) -> str:
    """How many trials each group holds: "n = 3 seeds", or "n = 2 to 3 seeds" when they differ."""
    counted = table[table["state"].isin(states)].groupby(by)["trial"].nunique()
    counted = counted.reindex(table[by].unique(), fill_value=0)
    if not len(counted):
        return ""
    low, high = int(counted.min()), int(counted.max())
    if low != high:
        return f"n = {low} to {high} seeds"
    return f"n = {low} seed" + ("s" if low != 1 else "")


def band_text(table: pd.DataFrame, by: str | list[str], states: Sequence[str] = FINISHED) -> str:
    """A sentence for captions: what line and band of `curve` mean for this table."""
    counted = set(table[table["state"].isin(states)].groupby(by)["trial"].nunique())
    if max(counted, default=0) <= 1:
        return "One seed: no band."
    band = "the range of both" if max(counted) == 2 else "95 % t interval"
    two = " (of two seeds: their range)" if 2 in counted and max(counted) > 2 else ""
    return f"Line: mean over seeds; band: {band}{two}."


def _band(wide: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    if wide.shape[1] < 3:
        return wide.min(axis=1).to_numpy(), wide.max(axis=1).to_numpy()
    ends = np.array([(i.low, i.mean, i.high) for i in map(t_interval, wide.to_numpy())])
    low, mean, high = ends.T
    # No interval where all seeds agree: the band closes there, rather than have a hole.
    return np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
