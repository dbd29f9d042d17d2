"""Sentences of the generation report, made from the study's own numbers, in markup."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.document import arms, tables
from analysis.document.markup import escape
from analysis.document.provenance import image_counts
from analysis.document.report import join
from analysis.document.tables import decimal, significant
from analysis.document.words import answered, count, listed, percent, scaled
from analysis.results import recomputed, statistics
from analysis.results.folder import Results
from analysis.studies.generation.figures import NAMES
from analysis.studies.generation.samples import Stored


@dataclass
class Recomputed(recomputed.Recomputed):
    """Measures computed from what the trials stored; of images, those whose nearest were found."""

    features: int = 0  # trials whose distance, precision and kin come from stored features
    scores: int = 0  # trials whose right class and class balance come from stored scores


Known = Mapping[str, Mapping[str, float]]
_ROUNDING = 1e-6  # of a measure computed again, at most

# Source, setting, result: as their authors or users give them.
PUBLISHED = tables.published(
    (
        ("EDM", "CIFAR-10, FID, 35 network calls", "1.97 without labels, 1.79 with"),
        ("flow_matching", "CIFAR-10, FID", "2.07 (authors); 3.09 on one V100 (a user)"),
        ("DDPM", "CIFAR-10, FID, 1,000 steps", "3.17"),
        (
            "torchcfm",
            "CIFAR-10, FID, 400,000 steps",
            "3.5; 7.5 without the moving average (a user)",
        ),
    ),
    "Sources: [EDM](https://github.com/NVlabs/edm); "
    "[flow_matching and its issue 68](https://github.com/facebookresearch/flow_matching/issues/68);"
    " [DDPM](https://arxiv.org/abs/2006.11239); "
    "[torchcfm and its issue 152](https://github.com/atong01/conditional-flow-matching/issues/152).",
    "**Other people's results**, not measured here; FID is with Inception's features.",
)


def summary(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """The result in one paragraph."""
    ranked = best_widths(arms.ranked(numbers))
    if not ranked:
        return arms.NO_RESULT
    best = ranked[0]
    each = join([f"{_name(row)} {decimal(row['frechet'], 3)}" for row in ranked])
    text = (
        f"Mean Fréchet distance to the training images in labtune's classifier features (not FID), "
        f"each family at its best width: {each}. "
    )
    if "noise" in known:
        noise, real = (known[name]["frechet"] for name in ("noise", "held_out"))
        below = "below" if best["frechet"] < noise / 4 else "**not below**"
        text += (
            f"The smallest, of {_name(best)}, is {below} a quarter of the ceiling that noise gives "
            f"({decimal(noise, 3)}); held-out real images are at {decimal(real, 3)}."
        )
    return text


def best_widths(ranked: pd.DataFrame) -> list[dict[Any, Any]]:
    """The first row of each family in a ranked table."""
    return ranked.drop_duplicates("family").to_dict("records")


def questions(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """What the study asks, each with an answer from the numbers."""
    ranked = arms.ranked(numbers)
    if ranked.empty:
        return arms.NO_ANSWER
    pairs = [
        ("Which family makes the best images?", _best(results, ranked)),
        ("Does a wider network help?", _width(results, ranked)),
        ("Who leaves images out?", _variety(results, ranked, known)),
        ("What does each family cost?", _cost(ranked)),
    ]
    return answered(pairs)


def looks(shown: Mapping[str, Stored]) -> str:
    """What the picture of samples shows and how they were chosen."""
    names, config = join([NAMES[family] for family in shown]), next(iter(shown.values())).config
    asked = "Each image was asked for by its class."
    asked = asked if config["conditional"] else "Nothing was told about classes."
    return (
        f"Samples of {names} from moving averages of the weights where the study keeps one "
        f"(decay {config['ema']}). {asked} A trial also writes this grid after each epoch: "
        "`tensorboard --logdir tensorboard` shows them under images."
    )


def copied(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """Whether samples are training images, judged against held-out images."""
    ranked = arms.ranked(numbers)
    if "copies" not in ranked or "held_out" not in known:
        return "Nearest training images were not recorded."
    real = known["held_out"]["copies"]
    each = join([f"{_name(row)} {percent(row['copies'])}" for row in best_widths(ranked)])
    every = ranked.to_dict("records")
    guilty = [_name(row) for row in every if row["copies_low"] > real]
    if guilty:
        verdict = (
            f"**{join(guilty)} may copy**: the interval over seeds lies above the share of "
            "held-out images."
        )
    elif any(math.isnan(row["copies_low"]) for row in every):
        verdict = "Without an interval over seeds there is no verdict."
    else:
        verdict = (
            "At no width does a family's interval over seeds lie above the share of held-out "
            "images: no sign of copying."
        )
    return (
        f"{_how_copies(results)} Share of such images: {each}; held-out real images "
        f"{percent(real)}, training images themselves {percent(known['copies']['copies'])}. "
        f"{verdict}"
    )


def _how_copies(results: Results) -> str:
    """By what a copy is told."""
    check = results.data.get("copy_check")
    if check is None:
        return (
            "This folder was made by a check in pixels, which does not see mirrored or shifted "
            "copies: the distance to the nearest training image is below half of the mean of the "
            "50 nearest."
        )
    found = join([f"{percent(share)} {kind}" for kind, share in check["found"].items()])
    return (
        "A copy has one training image much nearer than the 50 that look most alike, in "
        "differences of neighbouring pixels, also mirrored and shifted by up to 2 pixels. How "
        f"much, a ratio below {significant(check['threshold'])}, is set on "
        f"{check['calibrated_on']:,} held-out images, of which at most half of 1\u00a0% lie "
        f"below. Of copies planted to try it, it finds {found}."
    )


def measures(results: Results, checked: Recomputed) -> str:
    """What is computed, in which features, and whether it could be computed again."""
    reader, compared = results.data.get("classifier", {}), results.data.get("compared")
    accuracy = percent(reader.get("held_out_accuracy", float("nan")))
    train = image_counts(results.data).get("train", 0)
    k = results.study.get("constants", {}).get("neighbours", 5)
    return (
        f"The features are the {reader.get('features', '')} outputs of the last hidden layer of a "
        f"small classifier that labtune trained on the same training images ({accuracy} "
        "of held-out images right), divided by the root of their total variance. The distance is "
        "therefore in units of the spread of the real images, holds within this study only, and "
        f"**is not FID**, which needs Inception's features.\n\n- Fréchet distance: {compared} "
        f"samples against all {train:,} training images, each set taken for a "
        "normal distribution.\n- Precision and density: samples that lie among real images "
        "(fidelity). Recall and coverage: real images that lie among samples (variety). Balls to "
        f"the k-th neighbour, k = {k}, {compared} images of each kind.\n- The floor is held-out "
        "real images; training images once more show what learning them by heart would give.\n\n"
        f"{stored_measures(checked)}"
    )


def stored_measures(checked: Recomputed) -> str:
    """Which numbers come from stored files, and whether they are those that were reported."""
    kinds = (
        (checked.features, "features", "Fréchet distance, precision, recall, density and coverage"),
        (checked.scores, "scores", "right class and class balance"),
        (checked.images, "samples", "copies and distances to the nearest training image"),
    )
    come = [
        f"{names} from the stored {kind} of {count(n, 'trial')}" for n, kind, names in kinds if n
    ]
    reported = [names for n, _, names in kinds if not n]
    text = f"Computed for this report: {'; '.join(come)}. " if come else ""
    if reported:
        text += (
            f"As the trials reported them: {'; '.join(reported)} (what they would be computed from "
            "is not all in this folder; training images never are). "
        )
    wrong = {name: found for name, found in checked.worst.items() if found[0] > _ROUNDING}
    for name, (apart, trial) in wrong.items():
        text += (
            f"**{name.replace('_', ' ')} of {escape(trial)} is not what the trial reported "
            f"(difference {significant(apart)}): the stored file has been changed or is of another "
            "run.** "
        )
    if come and not wrong:
        text += "They are those that the trials reported."
    return text.strip()


def beside(results: Results) -> str:
    """How far the published figures can be compared with this study."""
    given = "inception_frechet" in results.trials
    return (
        "Published FIDs of CIFAR-10 come from networks of tens of millions of weights, hundreds of "
        "thousands of steps and 50,000 samples in Inception's features. They tell what is possible "
        "and cannot be held against any number here. The same distance in Inception's features is "
        "added for those who give its weights (`--set inception=PATH`); with torchvision's weights "
        "it is not FID either."
        + ("" if given else " No such weights were given here, so it is left out.")
    )


def limits(results: Results) -> str:
    """What the numbers cannot carry."""
    data = results.data
    items: list[Any] = [
        f"The Fréchet distance of {data.get('compared')} images is biased upwards, and the "
        "classifier that gives the features was trained on the training images: held-out images "
        "can be farther from them than samples are. Compare rows of one table only.",
        "Every family has the same number of steps, not the same time, and a learning rate of its "
        "own, set in a few short trials on the embedded digits and not searched.",
        "One split into training and held-out images for all seeds.",
        "Nothing is chosen by looking: figures show the first seed of each family's best width. "
        "The best width itself was chosen by the distance shown.",
        data.get("dataset") == "digits"
        and "The embedded digits are 8x8 images enlarged to twice their size: MNIST's are finer "
        "(`--set dataset=mnist`).",
    ]
    smaller = "few steps and narrow networks; `--data-dir` or `--scale full` runs the full scale."
    return listed(items + scaled(results.study, smaller))


def _best(results: Results, ranked: pd.DataFrame) -> str:
    best, *others = best_widths(ranked)
    name = _name(best)
    ends = _ends(best["frechet_low"], best["frechet_high"]) or " [no interval]"
    smallest = f"the smallest mean is {decimal(best['frechet'], 3)}{ends}, {name}"
    if not others:
        return f"Only one family has finished: {smallest}."
    second, *rest = (_name(row) for row in others)
    leads = [_paired(results, row, best, "frechet") for row in others]
    lead = leads[0]
    if lead is None or math.isnan(lead["low"]):
        return f"This cannot be told without an interval: {smallest}, then {second}."
    apart = (
        f"{second} is at {decimal(lead['difference'], 3, True)} from it on the same seeds "
        f"(95 % interval {decimal(lead['low'], 3, True)} to {decimal(lead['high'], 3, True)})"
    )
    if not _separate(lead):
        return f"The first two cannot be told apart: {smallest}; {apart}."
    close = [name for name, its in zip(rest, leads[1:], strict=True) if not _separate(its)]
    but = f", which cannot be told from {join(close)}" if close else ""
    return f"{arms.capital(name)}{but}: {smallest}; {apart}."


def _width(results: Results, ranked: pd.DataFrame) -> str:
    found = []
    for family, group in ranked.groupby("family", sort=False):
        ordered = group.sort_values("width").to_dict("records")
        lead = _paired(results, ordered[-1], ordered[0], "frechet") if len(group) > 1 else None
        if lead is not None:
            ends = _ends(lead["low"], lead["high"], signed=True)
            ends += " (cannot be told apart)" if ends and not _separate(lead) else ""
            found.append(f"{NAMES[str(family)]} {decimal(lead['difference'], 3, True)}{ends}")
    if not found:
        return "Only one width has finished."
    widths = sorted(ranked["width"].unique())
    return (
        f"From width {widths[0]} to {widths[-1]} the distance changes by {join(found)} "
        "(paired over seeds, negative is better)."
    )


def _variety(results: Results, ranked: pd.DataFrame, known: Known) -> str:
    rows = sorted(best_widths(ranked), key=lambda row: row["recall"])
    shown = [(_name(row), row) for row in rows]
    each = join([f"{name} {percent(m['recall'])} ({percent(m['precision'])})" for name, m in shown])
    text = f"Recall, lowest first (precision in brackets): {each}"
    if "held_out" in known:
        real = known["held_out"]
        text += f"; held-out images {percent(real['recall'])} ({percent(real['precision'])})"
    apart = [_separate(_paired(results, rows[0], row, "recall")) for row in rows[1:]]
    if not apart:
        return f"{text}."
    if not apart[0]:
        return f"{text}. The two lowest cannot be told apart."
    if not all(apart):
        return f"{text}. The lowest cannot be told from all others."
    return f"{text}. {_name(rows[0])} shows the least of the variety of the real images."


def _cost(ranked: pd.DataFrame) -> str:
    rows = best_widths(ranked.sort_values("seconds_per_epoch"))
    each = join([f"{_name(row)} {decimal(row['seconds_per_epoch'], 1)} s" for row in rows])
    text = f"Seconds per epoch with its samples, each family's cheapest width: {each}."
    slow = ranked.sort_values("sample_seconds").iloc[-1] if "sample_seconds" in ranked else None
    if slow is not None and slow["family"] == "flow":
        text += (
            " Flow matching calls its network several times per image: sampling takes "
            f"{decimal(slow['sample_seconds'], 1)} s of an epoch at width {slow['width']:.0f}."
        )
    return text


def _paired(
    results: Results, one: Mapping[Any, Any], other: Mapping[Any, Any], metric: str
) -> pd.Series | None:
    """Paired difference of a measure, `one` minus `other`, over shared seeds."""
    trials = results.trials
    group = trials["family"].astype(str) + " " + trials["width"].astype(str)
    names = [f"{row['family']} {row['width']:.0f}" for row in (one, other)]
    if not {*names} <= {*group}:
        return None
    lead = arms.lead(trials.assign(group=group), "group", metric, *names)
    return lead if lead["n"] else None


def _separate(lead: pd.Series | None) -> bool:
    """Whether there is an interval of a difference and it leaves 0 out."""
    return lead is not None and statistics.side(lead["low"], lead["high"]) != 0


def _name(row: Mapping[Any, Any]) -> str:
    return f"{NAMES[row['family']]} of width {row['width']:.0f}"


def _ends(low: float, high: float, signed: bool = False) -> str:
    """The ends of an interval of distances in brackets; "" where there is none."""
    return "" if math.isnan(low) else f" [{decimal(low, 3, signed)}, {decimal(high, 3, signed)}]"
