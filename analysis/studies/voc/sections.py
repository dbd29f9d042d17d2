"""The report of the VOC study: what the lab asks about ranking photographs by each class.

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder; the
images are looked at only for the pictures of the top and bottom ten. The same study with the same
seeds gives the same bytes: times and memory are in trials.csv, not here.

LABTUNE_AUTHOR="Ada Lovelace, 123456" puts a name and matriculation number on the report.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import arms, figures, provenance, tables
from analysis.document.report import Code, Equation, Figure, Section, section
from analysis.results import statistics
from analysis.results.folder import Predictions, Results, arrays, load_predictions, train_metric
from analysis.results.recomputed import Recomputed
from analysis.studies.voc import answers, pictures, tail_accuracy
from core.errors import UserError
from core.training.metrics import average_precision, counted_labels, voc_average_precision

TITLE = "Photographs ranked by each of their classes"
ENDED = ("finished", "stopped")


@dataclass(frozen=True)
class Scored:
    """A main trial with its stored scores."""

    trial: str  # its name
    stored: Predictions  # of its best epoch
    ap: np.ndarray  # (C,) average precision of each class; NaN where undefined

    @property
    def mean(self) -> float:
        """Return the mean over the classes that have an average precision."""
        return _nan_mean(self.ap)


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf of a VOC study, print its headline.

    Raises UserError: ended trials left no scores.
    """
    scored = scored_trials(results)
    folds = fold_numbers(results)
    if not scored and folds is not None:  # --part folds
        table = fold_table(folds)
        provenance.publish(results, TITLE, [_folds(results, folds)], [], [table], timed=False)
        return
    if not scored and not without_folds(results.trials)["state"].isin(ENDED).any():
        provenance.report_reasons(results)
        return
    if not scored:
        raise UserError(
            f"{results.path}: no trial has ended with stored scores, so there is nothing to "
            "report; trials.csv says why"
        )
    best = max(scored, key=lambda one: -1.0 if np.isnan(one.mean) else one.mean)
    table = class_table(scored, best)
    sections = _sections(results, scored, best, table, folds)
    provenance.publish(results, TITLE, sections, [table], [_headline(table)], timed=False)


def scored_trials(results: Results) -> list[Scored]:
    """Return the ended trials without a fold that have stored scores, in the study's order."""
    main, found = set(without_folds(results.trials)["trial"]), []
    for trial in results.with_predictions(ENDED):
        if trial in main:
            stored = load_predictions(results.path, trial)
            ap = average_precision(stored.scores, stored.labels)
            found.append(Scored(trial, stored, ap))
    return found


def without_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trials that are no fold of a cross-validation."""
    return table[table["fold"].isna()] if "fold" in table else table


def class_numbers(scored: Sequence[Scored], best: Scored) -> pd.DataFrame:
    """Every number of the per-class table, a row per class, then the mean over classes.

    Returns:
        class, images (with it), difficult (only difficult ones, ignored), n (trials), ap with low
        and high (mean over trials, 95 % t interval); of the best trial best_ap, ap_2007, ap_2010,
        accuracy (share of right decisions at the decision threshold), all_negative (accuracy of
        saying no to every image) and random (share of the counted images with the class, which is
        the AP of a random order in the long run). Shares in [0, 1], NaN where undefined.
    """
    stored = best.stored
    present, counted = counted_labels(stored.scores, stored.labels)
    right = ((stored.scores > answers.decision(stored)) == present) & counted
    pairs = counted.sum(axis=0)

    def share_of(some: np.ndarray) -> np.ndarray:
        undefined = np.full(len(pairs), np.nan)
        return np.divide(some.sum(axis=0), pairs, out=undefined, where=pairs > 0)

    share = share_of(present & counted)
    columns = {
        "best_ap": best.ap,
        "ap_2007": voc_average_precision(stored.scores, stored.labels, "2007"),
        "ap_2010": voc_average_precision(stored.scores, stored.labels, "2010"),
        "accuracy": share_of(right),
        "all_negative": 1 - share,
        "random": np.where(share > 0, share, np.nan),
    }
    aps = np.stack([one.ap for one in scored])
    rows = []
    for c, name in enumerate(stored.classes):
        row = {"class": name, "images": int((present & counted)[:, c].sum())}
        row |= {"difficult": int((~counted[:, c]).sum()), **_over_trials(aps[:, c])}
        rows.append(row | {key: float(values[c]) for key, values in columns.items()})
    means = _over_trials(np.array([one.mean for one in scored]))
    total: dict[str, Any] = {"class": "mean over classes", **means}
    total |= {key: _nan_mean(values) for key, values in columns.items()}
    # The shares of right decisions are over all pairs, as a program that counts would say it.
    every = max(1, counted.sum())
    total |= {"accuracy": float(right.sum() / every)}
    total |= {"all_negative": float((counted & ~present).sum() / every)}
    return pd.DataFrame([*rows, total])


def class_table(scored: Sequence[Scored], best: Scored) -> tables.Table:
    """The per-class table: tables/average_precision."""
    several = len(scored) > 1
    over = f"mean over {len(scored)} seeds [95 % t interval]" if several else "one trial"
    columns = (
        tables.text("class", "class"),
        *arms.numbers(images="images", difficult="difficult"),
        tables.interval("ap", "AP (%)", prefix=""),
        *arms.shares(best_ap="AP, best", ap_2007="VOC 2007", ap_2010="VOC 2010"),
        *arms.shares(random="random", accuracy="accuracy", all_negative="all no"),
    )
    caption = "Average precision of each class over the whole validation list."
    note = (
        f"AP: scikit-learn's, {over}. Of the best trial (`{best.trial}`): the same, the 11-point "
        "interpolation of VOC 2007 and the area of VOC 2010 and later; accuracy of deciding at "
        f"{answers.decision(best.stored):g}, and of saying no to every image. Images: with the "
        "class; difficult: left out. Random: the share of images with the class, the AP of a "
        f"random order. {answers.undefined(best.stored.classes, best.ap)}"
    )
    numbers = class_numbers(scored, best)
    return tables.Table("average_precision", numbers, columns, caption, note)


def parameter_table(config: dict[str, Any], varied: dict[str, Sequence[Any]]) -> tables.Table:
    """Every setting with its value: tables/parameters."""
    values = config | {key: ", ".join(map(str, varied[key])) for key in varied}
    rows = [(key, str(values[key]), answers.MEANING.get(key, "")) for key in config]
    frame = pd.DataFrame(rows, columns=["setting", "value", "meaning"])
    columns = (*arms.texts("setting", "value"), tables.text("meaning", "meaning", wrap=True))
    return tables.Table("parameters", frame, columns, "All settings and seeds.")


def tail_table(scored: Sequence[Scored], best: Scored, tail: tail_accuracy.TailAccuracy):
    """The table of the best trial's tail, with the mean over trials at the same thresholds."""
    table = tail_accuracy.table(tail)
    if len(scored) < 2:
        return table
    stored = [one.stored for one in scored]
    means = [tail_accuracy.tail_accuracy(s.scores, s.labels, tail.thresholds).mean for s in stored]
    over = pd.DataFrame([_over_trials(column) for column in np.stack(means).T]).add_prefix("seeds_")
    shown = tables.interval("seeds_ap", "mean over seeds (%)", prefix="seeds_")
    return replace(
        table,
        numbers=pd.concat([table.numbers, over], axis=1),
        columns=(*table.columns[:2], shown, *table.columns[2:]),
        note=f"{table.note} All but “mean over seeds” [95 % t interval] is of `{best.trial}`; the "
        "mean is over the seeds whose tail is not empty.",
    )


def _headline(table: tables.Table) -> tables.Table:
    short = table.show("class", "images", "AP (%)", "random (%)", "accuracy (%)", "all no (%)")
    return replace(short, note="Accuracy and “all no” are of the best trial.")


def recompute(results: Results, scored: Sequence[Scored]) -> float:
    """Largest difference of mAP from the stored scores to what was reported of that epoch."""
    table, checked = results.trials.set_index("trial"), Recomputed()
    for one in scored:
        row = table.loc[one.trial]
        names = [name for name in ("best_val_map", "val_map") if pd.notna(row.get(name))]
        if names and np.isfinite(one.mean):
            checked.compare(one.trial, {names[0]: one.mean}, row)
    return checked.largest()


def fold_numbers(results: Results) -> pd.DataFrame | None:
    """The proper way beside the lab's short cut, a row per seed; None without whole folds.

    Returns:
        seed, epoch (the one with the best mean of the folds' held-out mAP, the first if equal),
        heldout (that mean), proper (mAP on val of the folds' averaged scores at that epoch),
        shortcut (best mAP on val over epochs, chosen on val) and its shortcut_epoch, same_epoch
        (mAP on val of the model that trained on everything, at the epoch that the folds chose).
    """
    trials = results.trials
    if "fold" not in trials:
        return None
    folds = trials[trials["fold"].notna() & trials["trial"].isin(results.with_predictions(ENDED))]
    rows = [
        {"seed": seed} | _one_seed(results, seed, group["trial"].tolist())
        for seed, group in folds.groupby("seed", sort=True)
        # else a fold failed: the others do not cover the training images
        if len(group) >= int(group["folds"].iloc[0])
    ]
    keys = ["seed", "epoch", "heldout", "proper", "shortcut", "shortcut_epoch", "same_epoch"]
    return pd.DataFrame(rows).reindex(columns=keys) if rows else None


def _one_seed(results: Results, seed: Any, trials: Sequence[str]) -> dict[str, Any]:
    """Choose the epoch on the folds, evaluate their averaged scores on val once, and the short cut.

    The short cut is left out where no trial without a fold has this seed.
    """
    folds = [load_fold(results.path, trial) for trial in trials]
    curves = [
        [np.nanmean(average_precision(scores, fold["labels"])) for scores in fold["heldout_scores"]]
        for fold in folds
    ]
    epochs = min(len(curve) for curve in curves)
    heldout = np.mean([curve[:epochs] for curve in curves], axis=0)
    chosen = int(np.argmax(heldout))
    val = np.stack([fold["val_scores"][chosen] for fold in folds]).mean(axis=0, dtype=np.float64)
    proper = float(np.nanmean(average_precision(val, folds[-1]["val_labels"])))
    row = {"epoch": chosen + 1, "heldout": float(heldout[chosen]), "proper": proper}
    main = without_folds(results.trials)
    curve = results.history.reindex(columns=["trial", "epoch", "val_map"])
    curve = curve[curve["trial"].isin(main.loc[main["seed"] == seed, "trial"])]
    at = curve.dropna(subset=["val_map"]).set_index("epoch")["val_map"]
    if len(at):
        row |= {"shortcut": float(at.max()), "shortcut_epoch": int(at.idxmax())}
        row |= {"same_epoch": float(at.get(chosen + 1, np.nan))}
    return row


def load_fold(path: Path, trial: str) -> dict[str, np.ndarray]:
    """Read the arrays of a fold's predictions: labels, heldout_scores, val_scores, val_labels.

    Raises UserError: they are missing or damaged.
    """
    load_predictions(path, trial)  # whose scores must be finite
    wanted = ("labels", "heldout_scores", "val_scores", "val_labels")
    with arrays(path, trial) as stored:
        if not set(wanted) <= set(stored):
            raise UserError(f"predictions/{trial}.npz is no fold's: delete it to report without it")
        return {key: stored[key] for key in wanted}


def fold_table(numbers: pd.DataFrame) -> tables.Table:
    """The proper number beside the short cut, a row per seed and their mean: tables/folds."""
    keys = ("heldout", "proper", "shortcut", "same_epoch")
    total: dict[str, Any] = {"seed": f"mean ({len(numbers)})"}
    for key in keys:
        over = _over_trials(numbers[key].to_numpy(dtype=float))
        total |= {key: over["ap"], f"{key}_low": over["low"], f"{key}_high": over["high"]}
    columns = (
        tables.text("seed", "seed"),
        tables.number("epoch", "epoch by folds"),
        tables.interval("heldout", "held out (%)"),
        tables.interval("proper", "proper: val (%)"),
        tables.number("shortcut_epoch", "epoch by val"),
        tables.interval("shortcut", "short cut: val (%)"),
        tables.interval("same_epoch", "one model (%)"),
    )
    caption = (
        "mAP: the epoch chosen by cross-validation on the training images, beside the lab's way."
    )
    note = (
        "Held out: mean over folds at the chosen epoch. Proper: the folds' averaged scores, "
        "evaluated on val once. Short cut: the epoch that is best on val itself. One model: the "
        "short cut's network at the folds' epoch. Mean over seeds [95 % t interval]."
    )
    rows = [*numbers.astype({"seed": str}).to_dict("records"), total]
    return tables.Table("folds", pd.DataFrame(rows), columns, caption, note)


@figures.styled
def curve_figure(results: Results) -> Figure | None:
    """Loss and mAP over epochs, training dashed and validation solid; None without any epoch."""
    history = without_folds(results.history)
    if history.empty or "val_map" not in history:
        return None
    look = figures.styles(["validation", "training"])
    drawn, axes = figures.panels(2, height=2.2)
    wanted = (("loss", "loss (nats per pair)", 1.0), ("map", "mAP (%)", 100.0))
    for panel, (metric, label, scale) in zip(axes, wanted, strict=True):
        lines = (f"val_{metric}", "-"), (train_metric(history, metric), "--")
        for (column, line), (words, style) in zip(lines, look.items(), strict=True):
            if column in history:
                how = {"linestyle": line, "scale": scale, "states": ENDED}
                figures.curve(panel, history, column, style, label=words, **how)
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "epoch")
    figures.legend_below(drawn, axes[0], 2)
    every = history.assign(all=""), "all", ENDED
    training = "Training values are of these weights, on images without augmentation."
    if train_metric(history, "map").endswith("_running"):
        training = "Training values are running: augmented images, weights still moving."
    caption = (
        f"Loss and mAP of training and validation images over epochs. {training} "
        f"{figures.band_text(*every)} {figures.seeds_text(*every)}."
    )
    alt = "Curves of loss and mAP over epochs for training and validation images."
    return arms.saved(results, drawn, "curves", caption, alt)


def _sections(
    results: Results,
    scored: Sequence[Scored],
    best: Scored,
    table: tables.Table,
    folds: pd.DataFrame | None,
) -> list[Section | None]:
    total = table.numbers.iloc[-1].to_dict()
    imported = results.study.get("scale") == "imported"
    curves = None if imported else curve_figure(results)
    return [
        _result(results, scored, best, table, total),
        None if imported else _training(results, best),
        section("Curves", answers.curves(results), curves) if curves else None,
        None if folds is None else _folds(results, folds),
        section("Why accuracy misleads", answers.accuracy(total, best.stored)),
        _tail(results, scored, best),
        pictures.section(results, best.trial, best.stored, best.ap),
        section("Beside published figures", answers.beside(results.study), answers.PUBLISHED),
    ]


def _result(
    results: Results,
    scored: Sequence[Scored],
    best: Scored,
    table: tables.Table,
    total: Mapping[str, Any],
) -> Section | None:
    shown = table
    if not table.numbers["difficult"].iloc[:-1].any():
        shown = table.show(*(c.header for c in table.columns if c.header != "difficult"))
    return section(
        "Result",
        answers.author(os.environ.get("LABTUNE_AUTHOR", "")),
        answers.summary(results, total, len(scored), best.trial),
        shown,
        answers.recomputed(len(scored), len(best.stored.files), recompute(results, scored)),
        answers.difficult(best.stored.config, results.study),
    )


def _folds(results: Results, numbers: pd.DataFrame) -> Section | None:
    table = fold_table(numbers)
    tables.write(table, results.path / "tables")
    text = answers.folds(numbers, results.study)
    return section("The proper way to choose the epoch", text, table)


def _training(results: Results, best: Scored) -> Section | None:
    config = dict(best.stored.config)
    varied = {key: values for key, values in results.study["grid"].items() if len(values) > 1}
    config |= {"weights": (results.study["data"].get("weights") or {}).get("given", "-")}
    parameters = parameter_table(config, varied)
    tables.write(parameters, results.path / "tables")
    tex, alt = answers.loss_formula(config)
    return section(
        "How the network is trained",
        answers.last_layer(len(best.stored.classes)),
        Equation(tex, alt),
        answers.loss(config),
        Code(answers.loss_code(config)),
        answers.schedule(config),
        answers.procedure(config, results.study),
        parameters,
    )


def _tail(results: Results, scored: Sequence[Scored], best: Scored) -> Section | None:
    stored = best.stored
    cuts = tail_accuracy.thresholds(stored.scores, start=answers.decision(stored))
    tail = tail_accuracy.tail_accuracy(stored.scores, stored.labels, cuts)
    table = tail_table(scored, best, tail)
    tables.write(table, results.path / "tables")
    drawn = tail_accuracy.figure(tail, results.path / "figures")
    formula = Equation(
        r"\mathrm{Tailacc}_c(t) = \frac{\sum_i 1[f_c(x_i) > t]\; 1[y_{ic} = 1]}"
        r"{\sum_i 1[f_c(x_i) > t]}",
        "Tail accuracy of class c at t: images of the class with a score above t over all images "
        "with a score above t.",
    )
    text = answers.tail(tail, best.mean)
    return section("Accuracy in the tail", formula, text, drawn, table)


def _over_trials(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % t interval of the finite values, as ap, low, high, n."""
    interval = statistics.t_interval(values[np.isfinite(values)])
    return {"n": interval.n, "ap": interval.mean, "low": interval.low, "high": interval.high}


def _nan_mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
