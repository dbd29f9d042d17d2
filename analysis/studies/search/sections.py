"""The report of a search for the best settings: what was tried, what mattered, is the best better?

Read from study.json (its key "search"), trials.csv, history.csv, search.json (importances) and
best_config.json of one result folder. The trial "default" ran beside the search, for comparison.
"""

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import arms, figures, provenance, tables
from analysis.document.markup import escape
from analysis.document.report import Block, Code, Figure, Section, join, section
from analysis.document.tables import decimal, significant
from analysis.document.words import (
    bracket,
    count,
    listed,
    measured_words,
    percent,
    points,
    scaled,
    stopping_text,
)
from analysis.results import statistics
from analysis.results.folder import Results
from core.errors import UserError
from core.storage.files import read_json

DEFAULT = "default"
COUNTED = ("finished", "stopped")  # states whose best epoch is a value of the search
# Parts of the trials that ran after the search, on all training images, and what they hold.
REPORTED = {"reported-default": "default", "reported-best": "best found"}
_MOST_ROWS = 50
_EDGE = 0.05  # share of a range: a best value closer to an end than this lies at the edge


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf of a search, print its best settings.

    Raises UserError: the folder holds no search.
    """
    if not results.study.get("search"):
        file = results.path / "study.json"
        raise UserError(f"{file} holds no search: it was not made with --search")
    settings, every, final = settings_table(results), trial_table(results), reported_table(results)
    shown = ((settings, verdict), (final, outcome))
    printed = [replace(t, note=say(results).replace("**", "")) for t, say in shown if t]
    title = f"Search for the best settings of {results.study['study']}"
    sections = _sections(results, settings, every, final)
    sources = ("search.json", "best_config.json")
    written = [settings, every, final]
    provenance.publish(results, title, sections, written, printed, sources=sources)
    best, default = best_trial(results), default_trial(results)
    if best is not None and (default is None or best["value"] > default["value"]):
        file = shlex.quote(str(results.path / "best_config.json"))
        print(f"use it: python {_script(results)} --config {file}")


def _script(results: Results) -> str:
    """The study's file, as the command that made the folder names it."""
    command = [str(word) for word in results.study.get("command") or []]
    named = [word for word in command if word.endswith(".py") and not Path(word).is_absolute()]
    return named[0] if named else f"studies/{results.study['study']}.py"


def space(results: Results) -> dict[str, dict[str, Any]]:
    """The searched settings with their ranges."""
    return results.study["search"]["space"]


def metric(results: Results) -> str:
    """What the search is scored by: `heldout_accuracy`; in older folders `val_accuracy`."""
    return results.study["search"].get("metric") or results.study.get("metric", "val_accuracy")


def measure(results: Results) -> str:
    """The searched metric in words, without the images that it is of: "accuracy", "mAP"."""
    return measured_words(results.study).partition(" ")[2]


def held_out(results: Results) -> bool:
    """Whether the search was scored on a part of the training images."""
    return metric(results).startswith("heldout_")


def _best_value(results: Results) -> str:
    return f"best {'held-out' if held_out(results) else 'val'} {measure(results)} (%)"


def _coded(span: dict[str, Any], value: Any) -> Any:
    """A choice as its place among the values, so that it can be drawn; a number as it is."""
    choices = span.get("values")
    if choices is None:
        return value
    return choices.index(value) if value in choices else None


def _told(span: dict[str, Any], value: Any) -> str:
    """A setting in words, from its number or the place of its choice."""
    number = math.nan if value is None else float(value)
    if span.get("values") is None or math.isnan(number):
        return significant(number)
    return escape(str(span["values"][int(number)]))


def configurations(results: Results) -> pd.DataFrame:
    """The tried configurations in the order of the search, without the default.

    Returns:
        number (from 0, as in the names), trial, state, each searched setting (a choice as its
        place among the values), value (the metric at the best epoch; NaN for trials that
        failed), so_far (largest value up to this row),
        epochs_run, stopped_by.
    """
    trials = _with_settings(results)
    searched = (trials["trial"] != DEFAULT) & ~trials["part"].isin(list(REPORTED))
    trials = trials[searched].reset_index(drop=True)
    trials["so_far"] = trials["value"].cummax().ffill()
    trials["number"] = range(len(trials))
    keys = ["number", "trial", "state", *space(results), "value", "so_far"]
    return trials[[*keys, "epochs_run", "stopped_by"]]


def default_trial(results: Results) -> dict[str, Any] | None:
    """The trial with the settings as they are; None when it has not run or failed."""
    trials = _with_settings(results)
    return _first(trials[trials["trial"] == DEFAULT])


def best_trial(results: Results) -> dict[str, Any] | None:
    """The first configuration with the largest value; None without any value."""
    tried = configurations(results)
    return _first(tried.sort_values("value", ascending=False, kind="stable"))


def _first(trials: pd.DataFrame) -> dict[str, Any] | None:
    """The first trial with a value."""
    found = trials.dropna(subset=["value"])
    return {str(key): cell for key, cell in found.iloc[0].items()} if len(found) else None


def _with_settings(results: Results) -> pd.DataFrame:
    """All trials with the searched settings as declared and their value."""
    searched, scored = space(results), f"best_{metric(results)}"
    noted = ("base_lr", "epochs_run", "stopped_by")
    trials = results.trials.reindex(
        columns=[*dict.fromkeys([*results.trials, *searched, scored, *noted])]
    )
    declared = {entry["trial"]: entry.get("config", {}) for entry in results.study["trials"]}
    defaults = results.study["search"].get("default") or {}
    for key, span in searched.items():
        values = [
            declared.get(name, {}).get(key, defaults.get(key) if name == DEFAULT else cell)
            for name, cell in zip(trials["trial"], trials[key], strict=True)
        ]
        coded = [_coded(span, value) for value in values]
        trials[key] = pd.Series(coded, index=trials.index, dtype=float)
    value = trials[scored].astype(float)
    trials["value"] = value.where(trials["state"].isin(COUNTED) & np.isfinite(value))
    # A default that is left to the recipe: as noted, or the highest of its epochs.
    if "lr" in trials:
        own = (trials["trial"] == DEFAULT) & trials["lr"].isna()
        rates = results.history[results.history["trial"] == DEFAULT].reindex(columns=["lr"]).max()
        trials["lr"] = trials["lr"].mask(own, trials["base_lr"].fillna(rates["lr"]).astype(float))
    return trials


def _reported(results: Results) -> pd.DataFrame:
    """The trials that ran after the search."""
    return results.trials[results.trials["part"].isin(list(REPORTED))]


def gain(results: Results) -> dict[str, Any]:
    """Best minus default in the reported metric, paired over seeds; empty without a pair.

    Returns:
        difference, low, high, n as of `statistics.paired`.
    """
    trials, column = _reported(results), f"best_{results.study['metric']}"
    if column not in trials or not set(REPORTED) <= set(trials["part"]):
        return {}
    found = statistics.paired(trials, "part", column, "reported-default", states=COUNTED)
    return found.iloc[0].to_dict() if len(found) and found.iloc[0]["n"] else {}


def reported_table(results: Results) -> tables.Table | None:
    """Default and best, trained on all images and scored on the reported: tables/reported."""
    column, trials = f"best_{results.study['metric']}", _reported(results)
    if trials.empty or column not in trials:
        return None
    numbers = statistics.compare(trials, "part", column, states=COUNTED)
    numbers = arms.in_order(numbers, part=list(REPORTED)).rename(columns={"part": "settings"})
    lead, best = gain(results), numbers["settings"] == "reported-best"
    for name, key in (("", "difference"), ("_low", "low"), ("_high", "high")):
        numbers[f"difference{name}"] = np.where(best, lead.get(key, math.nan), math.nan)
    numbers["settings"] = numbers["settings"].map(REPORTED)
    columns = (
        tables.text("settings", "settings"),
        tables.count_of("n", "of"),
        tables.interval("mean", f"best val {measure(results)} (%)", prefix=""),
        tables.blank("difference", tables.difference("difference", "minus default (points)")),
    )
    note = (
        "Mean [95 % t interval] over seeds, at each trial's best epoch; the difference is paired "
        "over seeds. These trials were trained on all training images; no trial of the search "
        "read the validation images."
    )
    caption = "Default and best settings on the validation images."
    return tables.Table("reported", numbers, columns, caption, note)


def settings_table(results: Results) -> tables.Table:
    """Ranges, default and best of every searched setting: tables/search."""
    searched = space(results)

    def shown(key: str) -> Any:
        def cell(row: Any) -> str:
            span = searched.get(row["setting"])
            return decimal(row[key] * 100, 1) if span is None else _told(span, row[key])

        return cell

    columns = (
        tables.text("setting", "setting"),
        tables.Column("searched", lambda row: _range(searched.get(row["setting"], {}))),
        tables.Column("default", shown("default")),
        tables.Column("best found", shown("best")),
        tables.blank("importance", tables.number("importance", "importance", 2)),
    )
    note = f"One seed each; the best is that of {len(configurations(results))} configurations."
    caption = "The searched settings."
    return tables.Table("search", _settings(results), columns, caption, note)


def _settings(results: Results) -> pd.DataFrame:
    """A row per searched setting, then one of the value."""
    best, default = best_trial(results) or {}, default_trial(results) or {}
    weights = importances(results)[0] or {}
    given = results.study["search"].get("default") or {}
    rows: list[dict[str, Any]] = [
        {
            "setting": key,
            "low": span.get("low", math.nan),
            "high": span.get("high", math.nan),
            "log": bool(span.get("log")),
            "default": default.get(key, _coded(span, given.get(key))),
            "best": best.get(key, math.nan),
            "importance": weights.get(key, math.nan),
        }
        for key, span in space(results).items()
    ]
    value = {"default": default.get("value", math.nan), "best": best.get("value", math.nan)}
    numbers = pd.DataFrame([*rows, {"setting": _best_value(results), "log": False} | value])
    numbers["default"] = pd.to_numeric(numbers["default"], errors="coerce")
    return numbers


def _range(span: dict[str, Any]) -> str:
    """What was searched of a setting: its choices, or the ends of its range."""
    if (choices := span.get("values")) is not None:
        return ", ".join(escape(str(choice)) for choice in choices)
    if math.isnan(span.get("low", math.nan)):
        return ""
    scale = ", log" if span.get("log") else ""
    return f"{significant(span['low'])} to {significant(span['high'])}{scale}"


def trial_table(results: Results) -> tables.Table:
    """Every configuration, best first: tables/search_trials."""
    numbers = configurations(results).sort_values("value", ascending=False, kind="stable")

    def setting(key: str, span: dict[str, Any]) -> tables.Column:
        return tables.Column(key, lambda row: _told(span, row[key]))

    columns = (
        tables.text("trial", "trial"),
        *(setting(key, span) for key, span in space(results).items()),
        tables.number("value", _best_value(results), 1, 100.0),
        tables.Column("epochs", lambda row: decimal(float(row["epochs_run"] or 0), 0)),
        tables.text("state", "state"),
    )
    numbers = numbers.reset_index(drop=True)
    return tables.Table("search_trials", numbers, columns, "Every configuration, best first.")


def importances(results: Results) -> tuple[dict[str, float] | None, str]:
    """The importance of each setting, most important first, or None and why there is none."""
    file = results.path / "search.json"
    if not file.exists():
        return None, "search.json is missing"
    found = read_json(file)
    weights = found.get("importances") if isinstance(found, dict) else None
    if not weights:
        return None, str((found or {}).get("why") or "none were recorded")
    return {key: float(weights[key]) for key in sorted(weights, key=lambda key: -weights[key])}, ""


@arms.drawn(
    "search_history",
    "Value of each configuration in the order of the search, with the best so far.",
)
def history_figure(results: Results) -> arms.Drawn:
    """Values in the order of the search, and the best so far."""
    tried, default = configurations(results), default_trial(results)
    figure, (axes, *_) = figures.panels(height=1.95)
    line = {"color": "#000000", "linewidth": 1.0, "label": "best so far"}
    axes.step(tried["number"], tried["so_far"] * 100, where="post", **line)
    _marks(axes, tried["number"], tried)
    if default:
        label = "default settings"
        axes.axhline(default["value"] * 100, color="#D55E00", ls="--", linewidth=1.1, label=label)
    _failures(axes, tried["number"], tried)
    axes.set_ylabel(_best_value(results).removeprefix("best "))  # the height is short
    figures.whole_numbers(axes, "configuration, in the order of the search (from 0)")
    figures.legend_below(figure, axes, 5)
    return figure, (
        f"Best {measured_words(results.study)} of each configuration over its epochs, in the order "
        "of the search. Hollow: stopped early, so a lower bound. Crosses at the foot: failed. One "
        "seed each."
    )


@arms.drawn("search_settings", "Scatter plots of the value against each searched setting.")
def settings_figure(results: Results) -> arms.Drawn:
    """Values against every searched setting."""
    tried, searched = configurations(results), space(results)
    columns = min(3, len(searched))
    rows = math.ceil(len(searched) / columns)
    figure, axes = figures.panels(columns, rows, height=0.6 + 1.6 * rows, sharey=True)
    for spare in axes[len(searched) :]:
        spare.set_visible(False)
    for panel, (key, span) in zip(axes, searched.items(), strict=False):
        _marks(panel, tried[key], tried)
        _singled_out(panel, results, key)
        if span.get("log"):
            panel.set_xscale("log")
        if span.get("values") is not None:
            panel.set_xticks(range(len(span["values"])), [str(v) for v in span["values"]])
        _failures(panel, tried[key], tried)
        panel.margins(x=0.07)
        panel.set_xlabel(f"{key}" + (" (log axis)" if span.get("log") else ""))
    for panel in axes[::columns]:
        panel.set_ylabel(_best_value(results).removeprefix("best "))
    # The default lies on an axis only where it has a value; the fullest legend names all marks.
    fullest = max(axes, key=lambda panel: len(panel.get_legend_handles_labels()[1]))
    figures.legend_below(figure, fullest, 5)
    return figure, (
        "The same values against each searched setting; the other settings differ from mark to "
        "mark."
    )


def _singled_out(panel: Any, results: Results, key: str) -> None:
    """Marks of the best found and of the default settings, where they have a value of `key`."""
    for one, marker, color, size, label in (
        (best_trial(results), "*", "#000000", 9, "best found"),
        (default_trial(results), "D", "#D55E00", 5, "default settings"),
    ):
        if one and not math.isnan(one[key]):
            at = [one[key]], [one["value"] * 100]
            panel.plot(*at, marker, color=color, markersize=size, label=label)


def _marks(axes: Any, x: pd.Series, tried: pd.DataFrame) -> None:
    """Finished configurations filled, stopped ones hollow."""
    look = {"color": "#0072B2", "markersize": 4.5}
    for state, marker, inside, label in (
        ("finished", "o", "#0072B2", "finished"),
        ("stopped", "s", "white", "stopped early"),
    ):
        some = (tried["state"] == state) & tried["value"].notna()
        if some.any():
            y = tried.loc[some, "value"] * 100
            axes.plot(x[some], y, marker, markerfacecolor=inside, label=label, **look)


def _failures(axes: Any, x: pd.Series, tried: pd.DataFrame) -> None:
    """Crosses on the lower edge for configurations without a value."""
    x = x[tried["state"].isin(["failed", "diverged"])]
    if len(x):
        foot = {"color": "#000000", "transform": axes.get_xaxis_transform(), "label": "failed"}
        axes.plot(x, np.full(len(x), 0.03), "x", **foot)


@figures.styled
def importance_figure(results: Results, weights: dict[str, float]) -> Figure:
    """A bar per setting, in their order."""
    figure, (axes, *_) = figures.panels(height=0.6 + 0.22 * len(weights))
    axes.barh(range(len(weights)), [*weights.values()], color="#0072B2", alpha=0.6, height=0.6)
    for row, value in enumerate(weights.values()):
        axes.text(value, row, f" {value:.2f}", va="center")
    figures.named_rows(axes, list(weights))
    axes.set_xlim(0, 1.1 * max(1e-9, *weights.values()))
    axes.set_xlabel("importance (share of the explained variance)")
    caption = (
        f"Importance of each setting for the best {measured_words(results.study)} within the "
        "searched ranges (fANOVA over the configurations with a value)."
    )
    alt = f"Bars of importance: {join([f'{key} {value:.2f}' for key, value in weights.items()])}."
    return arms.saved(results, figure, "importances", caption, alt)


def summary(results: Results) -> str:
    """What was searched and what came out, in one paragraph."""
    search, tried = results.study["search"], configurations(results)
    states = tried["state"].value_counts()
    planned = int(search.get("trials") or len(tried))
    ways = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    ways |= {"diverged": "diverged", "unfinished": "did not run to the end"}
    counts = [f"{states[state]} {words}" for state, words in ways.items() if state in states]
    first = (
        f"{escape(search.get('sampler', 'The sampler'))} proposed {len(tried)} of {planned} "
        f"configurations of {join([f'`{key}`' for key in space(results)])}"
    )
    first += f": {join(counts)}. " if counts else ". "
    best = best_trial(results)
    if best is None:
        return f"{first}**None has a value, so there is no result yet.**"
    chosen = join([f"`{key}` = {_told(span, best[key])}" for key, span in space(results).items()])
    return (
        f"{first}The best, `{best['trial']}`, has {percent(best['value'])} "
        f"{measured_words(results.study)} at its best epoch, with {chosen}. {verdict(results)} "
        f"{outcome(results)}".rstrip()
    )


def verdict(results: Results) -> str:
    """Does the best score higher in the search than the default? One sentence, and how sure."""
    best, default = best_trial(results), default_trial(results)
    if best is None:
        return "No configuration has a value yet."
    if default is None:
        return (
            "The default settings did not finish beside the search, so it cannot be said whether "
            "the best scores higher."
        )
    lead, rate = best["value"] - default["value"], "settings"
    if "lr" in space(results) and not math.isnan(default["lr"]):
        others = " and the other default settings" if len(space(results)) > 1 else ""
        rate = f"learning rate of {significant(default['lr'])}{others}"
    size = f"{percent(best['value'])} against {percent(default['value'])} ({points(lead, True)})"
    if lead <= 0:
        return (
            f"**No configuration scores higher than the default {rate}:** {size}. Keep the default."
        )
    caution = _caution(results, best["value"], default["value"])
    return f"It scores higher than the default {rate}: {size}, with caution: {caution}."


def _caution(results: Results, best: float, default: float) -> str:
    """Why the lead of the best may be chance."""
    tried = int(configurations(results)["value"].notna().sum())
    caution = f"one seed each, and the best of {tried} is picked for being high, partly by chance"
    # Standard error of a difference of accuracies on this many images, taken as independent; of
    # another metric no formula gives it.
    images = _images(results) if measure(results) == "accuracy" else 0
    noise = math.sqrt(sum(p * (1 - p) for p in (best, default)) / images) if images else 0.0
    if noise and best - default < 2 * noise:
        kind = "held-out" if held_out(results) else "validation"
        caution += (
            f"; the {images:,} {kind} images alone leave an error of about "
            f"{points(noise)} in such a difference"
        )
    return caution


def outcome(results: Results) -> str:
    """Is the best better than the default on the reported images? "" where that was not run."""
    found = gain(results)
    if not found:
        return ""
    seeds, size = count(found["n"], "seed"), points(found["difference"], True)
    if math.isnan(found["low"]):  # one seed, or the same difference in each
        return f"On the validation images it differs by {size} in {seeds}, which may be chance."
    size += f"{bracket(found['low'], found['high'])} over {seeds}"
    if side := statistics.side(found["low"], found["high"]):
        way = "better" if side > 0 else "worse"
        return f"**On the validation images it is {way} than the default settings:** {size}."
    return f"On the validation images these seeds show no difference to the default: {size}."


def _images(results: Results) -> int:
    """How many images the search is scored on."""
    data = results.data
    if held_out(results):
        return (data.get("holdout") or {}).get("scored", 0)
    return provenance.image_counts(data).get("val", 0)


def edges(results: Results) -> str:
    """Which settings of the best lie at an end of their range; "" when none does."""
    best, found = best_trial(results) or {}, []
    for key, span in space(results).items():
        if span.get("values") is not None or math.isnan(best.get(key, math.nan)):
            continue  # a choice has no edge
        low, high, value = (float(number) for number in (span["low"], span["high"], best[key]))
        if span.get("log"):
            low, high, value = math.log(low), math.log(high), math.log(value)
        place = (value - low) / (high - low) if high > low else 0.5
        if not _EDGE <= place <= 1 - _EDGE:
            found.append(f"`{key}` ({'lower' if place < 0.5 else 'upper'} end)")
    lies = f"The best lies at the edge of the searched range of {join(found)}: widen it."
    return lies if found else ""


def importance_text(results: Results) -> str:
    """What mattered most, and how far that can be trusted."""
    weights, why = importances(results)
    if weights is None:
        return f"No importances: {escape(why.rstrip('.'))}."
    valued = int(configurations(results)["value"].notna().sum())
    shares = join([f"`{key}` {decimal(weight, 2)}" for key, weight in weights.items()])
    few = " With so few these shares are rough." if valued < 30 else ""
    return (
        f"Share of the variation between configurations that each setting explains: {shares}. It "
        f"holds for the searched ranges and rests on {valued} configurations.{few}"
    )


def _chosen_on(results: Results) -> str:
    """On which images settings and epochs are chosen."""
    if not held_out(results):
        return (
            "Settings are chosen on the validation images, so the best value is no estimate for "
            "new images; a test set or other seeds have to confirm it."
        )
    absent = (results.data.get("holdout") or {}).get("missing") or []
    few = f" None of them shows {join([escape(name) for name in absent])}." if absent else ""
    return (
        f"Settings are chosen on {_images(results):,} images held out of the training images, so "
        f"their values are no estimate for new images.{few} The trials on the validation images "
        "choose their best epoch on these, as every trial of a comparison does."
    )


def limits(results: Results) -> str:
    """What the numbers cannot carry."""
    items: list[Any] = [
        "One seed for each configuration: a lead may be luck of the seed. The largest of many "
        "noisy values is higher than its own mean would be.",
        _chosen_on(results),
        "TPE proposes more often where values were high: the marks are not spread evenly, and the "
        "scatter plots show settings together, not one alone.",
        (configurations(results)["state"] == "stopped").any()
        and "Configurations that were stopped early count with the epochs they ran: a setting that "
        "starts slowly is at a disadvantage.",
        results.synthetic
        and "Generated images, not photographs: the best settings need not carry over.",
    ]
    smaller = "fewer epochs and smaller images may favour other settings than the full scale."
    return listed(items + scaled(results.study, smaller))


def _sections(
    results: Results, settings: tables.Table, every: tables.Table, final: tables.Table | None
) -> list[Section | None]:
    drawn = [history_figure(results), settings_figure(results)] if best_trial(results) else []
    weights = importances(results)[0]
    mattered = importance_figure(results, weights) if weights else None
    return [
        section("Result", f"{summary(results)}\n\n{edges(results)}", final, settings),
        section("Use it", *_use(results)),
        section("What was tried", *drawn, f"Early stopping. {stopping_text(results.study)}"),
        section("What mattered", importance_text(results), mattered),
        section("Limits", limits(results)),
        section("Every configuration", arms.cut(every, _MOST_ROWS), optional=True),
    ]


def _use(results: Results) -> list[Block | str]:
    """The command, and what its file holds."""
    file, best = results.path / "best_config.json", best_trial(results)
    if best is None or not file.exists():
        return ["There is no `best_config.json` yet."]
    held = read_json(file)
    held = held if isinstance(held, dict) else {}
    shown = {k: f"{v:.6g}" if isinstance(v, float) else escape(v) for k, v in held.items()}
    settings = join([f"`{key}` = {value}" for key, value in shown.items()]) or "no settings"
    blocks: list[Block | str] = [
        "The best settings are in `best_config.json` beside this report; the command takes its "
        f"path. It holds {settings}.",
        Code(f"python {_script(results)} --config best_config.json"),
    ]
    coded = {key: _coded(span, held[key]) for key, span in space(results).items() if key in held}
    other = [
        f"`{key}`"
        for key, value in coded.items()
        if not (isinstance(value, int | float) and math.isclose(value, best[key], rel_tol=1e-9))
    ]
    if other:
        blocks.append(f"**It differs from the best configuration of trials.csv in {join(other)}.**")
    return blocks
