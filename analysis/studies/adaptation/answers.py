"""Sentences of the adaptation report, made from the study's own numbers, in markup."""

from typing import Any

import pandas as pd

from analysis.document import arms, tables
from analysis.document.markup import escape
from analysis.document.report import join
from analysis.document.tables import bracketed, decimal, significant
from analysis.document.words import count, listed, percent, signed
from analysis.results import statistics
from analysis.results.folder import Results

METHODS = {
    "none": "the source model as it is",
    "running": "running statistics moved by some batches before scoring",
    "batch": "each test batch normalised by its own statistics",
    "prior": "by a blend of the source's statistics and its own (Schneider et al.)",
    "tent": "by its own, and scale and shift follow the entropy of the predictions (Tent)",
}
# Source, setting, result: as their authors give them.
PUBLISHED = tables.published(
    (
        (
            "Schneider et al. 2020",
            "ImageNet-C, ResNet-50, mean corruption error (AlexNet = 100): none, partly and fully "
            "adapted",
            "76.7, 65.0, 62.2",
        ),
        (
            "Benz et al. 2021",
            "ImageNet-C, ResNet-50, accuracy without and with 32 images",
            "39.2 %, 48.7 %",
        ),
        (
            "Wang et al. 2021 (Tent)",
            "CIFAR-10-C at severity 5, WRN-28-10, error over 15 corruptions: source, batch "
            "statistics, Tent",
            "43.5 %, 20.4 %, 18.6 %",
        ),
        (
            "the same, over these 8 corruptions",
            "mean error: source, batch statistics, Tent",
            "35.0 %, 16.6 %, 15.3 %",
        ),
        (
            "test-time-adaptation benchmark",
            "CIFAR-10-C at severity 5, batches that mix the corruptions: error by batch statistics",
            "33.8 %",
        ),
    ),
    "Sources: [Schneider et al.](https://arxiv.org/abs/2006.16971); [Benz et "
    "al.](https://arxiv.org/abs/2010.03630); [Wang et al.](https://arxiv.org/abs/2006.10726), with "
    "its [code](https://github.com/DequanWang/tent); "
    "[test-time-adaptation](https://github.com/mariodoebler/test-time-adaptation).",
)


def summary(results: Results, cells: pd.DataFrame) -> str:
    """The result in one paragraph; `cells` has no clean row."""
    if cells.empty:
        return "No cell of the severity table was run; the parts that were follow."
    model = escape(results.data.get("model", "the model"))
    better, worse = _clear_cells(cells)
    mean = {key: cells[key].mean() for key in ("acc_unadapted", "acc_adapted", "gain")}
    best, most = cells.loc[cells["gain"].idxmax()].to_dict(), ""
    if best["gain_low"] > 0:
        ends = f"{percent(best['acc_unadapted'])} to {percent(best['acc_adapted'])}"
        most = f" The largest gain is at {cell(best)}: {ends}."
    return (
        f"{model}, {int(cells['n'].max()):,} images a cell. Over {count(len(cells), 'cell')} the "
        f"mean accuracy is **{percent(mean['acc_unadapted'])} without and "
        f"{percent(mean['acc_adapted'])} with** adaptation ({signed(mean['gain'])} points). "
        f"Adaptation helps in {better} of them and harms in {worse} (95 % interval over images "
        f"clear of zero).{most}"
    )


def corruption_error(errors: pd.DataFrame, reference: str) -> str:
    """The mean corruption error, with what it is relative to."""
    if errors.empty:
        return ""
    mean = errors[["ce_unadapted", "ce_adapted"]].mean() * 100
    return (
        f"Mean corruption error over {count(len(errors), 'corruption')}: "
        f"{decimal(mean['ce_unadapted'], 1)} without and {decimal(mean['ce_adapted'], 1)} with "
        f"adaptation, each corruption's errors of all severities summed and divided by those of "
        f"the reference, which is {reference} (= 100; Hendrycks & Dietterich 2019)."
    )


def changed(results: Results) -> str:
    """Which tensors adaptation changed."""
    trials = results.trials
    if "tensors_changed" not in trials:
        return ""
    moved = trials[(trials["method"] == "running") & (trials["num_bn_updates"] > 0)]
    told = sorted({str(text) for text in moved["tensors_changed"].dropna() if text})
    if not told:
        return ""
    kinds = {part.split()[0] for text in told for part in text.split(", ")}
    named = join([f"`{kind}`" for kind in sorted(kinds)])
    if not kinds <= {"running_mean", "running_var", "num_batches_tracked"}:
        return f"**Adaptation by running statistics changed other tensors too: {named}.**"
    return (
        "No weight is trained: compared bit by bit with the source model after each trial, "
        f"adaptation by running statistics changed nothing but {named} ({told[0]} tensors)."
    )


def updates(trials: pd.DataFrame, momentum: float | None) -> str:
    """What more updates bring; `trials` are those of one cell."""
    means = trials.groupby("num_bn_updates")["acc_adapted"].mean()
    each = join([f"{percent(value)} after {number}" for number, value in means.items()])
    text = f"{_unadapted(trials)}; {each}. "
    best, last = means.idxmax(), means.index[-1]
    if best != last:
        gap = arms.lead(trials, "num_bn_updates", "acc_adapted", best, last)
        more = ": more updates are not better without end" if _clear(gap) > 0 else ""
        text += f"{best} updates against {last}: {_told(gap)}{more}. "
    if momentum and (trials["method"] == "running").all():
        kept = 1 - momentum
        left = [f"{significant(kept**number)} after {number}" for number in means.index]
        text += (
            f"Each update keeps {significant(kept)} of the old statistics, so that the "
            f"source's still weigh {join(left)}. Few updates are therefore a blend of source and "
            f"target; many leave the last {round((2 - momentum) / momentum)} batches or so (the "
            "memory of the average, (2 − m)/m), however many went before."
        )
    return text


def batch_sizes(trials: pd.DataFrame, moved: pd.DataFrame) -> str:
    """What each batch size gains, against none and against the largest, and what it leaves.

    Args:
        trials: those of one cell.
        moved: batch_size, and the changes of the statistics of each layer and seed.
    """
    sizes = sorted(trials["batch_size"].unique())
    gains = statistics.compare(trials, "batch_size", "gain").set_index("batch_size")
    gains = gains.rename(columns={"mean": "difference"})
    each = "; ".join(f"{size}: {_told(gains.loc[size])}" for size in sizes)
    text = f"{_unadapted(trials)}. Gain by batches of {each}. "
    if len(sizes) > 1:
        gap = arms.lead(trials, "batch_size", "acc_adapted", sizes[0], sizes[-1])
        text += f"Batches of {sizes[0]} against {sizes[-1]}: {_told(gap)}. "
    left = [
        f"{significant(r.median())} at {size} ({significant(r.min())} to {significant(r.max())})"
        for size, r in moved.groupby("batch_size")["ratio"]
    ]
    if left:
        text += (
            "The standard deviations that the layers keep then, as multiples of the source's "
            f"(median over layers and seeds, smallest and largest): {join(left)}."
        )
    return text


def clean(numbers: pd.Series | None) -> str:
    """What adaptation costs on clean images."""
    if numbers is None:
        return ""
    without, adapted = (percent(numbers[f"acc_{key}"]) for key in ("unadapted", "adapted"))
    gain, low, high = (signed(numbers[key]) for key in ("gain", "gain_low", "gain_high"))
    verdict = {0: "makes no clear difference", 1: "brings accuracy", -1: "costs accuracy"}
    side = statistics.side(numbers["gain_low"], numbers["gain_high"])
    return (
        f"On clean images adaptation {verdict[side]}: {without} without and {adapted} with "
        f"it, {gain} points [{low} points, {high} points] over images."
    )


def streams(trials: pd.DataFrame) -> str:
    """What each order of the images does to each method; `trials` are those of one cell."""
    sentences, worse = [], False
    for method, group in trials.groupby("method", sort=False):
        means = group.groupby("order", sort=False)["acc_adapted"].mean()
        each = join([f"{percent(value)} {order}" for order, value in means.items()])
        sentences.append(f"`{method}`: {each}.")
        for order in means.index.drop("shuffled") if "shuffled" in means else ():
            gap = arms.lead(group, "order", "acc_adapted", order, "shuffled")
            worse |= order == "sorted" and _clear(gap) < 0
            sentences.append(f"{str(order).capitalize()} against shuffled: {_told(gap)}.")
    if worse:
        sentences.append("A folder lists its files by class: shuffle them before adapting.")
    return f"{_unadapted(trials)}. {' '.join(sentences)}"


def methods(table: pd.DataFrame) -> str:
    """The methods by their mean over corruptions, and how often each gains and loses."""
    found = []
    for method, group in table.groupby("method", sort=False):
        better, worse = _clear_cells(group)
        found.append(
            f"`{method}` ({METHODS.get(str(method), method)}) "
            + percent(group["acc_adapted"].mean())
            + (f", gains in {better} and loses in {worse}" if method != "none" else "")
        )
    cells = len(table[["corruption", "severity"]].drop_duplicates())
    return (
        f"Mean accuracy over {count(cells, 'cell')} at severity "
        f"{join(sorted(table['severity'].unique()))}, and cells in which the 95 % interval over "
        f"images of the gain is clear of zero: {'; '.join(found)}."
    )


def breaks(cells: pd.DataFrame) -> str:
    """Cells that adaptation harms."""
    harmed = cells[cells["gain_high"] < 0].sort_values("gain")
    if harmed.empty:
        lowest = cells.loc[cells["gain"].idxmin()].to_dict()
        return (
            "In no cell is adaptation worse than none by more than chance; the smallest gain is "
            f"{signed(lowest['gain'])} points at {cell(lowest)}."
        )
    shown = [f"{cell(row)} ({signed(row['gain'])} points)" for _, row in harmed.head(6).iterrows()]
    mild = harmed["acc_unadapted"].mean()
    return (
        f"Adaptation harms in {count(len(harmed), 'cell')}: {join(shown)}"
        + (", and others" if len(harmed) > len(shown) else "")
        + f". The unadapted model has {percent(mild)} there on average."
    )


def limits(results: Results) -> str:
    """What the numbers do not say."""
    trials, frost = results.trials, results.data.get("frost")
    running = trials[trials["method"] == "running"]
    asked = running["num_bn_updates"] * running["batch_size"]
    wrapped = "n" in running and (asked > running["n"].astype(float)).any()
    lines: list[Any] = [
        "The images that adapt the model are those it is scored on (their labels are never used): "
        "the accuracies are of a model that has seen its test images.",
        "Intervals of cells are over images (Wilson's for an accuracy; for a gain that of Agresti "
        "& Min for matched pairs) and say how other images of the same kind would differ; "
        "intervals of curves are over seeds, which change nothing but the order of the images.",
        wrapped
        and "Where the updates need more images than there are, the stream goes on with a "
        "further seeded permutation (`wrap`).",
        {"batch", "prior", "tent"} & set(trials["method"])
        and "Methods that look at the test batch also do so at the last batch, which holds the "
        "rest of the images and may be small.",
        frost and "frost" in set(trials["corruption"]) and f"Frost is made with {escape(frost)}.",
    ]
    return listed(lines)


def cell(row: Any) -> str:
    """A cell in words."""
    return f"{str(row['corruption']).replace('_', ' ')} {int(row['severity'])}"


def _clear_cells(cells: pd.DataFrame) -> tuple[int, int]:
    return int((cells["gain_low"] > 0).sum()), int((cells["gain_high"] < 0).sum())


def _clear(row: Any) -> int:
    return statistics.side(row["low"], row["high"])


def _told(row: Any) -> str:
    """A difference over seeds in words, with its interval and whether that leaves out zero."""
    if pd.isna(row["low"]):
        return f"{signed(row['difference'])} points ({statistics.no_interval(row['n'])})"
    numbers = [100 * row[key] for key in ("difference", "low", "high")]
    text = f"{bracketed(*numbers, signed=True)} points"
    return text if _clear(row) else f"{text}, which cannot be told from 0"


def _unadapted(trials: pd.DataFrame) -> str:
    return f"Unadapted {percent(trials['acc_unadapted'].astype(float).mean())}"
