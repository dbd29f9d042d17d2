"""What the reports of several studies say and draw alike of the arms that they compare.

An arm is one choice of what a study compares, a norm or a learning rate; its trials differ in their
seeds. Tables of arms hold `n`, the trials that count, and `of`, all of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, Literal, ParamSpec

import pandas as pd

from analysis.document import figures, tables
from analysis.document.report import Figure
from analysis.results import statistics
from analysis.results.folder import Results, train_metric

P = ParamSpec("P")
NO_RESULT = "**No trial has finished, so there is no result yet.**"
NO_ANSWER = "No trial has finished: nothing can be answered yet."


def ranked(numbers: pd.DataFrame) -> pd.DataFrame:
    """The arms with a trial that counts."""
    return numbers[numbers["n"] > 0] if len(numbers) else numbers


def most_seeds(numbers: pd.DataFrame) -> int:
    """How many trials count in the arm with the most."""
    return int(numbers["n"].max()) if len(numbers) else 0


def spread(numbers: pd.DataFrame) -> str:
    """What the cells of a table of arms mean, for its note."""
    several = most_seeds(numbers) > 1
    return "mean [95 % t interval] over seeds" if several else "one seed, no interval"


def in_order(table: pd.DataFrame, **orders: Sequence[Any]) -> pd.DataFrame:
    """The rows by these columns, each in the order of its values that is given."""
    places = {key: {value: n for n, value in enumerate(order)} for key, order in orders.items()}
    ordered = table.sort_values([*orders], key=lambda column: column.map(places[str(column.name)]))
    return ordered.reset_index(drop=True)


def lead(trials: pd.DataFrame, by: str, metric: str, one: Any, other: Any) -> pd.Series:
    """The difference of two arms, `one` minus `other`, as a row of `statistics.paired`."""
    return statistics.paired(trials[trials[by].isin([one, other])], by, metric, other).iloc[0]


def against(
    trials: pd.DataFrame,
    by: str,
    metric: str,
    baseline: Any,
    within: Mapping[str, Sequence[Any]],
    states: Sequence[str] = statistics.FINISHED,
) -> pd.DataFrame:
    """Differences to one arm, at each value of another setting by itself.

    Args:
        trials: a row per trial.
        by: config column with the arms.
        metric: column to compare.
        baseline: the arm that the others are compared with.
        within: the other setting and its values; empty where there is none.
        states: which trials count.

    Returns:
        The rows of `statistics.paired` with that setting, named as in `statistics.DIFFERENCE`, with
        Holm's correction over all of them.
    """
    paired = functools.partial(statistics.paired, by=by, metric=metric, baseline=baseline)
    found = [
        paired(trials[trials[key] == value], states=states).assign(**{key: value})
        for key, values in within.items()
        for value in values
    ]
    both = pd.concat(found or [paired(trials, states=states)], ignore_index=True)
    both["p_holm"] = statistics.holm(both["p"].to_numpy(dtype=float))
    return both.drop(columns="std").rename(columns=statistics.DIFFERENCE)


def texts(*keys: str) -> list[tables.Column]:
    """Columns of text under their own names."""
    return [tables.text(key, key) for key in keys]


def shares(digits: int = 1, /, **headers: str) -> list[tables.Column]:
    """Columns of shares in per cent: of each key its header, without the unit."""
    return [tables.number(k, f"{header} (%)", digits, 100.0) for k, header in headers.items()]


def numbers(**headers: str) -> list[tables.Column]:
    """Columns of whole numbers: of each key its header."""
    return [tables.number(key, header) for key, header in headers.items()]


def cut(table: tables.Table, most: int) -> tables.Table:
    """The first rows of a table, with how many more its file holds."""
    rest = len(table.numbers) - most
    note = f"{rest} more are in tables/{table.name}.csv." if rest > 0 else table.note
    return replace(table, numbers=table.numbers.head(most), note=note)


def capital(words: str) -> str:
    """The words with their first letter as at the start of a sentence."""
    return words[:1].upper() + words[1:]


def train_column(history: pd.DataFrame, metric: str) -> tuple[str, str]:
    """The column of a training metric, and "training" or "running training" as it was measured."""
    column = train_metric(history, metric)
    return column, "running training" if column.endswith("_running") else "training"


Drawn = tuple[Any, str]  # a figure and its caption
Width = Literal["full", "half"]


def saved(
    results: Results, figure: Any, name: str, caption: str, alt: str, width: Width = "full"
) -> Figure:
    """A drawn figure, written into figures/ of the study."""
    return Figure(figures.save(figure, results.path / "figures", name), caption, alt, width)


def drawn(
    name: str, alt: str, width: Width = "full"
) -> Callable[
    [Callable[Concatenate[Results, P], Drawn]], Callable[Concatenate[Results, P], Figure]
]:
    """From a function that draws a study's figure and says its caption, one that also saves it.

    It draws in house style, whoever calls it; `name`, `alt` and `width` are as those of `saved`.
    """

    def decorate(
        draw: Callable[Concatenate[Results, P], Drawn],
    ) -> Callable[Concatenate[Results, P], Figure]:
        @functools.wraps(draw)
        def inside(results: Results, *args: P.args, **kwargs: P.kwargs) -> Figure:
            with figures.house_style():
                figure, caption = draw(results, *args, **kwargs)
                return saved(results, figure, name, caption, alt, width)

        return inside

    return decorate


def dotted(
    trials: pd.DataFrame, by: str, columns: Mapping[str, str], order: Sequence[Any], **layout: Any
) -> tuple[Any, list[str]]:
    """A panel of `figures.dots` for each of these columns that was measured, and their labels."""
    shown = {c: label for c, label in columns.items() if c in trials and trials[c].notna().any()}
    figure, axes = figures.panels(max(1, len(shown)), **layout)
    for panel, (column, label) in zip(axes, shown.items(), strict=False):
        figures.dots(panel, trials, by, order, column, label)
    return figure, list(shown.values())
