"""The report of the generation study: which family makes the best images, and makes or copies?

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder;
`--samples` also reads checkpoints/. Distances are Frechet distances in the features of a classifier
that labtune trained on the same data, never FID.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.document import arms, provenance, tables
from analysis.document.report import Equation, Section, section
from analysis.results import statistics
from analysis.results.folder import Results
from analysis.studies.generation import answers, figures
from analysis.studies.generation.answers import Recomputed
from analysis.studies.generation.samples import Stored, load_stored, write_samples
from core.data import images as data
from core.data import small
from core.generation.copies import CopyCheck, threshold
from core.generation.features import copying
from core.generation.quality import Moments, frechet, moments, nearest, prdc

KEYS = ["family", "width"]
SHARES = ("precision", "recall", "coverage", "class_agreement", "class_balance")
METRICS = ("frechet", "density", *SHARES)
COPYING = ("nearest_distance", "nearest_ratio", "copies")
YARDSTICKS = {
    "held_out": "held-out real (floor)",
    "copies": "training images again",
    "noise": "noise (ceiling)",
}
_ROW, _DISTANCE = ("images", "width"), ("Fréchet distance", "of noise (%)")
FRECHET = Equation(
    r"d^2 = |\mu_r - \mu_g|^2 + \mathrm{tr}\left(\Sigma_r + \Sigma_g - 2\,"
    r"(\Sigma_r \Sigma_g)^{1/2}\right)",
    "Squared Fréchet distance: squared distance of the means plus the trace of both covariances "
    "less twice the root of their product",
)


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report and samples/ if asked, print the headline."""
    results, checked = recompute(results)
    numbers = generation_numbers(results)
    main, copies = generation_table(results, numbers), copy_table(results, numbers)
    written = [main, copies, seed_table(results)]
    sections = _sections(results, numbers, written, checked)
    title = "Image generation: three families"
    digits = " and, for copies, the digits that labtune comes with" if checked.images else ""
    provenance.publish(results, title, sections, written, [], elsewhere=digits)
    wanted = int(results.trials["samples"].max()) if "samples" in results.trials else 0
    if wanted and (results.path / "checkpoints" / "best.json").is_file():
        print(f"{wanted} images of the best trial: {write_samples(results, wanted)}")
    tables.print_table(_headline(main))


def yardsticks(results: Results) -> dict[str, dict[str, float]]:
    """Measures of images that are not generated, as the study recorded them before it ran."""
    return results.data.get("yardsticks", {})


def generation_numbers(results: Results) -> pd.DataFrame:
    """Every number of the main table in full precision, a row per family and width, best first.

    Returns:
        family, width, n, of; mean, low, high of each measure and of copies; means of parameters,
        seconds_per_epoch, sample_seconds, nearest_distance, nearest_ratio and inception_frechet,
        the largest peak_memory_mib; share, the distance over that of noise.
    """
    trials = results.trials
    if "frechet" not in trials:  # nothing has reported yet
        trials = trials.assign(frechet=np.nan)
    table = statistics.named(trials, KEYS, "frechet", mode="min")
    for metric in (*METRICS[1:], "copies"):
        if metric in trials:
            table = statistics.joined(table, trials, KEYS, metric)
    done = statistics.finished(trials)
    averaged = ("parameters", "seconds_per_epoch", "sample_seconds", *COPYING[:2])
    kinds = dict.fromkeys((*averaged, "inception_frechet"), "mean") | {"peak_memory_mib": "max"}
    for column, kind in kinds.items():
        if column in done and len(done):
            means = done.groupby(KEYS)[column].agg(kind).rename(column).reset_index()
            table = table.merge(means, on=KEYS, how="left")
    table["share"] = table["frechet"] / _ceiling(results)
    return table


def _ceiling(results: Results) -> float:
    """The distance of noise."""
    return yardsticks(results).get("noise", {}).get("frechet", np.nan)


def _with_yardsticks(results: Results, frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The arms, then what is not generated, with these of its measures; `what` names the rows."""
    rows = [frame.assign(what=frame["family"].astype(str))]
    for name, measures in yardsticks(results).items():
        known = {key: measures[key] for key in keys if key in measures}
        rows.append(pd.DataFrame([known | {"what": YARDSTICKS[name]}]))
    return pd.concat(rows, ignore_index=True)


def generation_table(results: Results, numbers: pd.DataFrame) -> tables.Table:
    """The main table with floor and ceiling: tables/generation."""
    frame = _with_yardsticks(results, numbers, (*METRICS, *COPYING))
    frame["share"] = frame["frechet"] / _ceiling(results)
    wanted = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    wanted += [*COPYING, "parameters", "seconds_per_epoch", "sample_seconds", "peak_memory_mib"]
    frame = frame.reindex(columns=[*dict.fromkeys([*frame.columns, *wanted])])
    columns = [
        tables.text("what", "images"),
        tables.number("width", "width"),
        tables.count_of("n", "of"),
        tables.interval("frechet", "Fréchet distance", 3, 1.0),
        tables.number("share", "of noise (%)", 1, 100.0),
        *(tables.plus_minus(m, f"{m} (%)", 0) for m in ("precision", "recall")),
        tables.plus_minus("density", "density", 2, 1.0),
        tables.plus_minus("coverage", "coverage (%)", 0),
        tables.plus_minus("class_agreement", "right class (%)", 0),
        tables.number("class_balance", "class balance", 3),
        tables.number("parameters", "weights", 0),
        tables.number("seconds_per_epoch", "s/epoch", 1),
        tables.number("peak_memory_mib", "peak MiB", 0),
    ]
    if "inception_frechet" in frame:
        columns.insert(5, tables.number("inception_frechet", "in Inception's features", 2))
    note = (
        f"{_shown_epoch(results)}; mean [95 % t interval] over seeds, ± half of it. Every row "
        f"compares {results.data.get('compared', 'as many')} images with training images, in "
        "labtune's classifier features: not FID. Few images bias the distance upwards, the same "
        "for all rows. Memory: the largest peak."
    )
    caption = "Families and widths, smallest Fréchet distance first; then what is not generated."
    return tables.Table("generation", frame, tuple(columns), caption, note)


def _shown_epoch(results: Results) -> str:
    return "Epoch of the weights kept" if "scores_epoch" in results.trials else "Last epoch"


def copy_table(results: Results, numbers: pd.DataFrame) -> tables.Table:
    """How near samples are to training images: tables/neighbours."""
    limit = results.data.get("copy_check", {"threshold": 0.5})["threshold"]
    columns = (
        tables.text("what", "images"),
        tables.number("width", "width"),
        tables.number("nearest_distance", "distance to the nearest (grey levels)", 1),
        tables.number("nearest_ratio", "nearest / mean of 50", 2),
        *arms.shares(copies=f"below {tables.significant(limit)}"),
    )
    note = (
        "Medians, averaged over seeds; the distance is in pixels. The last column is the share of "
        "images for which one training image stands out, see above."
    )
    frame = _with_yardsticks(results, numbers.reindex(columns=[*KEYS, "n", *COPYING]), COPYING)
    caption = "Nearest training images of the samples."
    return tables.Table("neighbours", frame, columns, caption, note)


def seed_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/generation_by_seed."""
    keys = [*KEYS, "seed", "state"]
    measures = [*METRICS, "copies", "seconds_per_epoch"]
    trials = results.trials.reindex(columns=["trial", *keys, *measures])
    trials[measures] = trials[measures].astype(float)
    columns = (
        *arms.texts(*keys),
        tables.number("frechet", "Fréchet distance", 3),
        *arms.shares(precision="precision", recall="recall"),
        tables.number("density", "density", 2),
        *arms.shares(coverage="coverage", class_agreement="right class"),
        tables.number("class_balance", "class balance", 3),
        *arms.shares(copies="copies"),
        tables.number("seconds_per_epoch", "s/epoch", 1),
    )
    caption = f"Every trial. {_shown_epoch(results)}; copies are of its stored samples."
    return tables.Table("generation_by_seed", trials, columns, caption)


def shown_trials(results: Results, numbers: pd.DataFrame) -> dict[str, Stored]:
    """Of each family the trial that figures show: its best width, its first finished seed.

    Returns:
        family -> what it stored, the family with the smallest mean distance first.
    """
    if "frechet" not in results.trials:
        return {}
    there = statistics.usable(results.trials, "frechet")
    there = there[there["trial"].isin(results.with_predictions())]
    found: dict[str, Stored] = {}
    for row in arms.ranked(numbers).to_dict("records"):
        group = there[(there["family"] == row["family"]) & (there["width"] == row["width"])]
        if row["family"] not in found and len(group):
            first = group.sort_values("seed", kind="stable").iloc[0]
            found[row["family"]] = load_stored(results.path, first["trial"])
    return found


def recompute(results: Results) -> tuple[Results, Recomputed]:
    """Compute the measures of finished trials from what they stored.

    Fréchet distance, precision, recall, density and coverage come from stored features, right class
    and class balance from stored scores (of trials that stored all they made), copies and distances
    from stored samples, where the training images are at hand.

    Returns:
        The results with these numbers in `trials`, beside all else that the trial reported at the
        epoch whose weights made the samples, and how far they are from those reported.
    """
    trials, checked = results.trials.set_index("trial"), Recomputed()
    train = _training_images(results)
    for trial in results.with_predictions(statistics.FINISHED):
        stored = load_stored(results.path, trial)
        there = results.reported(trial, stored.epoch)
        for name in trials.columns.intersection(list(there)):
            trials.loc[trial, name] = there[name]
        found = _from_features(stored), _from_scores(stored), _from_images(stored, train)
        checked.features += bool(found[0])
        checked.scores += bool(found[1])
        checked.images += bool(found[2])
        again = found[0] | found[1] | found[2]
        for name, value in checked.compare(trial, again, trials.loc[trial].to_dict()).items():
            trials.loc[trial, name] = value
    return replace(results, trials=trials.reset_index()), checked


def _from_features(stored: Stored) -> dict[str, float]:
    parts = (stored.features, stored.real_features, stored.real_mean, stored.real_covariance)
    if any(part is None for part in parts):
        return {}
    made, real, mean, covariance = (torch.from_numpy(np.asarray(part)) for part in parts)
    distance = frechet(moments(made), Moments(mean, covariance))
    return {"frechet": distance} | prdc(real, made, stored.config["neighbours"])


def _from_scores(stored: Stored) -> dict[str, float]:
    if len(stored.samples) != len(stored.nearest_ratio):
        return {}
    predicted, classes = stored.logits.argmax(axis=1), len(stored.classes)
    shares = np.bincount(predicted, minlength=classes) / len(predicted)
    some = shares[shares > 0]
    found = {"class_balance": float(-(some * np.log(some)).sum() / np.log(classes))}
    if stored.config["conditional"]:
        found["class_agreement"] = float((predicted == stored.labels).mean())
    return found


def _from_images(stored: Stored, train: tuple[Tensor, CopyCheck] | None) -> dict[str, float]:
    if train is None or len(stored.samples) != len(stored.nearest_ratio):
        return {}
    made, unseen = torch.from_numpy(stored.samples), torch.from_numpy(stored.held_out_ratio)
    return copying(nearest(made, train[0]), train[1].ratios(made), threshold(unseen))


def _training_images(results: Results) -> tuple[Tensor, CopyCheck] | None:
    """The training images where they come with labtune: the embedded digits, if unchanged."""
    about = results.data
    if about.get("kind") != "embedded" or "copy_check" not in about:
        return None
    config = results.study["trials"][0]["config"]
    limit = {"train": config["train_images"], "val": config["val_images"]}
    sets = small.load("digits", None, about["image_size"], limit)
    if not str(about["fingerprint"]).startswith(data.fingerprint(sets)):
        return None
    pixels = np.ascontiguousarray(sets["train"].images[:, : about["channels"]])
    train = torch.from_numpy(pixels)
    return train, CopyCheck(train)


def _sections(
    results: Results, numbers: pd.DataFrame, written: Sequence[tables.Table], checked: Recomputed
) -> list[Section | None]:
    (table, copies, every), known = written, yardsticks(results)
    shown = shown_trials(results, numbers)
    first, limits = _result(results, numbers, table), section("Limits", answers.limits(results))
    if not shown:
        return [first, limits]
    through = [figures.interpolation_figure(results, shown)]
    if "flow" in shown:
        through.append(figures.trajectory_figure(results, shown["flow"]))
    near = (
        figures.neighbours_figure(results, next(iter(shown.values()))),
        figures.distances_figure(results, shown),
    )
    training = figures.curves_figure(results, known), figures.progress_figure(results, shown)
    copied = answers.copied(results, numbers, known)
    return [
        first,
        section("Images", answers.looks(shown), figures.samples_figure(results, shown)),
        section("Made or copied?", copied, copies, *near),
        section("Over the training", *training),
        section("Ways through the latents", *through),
        section("What the measures mean", FRECHET, answers.measures(results, checked)),
        section("Beside published figures", answers.beside(results), answers.PUBLISHED),
        limits,
        section("Every trial", every, optional=True),
    ]


def _result(results: Results, numbers: pd.DataFrame, table: tables.Table) -> Section | None:
    inception = ["in Inception's features"] if "inception_frechet" in numbers else []
    fidelity = ["precision (%)", "recall (%)", "density", "coverage (%)"]
    others = replace(
        table.show(*_ROW, *fidelity, "right class (%)", "class balance"),
        caption="Fidelity, variety and classes of the same images.",
        note="Mean ± half of the 95 % t interval over seeds. Right class: share that the "
        "classifier takes for what was asked. Class balance: entropy of its classes, 1 when all "
        "are equal.",
    )
    known = yardsticks(results)
    return section(
        "Result",
        answers.summary(results, numbers, known),
        table.show(*_ROW, "seeds", *_DISTANCE, *inception, "weights", "s/epoch", "peak MiB"),
        others,
        answers.questions(results, numbers, known),
    )


def _headline(table: tables.Table) -> tables.Table:
    return replace(
        table.show(*_ROW, "seeds", *_DISTANCE, "coverage (%)"),
        caption="Generation: Fréchet distance in classifier features (not FID), smallest first.",
        note="Mean [95 % t interval].",
    )
