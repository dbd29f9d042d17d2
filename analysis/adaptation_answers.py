"""Sentences of the adaptation report, made from the study's own numbers, in markup."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.markup import escape
from analysis.report import join
from analysis.results import Results
from analysis.tables import decimal, significant

METHODS = {
    "none": "the source model as it is",
    "running": "running statistics moved by some batches before scoring",
    "batch": "each test batch normalised by its own statistics",
    "prior": "by a blend of the source's statistics and its own (Schneider et al.)",
    "tent": "by its own, and scale and shift follow the entropy of the predictions (Tent)",
}
# Source, setting, result: as their authors give them.
PUBLISHED = (
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
)
PUBLISHED_LINKS = (
    "Sources: [Schneider et al.](https://arxiv.org/abs/2006.16971); "
    "[Benz et al.](https://arxiv.org/abs/2010.03630); "
    "[Wang et al.](https://arxiv.org/abs/2006.10726), with its "
    "[code](https://github.com/DequanWang/tent); "
    "[test-time-adaptation](https://github.com/mariodoebler/test-time-adaptation)."
)
Rows = Sequence[dict[Any, Any]]


def published() -> list[tuple[str, ...]]:
    """Other people's results with per cent signs that stay with their numbers."""
    return [tuple(cell.replace(" %", "\u00a0%") for cell in row) for row in PUBLISHED]


def summary(results: Results, cells: pd.DataFrame) -> str:
    """The result in one paragraph; `cells` has no clean row."""
    if cells.empty:
        return "No cell of the severity table was run; the parts that were follow."
    model = escape(results.study.get("data", {}).get("model", "the model"))
    better = int((cells["gain_low"] > 0).sum())
    worse = int((cells["gain_high"] < 0).sum())
    best = cells.loc[cells["gain"].idxmax()].to_dict()
    mean = {key: cells[key].mean() for key in ("acc_unadapted", "acc_adapted", "gain")}
    return (
        f"{model}, {int(cells['n'].max()):,} images a cell. Over {count(len(cells), 'cell')} the "
        f"mean accuracy is **{percent(mean['acc_unadapted'])} without and "
        f"{percent(mean['acc_adapted'])} with** adaptation ({points(mean['gain'])}). Adaptation "
        f"helps in {better} of them and harms in {worse} (95 % interval over images clear of "
        f"zero); most it gains at {cell(best)}: {percent(best['acc_unadapted'])} to "
        f"{percent(best['acc_adapted'])}."
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
    only = kinds <= {"running_mean", "running_var", "num_batches_tracked"}
    listed = join([f"`{kind}`" for kind in sorted(kinds)])
    if not only:
        return f"**Adaptation by running statistics changed other tensors too: {listed}.**"
    return (
        "No weight is trained: compared bit by bit with the source model after each trial, "
        f"adaptation by running statistics changed nothing but {listed} ({told[0]} tensors)."
    )


def updates(table: pd.DataFrame, momentum: float | None, unadapted: float) -> str:
    """What more updates bring."""
    rows: Rows = table.sort_values("num_bn_updates").to_dict("records")
    best = max(rows, key=lambda row: row["mean"])
    last = rows[-1]
    listed = join([f"{percent(row['mean'])} after {row['num_bn_updates']}" for row in rows])
    text = f"Unadapted {percent(unadapted)}; {listed}. "
    text += f"The best of these is {count(best['num_bn_updates'], 'update')}"
    if last["high"] < best["mean"]:  # more than the spread over seeds
        text += (
            f", {points(best['mean'] - last['mean'])} over {last['num_bn_updates']}: more updates "
            "are not better without end"
        )
    text += ". "
    if momentum:
        left = [
            f"{significant((1 - momentum) ** row['num_bn_updates'])} after {row['num_bn_updates']}"
            for row in rows
        ]
        text += (
            f"Each update keeps {significant(1 - momentum)} of the old statistics, so that the "
            f"source's still weigh {join(left)}. Few updates are therefore a blend of source and "
            f"target; many leave the last {effective(momentum)} batches or so (the memory of the "
            "average, (2 − m)/m), "
            "however many went before."
        )
    return text


def batch_sizes(table: pd.DataFrame, momentum: float | None, unadapted: float, count_: int) -> str:
    """Why small batches fail."""
    rows: Rows = table.sort_values("batch_size").to_dict("records")
    listed = join([f"{percent(row['mean'])} at {row['batch_size']}" for row in rows])
    first, last = rows[0], rows[-1]
    text = f"Unadapted {percent(unadapted)}; after {count_} updates {listed}. "
    if first["batch_size"] != 1:
        return text
    verdict = "below" if first["mean"] < unadapted else "above"
    spread = "" if pd.isna(first["std"]) else f", with a spread over seeds of {spread_of(first)}"
    text += (
        f"Batches of one image end {verdict} the unadapted model "
        f"({points(first['mean'] - unadapted)}{spread}) and {points(first['mean'] - last['mean'])} "
        f"against batches of {last['batch_size']}. Two things go wrong. The mean and the variance "
        "of one image are a noisy estimate of those of all"
    )
    if momentum:
        text += f", and the running average smooths over some {effective(momentum)} images only"
    return text + (
        ". And the variance inside one image lacks the variance between images: averaged over any "
        "number of batches it stays too small, because the running variance is a mean of "
        "variances about each batch's own mean."
    )


def clean(numbers: pd.Series | None) -> str:
    """What adaptation costs on clean images."""
    if numbers is None:
        return ""
    interval = f"[{points(numbers['gain_low'])}, {points(numbers['gain_high'])}] over images"
    both = (
        f"{percent(numbers['acc_unadapted'])} without and {percent(numbers['acc_adapted'])} with "
        f"it, {points(numbers['gain'])} {interval}"
    )
    if numbers["gain_high"] < 0:
        return (
            f"On clean images adaptation costs accuracy: {both}. Statistics of the last batches "
            "replace those of the whole training set, where nothing had shifted."
        )
    verdict = "brings accuracy" if numbers["gain_low"] > 0 else "makes no clear difference"
    return f"On clean images adaptation {verdict}: {both}."


def streams(table: pd.DataFrame, unadapted: float) -> str:
    """Where the order of the images breaks adaptation."""
    sentences, collapsed = [], False
    for method, group in table.groupby("method", sort=False):
        by = group.set_index("order")["mean"]
        if not {"shuffled", "sorted"} <= set(by.index):
            continue
        fall = by["shuffled"] - by["sorted"]
        collapsed |= fall > 0.1
        listed = join([f"{percent(value)} {order}" for order, value in by.items()])
        worse = by["sorted"] < unadapted
        sentences.append(
            f"`{method}`: {listed}. Sorted by class it "
            + (f"loses {points(fall, signed=False)}" if fall > 0 else "does not lose")
            + (" and ends below the unadapted model" if worse else "")
            + ("**, a collapse**" if fall > 0.1 else "")
            + "."
        )
    if not sentences:
        return ""
    why = (
        " A batch of one class has the statistics of that class: subtracting its mean takes away "
        "what tells the class from others. A folder lists its files in that order, so adaptation "
        "must shuffle them."
    )
    return f"Unadapted {percent(unadapted)}. {' '.join(sentences)}" + (why if collapsed else "")


def methods(table: pd.DataFrame) -> str:
    """The methods, best first, by their mean over corruptions."""
    mean = table.groupby("method", sort=False)["acc_adapted"].mean().sort_values(ascending=False)
    listed = join([f"`{method}` {percent(value)}" for method, value in mean.items()])
    names = "; ".join(f"`{name}`: {METHODS[name]}" for name in mean.index if name in METHODS)
    severities = join(sorted(table["severity"].unique()))
    return f"Mean over the corruptions at severity {severities}, best first: {listed}. {names}."


def breaks(cells: pd.DataFrame) -> str:
    """Cells that adaptation harms."""
    harmed = cells[cells["gain_high"] < 0].sort_values("gain")
    if harmed.empty:
        lowest = cells.loc[cells["gain"].idxmin()].to_dict()
        return (
            "In no cell is adaptation worse than none by more than chance; the smallest gain is "
            f"{points(lowest['gain'])} at {cell(lowest)}."
        )
    shown = [f"{cell(row)} ({points(row['gain'])})" for _, row in harmed.head(6).iterrows()]
    mild = harmed["acc_unadapted"].mean()
    return (
        f"Adaptation harms in {count(len(harmed), 'cell')}: {join(shown)}, where the unadapted "
        f"model still has {percent(mild)} on average: a mild shift leaves little to win and the "
        "price on clean images is paid."
    )


def limits(results: Results, parts: Sequence[str]) -> str:
    """What the numbers do not say."""
    trials = results.trials
    lines = [
        "The images that adapt the model are those it is scored on (their labels are never used): "
        "the accuracies are of a model that has seen its test images.",
        "Intervals of cells are over images (Wilson's for an accuracy; for a gain that of Agresti "
        "& Min for matched pairs) and say how other images of the same kind would differ; "
        "intervals of curves are over seeds, which change nothing but the order of the images.",
    ]
    running = trials[trials["method"] == "running"]
    if "n" in running:
        asked = running["num_bn_updates"] * running["batch_size"]
        if (asked > running["n"].astype(float)).any():
            lines.append(
                "Where the updates need more images than there are, the stream goes on with a "
                "further seeded permutation (`wrap`)."
            )
    if {"batch", "prior", "tent"} & set(trials["method"]):
        lines.append(
            "Methods that look at the test batch also do so at the last batch, which holds the "
            "rest of the images and may be small."
        )
    frost = results.study.get("data", {}).get("frost")
    if frost and "frost" in set(trials["corruption"]):
        lines.append(f"Frost is made with {escape(frost)}.")
    return "\n".join(f"- {line}" for line in lines)


def effective(momentum: float) -> int:
    """Batches that an exponential average with this momentum amounts to."""
    return round((2 - momentum) / momentum)


def cell(row: Any) -> str:
    """A cell in words."""
    return f"{str(row['corruption']).replace('_', ' ')} {int(row['severity'])}"


def count(number: float, noun: str) -> str:
    """The text "1 cell" or "40 cells"."""
    return f"{int(number):,} {noun}" + ("" if number == 1 else "s")


def spread_of(row: dict[Any, Any]) -> str:
    """The standard deviation over seeds in points."""
    return points(row["std"], signed=False)


def percent(value: float) -> str:
    """A fraction as "81.4 %"."""
    return f"{decimal(value * 100, 1)} %"


def points(value: float, signed: bool = True) -> str:
    """A difference of fractions as "+1.2 points"."""
    return f"{decimal(value * 100, 1, signed)} points"
