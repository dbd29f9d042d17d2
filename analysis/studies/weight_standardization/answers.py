"""Sentences of the weight standardisation report, made from the study's own numbers, in markup."""

import numpy as np
import pandas as pd

from analysis.document import arms
from analysis.document.tables import bracketed, significant
from analysis.document.words import listed, percent
from analysis.results.folder import Results

WRONG_BELOW = 0.35  # the lab's text: a mAP below it means that something is wrong
NAMES = {"original": "the original", "A": "mode A", "B": "mode B"}

FORMULAS = (
    "A convolution gives z = W * x + b. Standardisation divides the kernel of each output channel "
    "c by n, the root of its variance plus 1e-12, so that the layer gives (z - b) / n + b. The "
    "norm behind it computes weight (z - mean) / S + bias, S the root of its variance plus its "
    "eps (the norm's own, not 1e-12). Two of its four numbers per channel can be "
    "changed so that its output stays what it was."
)
NEGATIVE = (
    "The variance of mode A is below 0 where n is larger than the root of 1 + variance / eps: a "
    "channel that hardly varies behind a kernel that varies much. That is no error: the norm only "
    "uses the sum with eps, which is (variance + eps) / n², always above 0. Clamping it would "
    "change the output. Without eps the formulas are mean / n and variance / n², which is wrong on "
    "just those channels."
)


def summary(results: Results, numbers: pd.DataFrame, losses: pd.DataFrame) -> str:
    """The result in one paragraph."""
    ranked = arms.ranked(numbers)
    if ranked.empty:
        return arms.NO_RESULT
    parts = []
    for rate in ranked["lr"].unique().tolist():
        group = ranked[ranked["lr"] == rate]
        shown = zip(group["variant"], group["mean"], strict=True)
        each = ", ".join(f"{NAMES[variant]} {percent(mean)}" for variant, mean in shown)
        parts.append(f"at a learning rate of {significant(rate)}: {each}")
    epochs = int(results.history["epoch"].max())
    tail = f" {same_curve(losses)}" if not losses.empty else ""
    return f"mAP after {epochs} epochs, {'; '.join(parts)}. {chance(results)}{broken(ranked)}{tail}"


def chance(results: Results) -> str:
    """What ranking the images at random would give: the share of images with a class."""
    data = results.data
    counts, images = data.get("counts", {}).get("val"), data.get("images", {}).get("val")
    if not counts or not images:
        return ""
    shares = [count / images for count in counts.values() if count]
    return f"A random ranking gives about {percent(float(np.mean(shares)))}. "


def broken(ranked: pd.DataFrame) -> str:
    """Which mode loses in training: paired differences to the original, intervals without 0."""
    told = [
        _against_original(mode, rows)
        for mode in ("A", "B")
        if len(rows := ranked[(ranked["variant"] == mode) & ranked["difference"].notna()])
    ]
    return " ".join(told) or "The original or the modes are missing, so nothing can be compared."


def _against_original(mode: str, rows: pd.DataFrame) -> str:
    lower, higher = rows[rows["difference_high"] < 0], rows[rows["difference_low"] > 0]
    found = lower if len(lower) else higher if len(higher) else rows
    row = found.loc[found["difference"].abs().idxmax()]
    mean, low, high = (100 * float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    size, rate = bracketed(mean, low, high, signed=True), significant(float(row["lr"]))
    gap = f"{size} points at a rate of {rate}"
    if len(lower) or len(higher):
        verdict = "loses" if len(lower) else "gains"
        return f"**Mode {mode} {verdict} against the original: {gap}.**"
    if rows["difference_low"].isna().all():
        return f"Mode {mode} minus the original: {gap}, without an interval."
    return f"Mode {mode} cannot be told from the original: {gap} is the largest difference."


def same_curve(losses: pd.DataFrame) -> str:
    """How far the loss of mode A is from the original's, step by step."""
    row = losses[losses["variant"] == "A"]
    if row.empty:
        return ""
    return (
        "The training loss of mode A differs from the original's by "
        f"{significant(row['first'].max())} nats at most at the first step and "
        f"{significant(row['watched'].max())} over the first "
        f"{int(row['steps_watched'].max())} steps (same batches, same seeds)."
    )


def curves(losses: pd.DataFrame) -> str:
    """What the loss curves say about both modes."""
    if losses.empty:
        return "The original and a converted network did not both finish with a shared seed."
    words = [same_curve(losses)] if (losses["variant"] == "A").any() else []
    row = losses[losses["variant"] == "B"]
    if not row.empty:
        words.append(
            f"Mode B differs by {significant(row['first'].max())} nats at the first step, before "
            "any weight has moved."
        )
    return " ".join(words)


def evaluation(rows: pd.DataFrame) -> str:
    """What the check of the logits found."""
    if rows.empty:
        return "No check of the logits is stored with this study."
    exact = rows[rows["mode"].isin(["A", "B"])]
    single = exact[exact["precision"] == "float32"]
    double = exact[exact["precision"] == "float64"]
    changed, images = int(exact["changed"].sum()), int(exact["images"].max())
    relative = (double["largest"] / double["size"]).max()
    return (
        f"In evaluation, on {images} images, the mean absolute difference of the logits of either "
        f"mode to the original's is {significant(single['mae'].max())} at most in float32, the "
        f"largest in float64 {significant(relative)} of the largest logit; {changed} predictions "
        "change."
    )


def mechanism(layers: pd.DataFrame) -> str:
    """What each mode does in training: by the formulas, and as recorded at the first step."""
    first = layers[layers["step"] == 1]
    if first.empty or "original" not in set(first["variant"]):
        return "The first steps of the original were not recorded."
    kinds = ["activation", "gradient", "weight"]
    wide = first.pivot_table(index="layer", columns="variant", values=kinds, sort=False)
    words = [_BY_THE_FORMULAS]
    for mode in [m for m in ("A", "B") if m in set(first["variant"])]:
        ratios = (
            (wide[what][mode] / wide[what]["original"]).replace(np.inf, np.nan).dropna()
            for what in kinds
        )
        activation, gradient, weight = map(spread, ratios)
        words.append(
            f"Recorded at step 1, as multiples of the original's (median over the "
            f"{len(wide)} layers, smallest and largest): mode {mode}: standard deviation of a "
            f"channel after the norm {activation}, gradient of the convolution {gradient}, the "
            f"norm's weight {weight}."
        )
    return "\n\n".join(words)


_BY_THE_FORMULAS = (
    "**By the formulas.** In training a norm takes mean and variance from the batch, not from "
    "its running values. Those of the standardised layer are n times smaller, so the division "
    "by them gives back what the original gives, up to the norm's eps. Mode A has left weight "
    "and bias alone: its output is the original's. Mode B has multiplied the weight by n and "
    "moved the bias, which only running values would make up for: its output is n times the "
    "right one, plus an offset that belongs to another normalisation."
)


def spread(values: pd.Series) -> str:
    """Median with smallest and largest."""
    if values.empty:
        return "not known"
    low, middle, high = values.min(), values.median(), values.max()
    return f"{significant(middle)} ({significant(low)} to {significant(high)})"


def flag(results: Results, numbers: pd.DataFrame) -> str:
    """The lab's threshold, on real data only."""
    if results.synthetic:
        return (
            "The lab's rule that a mAP below 35 % means a mistake is for Pascal VOC and ImageNet "
            "weights; it says nothing about these generated pictures."
        )
    low = numbers[(numbers["n"] > 0) & (numbers["mean"] < WRONG_BELOW)]
    named = ", ".join(
        f"{NAMES[row['variant']]} at lr {significant(row['lr'])} ({percent(row['mean'])})"
        for row in low.to_dict("records")
    )
    if not named:
        return "No mean mAP is below 35 %, the level under which the lab calls a result wrong."
    return f"**Below 35 %, which the lab calls wrong: {named}.**"


def limits(results: Results, numbers: pd.DataFrame) -> str:
    """What the numbers cannot carry."""
    seeds = arms.most_seeds(numbers)
    items = [
        f"{seeds} seeds: the intervals are Student's t over seeds."
        if seeds > 1
        else "One seed: there is no interval, and differences may be chance (`--seeds 3`).",
        "Mode A is the original in training only up to the norm's eps: it acts as n² times as "
        "large there, which shows on channels whose variance is not far above it.",
        "In training mode B no longer starts from the pretrained network.",
    ]
    return listed(items)
