"""The report of the batch size study: does batch norm lose to group norm when batches are small?

A cell is one norm with one batch size; its seeds may end early (ASHA, plateau), fail or be missing.
Cells are compared twice: at the last epoch that every trial reached, and each trial at its best.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import arms, figures, provenance, tables
from analysis.document.markup import escape
from analysis.document.provenance import duration
from analysis.document.report import Figure, Section, join, section
from analysis.document.tables import decimal, significant
from analysis.document.words import (
    ONE_SEED,
    SMALLER,
    bracket,
    count,
    curve_note,
    listed,
    percent,
    sampling,
    scaled,
    signed,
    span,
    stopping_text,
)
from analysis.results import statistics
from analysis.results.folder import Results

COUNTED = ("finished", "stopped")  # states whose epochs enter means
REASONS = ("ASHA", "plateau", "other")  # why a trial was stopped
COMPARED = ("equal", "best")  # columns of `measured`: accuracy at the equal epoch and at the best
# What trials note of themselves, if they do.
_NUMBERS = ("epochs", "seconds", "seconds_per_epoch", "best_val_accuracy", "base_lr", "scaled_lr")
_MEMORY = ("plain_mib", "slot_mib", "estimated_mib", "peak_memory_mib")
_WORDS = ("stopped_by", "lr_scaling", "chosen_precision", "chosen_recompute")
# Wu & He 2018, ImageNet, ResNet-50: validation error (%) of BN and GN by images per GPU.
PUBLISHED = {32: (23.6, 24.1), 16: (23.7, 24.2), 8: (24.8, 24.0), 4: (27.3, 24.2), 2: (34.7, 24.1)}
_PUBLISHED_TABLE = tables.published(
    (
        (
            "Wu & He 2018",
            "ImageNet, ResNet-50, validation error; 32, 16, 8, 4, 2 images per GPU",
            "BN 23.6, 23.7, 24.8, 27.3, 34.7 %; GN 24.1, 24.2, 24.0, 24.2, 24.1 %",
        ),
        (
            "CosmoLuminous, course report",
            "CIFAR-10, 100 epochs, test accuracy; batch size 8, then 128",
            "BN 90.97, 89.39 %; GN 86.28, 86.78 %",
        ),
    ),
    "Sources: [Wu & He, Group Normalization](https://arxiv.org/abs/1803.08494); "
    "[CosmoLuminous](https://github.com/CosmoLuminous/deep-learning-col775).",
)


Extra = Callable[[Results], list[Section]]
_MOST_ROWS = 30  # trials listed in the report; the files in tables/ hold all
_MOST_BARS = 36  # trials with a bar of their own


@provenance.of_finished
def report(results: Results, extra: Extra = lambda results: []) -> None:
    """Write tables/, figures/, report.html and report.pdf of the study, print its short table.

    Args:
        results: the study.
        extra: makes further sections, which stand before the limits.
    """
    results = measured(results)
    table = cell_table(results)
    others = (gap_table, savings_table, stopped_table, rate_table, memory_table, trial_table)
    made = [table, *(make(results) for make in others)]
    written = [one for one in made if one is not None and len(one.numbers)]
    sections = _sections(results, table, extra(results))
    title, sources = "Batch size and normalisation", ("gradcam.npz",)
    provenance.publish(results, title, sections, written, [headline(table)], sources=sources)


def equal_epoch(results: Results) -> int | None:
    """The last epoch that every finished or stopped trial with any epoch reached."""
    last = _counted(results.history).groupby("trial")["epoch"].max()
    return int(last.min()) if len(last) else None


def measured(results: Results) -> Results:
    """The study with what the comparisons need of its trials, computed from history.csv.

    Returns:
        `results` with these columns of `trials` too: `equal` (validation accuracy at the equal
        epoch), `best` and `best_epoch` (the largest of the curve and its first epoch; NaN without
        an epoch), `reason` (one of REASONS for stopped trials, else ""), `ended` (that, or the
        state), `planned`, `ran` (epochs), `per_epoch` (seconds) and `highest_lr`. What trials note
        of themselves is there in any case: numbers as floats, NaN where missing, or text, then "".
    """
    noted = [*_NUMBERS, *_MEMORY]
    trials = results.trials.reindex(columns=_with(results.trials, *noted, *_WORDS))
    trials[noted] = trials[noted].apply(pd.to_numeric, errors="coerce").astype(float)
    for key in _WORDS:
        trials[key] = ["" if pd.isna(value) else str(value) for value in trials[key]]
    for name, values in _of_curves(results).items():
        trials[name] = trials["trial"].map(values).astype(float)
    trials["ran"] = trials["ran"].fillna(0).astype(int)
    declared = (results.study.get("stopping") or {}).get("max_epochs")
    trials["planned"] = trials["epochs"].fillna(float(declared or trials["ran"].max()))
    trials["per_epoch"] = trials["seconds_per_epoch"].fillna(trials["per_epoch"])
    trials["highest_lr"] = trials["scaled_lr"].fillna(trials["highest_lr"])
    stopped = trials["state"] == "stopped"
    trials["reason"] = trials["stopped_by"].map(_reason).where(stopped, "")
    trials["ended"] = trials["reason"].where(stopped, trials["state"])
    return replace(results, trials=trials)


def _with(table: pd.DataFrame, *columns: str) -> list[Any]:
    """The columns of a table and these."""
    return list(dict.fromkeys([*table, *columns]))


def _of_curves(results: Results) -> dict[str, pd.Series]:
    """What the curves tell of each trial, by its name."""
    history = results.history.reindex(columns=_with(results.history, "seconds", "lr"))
    curves = history[np.isfinite(history["val_accuracy"].astype(float))]
    best = curves.sort_values("val_accuracy", ascending=False, kind="stable")
    best = best.drop_duplicates("trial").set_index("trial")
    equal = curves[curves["epoch"] == equal_epoch(results)].set_index("trial")
    by_trial = history.groupby("trial")
    return {
        "equal": equal["val_accuracy"],
        "best": best["val_accuracy"],
        "best_epoch": best["epoch"],
        "ran": by_trial["epoch"].max(),
        "per_epoch": by_trial["seconds"].mean(),
        "highest_lr": by_trial["lr"].max(),
    }


def _counted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["state"].isin(COUNTED)]


def _reason(words: str) -> str:
    """Which rule stopped a trial, from the first word of what the trial says."""
    first = [*words.split(), ""][0].rstrip(":").lower()
    return {"asha": "ASHA", "plateau": "plateau"}.get(first, "other")


def _cells(results: Results, trials: pd.DataFrame) -> Any:
    """Norm and batch size with the trials of every cell, norms in the study's order, sizes up."""
    orders = {"norm": results.levels("norm"), "batch_size": sizes(results)}
    return arms.in_order(trials, **orders).groupby([*orders], sort=False)


def sizes(results: Results) -> list[int]:
    """The batch sizes of the study, smallest first."""
    return sorted(int(size) for size in results.levels("batch_size"))


def cell_numbers(results: Results) -> pd.DataFrame:
    """A row per cell: how its seeds ended and their accuracy, in full precision.

    Returns:
        norm, batch_size, of (seeds), a count for each way to end, reached (the same in words);
        n_equal, equal with low and high (validation accuracy at the equal epoch); n, best with low
        and high; n_full, full with low and high (the best of those that finished); means of
        best_epoch, ran and per_epoch; largest peak_memory_mib.
    """
    return pd.DataFrame(
        {"norm": norm, "batch_size": size} | _cell(group)
        for (norm, size), group in _cells(results, results.trials)
    )


def _cell(group: pd.DataFrame) -> dict[str, Any]:
    ways, ended = ("finished", *REASONS, "failed", "diverged", "unfinished"), group["ended"]
    row: dict[str, Any] = {"of": len(group)} | {way: int((ended == way).sum()) for way in ways}
    row["reached"] = _reached(group)
    group = group.assign(full=group["best"].where(group["state"] == "finished"))
    for metric, n in (("equal", "n_equal"), ("best", "n"), ("full", "n_full")):
        values = statistics.t_interval(statistics.usable(group, metric, COUNTED)[metric])
        row |= {n: values.n, metric: values.mean}
        row |= {f"{metric}_low": values.low, f"{metric}_high": values.high}
    counted = _counted(group)
    row |= counted[["best_epoch", "ran", "per_epoch"]].mean().to_dict()
    return row | {"peak_memory_mib": counted["peak_memory_mib"].max()}


def _reached(group: pd.DataFrame) -> str:
    """How many seeds ended after which epoch, and why: "2 to 50 (finished); 1 to 4 (ASHA)"."""
    found = group.groupby(["ran", "ended"]).size().reset_index(name="seeds")
    found = found.sort_values(["ran", "ended"], ascending=[False, True])
    words = {"other": "stopped", "unfinished": "not run to the end"}
    return "; ".join(
        f"{row['seeds']} to {row['ran']}\u00a0({words.get(row['ended'], row['ended'])})"
        for row in found.to_dict("records")
    )


def cell_table(results: Results) -> tables.Table:
    """The main table: tables/batch_size."""
    epoch, early = equal_epoch(results), bool((results.trials["state"] == "stopped").any())
    columns = (
        tables.text("norm", "norm"),
        tables.number("batch_size", "batch"),
        tables.count_of("n", "of"),
        _interval("equal", "n_equal", f"at epoch {epoch} (%)" if epoch else "at equal epochs (%)"),
        _interval("best", "n", "best (%)"),
        *([_interval("full", "n_full", "best of finished (%)")] if early else []),
        tables.text("reached", "seeds to their last epoch", wrap=True),
        tables.number("best_epoch", "best epoch", 1),
        tables.number("per_epoch", "s/epoch", 2),
    )
    note = (
        "Mean [95 % t interval] over seeds; one seed, or equal ones, have no interval (n/a). "
        f"{_equal_words(results)} “best”: each seed's highest validation accuracy over the epochs "
        "it ran. “2 to 50 (finished); 1 to 40 (plateau)”: two seeds ran all 50 epochs, one ended "
        "on a plateau after epoch 40. Failed or diverged seeds are in no mean."
    )
    caption = "Validation accuracy of every norm and batch size, and how far each seed ran."
    if early:
        note += (
            " Stopped seeds are **censored**: their best is a lower bound of what all epochs would "
            "have given. “best of finished” leaves them out, and so errs to the other side."
        )
    return tables.Table("batch_size", cell_numbers(results), columns, caption, note)


def _equal_words(results: Results) -> str:
    epoch = equal_epoch(results)
    if epoch is None:
        return "No trial has an epoch to compare."
    trials = _counted(results.trials[results.trials["ran"] > 0])
    least = trials[trials["ran"] == epoch]
    cells = join([f"`{norm}` at {size}" for (norm, size), _ in _cells(results, least)])
    return (
        f"Epoch {epoch} is the last that all {len(trials)} finished or stopped trials reached "
        f"(set by {count(len(least), 'trial')} of {cells})."
        if epoch < trials["ran"].max()
        else f"All {len(trials)} finished or stopped trials reached epoch {epoch}."
    )


def _interval(metric: str, n: str, header: str, signed: bool = False) -> tables.Column:
    """A column "61.2 [55.0, 67.4]"; "61.2 [n/a]" without an interval, "n/a" without a seed."""

    def cell(row: Any) -> str:
        mean, low, high = (row[key] * 100 for key in (metric, f"{metric}_low", f"{metric}_high"))
        if not row[n]:
            return "n/a"
        shown = tables.bracketed(mean, low, high, signed=signed)
        return f"{shown} [n/a]" if math.isnan(low) else shown

    return tables.Column(header, cell)


def gap_numbers(results: Results) -> pd.DataFrame:
    """The gaps bn minus gn per batch size, paired over seeds, at equal epochs and at the best.

    Returns:
        batch_size; for "equal" and "best" the mean difference with low and high, p, p_holm (over
        the batch sizes), pairs; stopped (pairs in which one trial or both were stopped early).
        Empty when the study lacks bn or gn.
    """
    trials = results.trials[results.trials["norm"].isin(["bn", "gn"])]
    if trials["norm"].nunique() < 2:
        return pd.DataFrame()
    within = {"batch_size": sizes(results)}
    numbers = pd.DataFrame(within).set_index("batch_size")
    for metric in COMPARED:
        found = arms.against(trials, "norm", metric, "gn", within, COUNTED)
        names = [f"{metric}{end}" for end in _GAP.values()]
        numbers[names] = found.set_index("batch_size")[[*_GAP]]
        numbers[names[-1]] = numbers[names[-1]].fillna(0).astype(int)
    usable = statistics.usable(trials, "best", COUNTED)
    pairs = usable.pivot(index=["batch_size", "seed"], columns="norm", values="state")
    pairs = pairs.reindex(columns=["bn", "gn"]).dropna()
    early = pairs[(pairs == "stopped").any(axis=1)].groupby("batch_size").size()
    numbers["stopped"] = early.reindex(numbers.index, fill_value=0)
    for metric in COMPARED:
        numbers[f"{metric}_p_holm"] = statistics.holm(numbers[f"{metric}_p"].to_numpy(dtype=float))
    return numbers.reset_index()


# Columns of `arms.against`, and how their names end in those of the gaps.
_GAP = {"difference": "", "difference_low": "_low", "difference_high": "_high", "p": "_p"}
_GAP |= {"pairs": "_pairs"}


def gap_change(results: Results, metric: str) -> statistics.Interval | None:
    """Gap bn minus gn at the smallest batch size less that at the largest, seed by seed.

    Args:
        results: the study.
        metric: "equal" or "best".

    Returns:
        Mean and t interval over the seeds that have all four trials; None without one.
    """
    if len(sizes(results)) < 2:
        return None
    usable = statistics.usable(results.trials, metric, COUNTED)
    wide = usable.pivot(index="seed", columns=["norm", "batch_size"], values=metric)
    small, large = sizes(results)[0], sizes(results)[-1]
    needed = [(norm, size) for size in (small, large) for norm in ("bn", "gn")]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(needed)).dropna()
    gaps = {size: wide[("bn", size)] - wide[("gn", size)] for size in (small, large)}
    return statistics.t_interval(gaps[small] - gaps[large]) if len(wide) else None


def gap_table(results: Results) -> tables.Table | None:
    """The gap bn minus gn per batch size: tables/bn_minus_gn; None when either norm is missing."""
    numbers = gap_numbers(results)
    if numbers.empty:
        return None
    epoch = equal_epoch(results)
    columns = (
        tables.number("batch_size", "batch size"),
        _interval("equal", "equal_pairs", f"at epoch {epoch} (points)", signed=True),
        tables.p_value("equal_p_holm"),
        _interval("best", "best_pairs", "at the best (points)", signed=True),
        tables.p_value("best_p_holm", "p (Holm), best"),
        *arms.numbers(best_pairs="pairs", stopped="of them stopped"),
    )
    note = (
        "Validation accuracy of `bn` minus that of `gn` with the same seed: mean [95 % t interval] "
        "over the pairs; paired t test, Holm's correction over the batch sizes. “of them stopped”: "
        "pairs in which at least one trial was stopped early, so that its best is censored."
    )
    return tables.Table("bn_minus_gn", numbers, columns, "The gap `bn` minus `gn`.", note)


def savings_numbers(results: Results) -> pd.DataFrame:
    """What early stopping saved, a row per reason and one for all.

    Returns:
        reason, trials (stopped), epochs and seconds (those that the stopped trials had left, at
        each trial's own seconds per epoch), epochs_share and seconds_share of the full grid: all
        epochs of the finished and stopped trials, and the seconds they took plus those saved.
    """
    counted = _counted(results.trials)
    stopped = counted["state"] == "stopped"
    left = (counted["planned"] - counted["ran"]).where(stopped, 0.0)
    saved = left * counted["per_epoch"].where(left > 0, 0.0)
    took = counted["seconds"].fillna(counted["ran"] * counted["per_epoch"])
    full = float(counted["planned"].sum()), float(took.sum() + saved.sum(skipna=False))
    by_reason = {r: counted["reason"] == r for r in REASONS if (counted["reason"] == r).any()}
    found = []
    for reason, rows in {**by_reason, "all": stopped}.items():
        row: dict[str, Any] = {"reason": reason, "trials": int(rows.sum())}
        sums = float(left[rows].sum()), float(saved[rows].sum(skipna=False))
        for name, part, whole in zip(("epochs", "seconds"), sums, full, strict=True):
            row |= {name: part, f"{name}_share": part / whole if whole else math.nan}
        found.append(row)
    return pd.DataFrame(found).assign(full_epochs=full[0], full_seconds=full[1])


def savings_table(results: Results) -> tables.Table:
    """Compute saved by early stopping: tables/saved."""
    numbers = savings_numbers(results)
    full = numbers.iloc[0]
    columns = (
        tables.text("reason", "stopped by"),
        *arms.numbers(trials="trials", epochs="trial-epochs saved"),
        tables.number("epochs_share", "% of the grid", 1, 100.0),
        tables.Column("time saved", lambda row: _time(row["seconds"])),
        tables.number("seconds_share", "% of the time", 1, 100.0),
    )
    note = (
        f"The full grid is {decimal(full['full_epochs'], 0)} trial-epochs, about "
        f"{_time(full['full_seconds'])} of trial time: what the finished and stopped trials took, "
        "plus the epochs a stopped trial had left, at its own seconds per epoch. Trials that "
        "failed or are missing are left out."
    )
    caption = "Compute saved by early stopping against the full grid."
    return tables.Table("saved", numbers, columns, caption, note)


def _time(seconds: float) -> str:
    return "n/a" if math.isnan(seconds) else duration(seconds)


def _norm_batch_seed() -> tuple[tables.Column, ...]:
    return (*arms.texts("norm"), tables.number("batch_size", "batch"), *arms.texts("seed"))


def _ran_of(header: str) -> tables.Column:
    return tables.Column(header, lambda row: f"{row['ran']} of {row['planned']:.0f}")


def stopped_table(results: Results) -> tables.Table:
    """Every stopped trial with when and why: tables/stopped."""
    trials = results.trials.rename(columns={"stopped_by": "why"})
    keys = ["trial", "norm", "batch_size", "seed", "reason", "ran", "planned", "best", "why"]
    columns = (
        *_norm_batch_seed(),
        tables.text("reason", "by"),
        _ran_of("after epoch"),
        *arms.shares(best="best"),
        tables.text("why", "what it said", wrap=True),
    )
    numbers = trials.loc[trials["state"] == "stopped", keys].reset_index(drop=True)
    return tables.Table("stopped", numbers, columns, "Trials that were stopped early, and why.")


def rate_table(results: Results) -> tables.Table:
    """Learning rate and steps of each batch size: tables/learning_rates."""
    trials = results.trials.assign(rule=results.trials["lr_scaling"].replace("", "not recorded"))
    trials = trials.dropna(subset=["highest_lr"])
    keys, levels = ["batch_size", "rule", "base_lr", "highest_lr"], results.levels("norm")
    rows = [
        (*values, ", ".join(str(norm) for norm in levels if norm in {*group}))
        for values, group in trials.groupby(keys, dropna=False)["norm"]
    ]
    numbers = pd.DataFrame(rows, columns=[*keys, "norms"])
    images = provenance.image_counts(results.data).get("train")
    numbers["steps"] = [  # of an epoch, whose last batch holds the rest
        math.ceil(images / size) if images else math.nan for size in numbers["batch_size"]
    ]
    columns = (
        tables.number("batch_size", "batch size"),
        *arms.texts("norms", "rule"),
        tables.scientific("base_lr", "base lr"),
        tables.scientific("highest_lr", "highest lr"),
        tables.number("steps", "steps per epoch"),
    )
    return tables.Table("learning_rates", numbers, columns, "Learning rate of each batch size.")


def _memory_numbers(results: Results) -> pd.DataFrame:
    nodes = (results.study.get("slots") or {}).get("nodes") or []
    of_slots = [n["memory"] for n in nodes if n.get("count") and n.get("memory")]
    slot = min(of_slots) / 2**20 if of_slots else math.nan
    rows = []
    for (norm, size), group in _cells(results, results.trials):
        row = {"norm": norm, "batch_size": size, **group[[*_MEMORY]].max().to_dict()}
        row["slot_mib"] = slot if math.isnan(row["slot_mib"]) else row["slot_mib"]
        for key in ("chosen_precision", "chosen_recompute"):
            row[key] = ", ".join(sorted({*group[key]} - {""}))
        rows.append(row)
    return pd.DataFrame(rows)


def memory_table(results: Results) -> tables.Table:
    """Memory estimated, chosen and measured in each cell: tables/memory."""
    numbers = _memory_numbers(results)
    headers = {
        "plain_mib": "plain estimate (MiB)",
        "slot_mib": "slot (MiB)",
        "chosen_precision": "precision",
        "chosen_recompute": "recompute",
        "estimated_mib": "estimate as run (MiB)",
        "peak_memory_mib": "measured peak (MiB)",
    }
    shown = (
        (tables.number if key.endswith("_mib") else tables.text)(key, header)
        for key, header in headers.items()
        if key in numbers and (numbers[key].notna() & (numbers[key] != "")).any()
    )
    columns = (*_norm_batch_seed()[:2], *shown)
    counted = "optimizer" in results.trials  # commits before took what the process had grown by
    cpu = "that of the tensors of a training step" if counted else "the growth of its process"
    note = (
        "Plain: float32 without recomputation. Largest value of the seeds. Measured: what the "
        f"trial itself recorded, on a GPU that of its CUDA allocator, on a CPU {cpu}."
    )
    caption = "Memory of a trial: estimated, chosen and measured."
    return tables.Table("memory", numbers, columns, caption, note)


def trial_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/batch_size_by_seed."""
    keys = ["trial", "norm", "batch_size", "seed", "state", "reason", "ran", "planned"]
    numbers = results.trials[[*keys, "equal", "best", "best_epoch", "highest_lr", "per_epoch"]]
    columns = (
        *_norm_batch_seed(),
        tables.text("state", "state"),
        tables.text("reason", "by"),
        _ran_of("epochs"),
        *arms.shares(equal=f"at epoch {equal_epoch(results) or '-'}", best="best"),
        tables.number("best_epoch", "best epoch"),
        tables.scientific("highest_lr", "highest lr"),
        tables.number("per_epoch", "s/epoch", 2),
    )
    return tables.Table("batch_size_by_seed", numbers, columns, "Every trial.")


@arms.drawn(
    "accuracy_by_batch_size",
    "Validation accuracy of each norm against batch size, at equal epochs left, at best right.",
)
def accuracy_figure(results: Results) -> arms.Drawn:
    """Accuracy against batch size on a log axis, at equal epochs and at the best."""
    numbers, trials = cell_numbers(results), _counted(results.trials)
    norms = results.levels("norm")
    figure, axes = figures.panels(2, height=2.35)
    titles = f"at epoch {equal_epoch(results)}, reached by all", "at each trial's best epoch"
    cut = False
    for panel, metric, title in zip(axes, COMPARED, titles, strict=True):
        for place, (norm, style) in enumerate(figures.styles(norms).items()):
            shift = 2 ** (0.16 * (place - (len(norms) - 1) / 2))
            cells = numbers[(numbers["norm"] == norm) & numbers[metric].notna()]
            _points(panel, cells, metric, shift, style, str(norm))
            seeds = trials[(trials["norm"] == norm) & trials[metric].notna()]
            _seeds(panel, seeds, metric, shift * 1.09, style)
        _size_axis(panel, sizes(results), title)
        cut |= _limit(panel, trials[metric], numbers, metric)
    axes[0].set_ylabel("validation accuracy (%)")
    figures.legend_below(figure, axes[0], min(7, len(norms)))
    some = arms.ranked(numbers)["n"]
    return figure, (
        "Validation accuracy against batch size (log axis). Large marks: mean over seeds with its "
        f"95 % t interval (n = {count(some.min(), 'seed', some.max())}; one seed has no interval); "
        "small marks: single seeds, "
        "hollow if stopped early. Norms are shifted sideways so that they do not hide each other."
        + _CUT
        * cut
    )


def _seeds(panel: Any, seeds: pd.DataFrame, metric: str, shift: float, style: Any) -> None:
    """Small marks, hollow for trials that were stopped."""
    look = {"color": style.color, "markeredgewidth": 0.6, "markersize": 2.8}
    for state, inside in (("finished", style.color), ("stopped", "white")):
        some = seeds[seeds["state"] == state]
        x, y = some["batch_size"] * shift, some[metric] * 100
        panel.plot(x, y, style.marker, markerfacecolor=inside, **look)


def _points(
    panel: Any, cells: pd.DataFrame, metric: str, shift: float, style: Any, label: str
) -> None:
    half = ((cells[f"{metric}_high"] - cells[metric]) * 100).fillna(0.0)
    look = {"color": style.color, "marker": style.marker, "markersize": 5, "linewidth": 1.1}
    look |= {"capsize": 2.5, "elinewidth": 0.9, "label": label if len(cells) else None}
    panel.errorbar(cells["batch_size"] * shift, cells[metric] * 100, yerr=half, **look)


def _size_axis(panel: Any, ticks: Sequence[int], title: str) -> None:
    """A log axis that is labelled at the batch sizes only."""
    panel.set_title(title, loc="left")
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(size) for size in ticks])
    panel.minorticks_off()
    panel.set_xlim(min(ticks) / 1.6, max(ticks) * 1.6)
    panel.set_xlabel("batch size (log axis)")


_CUT = " Intervals that run out of the picture are in the table."


def _limit(panel: Any, values: pd.Series, numbers: pd.DataFrame, metric: str) -> bool:
    """Keep wide intervals from flattening the picture; say whether one is cut."""
    inner = values.dropna() * 100
    if inner.empty:
        return False
    room = 0.5 * max(inner.max() - inner.min(), 2.0)
    ends = pd.concat([inner, *(numbers[f"{metric}_{end}"] * 100 for end in ("low", "high"))])
    low, high = max(ends.min(), inner.min() - room), min(ends.max(), inner.max() + room)
    margin = 0.05 * max(high - low, 1.0)
    panel.set_ylim(low - margin, high + margin)
    return bool(ends.min() < low - margin or ends.max() > high + margin)


@arms.drawn(
    "bn_minus_gn",
    "Difference of batch norm and group norm against batch size, with the published one.",
)
def gap_figure(results: Results) -> arms.Drawn:
    """The gap bn minus gn against batch size with paired intervals, beside the published gap."""
    numbers, known = gap_numbers(results), sorted(PUBLISHED)
    figure, axes = figures.panels(2, height=2.15)
    theirs = [PUBLISHED[size][1] - PUBLISHED[size][0] for size in known]
    look = {"color": "#888888", "markersize": 3, "linewidth": 0.9, "label": "Wu & He 2018"}
    style, cut = figures.Style("#000000", "o"), False
    titles = f"at epoch {equal_epoch(results)}", "at each trial's best epoch"
    for panel, metric, title in zip(axes, COMPARED, titles, strict=True):
        panel.axhline(0, color="#000000", linewidth=0.7)
        panel.plot(known, theirs, "D--", **look)
        _points(panel, numbers[numbers[metric].notna()], metric, 1.0, style, "this study")
        _size_axis(panel, sorted({*known, *sizes(results)}), title)
        values = pd.Series([*numbers[metric], *(value / 100 for value in theirs)])
        cut |= _limit(panel, values, numbers, metric)
    axes[0].set_ylabel("bn minus gn (points)")
    figures.legend_below(figure, axes[0], 2)
    pairs = numbers["best_pairs"]
    return figure, (
        "Gap `bn` minus `gn` in validation accuracy with its paired 95 % t interval "
        f"({count(pairs.min(), 'pair', pairs.max())} of seeds). Grey: published ImageNet figures, "
        "images per GPU." + _CUT * cut
    )


@figures.styled
def curve_figure(results: Results, metric: str, name: str, label: str) -> Figure | None:
    """Curves of every trial, a panel per batch size, marked where a trial was stopped."""
    history, every = results.history, sizes(results)
    if metric not in history or history[metric].notna().sum() == 0:
        return None
    trials = results.trials.set_index("trial")
    columns = min(4, len(every))
    rows = math.ceil(len(every) / columns)
    height = 0.7 + 1.55 * rows
    figure, axes = figures.panels(columns, rows, height=height, sharey=True, sharex=True)
    for spare in axes[len(every) :]:
        spare.set_visible(False)
    look = figures.styles(results.levels("norm"))
    for panel, size in zip(axes, every, strict=False):
        part = history[history["batch_size"] == size]
        _draw_size(panel, part, metric, look, trials)
        seen = figures.seeds_text(part, "norm", COUNTED)
        seen = f" ({seen})" if seen and columns < 4 else ""
        panel.set_title(f"batch size {size}{seen}", loc="left")
        figures.whole_numbers(panel, "")
    for panel in axes[max(0, len(every) - columns) : len(every)]:
        panel.set_xlabel("epoch")
    for panel in axes[::columns]:
        panel.set_ylabel(label)
    figures.fit_to_lines(axes[0], history[metric], 100.0)
    _curve_legend(figure, look, trials)
    words = label.split(" (")[0]
    caption = f"{arms.capital(words)} over epochs for each batch size. {_lines(results, metric)}"
    line = f"Curves of {words}, a panel per batch size, a line per seed."
    return arms.saved(results, figure, name, caption, line)


def _draw_size(panel: Any, part: pd.DataFrame, metric: str, look: Any, trials: Any) -> None:
    """The curves of one batch size: thin ones of its trials, thick ones of its norms."""
    for norm, style in look.items():
        group = part[part["norm"] == norm]
        for trial, one in group.groupby("trial", sort=False):
            _single(panel, one, metric, trials.loc[trial], style.color)
        figures.curve(panel, group, metric, style, label=str(norm), scale=100.0, states=COUNTED)


def _lines(results: Results, metric: str) -> str:
    """What the lines of curves are, for their caption."""
    if metric.startswith("train_"):
        return f"Lines and marks as above. {curve_note(metric.endswith('_running'))}".rstrip()
    return (
        "Thin lines: single seeds; they end in a square where ASHA stopped them, a triangle "
        "for a plateau, a cross for a failure. Thick line: mean over the finished and stopped "
        f"seeds as far as all of them ran, band: {_band_words(results)}."
    )


_ENDS = {"ASHA": "s", "plateau": "^", "other": "d", "failed": "x", "diverged": "x"}


def _single(panel: Any, one: pd.DataFrame, metric: str, trial: pd.Series, color: str) -> None:
    """One trial as a thin line, with a mark at its end unless it ran to the end."""
    x, y = one["epoch"], one[metric].astype(float) * 100
    panel.plot(x, y, color=color, linewidth=0.6, alpha=0.6)
    if mark := _ENDS.get(trial["ended"]):
        look = {"markersize": 5, "markerfacecolor": color if mark == "x" else "white", "zorder": 5}
        panel.plot(x.tail(1), y.tail(1), mark, color=color, **look)


def _curve_legend(figure: Any, look: Any, trials: pd.DataFrame) -> None:
    """Norms, and the end marks that occur."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.color, marker=style.marker, label=str(norm))
        for norm, style in look.items()
    ]
    mark: dict[str, Any] = {"color": "#444444", "linestyle": "none", "markerfacecolor": "white"}
    handles += [
        Line2D([], [], marker=_ENDS[name], label=f"stopped: {name}", **mark)
        for name in REASONS
        if (trials["reason"] == name).any()
    ]
    columns = min(6, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.2)


def _band_words(results: Results) -> str:
    counts = _counted(results.history).groupby(["norm", "batch_size"])["trial"].nunique()
    most = int(counts.max()) if len(counts) else 0
    if most <= 1:
        return "none from one seed"
    return "range of the two seeds" if most == 2 else "95 % t interval (the range of two seeds)"


@arms.drawn("epochs_run", "A bar per trial with the epochs it ran.")
def epochs_figure(results: Results, trials: pd.DataFrame) -> arms.Drawn:
    """Epochs that each of these trials ran, of those planned."""
    look, rows = figures.styles(results.levels("norm")), trials.to_dict("records")
    figure, (axes, *_) = figures.panels(height=0.6 + 0.14 * len(rows))
    outline = {"color": "none", "edgecolor": "#bbbbbb", "linewidth": 0.6}
    for row, trial in enumerate(rows):
        axes.barh(row, trial["planned"], height=0.7, **outline)
        axes.barh(row, trial["ran"], height=0.7, color=look[trial["norm"]].color)
        if trial["ended"] != "finished":
            axes.text(trial["ran"], row, f" {trial['ended']}", va="center", fontsize=6.5)
    names = [f"{trial['norm']} {trial['batch_size']:.0f}, {trial['seed']}" for trial in rows]
    figures.named_rows(axes, names, fontsize=6.5 if len(rows) > 20 else 7.5)
    figures.whole_numbers(axes, "epochs")
    axes.set_ylabel("norm, batch size, seed")
    return figure, "Epochs run (filled) of those planned (outline), with what ended a trial early."


def summary(results: Results, numbers: pd.DataFrame) -> str:
    """The result in one paragraph, and whether the curves bear out trials.csv."""
    ranked = arms.ranked(numbers)
    if ranked.empty:
        return "**No trial has an epoch to count, so there is no result yet.**"
    lines = []
    for norm in results.levels("norm"):
        cells = _ends(ranked[ranked["norm"] == norm].to_dict("records"))
        each = join([f"{percent(c['best'])} at batch size {c['batch_size']}" for c in cells])
        lines += [f"`{norm}` {each}"] if cells else []
    return (
        f"Mean of each trial's best validation accuracy: {'; '.join(lines)}. "
        f"{_equal_words(results)} {gap_sentence(results)}\n\n{_agreement(results)}"
    )


def _ends(rows: list[Any]) -> list[Any]:
    """All of a few batch sizes, the smallest and the largest of many."""
    return rows if len(rows) < 4 else [rows[0], rows[-1]]


def _agreement(results: Results) -> str:
    """Do the best accuracies of trials.csv belong to the curves of history.csv?"""
    both = results.trials.dropna(subset=["best", "best_val_accuracy"])
    worst = (both["best"] - both["best_val_accuracy"]).abs().max() if len(both) else 0.0
    if worst > 1e-9:
        return (
            "**The best accuracies in trials.csv are not those of the curves in history.csv "
            f"(difference up to {significant(worst)}): the files do not belong together.** The "
            "curves are used here."
        )
    return "Best accuracies and their epochs are computed from history.csv" + (
        f" and equal those in trials.csv for all {len(both)} trials." if len(both) else "."
    )


def gap_sentence(results: Results) -> str:
    """What the gap bn minus gn shows beside the published figures, in one sentence."""
    numbers = gap_numbers(results)
    known = numbers if numbers.empty else numbers.dropna(subset=["best"])
    if known.empty:
        why = "`bn` and `gn` share no seed with an epoch to count at any batch size"
        why = "The study lacks `bn` or `gn`" if numbers.empty else why
        return f"{why}, so there is no gap to set beside published figures."
    metric, where = "best", "at the best"
    if known["stopped"].any() and numbers["equal"].notna().any():
        metric, where = "equal", f"at epoch {equal_epoch(results)} (the best of some is censored)"
    change, row = gap_change(results, metric), known.iloc[0]
    if change is None:
        return (
            f"At batch size {row['batch_size']:.0f} `bn` minus `gn` is {_gap(row, metric)} "
            f"{where}; {_THEIRS}. Without both ends of a range of batch sizes this does not show "
            "how the gap changes."
        )
    return f"{_moves(known, metric, where, change)}; {_THEIRS}."


_THEIRS = (
    "Wu & He (ImageNet, ResNet-50) publish +0.5 points with 32 images per GPU, −0.8 with 8 and "
    "−10.6 with 2"
)


def _moves(known: pd.DataFrame, metric: str, where: str, change: statistics.Interval) -> str:
    """How the gap changes from the largest batch size to the smallest, and what that shows."""
    small, large = known.iloc[0], known.iloc[-1]
    seen = (
        f"`bn` minus `gn` {where} goes from {_points_of(large[metric])} at batch size "
        f"{large['batch_size']:.0f} to {_points_of(small[metric])} at {small['batch_size']:.0f}, "
        f"a change over shared seeds of {_points_of(change.mean)}"
    )
    if math.isnan(change.low):
        return f"{seen} ({statistics.no_interval(change.n)}, so it may be chance)"
    verdict = {
        -1: "so batch norm loses ground with small batches here too, as published",
        1: "so batch norm gains ground with small batches here, against the published trend",
        0: "an interval with 0 in it: these seeds do not show that batch norm suffers",
    }[statistics.side(change.low, change.high)]
    if change.low <= 0 <= change.high and small["batch_size"] >= 8:
        verdict += (
            ", which does not contradict the publication, where the loss is under a point at 8 "
            "and large only below"
        )
    return f"{seen}{bracket(change.low, change.high)}, {verdict}"


def _points_of(fraction: float) -> str:
    """A signed difference rounded as in the tables."""
    return f"{signed(fraction)}\u00a0points"


def _gap(row: Any, metric: str) -> str:
    ends = span(row[f"{metric}_low"], row[f"{metric}_high"])
    return f"{_points_of(row[metric])} ({ends})"


def gap_text(results: Results) -> str:
    """The gap in both comparisons, and how it changes with the batch size."""
    numbers = gap_numbers(results)
    if numbers.empty or numbers["best"].isna().all():
        return gap_sentence(results)
    parts = []
    for metric, where in (("equal", f"At epoch {equal_epoch(results)}"), ("best", "At the best")):
        rows = _ends(numbers[numbers[metric].notna()].to_dict("records"))
        gaps = join([f"{_gap(row, metric)} at batch size {row['batch_size']}" for row in rows])
        change, moved = gap_change(results, metric), ""
        if change is not None:
            moved = (
                f"; from the largest to the smallest batch size it changes by "
                f"{_points_of(change.mean)} ({span(change.low, change.high)})"
            )
        parts.append(f"{where} `bn` minus `gn` is {gaps}{moved}.")
    return (
        f"{' '.join(parts)} The first comparison is free of censoring, but equal epochs are not "
        "equal steps, and it may fall early in training; the second holds the epochs each trial "
        "was granted."
    )


def saved_text(results: Results) -> str:
    """What early stopping saved, in one sentence."""
    saved = savings_numbers(results).iloc[-1]
    stopped, ran = int(saved["trials"]), len(_counted(results.trials))
    if not stopped:
        return "No trial was stopped early, so nothing was saved."
    return (
        f"{stopped} of {count(ran, 'trial')} ended early (failed ones are not counted). That "
        f"saved {decimal(saved['epochs'], 0)} of "
        f"{decimal(saved['full_epochs'], 0)} trial-epochs ({percent(saved['epochs_share'])}) and, "
        f"at each trial's own seconds per epoch, {_time(saved['seconds'])} of about "
        f"{_time(saved['full_seconds'])} of trial time ({percent(saved['seconds_share'])})."
    )


_MEANING = {
    "linear": " (learning rate = base × batch size / reference batch size)",
    "sqrt": " (learning rate = base × √(batch size / reference batch size))",
    "none": " (the same learning rate for every batch size)",
}


def rate_text(results: Results) -> str:
    """The rule that sets the learning rate of a batch size, and how steps differ."""
    numbers = rate_table(results).numbers
    if numbers.empty:
        return "Learning rates were not recorded."
    rules = [f"**{escape(rule)}**{_MEANING.get(rule, '')}" for rule in sorted({*numbers["rule"]})]
    rates = [
        f"{join([significant(rate) for rate in sorted({*group['highest_lr']})])} at batch size "
        f"{size}"
        for size, group in _ends(list(numbers.groupby("batch_size")))
    ]
    reference = _reference(numbers)
    told = f", reference batch size {reference} as the rates tell" if reference else ""
    text = (
        f"Scaling rule: {join(rules)}{told}. The highest learning rate of the schedule is "
        f"{join(rates)}."
    )
    steps = numbers.drop_duplicates("batch_size")["steps"].dropna()
    if len(steps) > 1:
        text += (
            f" An epoch is {decimal(steps.max(), 0)} steps at the smallest and "
            f"{decimal(steps.min(), 0)} at the largest batch size: at equal epochs the networks "
            f"have seen the same images but taken {decimal(steps.max() / steps.min(), 0)} times as "
            "many steps with the smallest."
        )
    return text


def _reference(numbers: pd.DataFrame) -> int | None:
    """The batch size at which the base learning rate holds, if all rows agree on it."""
    ratios = numbers["highest_lr"] / numbers["base_lr"].replace(0.0, math.nan)
    powers = numbers["rule"].map({"linear": 1.0, "sqrt": 2.0})
    found = (numbers["batch_size"] / ratios.where(ratios > 0) ** powers).round(3).unique()
    one = found[0] if len(found) == 1 else math.nan
    return round(one) if math.isfinite(one) and abs(one - round(one)) < 0.01 else None


def memory_text(results: Results) -> str:
    """What memory was estimated, what was chosen, and whether cells differ by it."""
    numbers = memory_table(results).numbers
    if numbers["estimated_mib"].isna().all() and numbers["plain_mib"].isna().all():
        return "No estimate of memory was recorded."
    order = numbers["plain_mib"].fillna(numbers["estimated_mib"])
    largest: dict[str, Any] = numbers.assign(order=order).nlargest(1, "order").iloc[0].to_dict()
    slots = numbers["slot_mib"].dropna()
    slot = (
        f"A trial's slot has {decimal(slots.min(), 0)} MiB."
        if len(slots)
        else "The trials ran on a CPU or without a limit of memory: no slot had to be met."
    )
    return (
        f"The largest cell is `{largest['norm']}` at batch size {largest['batch_size']}: estimated "
        f"{decimal(largest['plain_mib'], 0)} MiB in float32 without recomputation, "
        f"{decimal(largest['estimated_mib'], 0)} MiB as run. {slot} {_chosen(results, numbers)}"
    )


def _chosen(results: Results, numbers: pd.DataFrame) -> str:
    """With which precision and recomputation the cells ran."""
    if numbers["chosen_precision"].eq("").all():
        return "What was chosen was not recorded."
    chosen = numbers[["chosen_precision", "chosen_recompute"]].drop_duplicates()
    if len(chosen) > 1:
        return (
            "**The cells did not all run with the same precision and recomputation** (table): "
            "recomputation changes time only, lower precision can change accuracy too."
        )
    precision, recompute = chosen.iloc[0]
    recompute = "with" if recompute == "True" else "without"
    laid_out = (results.study.get("fit") or {}).get("settings")
    why = ", chosen before the first trial so that the largest fits its slot" if laid_out else ""
    return f"All cells ran in {precision} {recompute} recomputation{why}."


def limits(results: Results, numbers: pd.DataFrame) -> str:
    """What the numbers cannot carry."""
    most = arms.most_seeds(numbers)
    stopped = int(_counted(results.trials)["state"].eq("stopped").sum())
    slow = (
        "ASHA stops what is behind early, so it also cuts slow starters: a large batch takes fewer "
        "steps per epoch. "
        if (results.trials["reason"] == "ASHA").any()
        else ""
    )
    asha = (results.study.get("stopping") or {}).get("scheduler") == "asha"
    images = provenance.image_counts(results.data).get("val")
    items: list[Any] = [
        f"{most} seeds: t intervals suppose a normal spread over seeds; with so few values "
        "they are wide, and a difference that they do not show may still be there."
        if most > 1
        else ONE_SEED,
        stopped
        and f"{stopped} trials are censored. {slow}A cell with stopped trials might have done "
        "better, never worse, at its best.",
        "The best epoch is chosen on the validation images that also measure it, and a trial with "
        "more epochs has more to choose from: “best” is slightly optimistic.",
        asha
        and "Which trial ASHA stops depends on the order in which trials reach a rung, hence on "
        "the number of slots; another run of the same seeds may stop others.",
        "Equal epochs are equal numbers of images, not of steps, and stand somewhere inside the "
        "learning-rate schedule, not at its end.",
        "One scaling rule for the learning rate; a rate tuned for each batch size and norm could "
        "change the gap. Batch sizes here are those of one device: published figures count images "
        "per GPU, with more of them per step.",
        images and f"{sampling(images)}, which the intervals over seeds do not contain.",
        results.synthetic
        and "Generated images, not photographs: the gap need not hold for photographs.",
        *scaled(results.study, SMALLER),
    ]
    return listed(items)


def _sections(results: Results, table: tables.Table, extra: list[Section]) -> list[Section | None]:
    numbers, rates, memory = table.numbers, rate_table(results), memory_table(results)
    accuracy = (results, "val_accuracy", "curves", "validation accuracy (%)")
    running, words = arms.train_column(results.history, "accuracy")
    training = (results, running, "train_curves", f"{words} accuracy (%)")
    every = trial_table(results)
    shown = replace(every, numbers=every.numbers.head(2 * _MOST_ROWS))
    return [
        section(
            "Result",
            summary(results, numbers),
            replace(table, columns=table.columns[:-2]),
            accuracy_figure(results) if (numbers["n"] > 0).any() else None,
        ),
        _gap_section(results),
        section("Curves", curve_figure(*accuracy), curve_figure(*training)),
        _stopping_section(results),
        section(
            "Learning rate and batch size",
            rate_text(results),
            rates if len(rates.numbers) else None,
        ),
        section("Memory", memory_text(results), memory if len(memory.columns) > 2 else None),
        *extra,
        section("Limits", limits(results, numbers)),
        section("Every trial", shown, optional=True),
    ]


def _gap_section(results: Results) -> Section | None:
    table = gap_table(results)
    drawn = gap_figure(results) if table and table.numbers["best"].notna().any() else None
    return section("Batch norm minus group norm", gap_text(results), table, drawn, _PUBLISHED_TABLE)


def _stopping_section(results: Results) -> Section | None:
    stopped = stopped_table(results)
    trials = arms.in_order(results.trials, norm=results.levels("norm"), batch_size=sizes(results))
    return section(
        "Early stopping",
        f"{stopping_text(results.study)}\n\n{saved_text(results)}",
        savings_table(results),
        arms.cut(stopped, _MOST_ROWS) if len(stopped.numbers) else None,
        epochs_figure(results, trials) if len(trials) <= _MOST_BARS else None,
    )


def headline(table: tables.Table) -> tables.Table:
    """The columns of the main table that fit a terminal."""
    columns = tuple(c for c in table.columns[:-2] if not c.header.startswith("best of"))
    missing = int((table.numbers["of"] - table.numbers["n"]).sum())
    note = "Mean [95 % t interval] over seeds; stopped seeds count with the epochs they ran."
    if missing:
        note += f" In no mean: {missing}; the report names them."
    caption = "Batch size: validation accuracy over seeds."
    return replace(table, columns=columns, caption=caption, note=note)
