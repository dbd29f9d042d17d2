"""The report of the adaptation study: what a shift costs, and what new batch statistics win back.

Everything comes from study.json, trials.csv and predictions/ of one result folder; only the figure
of corrupted photographs needs the images, and is left out where they are not at hand.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.document import figures, provenance, tables
from analysis.document import report as reports
from analysis.document.markup import escape
from analysis.document.report import Block, Figure, Section, section
from analysis.document.words import answered, count
from analysis.results import statistics
from analysis.results.folder import Results, load_predictions, private
from analysis.results.recomputed import Recomputed
from analysis.studies.adaptation import answers
from core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN = "clean"
# What a part may compare, also beside its own question (`--part updates --set batch_size=8,64`).
SETTINGS = ("corruption", "severity", "method", "num_bn_updates", "batch_size", "order")
Z = 1.959963984540054  # of a two-sided 95 % interval
# AlexNet's errors summed over severities and divided by 5, by which ImageNet-C is normed
# (Hendrycks & Dietterich 2019, code of AugMix).
ALEXNET = {
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
}


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf of the study, print its headline."""
    found = all_tables(results)
    sections, title = _sections(results, found), "Adapting batch norm to shifted images"
    provenance.publish(results, title, sections, list(found.values()), [headline(found)])


def headline(found: Mapping[str, tables.Table]) -> tables.Table:
    """The table that a study prints at its end."""
    if "severity" in found:
        shown = ("without (%)", "with (%)", "gain (points)")
        short = found["severity"].show("corruption", "severity", *shown)
        return replace(short, note=short.note.replace(" Loss in nats.", ""))
    return next(iter(found.values()))


def all_tables(results: Results) -> dict[str, tables.Table]:
    """Every table of the parts that have finished trials, the most important first."""
    makers: dict[str, tuple[str, Callable[..., tables.Table | None]]] = {
        "severity": ("severity", severity_table),
        "corruptions": ("severity", corruption_table),
        "updates": ("updates", sweep_table),
        "batch_size": ("batch-size", sweep_table),
        "methods": ("methods", method_table),
        "clean": ("clean", clean_table),
        "stream": ("stream", stream_table),
    }
    found = {}
    for name, (part, make) in makers.items():
        trials = finished(results, part)
        table = None if trials.empty else make(results, trials)
        if table is not None:
            found[name] = table
    return found or {"trials": _trial_table(results)}


def finished(results: Results, part: str) -> pd.DataFrame:
    """Trials of a part that have a result."""
    trials = results.trials
    if "acc_adapted" not in trials:
        return trials.iloc[:0]
    return trials[(trials["part"] == part) & trials["state"].isin(statistics.FINISHED)]


def wilson(right: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927), right of n."""
    p = right / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (p * (1 - p) / n + Z**2 / (4 * n**2)) ** 0.5
    return middle - half, middle + half


def paired_interval(gained: float, lost: float, n: float) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same n images (Agresti & Min 2005).

    Args:
        gained: images right only after, on average over seeds.
        lost: images right only before.
        n: all images.
    """
    gained, lost, n = gained + 0.5, lost + 0.5, n + 2  # half an image more in each of four cells
    middle = (gained - lost) / n
    half = Z * ((gained + lost) / n - middle**2) ** 0.5 / n**0.5
    return middle - half, middle + half


def told_apart(trials: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """`by`, and the settings beside it in which these trials differ: no mean goes over those."""
    return [*by, *(k for k in SETTINGS if k not in by and trials[k].nunique() > 1)]


def cell_numbers(trials: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy without and with adaptation, and gain, a row per combination of `told_apart`.

    Returns:
        the settings that tell rows apart, seeds, n (images); acc_unadapted, acc_adapted, gain, each
        with low and high over images; loss_unadapted, loss_adapted (nats), updates. Means over
        seeds: the images are the same for all of them.
    """
    rows = []
    by = told_apart(trials, by)
    for values, group in trials.groupby(by, sort=False):
        keys = ("n", "right_unadapted", "right_adapted", "gained", "lost", "updates")
        mean = {key: float(group[key].astype(float).mean()) for key in keys}
        losses = {k: float(group[k].astype(float).mean()) for k in _LOSSES}
        row = dict(zip(by, values, strict=True)) | {"seeds": group["seed"].nunique()}
        rows.append(row | _shares(mean) | losses | {"updates": mean["updates"]})
    return pd.DataFrame(rows)


_LOSSES = ("loss_unadapted", "loss_adapted")


def _shares(mean: Mapping[str, float]) -> dict[str, Any]:
    n = mean["n"]
    found: dict[str, Any] = {"n": int(n)}
    for name in ("unadapted", "adapted"):
        low, high = wilson(mean[f"right_{name}"], n)
        found[f"acc_{name}"] = mean[f"right_{name}"] / n
        found |= {f"acc_{name}_low": low, f"acc_{name}_high": high}
    low, high = paired_interval(mean["gained"], mean["lost"], n)
    gain = (mean["gained"] - mean["lost"]) / n
    return found | {"gain": gain, "gain_low": low, "gain_high": high}


def severity_numbers(results: Results) -> pd.DataFrame:
    """The corruption x severity table, clean images first; empty where the part was not run."""
    trials = finished(results, "severity")
    if trials.empty:
        return pd.DataFrame()
    numbers = cell_numbers(trials, ("corruption", "severity"))
    clean = trials[trials["corruption"] != CLEAN]
    if "clean_right_adapted" not in clean or clean["clean_right_adapted"].isna().all():
        return numbers
    # Every cell reports the clean images under its own settings: once per seed is enough.
    own = [k for k in numbers if k in SETTINGS[2:]]
    clean = clean.dropna(subset=["clean_right_adapted"]).drop_duplicates(["seed", *own])
    keys = ("right_unadapted", "right_adapted", "gained", "lost")
    renamed = clean.assign(
        **{key: clean[f"clean_{key}"] for key in keys},
        loss_unadapted=np.nan,
        loss_adapted=np.nan,
        corruption=CLEAN,
        severity=0,
    )
    first = cell_numbers(renamed, ("corruption", "severity"))
    return pd.concat([first, numbers], ignore_index=True)


def corruption_errors(results: Results) -> tuple[pd.DataFrame, str]:
    """Errors per corruption over its severities, relative to a reference, and its name.

    The reference is AlexNet where the model tells ImageNet's classes apart, else the source model
    itself without adaptation. Only corruptions with all five severities have a corruption error.
    """
    cells = severity_numbers(results)
    if cells.empty:
        return pd.DataFrame(), ""
    imagenet = len(results.data.get("classes", ())) == 1000
    rows = []
    by = ["corruption", *(k for k in cells if k in SETTINGS[2:])]
    for values, group in cells[cells["corruption"] != CLEAN].groupby(by, sort=False):
        name = values[0]
        errors = {k: 1 - group[f"acc_{k}"].mean() for k in ("unadapted", "adapted")}
        row = dict(zip(by, values, strict=True)) | {"severities": len(group)}
        row |= {f"error_{k}": value for k, value in errors.items()}
        reference = ALEXNET.get(str(name), np.nan) if imagenet else errors["unadapted"]
        if len(group) < 5 or not reference:
            reference = np.nan
        rows.append(row | {f"ce_{k}": value / reference for k, value in errors.items()})
    return pd.DataFrame(rows), "AlexNet" if imagenet else "the source model without adaptation"


def layer_changes(results: Results, trial: str) -> pd.DataFrame:
    """Change of the statistics per layer: layer, shift, ratio (see `core.shift.adaptation`)."""
    told = results.trials.set_index("trial").loc[trial].get("bn_change")
    rows = json.loads(told) if isinstance(told, str) else []
    return pd.DataFrame(rows, columns=["layer", "shift", "ratio"])


def recomputed(results: Results) -> str:
    """A sentence on accuracies computed again from the stored scores."""
    stored = results.with_predictions(statistics.FINISHED)
    if not stored:
        return "No scores are stored, so the accuracies could not be computed again."
    checked, reported = Recomputed(), results.trials.set_index("trial")
    for trial in stored:
        scores = load_predictions(results.path, trial)
        again = float((scores.scores.argmax(1) == scores.labels).mean())
        checked.compare(trial, {"acc_adapted": again}, reported.loc[trial])
    worst = checked.largest()
    if worst > 1e-9:
        return (
            f"**Accuracies computed again from the stored scores differ from those reported by up "
            f"to {worst:.2g}: the scores do not belong to this table.**"
        )
    return (
        f"Computed again from the stored scores of {count(len(stored), 'trial')}, the "
        "accuracies with adaptation are those reported."
    )


def _cells_shown(with_losses: bool = False) -> list[tables.Column]:
    columns = [
        tables.interval("acc_unadapted", "without (%)"),
        tables.interval("acc_adapted", "with (%)"),
        tables.difference("gain", "gain (points)"),
    ]
    if with_losses:
        columns.append(tables.number("loss_unadapted", "loss without", 2))
        columns.append(tables.number("loss_adapted", "loss with", 2))
    return columns


def severity_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """The main table: tables/severity."""
    numbers, method = severity_numbers(results), trials.iloc[0]
    how = (
        f"{int(method['num_bn_updates'])} updates of {int(method['batch_size'])} images"
        if method["method"] == "running"
        else f"method {method['method']}"
    )
    return tables.Table(
        "severity",
        numbers,
        (*_setting_columns(numbers), *_cells_shown(with_losses=True)),
        f"Accuracy without and with adaptation ({how}), clean images first.",
        f"{int(numbers['n'].max()):,} images, {count(numbers['seeds'].max(), 'seed')}; in brackets "
        "95 % intervals over images (Wilson; gain: Agresti & Min for matched pairs). Loss in nats.",
    )


def corruption_table(results: Results, trials: pd.DataFrame) -> tables.Table | None:
    """Errors per corruption: tables/corruptions."""
    numbers, reference = corruption_errors(results)
    if numbers.empty:
        return None
    columns = (
        *_setting_columns(numbers),
        tables.number("error_unadapted", "error without (%)", 1, 100.0),
        tables.number("error_adapted", "error with (%)", 1, 100.0),
        tables.number("ce_unadapted", "CE without", 1, 100.0),
        tables.number("ce_adapted", "CE with", 1, 100.0),
    )
    return tables.Table(
        "corruptions",
        numbers,
        columns,
        "Mean error over severities, and corruption error (CE).",
        f"CE: the errors of all five severities over those of the reference, {reference}, in per "
        "cent.",
    )


def sweep_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Accuracy against one setting, mean over seeds: tables/updates and tables/batch_size."""
    updates = trials["part"].iloc[0] == "updates"
    key, header = ("num_bn_updates", "updates") if updates else ("batch_size", "batch size")
    numbers = _over_seeds(trials, [key])
    columns = (
        *_cell_columns(numbers, key),
        tables.number(key, header),
        tables.count_of("n", "of"),
        tables.interval("mean", "with (%)", prefix=""),
        tables.difference("gain", "gain (points)"),
    )
    cell = reports.join(_cells_of(trials))
    fixed, word = ("batch_size", "batches of") if updates else ("num_bn_updates", "updates:")
    held = ", ".join(str(value) for value in sorted(trials[fixed].unique()))
    return tables.Table(
        key.replace("num_bn_", ""),
        numbers,
        columns,
        f"Accuracy against {header} ({cell}; {word} {held}).",
        f"Mean over seeds [95 % t interval]; unadapted {_unadapted_text(numbers)}.",
    )


def method_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Every method under every corruption: tables/methods."""
    numbers = cell_numbers(trials, ("corruption", "severity", "method"))
    keys = [k for k in told_apart(trials, ("corruption", "method")) if k in numbers]
    return tables.Table(
        "methods",
        numbers,
        (*_setting_columns(numbers[keys]), *_cells_shown()),
        f"Methods at severity {_listed(trials['severity'])}.",
        "In brackets 95 % intervals over images.",
    )


def clean_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Every method on clean images: tables/clean."""
    numbers = cell_numbers(trials, ("method",))
    return tables.Table(
        "clean",
        numbers,
        (*_setting_columns(numbers), *_cells_shown(with_losses=True)),
        "Clean images.",
        f"{int(numbers['n'].max()):,} images; in brackets 95 % intervals over images. Loss: nats.",
    )


def stream_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Methods under orders of the images: tables/stream."""
    numbers = _over_seeds(trials, ["method", "order"])
    columns = (
        *_cell_columns(numbers, "method", "order"),
        tables.text("method", "method"),
        tables.text("order", "order of the images"),
        tables.count_of("n", "of"),
        tables.interval("mean", "accuracy (%)", prefix=""),
    )
    return tables.Table(
        "stream",
        numbers,
        columns,
        f"What the order of the images does ({reports.join(_cells_of(trials))}; batches of "
        f"{_listed(trials['batch_size'])}).",
        f"Mean over seeds [95 % t interval]; unadapted {_unadapted_text(numbers)}. Sorted: by "
        "class. Dirichlet: classes in bursts.",
    )


def _trial_table(results: Results) -> tables.Table:
    columns = (tables.text("trial", "trial"), tables.text("state", "state"))
    return tables.Table(
        "trials", results.trials[["trial", "state"]], columns, "No trial has finished."
    )


def _over_seeds(trials: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean over seeds of accuracy and gain with t intervals, in the order of the trials.

    Returns:
        corruption, severity, `keys` and what else tells rows apart; mean, low, high, std of
        acc_adapted, n, of; gain with low and high; acc_unadapted.
    """
    by = told_apart(trials, ["corruption", "severity", *keys])
    numbers = trials[by].drop_duplicates()
    found = {}
    for metric in ("acc_adapted", "gain", "acc_unadapted"):
        found[metric] = statistics.compare(trials, by, metric)
    gains = found["gain"][[*by, "mean", "low", "high"]]
    gains.columns = [*by, "gain", "gain_low", "gain_high"]
    plain = found["acc_unadapted"][[*by, "mean"]].rename(columns={"mean": "acc_unadapted"})
    for table in (found["acc_adapted"], gains, plain):
        numbers = numbers.merge(table, on=by, how="left")
    return numbers


def first_cell(table: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """The rows that share with the first one every setting but `axes`."""
    keys = [key for key in SETTINGS if key in table and key not in axes]
    return table[(table[keys] == table[keys].iloc[0]).all(axis=1)]


def _cell_columns(numbers: pd.DataFrame, *axes: str) -> list[tables.Column]:
    """Columns of the settings beside `axes`, where there are several cells."""
    if len(first_cell(numbers, *axes)) == len(numbers):
        return []
    return _setting_columns(numbers.drop(columns=list(axes)))


def _setting_columns(numbers: pd.DataFrame) -> list[tables.Column]:
    """A column for each setting that is among those of `numbers`."""
    names = {"num_bn_updates": "updates", "batch_size": "batch size"}
    return [
        (tables.number if is_numeric_dtype(numbers[key]) else tables.text)(key, names.get(key, key))
        for key in SETTINGS
        if key in numbers
    ]


def _unadapted_text(numbers: pd.DataFrame) -> str:
    cells = numbers.drop_duplicates(["corruption", "severity"])
    if len(cells) == 1:
        return _percent(cells["acc_unadapted"].iloc[0])
    told = zip(_cells_of(cells), cells["acc_unadapted"], strict=True)
    return reports.join([f"{_percent(value)} ({name})" for name, value in told])


def _percent(fraction: float) -> str:
    return f"{tables.decimal(fraction * 100, 1)} %"  # in a note that Markdown shows as it is


def _cells_of(trials: pd.DataFrame) -> list[str]:
    cells = trials[["corruption", "severity"]].drop_duplicates()
    return [answers.cell(row) for _, row in cells.iterrows()]


def _listed(values: pd.Series) -> str:
    return reports.join(sorted(values.unique()))


@figures.styled
def heat_figures(results: Results) -> list[Figure]:
    """Corruption x severity: accuracy without and with, and gain."""
    cells = severity_numbers(results)
    cells = cells[cells["corruption"] != CLEAN] if len(cells) else cells
    if len(cells) < 2:
        return []
    cells = first_cell(cells, "corruption", "severity")
    wide = {
        key: cells.pivot(index="corruption", columns="severity", values=key).reindex(
            cells["corruption"].unique()
        )
        * 100
        for key in ("acc_unadapted", "acc_adapted", "gain")
    }
    names = [str(name).replace("_", " ") for name in wide["gain"].index]
    severities = [str(s) for s in wide["gain"].columns]
    both = np.concatenate([wide["acc_unadapted"].to_numpy(), wide["acc_adapted"].to_numpy()])
    low, high = float(np.nanmin(both)), float(np.nanmax(both)) + 1e-9  # all may be equal
    figure, axes = figures.panels(3, height=0.75 + 0.21 * len(names))
    titles = ("accuracy without (%)", "accuracy with (%)", "gain (points)")
    for panel, key, title in zip(axes, wide, titles, strict=True):
        signed = key == "gain"
        figures.heatmap(
            panel,
            wide[key].to_numpy(),
            names if panel is axes[0] else [""] * len(names),
            severities,
            _signed if signed else "{:.0f}".format,
            low=None if signed else low,
            high=None if signed else high,
        )
        panel.set_title(title, loc="left")
    path = figures.save(figure, results.path / "figures", "severity")
    return [
        Figure(
            path,
            "Accuracy without and with adaptation, and gain, per corruption (rows) and severity "
            f"(columns); {int(cells['n'].max()):,} images a cell, "
            f"{count(cells['seeds'].max(), 'seed')}.",
            "Three heat maps of corruption by severity: accuracy without adaptation, with it, and "
            "the gain.",
        )
    ]


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−") if round(value) else "0"


@figures.styled
def sweep_figure(results: Results, part: str, key: str, label: str) -> Figure:
    """Accuracy against one setting over a logarithmic axis, beside clean and unadapted."""
    trials = first_cell(finished(results, part), key, "corruption", "severity")
    table = _over_seeds(trials, [key])
    figure, (axes, *_) = figures.panels(width=figures.HALF, height=2.5)
    cells = table.groupby(["corruption", "severity"], sort=False)
    look = figures.styles([name for name, _ in cells])
    for name, group in cells:
        style, several = look[name], len(look) > 1
        word = answers.cell(group.iloc[0]) if several else "adapted"
        _seed_curve(axes, group.sort_values(key), key, style, word)
        plain = group["acc_unadapted"].mean() * 100
        shown = {"color": style.color if several else "#D55E00", "linestyle": ":"}
        axes.axhline(plain, linewidth=1.3, label=None if several else "unadapted", **shown)
    clean = trials["clean_acc_unadapted"].astype(float).mean() * 100
    axes.axhline(clean, color="#009E73", linestyle="--", linewidth=1, label="clean")
    values = sorted(trials[key].unique())
    axes.set_xscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%)")
    figures.legend_below(figure, axes, 3)
    seeds = int(table["n"].max())
    return Figure(
        figures.save(figure, results.path / "figures", key.replace("num_bn_", "")),
        f"Accuracy against {label} ({reports.join(_cells_of(trials))}). Line: mean over "
        f"{count(seeds, 'seed')}"
        + ("; band: 95 % t interval" if seeds > 2 else "")
        + "; dotted: unadapted; dashed: unadapted on clean images.",
        f"Curve of accuracy against {label}, with lines for clean images and no adaptation.",
        "half",
    )


def _seed_curve(
    axes: "Axes", table: pd.DataFrame, key: str, style: figures.Style, label: str
) -> None:
    """Draw the mean over seeds with its t interval at every value of `key`."""
    x = table[key].to_numpy(dtype=float)
    axes.plot(x, table["mean"] * 100, color=style.color, marker=style.marker, label=label)
    if (table["n"] > 2).all():
        low, high = (table[end].fillna(table["mean"]) * 100 for end in ("low", "high"))
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0)


@figures.styled
def statistics_figure(results: Results) -> Figure | None:
    """How far the statistics of every layer moved in a strong and in a mild cell."""
    trials = finished(results, "severity")
    if "bn_change" not in trials:
        return None
    trials = trials[trials["bn_change"].notna()].assign(gain=lambda t: t["gain"].astype(float))
    if trials.empty:
        return None
    ends = (trials["gain"].idxmax(), trials["gain"].idxmin())
    strong, mild = (trials.loc[end].to_dict() for end in ends)
    chosen = [strong] if strong["trial"] == mild["trial"] else [strong, mild]
    figure, axes = figures.panels(2, height=2.3)
    for row, style in zip(chosen, figures.styles(["strong", "mild"]).values(), strict=False):
        moved = layer_changes(results, row["trial"])
        x = np.arange(1, len(moved) + 1)
        for panel, key in zip(axes, ("shift", "ratio"), strict=True):
            panel.plot(
                x, moved[key], color=style.color, marker=style.marker, label=answers.cell(row)
            )
    for panel, value, label in zip(
        axes, (0, 1), ("change of the mean (std)", "std after over before"), strict=True
    ):
        panel.axhline(value, color="#555555", linewidth=0.7)
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "batch-norm layer, input side first")
    figures.legend_below(figure, axes[0], 2)
    names = reports.join([answers.cell(row) for row in chosen])
    return Figure(
        figures.save(figure, results.path / "figures", "statistics"),
        "Running statistics after adaptation against those of the source, layer by layer: root "
        "mean square over channels of the change of the mean, in standard deviations of the "
        "source's channel, and median over channels of the standard deviation's ratio. 0 and 1: "
        f"no change. The cells of largest and smallest gain: {names}.",
        "Two line charts over layers: change of mean and ratio of standard deviation.",
    )


@figures.styled
def stream_figure(results: Results) -> Figure:
    """Accuracy of each method under each order of the images."""
    trials = first_cell(finished(results, "stream"), "method", "order")
    methods = list(trials["method"].drop_duplicates())
    orders = [o for o in ("shuffled", "dirichlet", "sorted") if o in set(trials["order"])]
    figure, axes = figures.panels(len(methods), height=0.75 + 0.25 * len(orders))
    plain = trials["acc_unadapted"].astype(float).mean() * 100
    for panel, method in zip(axes, methods, strict=True):
        group = trials[trials["method"] == method]
        figures.dots(panel, group, "order", orders, "acc_adapted", "accuracy (%)", scale=100.0)
        panel.axvline(plain, color="#D55E00", linestyle=":", linewidth=1.3)
        panel.set_xlim(0, 100)
        panel.set_title(f"{method} ({figures.seeds_text(group, 'order')})", loc="left")
    return Figure(
        figures.save(figure, results.path / "figures", "stream"),
        f"Accuracy with adaptation ({_cells_of(trials)[0]}) when the images come shuffled, in "
        "bursts of classes, or sorted by class. Bar: mean over seeds; marks: seeds; dotted "
        "line: unadapted.",
        "Bars of accuracy per order of the images, a panel per method.",
    )


@figures.styled
def method_figure(results: Results) -> Figure:
    """Heat map of methods and corruptions."""
    trials = first_cell(finished(results, "methods"), "corruption", "method")
    numbers = cell_numbers(trials, ("corruption", "method"))
    wide = numbers.pivot(index="corruption", columns="method", values="acc_adapted")
    wide = wide.reindex(numbers["corruption"].unique())[list(numbers["method"].unique())] * 100
    wide.loc["mean"] = wide.mean()
    figure, (axes, *_) = figures.panels(width=4.4, height=0.6 + 0.21 * len(wide))
    names = [str(name).replace("_", " ") for name in wide.index]
    figures.heatmap(
        axes, wide.to_numpy(), names, list(wide.columns), "{:.1f}".format, label="accuracy (%)"
    )
    return Figure(
        figures.save(figure, results.path / "figures", "methods"),
        f"Accuracy of each method at severity {_listed(trials['severity'])}; "
        f"{int(numbers['n'].max()):,} images, {count(numbers['seeds'].max(), 'seed')}.",
        "Heat map of accuracy by corruption and method.",
    )


def photo_figure(results: Results) -> Figure | str:
    """One photograph under every corruption and severity; a sentence where there is no image.

    Where the images are not at hand, the figure that a report drew before is shown again.
    """
    drawn = results.path / "figures" / "photos.svg"
    try:
        pixels, names = _corrupted_photo(results)
        drawn = _draw_photos(results, pixels, names)
    except (UserError, OSError, RuntimeError) as e:  # of torchvision: batches that are not whole
        if not drawn.is_file():
            why = provenance.relative(str(e).splitlines()[0])
            return f"The figure of corrupted photographs is left out: {escape(why.rstrip('.'))}."
    return Figure(
        drawn,
        "The study's first image, as the model gets it: clean (left), then severities 1 to 5; a "
        "row per corruption.",
        "One photograph under eight corruptions and five severities.",
    )


def _corrupted_photo(results: Results) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (corruptions, 6, 3, S, S) uint8, clean first, and the corruptions' names."""
    import torch

    from core.shift.corruptions import CORRUPTIONS, corrupt

    photo = torch.from_numpy(np.array(_first_image(results)[None]))
    seed = int(results.trials.iloc[0].get("corruption_seed", 0))
    frost = private(results.path).get("frost_dir")
    rows = []
    for name in CORRUPTIONS:
        index = torch.tensor([0])
        bad = [
            corrupt(photo, name, severity, seed, index, frost_dir=frost) for severity in range(1, 6)
        ]
        rows.append(torch.cat([photo, *bad]).numpy())
    return np.stack(rows), tuple(CORRUPTIONS)


def _first_image(results: Results) -> np.ndarray:
    """Return the first image of the study, (3, S, S) uint8, as it was fed to the model.

    Raises:
        UserError: the images are not where the study found them, or are other ones.
    """
    from core.data import decoding, folders, small
    from core.models import classifier

    root = private(results.path).get("data_dir")
    if results.synthetic:
        return classifier.embedded_images()["val"].images[0]
    if root is None or not Path(root).is_dir():
        raise UserError("the images are not where the study found them")
    if (published := small.cifar10_test(root)) is not None:
        return published.images[np.flatnonzero(published.labels == 0)[0]]
    listing = folders.scan(root, ["val"])
    size = int(results.data["image_size"])
    # the sizes from which on pictures are prepared as for ImageNet
    fit = "crop" if size == 224 else "squash"
    images, _ = decoding.decoded(listing.root, listing.files["val"][:1], size, fit)
    if not len(images):
        raise UserError("the first image cannot be read")
    return images[0]


@figures.styled
def _draw_photos(results: Results, pixels: np.ndarray, names: Sequence[str]) -> Path:
    rows, columns = pixels.shape[:2]
    height = figures.FULL * rows / (columns + 1.1)
    figure, axes = figures.panels(columns, rows, height=height)
    for (row, column), panel in zip(np.ndindex(rows, columns), axes, strict=True):
        panel.imshow(pixels[row, column].transpose(1, 2, 0), interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        if row == 0:
            panel.set_title(str(column) if column else CLEAN)
        if column == 0:
            label = names[row].replace("_", " ")
            panel.set_ylabel(label, rotation=0, ha="right", va="center")
    return figures.save(figure, results.path / "figures", "photos")


def _sections(results: Results, found: Mapping[str, tables.Table]) -> list[Section | None]:
    if "trials" in found:
        return [section("Result", "**No trial has finished, so there is no result yet.**")]
    cells = severity_numbers(results)
    clean = _clean_row(results, cells)
    cells = cells[cells["corruption"] != CLEAN] if len(cells) else cells
    errors, reference = corruption_errors(results)
    whole = errors.dropna(subset=["ce_unadapted"]) if len(errors) else errors
    return [
        section(
            "Result",
            answers.summary(results, cells),
            *heat_figures(results),
            answers.corruption_error(whole, reference),
            answers.normalisation(results),
            recomputed(results),
        ),
        section("The questions, answered", _answers(results, found, cells, clean)),
        section("Updates and batch size", *_sweeps(results, found)),
        section("Corruptions and severities", found["corruptions"], found["severity"])
        if "corruptions" in found
        else None,
        section("How far the statistics moved", statistics_figure(results)),
        section("The order of the images", stream_figure(results), found["stream"])
        if "stream" in found
        else None,
        section("Methods", method_figure(results)) if "methods" in found else None,
        section("Clean images", found.get("clean")),
        section("What the corruptions look like", photo_figure(results)),
        section(
            "Beside published figures", tables.published(answers.PUBLISHED, answers.PUBLISHED_LINKS)
        ),
        section("Limits", answers.limits(results, list(results.trials["part"].drop_duplicates()))),
    ]


def _sweeps(results: Results, found: Mapping[str, tables.Table]) -> list[Block]:
    blocks: list[Block] = []
    if "updates" in found:
        blocks.append(sweep_figure(results, "updates", "num_bn_updates", "number of updates"))
    if "batch_size" in found:
        blocks.append(sweep_figure(results, "batch-size", "batch_size", "batch size"))
    return [*blocks, *(found[name] for name in ("updates", "batch_size") if name in found)]


def _clean_row(results: Results, cells: pd.DataFrame) -> pd.Series | None:
    """Clean images without and with `running`, from the severity part or else the clean part."""
    if len(cells) and (cells["corruption"] == CLEAN).any():
        return cells[cells["corruption"] == CLEAN].iloc[0]
    trials = finished(results, "clean")
    trials = trials[trials["method"] == "running"]
    return None if trials.empty else cell_numbers(trials, ("method",)).iloc[0]


def _momentum(results: Results) -> float | None:
    """Weight of the newest batch; None where all batches weigh the same."""
    constants = results.study.get("constants", {})
    if constants.get("cumulative"):
        return None
    return constants.get("momentum") or results.data.get("bn_momentum")


def _answers(
    results: Results,
    found: Mapping[str, tables.Table],
    cells: pd.DataFrame,
    clean: pd.Series | None,
) -> str:
    pairs = [("What does adaptation change?", answers.changed(results))]
    momentum = _momentum(results)
    if "updates" in found:
        trials = first_cell(finished(results, "updates"), "num_bn_updates")
        pairs.append(("What do more updates bring?", answers.updates(trials, momentum)))
    if "batch_size" in found:
        trials = first_cell(finished(results, "batch-size"), "batch_size")
        moved = pd.concat(
            layer_changes(results, row["trial"]).assign(batch_size=row["batch_size"])
            for row in trials.to_dict("records")
        )
        pairs.append(("What does the batch size do?", answers.batch_sizes(trials, moved)))
    pairs.append(("What does it cost on clean images?", answers.clean(clean)))
    if len(cells):
        pairs.append(("Where does it harm?", answers.breaks(cells)))
    if "stream" in found:
        trials = first_cell(finished(results, "stream"), "method", "order")
        pairs.append(("Does the order of the images matter?", answers.streams(trials)))
    if "methods" in found:
        numbers = first_cell(found["methods"].numbers, "corruption", "severity", "method")
        pairs.append(("How do the methods compare?", answers.methods(numbers)))
    return answered(pairs)
