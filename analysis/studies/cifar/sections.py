"""The report of the CIFAR study: batch norm in a small CNN, and a ResNet-18 fine-tuned in part.

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.document import arms, figures, provenance, tables
from analysis.document.report import Figure, Section, section
from analysis.results import statistics
from analysis.results.folder import Predictions, Results, load_predictions, train_metric
from analysis.results.recomputed import Recomputed, confusion
from analysis.studies.cifar import answers, layers

_VARIANTS = ("all", "layer4", "head", "scratch")
_FORM_STYLES = {
    "none": figures.Style("#56B4E9", "P"),
    "listing": figures.Style("#E69F00", "s"),
    "meant": figures.Style("#0072B2", "o"),
}


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf of the study, print its headline."""
    results, checked = recompute(results)
    cnn, tuned = results.where(model="cnn"), tuned_part(results)
    shown = cnn_table(cnn), tuned_table(tuned)
    printed = [_headline(table) for table in shown if len(table.numbers)]
    made = [*shown, frozen_table(tuned), mode_table(cnn), trial_table(results)]
    title = "Batch norm in a small CNN, and a ResNet-18 fine-tuned in part"
    sections = _sections(results, cnn, tuned, shown, checked)
    provenance.publish(results, title, sections, [t for t in made if len(t.numbers)], printed)


def recompute(results: Results) -> tuple[Results, Recomputed]:
    """Compute the validation metrics of finished trials from their stored scores.

    Raises UserError: a file of predictions/ is damaged.

    Returns:
        The results with these numbers in `trials`, and how far they are from those reported at the
        epoch that the scores are of: the one in the file, or else the last.
    """
    trials = results.trials.set_index("trial")
    stored = results.with_predictions(statistics.FINISHED)
    checked = Recomputed(len(stored), of=len(statistics.finished(trials)))
    for trial in stored:
        history = results.history[results.history["trial"] == trial]
        scores = load_predictions(results.path, trial)
        there = history[history["epoch"] == scores.epoch] if scores.epoch else history.iloc[-1:]
        reported = there.iloc[0] if len(there) else trials.loc[trial]
        if scores.epoch:
            trials.loc[trial, "scores_epoch"] = scores.epoch
            names = [n for n in reported.index if str(n).startswith("train_") and n in trials]
            for metric in names:
                trials.loc[trial, metric] = reported[metric]
        for metric, value in checked.compare(trial, score_metrics(scores), reported).items():
            trials.loc[trial, metric] = value
    return replace(results, trials=trials.reset_index()), checked


def score_metrics(stored: Predictions) -> dict[str, float]:
    """Return the metrics that follow from scores, shares in [0, 1] and the loss in nats."""
    matrix = confusion(stored)
    accuracy = statistics.accuracy(matrix)
    logits = stored.scores.astype(np.float64)
    right = logits[np.arange(len(logits)), stored.labels]
    loss = float((scipy.special.logsumexp(logits, axis=1) - right).mean())
    found = {"accuracy": accuracy, "error": 1 - accuracy, "micro_f1": accuracy}
    found |= {"macro_f1": statistics.macro_f1(matrix), "loss": loss}
    return {f"val_{name}": value for name, value in found.items()}


def tuned_part(results: Results) -> Results:
    """The trials of ResNet-18, with a column `setup` that tells what they compare."""
    part = results.where(model="resnet18")
    rows: list[Mapping[Any, Any]] = list(part.trials.to_dict("records"))
    trials = part.trials.assign(setup=[setup_of(row) for row in rows])
    named = dict(zip(trials["trial"], trials["setup"], strict=True))
    history = part.history.assign(setup=part.history["trial"].map(named))
    return replace(part, trials=trials, history=history)


def setup_of(row: Mapping[Any, Any]) -> str:
    """Return what a trial of ResNet-18 trains, in words: its variant, and what differs from it."""
    words = [row["variant"]]
    if row["conv1"] == "averaged" or (row["conv1"] == "trained" and _is_partial(row)):
        words.append(f"conv1 {row['conv1']}")
    if row["statistics"] == "moving" and _is_partial(row):
        words.append("moving BN")
    return ", ".join(words)


def setups(tuned: Results) -> list[str]:
    """The setups in the order of the report: by variant, then as the study lists them."""
    found = list(dict.fromkeys(tuned.trials["setup"]))
    return sorted(found, key=lambda setup: _VARIANTS.index(setup.split(",")[0]))


def _is_partial(row: Mapping[Any, Any]) -> bool:
    return row["variant"] in ("layer4", "head")


def cnn_numbers(cnn: Results) -> pd.DataFrame:
    """A row per form of the CNN and learning rate, in the study's order.

    Returns:
        bn, lr, n, of; val_accuracy with low and high at the last epoch; train_accuracy and
        train_loss (nats) at the best; seconds_per_epoch; the paired difference of val_accuracy to
        bn=none at the same lr with low, high, p, p_holm (Holm over the rows), pairs;
        dead_parameters, trainable_parameters.
    """
    table = _arms(cnn, ["bn", "lr"], cnn.trials, "seconds_per_epoch")
    rates = {"lr": cnn.levels("lr")}
    against = arms.against(cnn.trials, "bn", "val_accuracy", "none", rates)
    table = table.merge(against, on=["bn", "lr"], how="left")
    facts = ["dead_parameters", "trainable_parameters"]
    table = _with_facts(table, cnn.trials, ["bn", "lr"], facts)
    return arms.in_order(table, **rates, bn=cnn.levels("bn"))


def _arms(part: Results, keys: list[str], timed: pd.DataFrame, seconds: str) -> pd.DataFrame:
    """Accuracy of a part's arms, training values at each trial's best epoch, and seconds."""
    table = statistics.named(part.trials, keys, "val_accuracy")
    best = _with_training(part.trials, part)
    for trials, metric in (
        (best, "train_accuracy"), (best, "train_loss"), (timed, seconds)
    ):  # fmt: skip
        known = trials if metric in trials else trials.assign(**{metric: float("nan")})
        table = statistics.joined(table, known, keys, metric, ends=False)
    return table


_FORM_AND_RATE = (
    tables.text("bn", "bn"),
    tables.scientific("lr", "lr"),
    tables.count_of("n", "of"),
)


def _accuracy(baseline: str, *between: tables.Column) -> list[tables.Column]:
    """Validation accuracy with its difference to a baseline, and training accuracy."""
    return [
        tables.interval("val_accuracy", "val accuracy (%)"),
        *between,
        tables.difference("difference", f"minus {baseline} (points)"),
        tables.p_value("p_holm"),
        *arms.shares(train_accuracy="train accuracy"),
    ]


def cnn_table(cnn: Results) -> tables.Table:
    """The CNN's forms side by side: tables/cnn."""
    numbers = cnn_numbers(cnn) if len(cnn.trials) else pd.DataFrame()
    printed = tables.Column("the lab prints", lambda row: answers.floored(row["val_accuracy"]))
    columns = (
        *_FORM_AND_RATE,
        *_accuracy("none", printed),
        tables.number("train_loss", "train loss (nats)", 3),
        *arms.numbers(dead_parameters="dead"),
        tables.number("seconds_per_epoch", "s/epoch", 2),
    )
    note = (
        f"{answers.shown_epoch(cnn.trials)}; {arms.spread(numbers)}. {training_note(cnn)} "
        "“minus none”: validation accuracy less that without batch norm at the same learning rate "
        "and seed, mean over seeds [95 % t interval], paired t test with Holm's correction. “the "
        "lab prints”: the mean as `100 * correct // total` shows it. “dead”: parameters to be "
        "trained that no gradient reaches."
    )
    return tables.Table("cnn", numbers, columns, "The small CNN with and without batch norm.", note)


def tuned_numbers(tuned: Results) -> pd.DataFrame:
    """A row per setup of ResNet-18.

    Returns:
        setup, n, of; val_accuracy with low and high at the last epoch; train_accuracy and
        train_loss (nats) at the best; train_seconds (per epoch, without validation); the paired
        difference of val_accuracy to the setup "all" with low, high, p, p_holm, pairs; variant,
        conv1, statistics, parameters, trainable_parameters; peak_memory_mib (largest); unchanged:
        "yes" if all that was frozen is as it was, bit for bit, "no" if not, "" where nothing was
        frozen.
    """
    trials, keys = tuned.trials, ["setup"]
    table = _arms(tuned, keys, _timed(tuned), "train_seconds")
    against = arms.against(trials, "setup", "val_accuracy", "all", {})
    table = table.merge(against, on=keys, how="left")
    facts = ["variant", "conv1", "statistics", "parameters", "trainable_parameters"]
    table = _with_facts(table, trials, keys, facts)
    peaks = statistics.finished(trials).groupby("setup")["peak_memory_mib"].max()
    table["peak_memory_mib"] = table["setup"].map(peaks).astype(float)
    checked = frozen_numbers(tuned)
    verdicts = {s: _verdict(checked[checked["setup"] == s]) for s in table["setup"]}
    table["unchanged"] = table["setup"].map(verdicts)
    return arms.in_order(table, setup=setups(tuned))


def _timed(tuned: Results) -> pd.DataFrame:
    """The trials with their training seconds per epoch."""
    seconds = tuned.history.groupby("trial")["train_seconds"].mean()
    return tuned.trials.assign(train_seconds=tuned.trials["trial"].map(seconds))


def tuned_table(tuned: Results) -> tables.Table:
    """The setups of ResNet-18 side by side: tables/resnet18."""
    numbers = tuned_numbers(tuned) if len(tuned.trials) else pd.DataFrame()
    columns = (
        tables.text("setup", "trained"),
        tables.count_of("n", "of"),
        *arms.numbers(trainable_parameters="trained parameters"),
        *_accuracy("all"),
        tables.number("train_seconds", "s/epoch", 2),
        *arms.numbers(peak_memory_mib="peak MiB"),
        tables.text("unchanged", "frozen kept"),
    )
    note = (
        f"{answers.shown_epoch(tuned.trials)}; {arms.spread(numbers)}. {training_note(tuned)} "
        "“minus all”: validation accuracy less that of the whole network retrained with the same "
        "seed, paired t test with Holm's correction. Where nothing else is said, the 3x3 first "
        "convolution is new and random, and frozen with what precedes layer4 or the head. Seconds "
        "are of training only. “frozen kept”: whether all frozen weights and statistics are bit "
        "for bit what they were (“weights”: those are, and the statistics were to move)."
    )
    caption = "ResNet-18 retrained in full and in part."
    return tables.Table("resnet18", numbers, columns, caption, note)


def frozen_numbers(tuned: Results) -> pd.DataFrame:
    """A row per finished trial with something frozen: its digests before and after training.

    Returns:
        trial, setup, frozen_parameters, weights_before, weights_after, statistics_before,
        statistics_after; weights_kept and statistics_kept, whether they are equal.
    """
    names = [f"{what}_{when}" for what in ("weights", "statistics") for when in _WHEN]
    keys = ["trial", "setup", "frozen_parameters"]
    columns = [*keys, *(f"frozen_{name}" for name in names)]
    trials = statistics.finished(tuned.trials).reindex(columns=columns)
    table = trials[trials["frozen_parameters"] > 0].set_axis([*keys, *names], axis=1)
    for what in ("weights", "statistics"):
        table[f"{what}_kept"] = table[f"{what}_before"] == table[f"{what}_after"]
    return table.reset_index(drop=True)


_WHEN = ("before", "after")


def frozen_table(tuned: Results) -> tables.Table:
    """Digests of what was frozen: tables/frozen."""

    def shown(what: str, when: str) -> tables.Column:
        def cell(row: Mapping[Any, Any]) -> str:
            return str(row[f"{what}_{when}"]).removeprefix("sha256:")[:10]

        return tables.Column(f"{what} {when}", cell, "left")

    digests = [shown(what, when) for what in ("weights", "statistics") for when in _WHEN]
    columns = (tables.text("trial", "trial", wrap=True), *digests)
    caption = (
        "Digests (SHA-256, first ten digits) of frozen weights and of their batch norms' running "
        "statistics, before the first and after the last step."
    )
    return tables.Table("frozen", frozen_numbers(tuned), columns, caption)


def mode_numbers(cnn: Results) -> pd.DataFrame:
    """A row per form of the CNN and learning rate: accuracy with and without `net.eval()`.

    Returns:
        bn, lr, n, of, val_accuracy, training_mode, and the paired difference (training mode minus
        evaluation mode) with low and high.
    """
    arms_of = [(form, lr) for lr in cnn.levels("lr") for form in cnn.levels("bn")]
    rows = []
    for form, lr in arms_of if "training_mode_accuracy" in cnn.trials else ():
        group = cnn.trials[(cnn.trials["bn"] == form) & (cnn.trials["lr"] == lr)]
        if group.empty:
            continue
        used = statistics.usable(group, "training_mode_accuracy")
        moving, fixed = (used[k].astype(float) for k in ("training_mode_accuracy", "val_accuracy"))
        change = statistics.t_interval(moving - fixed)
        row = {"bn": form, "lr": lr, "n": len(used), "of": len(group), "val_accuracy": fixed.mean()}
        row |= {"training_mode": moving.mean(), "difference": change.mean}
        rows.append(row | {"low": change.low, "high": change.high})
    return pd.DataFrame(rows)


def mode_table(cnn: Results) -> tables.Table:
    """Evaluation and training mode: tables/modes."""
    columns = (
        *_FORM_AND_RATE,
        *arms.shares(val_accuracy="net.eval()", training_mode="net.train()"),
        tables.difference("difference", "changed by forgetting (points)", prefix=""),
    )
    caption = "Validation accuracy of the trained CNN in evaluation mode, and in training mode."
    note = (
        "The same weights and images, batches in the order of the files; mean over seeds [95 % t "
        "interval]. The running statistics are not moved by this (a copy is scored)."
    )
    return tables.Table("modes", mode_numbers(cnn), columns, caption, note)


def trial_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/trials."""
    values = ["val_accuracy", "val_macro_f1", "val_loss", "train_accuracy", "train_loss"]
    keys = ["model", "bn", "lr", "variant", "conv1", "statistics", "seed"]
    rest = ["best_epoch", "seconds", "peak_memory_mib"]
    trials = _with_training(results.trials, results)
    numbers = trials.reindex(columns=["trial", *keys, "state", *values, *rest])
    numbers[values] = numbers[values].astype(float)
    columns = (
        tables.text("trial", "trial", wrap=True),
        tables.text("state", "state"),
        *arms.shares(2, val_accuracy="val accuracy", val_macro_f1="val macro-F1"),
        tables.number("val_loss", "val loss (nats)", 3),
        *arms.shares(train_accuracy="train accuracy"),
        tables.number("best_epoch", "best epoch"),
        tables.number("seconds", "s", 1),
    )
    caption = f"Every trial. {answers.shown_epoch(results.trials)}."
    return tables.Table("trials", numbers, columns, caption, training_note(results))


def cnn_figure(cnn: Results, metric: str, label: str, scale: float) -> Figure:
    """Validation curves of the CNN's forms, a panel per learning rate."""
    shown = []
    for lr in cnn.levels("lr"):
        part = cnn.history[cnn.history["lr"] == lr]
        title = f"lr {tables.significant(lr)} ({figures.seeds_text(part, 'bn')})"
        shown.append((title, part, metric))
    drawn = figures.curves(
        shown, "bn", cnn.levels("bn"), label, scale=scale, height=2.1, look=_FORM_STYLES,
        label=lambda form: f"bn={form}", dashed="none",
    )  # fmt: skip
    words, band = label.split(" (")[0], figures.band_text(cnn.history, ["lr", "bn"])
    caption = f"{arms.capital(words)} of the CNN, a panel per learning rate. {band}"
    alt = f"Curves of {words} over epochs for each form of the CNN."
    return arms.saved(cnn, drawn, f"cnn_{metric.removesuffix('_running')}", caption, alt)


@arms.drawn("resnet18_accuracy", "Curves of accuracy over epochs, a line per setup.")
def tuned_figure(tuned: Results) -> arms.Drawn:
    """Accuracy of every setup of ResNet-18 over epochs."""
    titles = dict([arms.train_column(tuned.history, "accuracy"), ("val_accuracy", "validation")])
    drawn = figures.curves(
        figures.splits(tuned.history, titles, "setup"), "setup", setups(tuned), "accuracy (%)",
        scale=100.0, height=2.6, columns=4,  # the names are long
    )  # fmt: skip
    return drawn, (
        "Accuracy of ResNet-18 retrained in full and in part; training left, validation right. "
        f"{figures.band_text(tuned.history, 'setup')}"
    )


@arms.drawn("resnet18_cost", "Bars per setup of training seconds and memory.")
def cost_figure(tuned: Results) -> arms.Drawn:
    """Training seconds and peak memory of each setup, a dot per seed."""
    trials, order = _timed(tuned), setups(tuned)
    shown = {"train_seconds": "training seconds per epoch", "peak_memory_mib": "peak memory (MiB)"}
    layout = {"height": 0.6 + 0.2 * len(order), "sharey": True}
    figure, _ = arms.dotted(trials, "setup", shown, order, **layout)
    return figure, (
        "What each setup takes: bar, mean over seeds; marks, single seeds "
        f"({figures.seeds_text(trials, 'setup')})."
    )


def _sections(
    results: Results,
    cnn: Results,
    tuned: Results,
    shown: tuple[tables.Table, tables.Table],
    checked: Recomputed,
) -> list[Section | None]:
    numbers = shown[0].numbers, shown[1].numbers
    frozen, modes = frozen_table(tuned), mode_table(cnn)
    questions = answers.answers(cnn, tuned, *numbers, modes.numbers)
    same = "What was frozen has stayed the same"
    return [
        section(
            "Result",
            answers.summary(*numbers),
            *(_short(table) for table in shown if len(table.numbers)),
            answers.recomputed(checked),
        ),
        section("The questions, answered", questions),
        section("Curves of the CNN", *_cnn_curves(cnn)) if len(cnn.history) else None,
        section("Curves of ResNet-18", tuned_figure(tuned), cost_figure(tuned))
        if len(tuned.history)
        else None,
        section(same, answers.proof(frozen.numbers), frozen) if len(frozen.numbers) else None,
        section("Training and evaluation mode", modes if len(modes.numbers) else None),
        section("Layer sizes", layers.layer_table("listing")),
        section("Beside published figures", answers.beside(results), answers.PUBLISHED),
        section("Limits", answers.limits(results, *numbers)),
        section("Every trial", trial_table(results), optional=True),
    ]


def _cnn_curves(cnn: Results) -> list[Figure]:
    loss, words = arms.train_column(cnn.history, "loss")
    return [
        cnn_figure(cnn, "val_accuracy", "validation accuracy (%)", 100.0),
        cnn_figure(cnn, loss, f"{words} loss (nats)", 1.0),
    ]


def _short(table: tables.Table) -> tables.Table:
    if table.name == "cnn":
        against = ["minus none (points)", "p (Holm)"] if _has(table.numbers) else []
        shown = ["val accuracy (%)", "the lab prints", *against, "dead", "s/epoch"]
        return table.show("bn", "lr", "seeds", *shown)
    against = ["minus all (points)"] if _has(table.numbers) else []
    shown = ["val accuracy (%)", *against, "s/epoch", "peak MiB", "frozen kept"]
    return table.show("trained", "seeds", "trained parameters", *shown)


def _headline(table: tables.Table) -> tables.Table:
    if table.name == "cnn":
        against = ["minus none (points)"] if _has(table.numbers) else ["train accuracy (%)"]
        short = table.show("bn", "lr", "seeds", "val accuracy (%)", *against, "s/epoch")
    else:
        against = ["minus all (points)"] if _has(table.numbers) else []
        short = table.show("trained", "seeds", "trained parameters", "val accuracy (%)", *against)
    return replace(short, note="Mean [95 % t interval] over seeds.")


def _has(numbers: pd.DataFrame) -> bool:
    """Whether any difference to the baseline is defined."""
    return bool(numbers["difference"].notna().any())


def _with_training(trials: pd.DataFrame, part: Results) -> pd.DataFrame:
    """Add train_accuracy and train_loss at each trial's best epoch, running ones if no others."""
    best = part.at_best()
    values = {m: best.get(train_metric(best, m), float("nan")) for m in ("accuracy", "loss")}
    return trials.assign(**{f"train_{metric}": found for metric, found in values.items()})


def training_note(part: Results) -> str:
    """At which epoch and on which images the training values of a table were measured."""
    if train_metric(part.at_best(), "accuracy").endswith("_running"):
        return "Training values: best epoch, running (augmented images, weights still moving)."
    return "Training values: best epoch, fixed weights, images without augmentation."


def _with_facts(
    table: pd.DataFrame, trials: pd.DataFrame, keys: list[str], facts: list[str]
) -> pd.DataFrame:
    """Add what all trials of a row have in common, such as their number of parameters."""
    known = trials.reindex(columns=[*keys, *facts]).groupby(keys)[facts].first().reset_index()
    return table.merge(known, on=keys, how="left")


def _verdict(checked: pd.DataFrame) -> str:
    """Whether what was to stay has stayed, for one setup."""
    if checked.empty:
        return ""
    kept = checked["weights_kept"].all()
    if checked["setup"].iloc[0].endswith("moving BN"):
        return "weights" if kept else "no"
    return "yes" if kept and checked["statistics_kept"].all() else "no"
