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

from analysis.document import arms, figures, provenance, tables
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
    makers: list[tuple[str, Callable[..., tables.Table | None]]] = [
        ("severity", severity_table),
        ("severity", corruption_table),
        ("updates", sweep_table),
        ("batch-size", sweep_table),
        ("methods", method_table),
        ("clean", clean_table),
        ("stream", stream_table),
    ]
    parts = [(finished(results, part), make) for part, make in makers]
    made = [make(results, trials) for trials, make in parts if len(trials)]
    if found := {table.name: table for table in made if table is not None}:
        return found
    states, columns = results.trials[["trial", "state"]], tuple(arms.texts("trial", "state"))
    return {"trials": tables.Table("trials", states, columns, "No trial has finished.")}


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
    counted = "n", "right_unadapted", "right_adapted", "gained", "lost"
    others = "loss_unadapted", "loss_adapted", "updates"
    for values, group in trials.groupby(by, sort=False):
        mean = {key: float(group[key].astype(float).mean()) for key in (*counted, *others)}
        row = dict(zip(by, values, strict=True)) | {"seeds": group["seed"].nunique()}
        rows.append(row | _shares(mean) | {key: mean[key] for key in others})
    return pd.DataFrame(rows)


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
        return pd.DataFrame(columns=["corruption"])
    numbers = cell_numbers(trials, ("corruption", "severity"))
    clean = trials[trials["corruption"] != CLEAN]
    if "clean_right_adapted" not in clean or clean["clean_right_adapted"].isna().all():
        return numbers
    # Every cell reports the clean images under its own settings: once per seed is enough.
    own = [k for k in numbers if k in SETTINGS[2:]]
    clean = clean.dropna(subset=["clean_right_adapted"]).drop_duplicates(["seed", *own])
    keys = ("right_unadapted", "right_adapted", "gained", "lost")
    clean = clean.assign(**{key: clean[f"clean_{key}"] for key in keys})
    clean = clean.assign(loss_unadapted=np.nan, loss_adapted=np.nan, corruption=CLEAN, severity=0)
    first = cell_numbers(clean, ("corruption", "severity"))
    return pd.concat([first, numbers], ignore_index=True)


def corruption_errors(results: Results, cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Errors per corruption over its severities, relative to a reference, and its name.

    The reference is AlexNet where the model tells ImageNet's classes apart, else the source model
    itself without adaptation. Only corruptions with all five severities have a corruption error;
    clean images have none.
    """
    imagenet = len(results.data.get("classes", ())) == 1000
    rows = []
    by = ["corruption", *(k for k in cells if k in SETTINGS[2:])]
    for values, group in cells[cells["corruption"] != CLEAN].groupby(by, sort=False):
        errors = {k: 1 - group[f"acc_{k}"].mean() for k in ("unadapted", "adapted")}
        row = dict(zip(by, values, strict=True)) | {"severities": len(group)}
        row |= {f"error_{k}": value for k, value in errors.items()}
        reference = ALEXNET.get(str(values[0]), np.nan) if imagenet else errors["unadapted"]
        reference = reference if len(group) == 5 and reference else np.nan
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
    if (worst := checked.largest()) > 1e-9:
        return (
            f"**Accuracies computed again from the stored scores differ from those reported by up "
            f"to {worst:.2g}: the scores do not belong to this table.**"
        )
    return (
        f"Computed again from the stored scores of {count(len(stored), 'trial')}, the "
        "accuracies with adaptation are those reported."
    )


_ACCURACIES = (
    tables.interval("acc_unadapted", "without (%)"),
    tables.interval("acc_adapted", "with (%)"),
    tables.difference("gain", "gain (points)"),
)
_LOSSES = (
    tables.number("loss_unadapted", "loss without", 2),
    tables.number("loss_adapted", "loss with", 2),
)


def severity_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """The main table: tables/severity."""
    numbers, method = severity_numbers(results), trials.iloc[0]
    how = f"{int(method['num_bn_updates'])} updates of {int(method['batch_size'])} images"
    how = how if method["method"] == "running" else f"method {method['method']}"
    caption = f"Accuracy without and with adaptation ({how}), clean images first."
    note = (
        f"{int(numbers['n'].max()):,} images, {count(numbers['seeds'].max(), 'seed')}; in brackets "
        "95 % intervals over images (Wilson; gain: Agresti & Min for matched pairs). Loss in nats."
    )
    columns = (*_setting_columns(numbers), *_ACCURACIES, *_LOSSES)
    return tables.Table("severity", numbers, columns, caption, note)


def corruption_table(results: Results, trials: pd.DataFrame) -> tables.Table | None:
    """Errors per corruption: tables/corruptions."""
    numbers, reference = corruption_errors(results, severity_numbers(results))
    if numbers.empty:
        return None
    columns = (
        *_setting_columns(numbers),
        *arms.shares(error_unadapted="error without", error_adapted="error with"),
        tables.number("ce_unadapted", "CE without", 1, 100.0),
        tables.number("ce_adapted", "CE with", 1, 100.0),
    )
    caption = "Mean error over severities, and corruption error (CE)."
    of = f"those of the reference, {reference}, in per cent."
    note = f"CE: the errors of all five severities over {of}"
    return tables.Table("corruptions", numbers, columns, caption, note)


def sweep_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Accuracy against one setting, mean over seeds: tables/updates and tables/batch_size."""
    updates = trials["part"].iloc[0] == "updates"
    key, header = ("num_bn_updates", "updates") if updates else ("batch_size", "batch size")
    fixed, word = ("batch_size", "batches of") if updates else ("num_bn_updates", "updates:")
    numbers = _over_seeds(trials, [key])
    columns = (
        *_cell_columns(numbers, key),
        tables.number(key, header),
        tables.count_of("n", "of"),
        tables.interval("mean", "with (%)", prefix=""),
        tables.difference("gain", "gain (points)"),
    )
    held = ", ".join(str(value) for value in sorted(trials[fixed].unique()))
    caption = f"Accuracy against {header} ({_cells_of(trials)}; {word} {held})."
    note = f"Mean over seeds [95 % t interval]; unadapted {_unadapted_text(numbers)}."
    return tables.Table(key.replace("num_bn_", ""), numbers, columns, caption, note)


def method_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Every method under every corruption: tables/methods."""
    numbers = cell_numbers(trials, ("corruption", "severity", "method"))
    keys = [k for k in told_apart(trials, ("corruption", "method")) if k in numbers]
    columns = (*_setting_columns(numbers[keys]), *_ACCURACIES)
    caption = f"Methods at severity {_listed(trials['severity'])}."
    note = "In brackets 95 % intervals over images."
    return tables.Table("methods", numbers, columns, caption, note)


def clean_table(results: Results, trials: pd.DataFrame) -> tables.Table:
    """Every method on clean images: tables/clean."""
    numbers = cell_numbers(trials, ("method",))
    columns = (*_setting_columns(numbers), *_ACCURACIES, *_LOSSES)
    images = f"{int(numbers['n'].max()):,} images"
    note = f"{images}; in brackets 95 % intervals over images. Loss: nats."
    return tables.Table("clean", numbers, columns, "Clean images.", note)


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
    batches = f"batches of {_listed(trials['batch_size'])}"
    caption = f"What the order of the images does ({_cells_of(trials)}; {batches})."
    note = (
        f"Mean over seeds [95 % t interval]; unadapted {_unadapted_text(numbers)}. Sorted: by "
        "class. Dirichlet: classes in bursts."
    )
    return tables.Table("stream", numbers, columns, caption, note)


def _over_seeds(trials: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean over seeds of accuracy and gain with t intervals, in the order of the trials.

    Returns:
        corruption, severity, `keys` and what else tells rows apart; mean, low, high, std of
        acc_adapted, n, of; gain with low and high; acc_unadapted.
    """
    by = told_apart(trials, ["corruption", "severity", *keys])
    table = statistics.compare(trials, by, "acc_adapted")
    table = trials[by].drop_duplicates().merge(table, on=by, how="left")
    table = statistics.joined(table, trials, by, "gain")
    return statistics.joined(table, trials, by, "acc_unadapted", ends=False)


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
    cells = numbers.drop_duplicates(["corruption", "severity"]).to_dict("records")
    # not words.percent: in a note that Markdown shows as it is
    told = [(f"{tables.decimal(c['acc_unadapted'] * 100, 1)} %", answers.cell(c)) for c in cells]
    return told[0][0] if len(told) == 1 else reports.join([f"{p} ({name})" for p, name in told])


def _cells_of(trials: pd.DataFrame) -> str:
    cells = trials[["corruption", "severity"]].drop_duplicates()
    return reports.join([answers.cell(row) for row in cells.to_dict("records")])


def _listed(values: pd.Series) -> str:
    return reports.join(sorted(values.unique()))


@arms.drawn(
    "severity",
    "Three heat maps of corruption by severity: accuracy without adaptation, with it, and the "
    "gain.",
)
def heat_figure(results: Results, cells: pd.DataFrame) -> arms.Drawn:
    """Corruption x severity: accuracy without and with, and gain; `cells` are not of clean."""
    cells = first_cell(cells, "corruption", "severity")
    without, adapted, gain = (
        _wide(cells, "severity", key) * 100 for key in ("acc_unadapted", "acc_adapted", "gain")
    )
    both = np.concatenate([without.to_numpy(), adapted.to_numpy()])
    low, high = float(np.nanmin(both)), float(np.nanmax(both)) + 1e-9  # all may be equal
    whole: dict[str, Any] = {"show": "{:.0f}".format, "low": low, "high": high}
    points: dict[str, Any] = {"show": lambda value: tables.decimal(value, 0, signed=True)}
    names, columns = [_spaced(name) for name in gain.index], [*map(str, gain.columns)]
    figure, axes = figures.panels(3, height=0.75 + 0.21 * len(names))
    for panel, table, title, rows, look in (
        (axes[0], without, "accuracy without (%)", names, whole),
        (axes[1], adapted, "accuracy with (%)", [""] * len(names), whole),
        (axes[2], gain, "gain (points)", [""] * len(names), points),
    ):
        figures.heatmap(panel, table.to_numpy(), rows, columns, **look)
        panel.set_title(title, loc="left")
    return figure, (
        "Accuracy without and with adaptation, and gain, per corruption (rows) and severity "
        f"(columns); {int(cells['n'].max()):,} images a cell, "
        f"{count(cells['seeds'].max(), 'seed')}."
    )


def _wide(cells: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """A row per corruption, in the order of the cells."""
    wide = cells.pivot(index="corruption", columns=columns, values=values)
    return wide.reindex(cells["corruption"].unique())


def _spaced(corruption: object) -> str:
    return str(corruption).replace("_", " ")


@figures.styled
def sweep_figure(results: Results, part: str, key: str, label: str) -> Figure:
    """Accuracy against one setting over a logarithmic axis, beside clean and unadapted."""
    trials = first_cell(finished(results, part), key, "corruption", "severity")
    table = _over_seeds(trials, [key])
    figure, (axes, *_) = figures.panels(width=figures.HALF, height=2.5)
    cells = table.groupby(["corruption", "severity"], sort=False)
    look = figures.styles([name for name, _ in cells])
    for name, group in cells:
        _draw_cell(axes, group.sort_values(key), key, look[name], len(look) > 1)
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
    band = "; band: 95 % t interval" if seeds > 2 else ""
    caption = (
        f"Accuracy against {label} ({_cells_of(trials)}). Line: mean over {count(seeds, 'seed')}"
        f"{band}; dotted: unadapted; dashed: unadapted on clean images."
    )
    alt = f"Curve of accuracy against {label}, with lines for clean images and no adaptation."
    return arms.saved(results, figure, key.replace("num_bn_", ""), caption, alt, "half")


def _draw_cell(
    axes: "Axes", table: pd.DataFrame, key: str, style: figures.Style, several: bool
) -> None:
    """Draw a cell's mean over seeds with its t interval at every value of `key`."""
    x, label = table[key].to_numpy(dtype=float), "adapted"
    plain: dict[str, Any] = {"color": "#D55E00", "label": "unadapted"}
    if several:
        label = answers.cell(table.iloc[0])
        plain = {"color": style.color}
    axes.plot(x, table["mean"] * 100, color=style.color, marker=style.marker, label=label)
    if (table["n"] > 2).all():
        low, high = (table[end].fillna(table["mean"]) * 100 for end in ("low", "high"))
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0)
    axes.axhline(table["acc_unadapted"].mean() * 100, linewidth=1.3, linestyle=":", **plain)


@figures.styled
def statistics_figure(results: Results) -> Figure | None:
    """How far the statistics of every layer moved in a strong and in a mild cell."""
    trials = finished(results, "severity")
    trials = trials.dropna(subset=["bn_change"]) if "bn_change" in trials else trials[:0]
    if trials.empty:
        return None
    gains = trials["gain"].astype(float)
    chosen = trials.loc[list(dict.fromkeys([gains.idxmax(), gains.idxmin()]))].to_dict("records")
    figure, axes = figures.panels(2, height=2.3)
    for row, style in zip(chosen, figures.styles(["strong", "mild"]).values(), strict=False):
        moved, name = layer_changes(results, row["trial"]), answers.cell(row)
        x = np.arange(1, len(moved) + 1)
        for panel, key in zip(axes, ("shift", "ratio"), strict=True):
            panel.plot(x, moved[key], color=style.color, marker=style.marker, label=name)
    labels = "change of the mean (std)", "std after over before"
    for panel, value, label in zip(axes, (0, 1), labels, strict=True):
        panel.axhline(value, color="#555555", linewidth=0.7)
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "batch-norm layer, input side first")
    figures.legend_below(figure, axes[0], 2)
    names = reports.join([answers.cell(row) for row in chosen])
    caption = (
        "Running statistics after adaptation against those of the source, layer by layer: root "
        "mean square over channels of the change of the mean, in standard deviations of the "
        "source's channel, and median over channels of the standard deviation's ratio. 0 and 1: "
        f"no change. The cells of largest and smallest gain: {names}."
    )
    alt = "Two line charts over layers: change of mean and ratio of standard deviation."
    return arms.saved(results, figure, "statistics", caption, alt)


@arms.drawn("stream", "Bars of accuracy per order of the images, a panel per method.")
def stream_figure(results: Results) -> arms.Drawn:
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
    return figure, (
        f"Accuracy with adaptation ({answers.cell(trials.iloc[0])}) when the images come shuffled, "
        "in bursts of classes, or sorted by class. Bar: mean over seeds; marks: seeds; dotted "
        "line: unadapted."
    )


@arms.drawn("methods", "Heat map of accuracy by corruption and method.")
def method_figure(results: Results) -> arms.Drawn:
    """Heat map of methods and corruptions."""
    trials = first_cell(finished(results, "methods"), "corruption", "method")
    numbers = cell_numbers(trials, ("corruption", "method"))
    wide = _wide(numbers, "method", "acc_adapted")[list(numbers["method"].unique())] * 100
    wide.loc["mean"] = wide.mean()
    figure, (axes, *_) = figures.panels(width=4.4, height=0.6 + 0.21 * len(wide))
    names = [_spaced(name) for name in wide.index], list(wide.columns)
    figures.heatmap(axes, wide.to_numpy(), *names, "{:.1f}".format, label="accuracy (%)")
    return figure, (
        f"Accuracy of each method at severity {_listed(trials['severity'])}; "
        f"{int(numbers['n'].max()):,} images, {count(numbers['seeds'].max(), 'seed')}."
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
    frost, index = private(results.path).get("frost_dir"), torch.tensor([0])
    rows = []
    for name in CORRUPTIONS:
        bad = [corrupt(photo, name, level, seed, index, frost_dir=frost) for level in range(1, 6)]
        rows.append(torch.cat([photo, *bad]).numpy())
    return np.stack(rows), tuple(CORRUPTIONS)


def _first_image(results: Results) -> np.ndarray:
    """Return the first image of the study, (3, S, S) uint8, as it was fed to the model.

    Raises UserError: the images are not where the study found them, or are other ones.
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
            panel.set_ylabel(_spaced(names[row]), rotation=0, ha="right", va="center")
    return figures.save(figure, results.path / "figures", "photos")


def _sections(results: Results, found: Mapping[str, tables.Table]) -> list[Section | None]:
    if "trials" in found:
        return [section("Result", arms.NO_RESULT)]
    every = severity_numbers(results)
    cells = every[every["corruption"] != CLEAN]
    errors, reference = corruption_errors(results, cells)
    questions = _answers(results, found, cells, _clean_row(results, every))
    corruptions = [found[name] for name in ("corruptions", "severity") if "corruptions" in found]
    stream = [stream_figure(results), found["stream"]] if "stream" in found else []
    return [
        section(
            "Result",
            answers.summary(results, cells),
            heat_figure(results, cells) if len(cells) > 1 else None,
            answers.corruption_error(errors.dropna(), reference),
            escape(results.data.get("normalisation", {}).get("sentence", "")),
            recomputed(results),
        ),
        section("The questions, answered", questions),
        section("Updates and batch size", *_sweeps(results, found)),
        section("Corruptions and severities", *corruptions),
        section("How far the statistics moved", statistics_figure(results)),
        section("The order of the images", *stream),
        section("Methods", method_figure(results)) if "methods" in found else None,
        section("Clean images", found.get("clean")),
        section("What the corruptions look like", photo_figure(results)),
        section("Beside published figures", answers.PUBLISHED),
        section("Limits", answers.limits(results)),
    ]


def _sweeps(results: Results, found: Mapping[str, tables.Table]) -> list[Block]:
    """The figures of both sweeps side by side, then their tables."""
    drawn = {
        "updates": ("updates", "num_bn_updates", "number of updates"),
        "batch_size": ("batch-size", "batch_size", "batch size"),
    }
    run = [name for name in drawn if name in found]
    return [*(sweep_figure(results, *drawn[name]) for name in run), *(found[name] for name in run)]


def _clean_row(results: Results, cells: pd.DataFrame) -> pd.Series | None:
    """Clean images without and with `running`, from the severity part or else the clean part."""
    clean = cells[cells["corruption"] == CLEAN]
    if len(clean):
        return clean.iloc[0]
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
    results: Results, found: Mapping[str, tables.Table], cells: pd.DataFrame,
    clean: pd.Series | None,
) -> str:  # fmt: skip
    pairs = [("What does adaptation change?", answers.changed(results))]
    if "updates" in found:
        trials = first_cell(finished(results, "updates"), "num_bn_updates")
        told = answers.updates(trials, _momentum(results))
        pairs.append(("What do more updates bring?", told))
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
