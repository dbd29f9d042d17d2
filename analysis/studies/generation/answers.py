"""Sentences of the generation report, made from the study's own numbers, in markup."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

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
    """Measures computed from what the trials stored.

    Attributes:
        features: trials whose distance, precision and kin come from stored features.
        scores: trials whose right class and class balance come from stored scores.
        images: trials whose nearest training images were searched again.
    """

    features: int = 0
    scores: int = 0


Known = Mapping[str, Mapping[str, float]]
_ROUNDING = 1e-6  # of a measure computed again, at most

# Source, setting, result: as their authors or users give them.
PUBLISHED = (
    ("EDM", "CIFAR-10, FID, 35 network calls", "1.97 without labels, 1.79 with"),
    ("flow_matching", "CIFAR-10, FID", "2.07 (authors); 3.09 on one V100 (a user)"),
    ("DDPM", "CIFAR-10, FID, 1,000 steps", "3.17"),
    ("torchcfm", "CIFAR-10, FID, 400,000 steps", "3.5; 7.5 without the moving average (a user)"),
)
PUBLISHED_LINKS = (
    "Sources: [EDM](https://github.com/NVlabs/edm); "
    "[flow_matching and its issue 68](https://github.com/facebookresearch/flow_matching/issues/68);"
    " [DDPM](https://arxiv.org/abs/2006.11239); "
    "[torchcfm and its issue 152](https://github.com/atong01/conditional-flow-matching/issues/152)."
)


def summary(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """The result in one paragraph."""
    ranked = numbers[numbers["n"] > 0]
    if ranked.empty:
        return "**No trial has finished, so there is no result yet.**"
    best = best_widths(ranked)[0]
    each = join([f"{_name(row)} {decimal(row['frechet'], 3)}" for row in best_widths(ranked)])
    text = (
        f"Mean Fréchet distance to the training images in labtune's classifier features (not FID), "
        f"each family at its best width: {each}. "
    )
    if "noise" in known:
        quarter = known["noise"]["frechet"] / 4
        below = "below" if best["frechet"] < quarter else "**not below**"
        text += (
            f"The smallest, of {_name(best)}, is {below} a quarter of the ceiling that noise gives "
            f"({decimal(known['noise']['frechet'], 3)}); held-out real images are at "
            f"{decimal(known['held_out']['frechet'], 3)}."
        )
    return text


def best_widths(ranked: pd.DataFrame) -> list[dict[Any, Any]]:
    """The first row of each family in a ranked table."""
    return ranked.drop_duplicates("family").to_dict("records")


def questions(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """What the study asks, each with an answer from the numbers."""
    ranked = numbers[numbers["n"] > 0]
    if ranked.empty:
        return "No trial has finished: nothing can be answered yet."
    pairs = [
        ("Which family makes the best images?", _best(results, ranked)),
        ("Does a wider network help?", _width(results, ranked)),
        ("Who leaves images out?", _variety(results, ranked, known)),
        ("What does each family cost?", _cost(ranked)),
    ]
    return answered(pairs)


def looks(shown: Mapping[str, Stored]) -> str:
    """What the picture of samples shows and how they were chosen."""
    names = join([NAMES[family] for family in shown])
    stored = next(iter(shown.values()))
    asked = (
        "Each image was asked for by its class."
        if stored.config["conditional"]
        else "Nothing was told about classes."
    )
    return (
        f"Samples of {names} from moving averages of the weights where the study keeps one "
        f"(decay {stored.config['ema']}). {asked} A trial also writes this grid after each epoch: "
        "`tensorboard --logdir tensorboard` shows them under images."
    )


def copied(results: Results, numbers: pd.DataFrame, known: Known) -> str:
    """Whether samples are training images, judged against held-out images."""
    ranked = numbers[numbers["n"] > 0]
    if "copies" not in ranked or "held_out" not in known:
        return "Nearest training images were not recorded."
    real = known["held_out"]["copies"]
    rows = best_widths(ranked)
    each = join([f"{_name(row)} {percent(row['copies'])}" for row in rows])
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
    check = results.data.get("copy_check")
    if check is None:
        how = (
            "This folder was made by a check in pixels, which does not see mirrored or shifted "
            "copies: the distance to the nearest training image is below half of the mean of the "
            "50 nearest."
        )
    else:
        found = join([f"{percent(share)} {kind}" for kind, share in check["found"].items()])
        how = (
            "A copy has one training image much nearer than the 50 that look most alike, in "
            "differences of neighbouring pixels, also mirrored and shifted by up to 2 pixels. How "
            f"much, a ratio below {significant(check['threshold'])}, is set on "
            f"{check['calibrated_on']:,} held-out images, of which at most half of 1\u00a0% lie "
            f"below. Of copies planted to try it, it finds {found}."
        )
    return (
        f"{how} Share of such images: {each}; held-out real images {percent(real)}, training "
        f"images themselves {percent(known['copies']['copies'])}. {verdict}"
    )


def measures(results: Results, checked: Recomputed) -> str:
    """What is computed, in which features, and whether it could be computed again."""
    data = results.data
    reader, compared = data.get("classifier", {}), data.get("compared")
    accuracy = reader.get("held_out_accuracy", float("nan"))
    counted = image_counts(data)
    text = (
        f"The features are the {reader.get('features', '')} outputs of the last hidden layer of a "
        f"small classifier that labtune trained on the same training images ({percent(accuracy)} "
        "of held-out images right), divided by the root of their total variance. The distance is "
        "therefore in units of the spread of the real images, holds within this study only, and "
        f"**is not FID**, which needs Inception's features.\n\n- Fréchet distance: {compared} "
        f"samples against all {counted.get('train', 0):,} training images, each set taken for a "
        "normal distribution.\n- Precision and density: samples that lie among real images "
        "(fidelity). Recall and coverage: real images that lie among samples (variety). Balls to "
        f"the k-th neighbour, k = {results.study.get('constants', {}).get('neighbours', 5)}, "
        f"{compared} images of each kind.\n- The floor is held-out real images; training images "
        "once more show what learning them by heart would give."
    )
    return f"{text}\n\n{stored_measures(checked)}"


def stored_measures(checked: Recomputed) -> str:
    """Which numbers come from stored files, and whether they are those that were reported."""
    come, reported = [], []
    for trials, kind, names in (
        (checked.features, "features", "Fréchet distance, precision, recall, density and coverage"),
        (checked.scores, "scores", "right class and class balance"),
        (checked.images, "samples", "copies and distances to the nearest training image"),
    ):
        if trials:
            come.append(f"{names} from the stored {kind} of {count(trials, 'trial')}")
        else:
            reported.append(names)
    text = f"Computed for this report: {'; '.join(come)}. " if come else ""
    if reported:
        text += (
            f"As the trials reported them: {'; '.join(reported)} (what they would be computed from "
            "is not all in this folder; training images never are). "
        )
    wrong = [(name, *found) for name, found in checked.worst.items() if found[0] > _ROUNDING]
    for name, apart, trial in wrong:
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
    return (
        "Published FIDs of CIFAR-10 come from networks of tens of millions of weights, hundreds of "
        "thousands of steps and 50,000 samples in Inception's features. They tell what is possible "
        "and cannot be held against any number here. The same distance in Inception's features is "
        "added for those who give its weights (`--set inception=PATH`); with torchvision's weights "
        "it is not FID either."
        + (
            ""
            if "inception_frechet" in results.trials
            else " No such weights were given here, so it is left out."
        )
    )


def limits(results: Results) -> str:
    """What the numbers cannot carry."""
    data = results.data
    items = [
        f"The Fréchet distance of {data.get('compared')} images is biased upwards, and the "
        "classifier that gives the features was trained on the training images: held-out images "
        "can be farther from them than samples are. Compare rows of one table only.",
        "Every family has the same number of steps, not the same time, and a learning rate of its "
        "own, set in a few short trials on the embedded digits and not searched.",
        "One split into training and held-out images for all seeds.",
        "Nothing is chosen by looking: figures show the first seed of each family's best width. "
        "The best width itself was chosen by the distance shown.",
    ]
    if data.get("dataset") == "digits":
        items.append(
            "The embedded digits are 8x8 images enlarged to twice their size: MNIST's are finer "
            "(`--set dataset=mnist`)."
        )
    smaller = "few steps and narrow networks; `--data-dir` or `--scale full` runs the full scale."
    return listed(items + scaled(results.study, smaller))


def _best(results: Results, ranked: pd.DataFrame) -> str:
    rows = best_widths(ranked)
    best = rows[0]
    smallest = f"the smallest mean is {decimal(best['frechet'], 3)} [{_range(best)}], {_name(best)}"
    if len(rows) < 2:
        return f"Only one family has finished: {smallest}."
    second = rows[1]
    lead = _paired(results, second, best, "frechet")
    if lead is None or math.isnan(lead["low"]):
        return f"This cannot be told without an interval: {smallest}, then {_name(second)}."
    interval = f"{decimal(lead['low'], 3, True)} to {decimal(lead['high'], 3, True)}"
    apart = (
        f"{_name(second)} is at {decimal(lead['difference'], 3, True)} from it on the same seeds "
        f"(95 % interval {interval})"
    )
    if not _separate(lead):
        return f"The first two cannot be told apart: {smallest}; {apart}."
    name = _name(best)
    close = [
        _name(row) for row in rows[2:] if not _separate(_paired(results, row, best, "frechet"))
    ]
    but = f", which cannot be told from {join(close)}" if close else ""
    return f"{name[0].upper()}{name[1:]}{but}: {smallest}; {apart}."


def _width(results: Results, ranked: pd.DataFrame) -> str:
    found = []
    for family, group in ranked.groupby("family", sort=False):
        if len(group) < 2:
            continue
        ordered = group.sort_values("width")
        narrow, wide = ordered.iloc[0].to_dict(), ordered.iloc[-1].to_dict()
        lead = _paired(results, wide, narrow, "frechet")
        if lead is None:
            continue
        interval = (
            ""
            if math.isnan(lead["low"])
            else f" [{decimal(lead['low'], 3, True)}, {decimal(lead['high'], 3, True)}]"
            + ("" if _separate(lead) else " (cannot be told apart)")
        )
        found.append(f"{NAMES[str(family)]} {decimal(lead['difference'], 3, True)}{interval}")
    if not found:
        return "Only one width has finished."
    widths = sorted(ranked["width"].unique())
    return (
        f"From width {widths[0]} to {widths[-1]} the distance changes by {join(found)} "
        "(paired over seeds, negative is better)."
    )


def _variety(results: Results, ranked: pd.DataFrame, known: Known) -> str:
    rows = sorted(best_widths(ranked), key=lambda row: row["recall"])
    each = join(
        [f"{_name(row)} {percent(row['recall'])} ({percent(row['precision'])})" for row in rows]
    )
    text = f"Recall, lowest first (precision in brackets): {each}"
    if "held_out" in known:
        real = known["held_out"]
        text += f"; held-out images {percent(real['recall'])} ({percent(real['precision'])})"
    if len(rows) < 2:
        return f"{text}."
    if not _separate(_paired(results, rows[0], rows[1], "recall")):
        return f"{text}. The two lowest cannot be told apart."
    if not all(_separate(_paired(results, rows[0], row, "recall")) for row in rows[2:]):
        return f"{text}. The lowest cannot be told from all others."
    return f"{text}. {_name(rows[0])} shows the least of the variety of the real images."


def _cost(ranked: pd.DataFrame) -> str:
    each = join(
        [
            f"{_name(row)} {decimal(row['seconds_per_epoch'], 1)} s"
            for row in best_widths(ranked.sort_values("seconds_per_epoch"))
        ]
    )
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
) -> dict[Any, Any] | None:
    """Paired difference of a measure, `one` minus `other`, over shared seeds."""
    trials = results.trials.assign(
        group=results.trials["family"].astype(str) + " " + results.trials["width"].astype(str)
    )
    names = [f"{row['family']} {row['width']:.0f}" for row in (one, other)]
    trials = trials[trials["group"].isin(names)]
    found = statistics.paired(trials, "group", metric, names[1])
    return found.iloc[0].to_dict() if len(found) and found.iloc[0]["n"] else None


def _separate(lead: Mapping[Any, Any] | None) -> bool:
    """Whether there is an interval of a difference and it leaves 0 out."""
    return lead is not None and statistics.side(lead["low"], lead["high"]) != 0


def _name(row: Mapping[Any, Any]) -> str:
    return f"{NAMES[row['family']]} of width {row['width']:.0f}"


def _range(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["frechet_low"]):
        return "no interval"
    return f"{decimal(row['frechet_low'], 3)}, {decimal(row['frechet_high'], 3)}"
