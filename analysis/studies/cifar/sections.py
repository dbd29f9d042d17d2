"""The report of the CIFAR study: batch norm in a small CNN, and a ResNet-18 fine-tuned in part.

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.document import figures, provenance, tables
from analysis.document.report import Figure, Section, section
from analysis.results import statistics
from analysis.results.folder import Predictions, Results, load_predictions, train_metric
from analysis.results.recomputed import Recomputed
from analysis.studies.cifar import answers
from core.errors import UserError
from core.layers.freezing import small_stem
from core.layers.sizes import LayerSize, as_text, layer_sizes, times
from core.models.pretrained import resnet18
from core.models.small_cnn import FORMS, SmallCNN

CNN_SIZE = 32
_VARIANTS = ("all", "layer4", "head", "scratch")
_FORM_STYLES = {
    "none": figures.Style("#56B4E9", "P"),
    "listing": figures.Style("#E69F00", "s"),
    "meant": figures.Style("#0072B2", "o"),
}


FROM_SCORES = ("val_accuracy", "val_error", "val_micro_f1", "val_macro_f1", "val_loss")


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf of the study, print its headline."""
    results, checked = recompute(results)
    cnn, tuned = cnn_part(results), tuned_part(results)
    shown = cnn_table(cnn), tuned_table(tuned)
    printed = [_headline(table) for table in shown if len(table.numbers)]
    made = [*shown, frozen_table(tuned), mode_table(cnn), trial_table(results)]
    title = "Batch norm in a small CNN, and a ResNet-18 fine-tuned in part"
    sections = _sections(results, cnn, tuned, shown, checked)
    provenance.publish(results, title, sections, [t for t in made if len(t.numbers)], printed)


def recompute(results: Results) -> tuple[Results, Recomputed]:
    """Compute the validation metrics of finished trials from their stored scores.

    Returns:
        The results with these numbers in `trials`, and how far they are from those reported at the
        epoch that the scores are of: the one in the file, or else the last.

    Raises:
        UserError: a file of predictions/ is damaged.
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
            for metric in reported.index.intersection(trials.columns):
                if str(metric).startswith("train_"):
                    trials.loc[trial, metric] = reported[metric]
        for metric, value in checked.compare(trial, score_metrics(scores), reported).items():
            trials.loc[trial, metric] = value
    return replace(results, trials=trials.reset_index()), checked


def score_metrics(stored: Predictions) -> dict[str, float]:
    """Return the metrics of `FROM_SCORES`, shares in [0, 1] and the loss in nats."""
    matrix = statistics.confusion(stored.labels, stored.scores.argmax(axis=1), len(stored.classes))
    accuracy = statistics.accuracy(matrix)
    logits = stored.scores.astype(np.float64)
    right = logits[np.arange(len(logits)), stored.labels]
    loss = float((scipy.special.logsumexp(logits, axis=1) - right).mean())
    values = (accuracy, 1 - accuracy, accuracy, statistics.macro_f1(matrix), loss)
    return dict(zip(FROM_SCORES, values, strict=True))


def print_layers(settings: Mapping[str, Any], folder: Path) -> int:
    """Print the layers' output sizes and parameters of both networks, and run nothing.

    Args:
        settings: what the user set; image_size, bn and maxpool count.
        folder: not used.
    """
    size = settings.get("image_size", CNN_SIZE)
    if size < 8:
        raise UserError(f"--set image_size={size}: image_size must be at least 8")
    if size == CNN_SIZE:
        for form in settings.get("bn", ["listing"]):
            print(f"the lab's CNN, bn={form}, for images of 3 x {size} x {size}\n")
            print(f"{as_text(cnn_layers(form))}\n")
    model = resnet18("none", 10)
    small_stem(model, "printed", maxpool=settings.get("maxpool", True))
    print(f"ResNet-18 with a 3x3 first convolution, for images of 3 x {size} x {size}\n")
    print(as_text(layer_sizes(model, (3, size, size))))
    return 0


def cnn_layers(form: str) -> list[LayerSize]:
    """Return the layers of the lab's CNN for its 32x32 images."""
    known = next(one for one in FORMS if one == form)
    return layer_sizes(SmallCNN(known), (3, CNN_SIZE, CNN_SIZE))


def cnn_part(results: Results) -> Results:
    """The trials of the CNN."""
    return results.where(model="cnn")


def tuned_part(results: Results) -> Results:
    """The trials of ResNet-18, with a column `setup` that tells what they compare."""
    part = results.where(model="resnet18")
    rows: list[Mapping[Any, Any]] = list(part.trials.to_dict("records"))
    trials = part.trials.assign(setup=[setup_of(row) for row in rows])
    named = dict(zip(trials["trial"], trials["setup"], strict=True))
    history = part.history.assign(setup=part.history["trial"].map(named))
    return Results(part.path, part.study, trials, history)


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
        train_loss (nats) at the best; the paired difference of val_accuracy to bn=none at the same
        lr with low, high, p, p_holm (Holm over the rows), pairs; dead_parameters,
        trainable_parameters; seconds_per_epoch.
    """
    trials, keys = cnn.trials, ["bn", "lr"]
    table = statistics.named(trials, keys, "val_accuracy")
    table = _with_training(table, cnn, keys)
    table = _with_mean(table, trials, keys, "seconds_per_epoch")
    against = []
    for lr in cnn.levels("lr"):
        one = trials[trials["lr"] == lr]
        against.append(statistics.paired(one, "bn", "val_accuracy", "none").assign(lr=lr))
    table = _with_difference(table, against, keys)
    table = _with_facts(table, trials, keys, ["dead_parameters", "trainable_parameters"])
    places = {key: {v: i for i, v in enumerate(cnn.levels(key))} for key in keys}
    return table.sort_values(
        ["lr", "bn"], key=lambda column: column.map(places[str(column.name)])
    ).reset_index(drop=True)


def cnn_table(cnn: Results) -> tables.Table:
    """The CNN's forms side by side: tables/cnn."""
    numbers = cnn_numbers(cnn) if len(cnn.trials) else pd.DataFrame()
    columns = (
        tables.text("bn", "bn"),
        tables.scientific("lr", "lr"),
        tables.count_of("n", "of"),
        tables.interval("val_accuracy", "val accuracy (%)"),
        tables.Column("the lab prints", lambda row: answers.floored(row["val_accuracy"])),
        tables.difference("difference", "minus none (points)"),
        tables.p_value("p_holm"),
        tables.number("train_accuracy", "train accuracy (%)", 1, 100.0),
        tables.number("train_loss", "train loss (nats)", 3),
        tables.number("dead_parameters", "dead"),
        tables.number("seconds_per_epoch", "s/epoch", 2),
    )
    note = (
        f"{answers.shown_epoch(cnn.trials)}; {_spread(numbers)}. {training_note(cnn)} "
        "“minus none”: validation accuracy less that without batch norm at the same learning rate "
        "and seed, mean over seeds [95 % t interval], paired t test with Holm's correction. “the "
        "lab prints”: the mean as `100 * correct // total` shows it. “dead”: parameters to be "
        "trained that no gradient reaches."
    )
    return tables.Table("cnn", numbers, columns, "The small CNN with and without batch norm.", note)


def tuned_numbers(tuned: Results) -> pd.DataFrame:
    """A row per setup of ResNet-18.

    Returns:
        setup, n, of; variant, conv1, statistics; val_accuracy with low and high at the last epoch;
        train_accuracy at the best; the paired difference of val_accuracy to the setup "all" with
        low, high, p, p_holm, pairs; parameters, trainable_parameters; train_seconds (per epoch,
        without validation);
        peak_memory_mib (largest); unchanged: "yes" if all that was frozen is as it was, bit for
        bit, "no" if not, "" where nothing was frozen.
    """
    trials, keys = tuned.trials, ["setup"]
    table = statistics.named(trials, keys, "val_accuracy")
    finished = trials["state"].isin(statistics.FINISHED)
    seconds = tuned.history.groupby("trial")["train_seconds"].mean()
    timed = trials.assign(train_seconds=trials["trial"].map(seconds))
    table = _with_training(table, tuned, keys)
    table = _with_mean(table, timed, keys, "train_seconds")
    table = _with_difference(
        table, [statistics.paired(trials, "setup", "val_accuracy", "all")], keys
    )
    facts = ["variant", "conv1", "statistics", "parameters", "trainable_parameters"]
    table = _with_facts(table, trials, keys, facts)
    peaks = trials[finished].groupby("setup")["peak_memory_mib"].max()
    table["peak_memory_mib"] = table["setup"].map(peaks).astype(float)
    checked = frozen_numbers(tuned)
    verdicts = {s: _verdict(checked[checked["setup"] == s]) for s in table["setup"]}
    table["unchanged"] = table["setup"].map(verdicts)
    order = {setup: place for place, setup in enumerate(setups(tuned))}
    return table.sort_values("setup", key=lambda c: c.map(order)).reset_index(drop=True)


def tuned_table(tuned: Results) -> tables.Table:
    """The setups of ResNet-18 side by side: tables/resnet18."""
    numbers = tuned_numbers(tuned) if len(tuned.trials) else pd.DataFrame()
    columns = (
        tables.text("setup", "trained"),
        tables.count_of("n", "of"),
        tables.number("trainable_parameters", "trained parameters"),
        tables.interval("val_accuracy", "val accuracy (%)"),
        tables.difference("difference", "minus all (points)"),
        tables.p_value("p_holm"),
        tables.number("train_accuracy", "train accuracy (%)", 1, 100.0),
        tables.number("train_seconds", "s/epoch", 2),
        tables.number("peak_memory_mib", "peak MiB"),
        tables.text("unchanged", "frozen kept"),
    )
    note = (
        f"{answers.shown_epoch(tuned.trials)}; {_spread(numbers)}. {training_note(tuned)} “minus "
        "all”: validation accuracy less that of the whole network retrained with the same seed, "
        "paired t test with Holm's correction. Where nothing else is said, the 3x3 first "
        "convolution is new and random, and frozen with what precedes layer4 or the head. Seconds "
        "are of training only. “frozen kept”: whether all frozen weights and statistics are bit "
        "for bit what they were (“weights”: those are, and the statistics were to move)."
    )
    return tables.Table(
        "resnet18", numbers, columns, "ResNet-18 retrained in full and in part.", note
    )


def frozen_numbers(tuned: Results) -> pd.DataFrame:
    """A row per finished trial with something frozen: its digests before and after training.

    Returns:
        trial, setup, frozen_parameters, weights_before, weights_after, statistics_before,
        statistics_after; weights_kept and statistics_kept, whether they are equal.
    """
    names = [f"frozen_{what}_{when}" for what in ("weights", "statistics") for when in _WHEN]
    keys = ["trial", "setup", "frozen_parameters"]
    columns = [*keys, *(name.removeprefix("frozen_") for name in names)]
    trials = statistics.finished(tuned.trials)
    if not {*names, "frozen_parameters"} <= set(trials):
        return pd.DataFrame(columns=[*columns, "weights_kept", "statistics_kept"])
    table = trials[trials["frozen_parameters"] > 0][[*keys, *names]].copy()
    table.columns = columns
    for what in ("weights", "statistics"):
        table[f"{what}_kept"] = table[f"{what}_before"] == table[f"{what}_after"]
    return table.reset_index(drop=True)


_WHEN = ("before", "after")


def frozen_table(tuned: Results) -> tables.Table:
    """Digests of what was frozen: tables/frozen."""

    def shown(what: str, when: str) -> tables.Column:
        key = f"{what}_{when}"
        return tables.Column(
            f"{what} {when}", lambda row: str(row[key]).removeprefix("sha256:")[:10], "left"
        )

    columns = (
        tables.text("trial", "trial", wrap=True),
        *(shown(what, when) for what in ("weights", "statistics") for when in _WHEN),
    )
    return tables.Table(
        "frozen",
        frozen_numbers(tuned),
        columns,
        "Digests (SHA-256, first ten digits) of frozen weights and of their batch norms' running "
        "statistics, before the first and after the last step.",
    )


def mode_numbers(cnn: Results) -> pd.DataFrame:
    """A row per form of the CNN and learning rate: accuracy with and without `net.eval()`.

    Returns:
        bn, lr, n, of, val_accuracy, training_mode, and the paired difference (training mode minus
        evaluation mode) with low and high.
    """
    rows = []
    for lr in cnn.levels("lr"):
        for form in cnn.levels("bn"):
            group = cnn.trials[(cnn.trials["bn"] == form) & (cnn.trials["lr"] == lr)]
            if group.empty or "training_mode_accuracy" not in group:
                continue
            used = statistics.usable(group, "training_mode_accuracy")
            values = used["training_mode_accuracy"].astype(float)
            change = statistics.t_interval(values - used["val_accuracy"].astype(float))
            rows.append(
                {
                    "bn": form,
                    "lr": lr,
                    "n": len(used),
                    "of": len(group),
                    "val_accuracy": used["val_accuracy"].astype(float).mean(),
                    "training_mode": values.mean(),
                    "difference": change.mean,
                    "low": change.low,
                    "high": change.high,
                }
            )
    return pd.DataFrame(rows)


def mode_table(cnn: Results) -> tables.Table:
    """Evaluation and training mode: tables/modes."""
    columns = (
        tables.text("bn", "bn"),
        tables.scientific("lr", "lr"),
        tables.count_of("n", "of"),
        tables.number("val_accuracy", "net.eval() (%)", 1, 100.0),
        tables.number("training_mode", "net.train() (%)", 1, 100.0),
        tables.difference("difference", "changed by forgetting (points)", prefix=""),
    )
    return tables.Table(
        "modes",
        mode_numbers(cnn),
        columns,
        "Validation accuracy of the trained CNN in evaluation mode, and in training mode.",
        "The same weights and images, batches in the order of the files; mean over seeds [95 % t "
        "interval]. The running statistics are not moved by this (a copy is scored).",
    )


def trial_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/trials."""
    values = ["val_accuracy", "val_macro_f1", "val_loss", "train_accuracy", "train_loss"]
    keys = ["model", "bn", "lr", "variant", "conv1", "statistics", "seed"]
    rest = ["best_epoch", "seconds", "peak_memory_mib"]
    best = results.at_best()
    training = {m: best.get(train_metric(best, m), float("nan")) for m in ("accuracy", "loss")}
    trials = results.trials.assign(**{f"train_{m}": found for m, found in training.items()})
    numbers = trials.reindex(columns=["trial", *keys, "state", *values, *rest])
    numbers[values] = numbers[values].astype(float)
    columns = (
        tables.text("trial", "trial", wrap=True),
        tables.text("state", "state"),
        tables.number("val_accuracy", "val accuracy (%)", 2, 100.0),
        tables.number("val_macro_f1", "val macro-F1 (%)", 2, 100.0),
        tables.number("val_loss", "val loss (nats)", 3),
        tables.number("train_accuracy", "train accuracy (%)", 1, 100.0),
        tables.number("best_epoch", "best epoch"),
        tables.number("seconds", "s", 1),
    )
    caption = f"Every trial. {answers.shown_epoch(results.trials)}."
    return tables.Table("trials", numbers, columns, caption, training_note(results))


def layer_table(form: str) -> tables.Table:
    """The layer sizes of the CNN."""
    numbers = pd.DataFrame([vars(row) | {"shape": times(row.output)} for row in cnn_layers(form)])
    columns = (
        tables.text("name", "layer"),
        tables.text("kind", "kind"),
        tables.text("shape", "output"),
        tables.number("parameters", "parameters"),
        tables.text("formula", "width by formula"),
    )
    total = int(numbers.drop_duplicates("name")["parameters"].sum())
    return tables.Table(
        "layers",
        numbers,
        columns,
        f"The CNN as the lab lists it (bn={form}) for images of 3 x {CNN_SIZE} x {CNN_SIZE}.",
        f"{total:,} parameters for ten classes. floor((x + 2p − k) / s) + 1, held against torch.",
    )


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
    words = label.split(" (")[0]
    band = figures.band_text(cnn.history, ["lr", "bn"])
    return Figure(
        figures.save(drawn, cnn.path / "figures", f"cnn_{metric.removesuffix('_running')}"),
        f"{words[0].upper()}{words[1:]} of the CNN, a panel per learning rate. {band}",
        f"Curves of {words} over epochs for each form of the CNN.",
    )


def _loss_figure(cnn: Results) -> Figure:
    """Training loss of the CNN over epochs, running unless every epoch was scored anew."""
    metric = train_metric(cnn.history, "loss")
    label = "running training loss" if metric.endswith("_running") else "training loss"
    return cnn_figure(cnn, metric, f"{label} (nats)", 1.0)


def tuned_figure(tuned: Results) -> Figure:
    """Accuracy of every setup of ResNet-18 over epochs."""
    train = train_metric(tuned.history, "accuracy")
    running = "running " if train.endswith("_running") else ""
    titles = {train: f"{running}training", "val_accuracy": "validation"}
    drawn = figures.curves(
        figures.splits(tuned.history, titles, "setup"), "setup", setups(tuned), "accuracy (%)",
        scale=100.0, height=2.6, columns=4,  # the names are long
    )  # fmt: skip
    return Figure(
        figures.save(drawn, tuned.path / "figures", "resnet18_accuracy"),
        "Accuracy of ResNet-18 retrained in full and in part; training left, validation right. "
        f"{figures.band_text(tuned.history, 'setup')}",
        "Curves of accuracy over epochs, a line per setup.",
    )


@figures.styled
def cost_figure(tuned: Results) -> Figure:
    """Training seconds and peak memory of each setup, a dot per seed."""
    seconds = tuned.history.groupby("trial")["train_seconds"].mean()
    trials = tuned.trials.assign(train_seconds=tuned.trials["trial"].map(seconds))
    shown = {"train_seconds": "training seconds per epoch", "peak_memory_mib": "peak memory (MiB)"}
    shown = {column: label for column, label in shown.items() if trials[column].notna().any()}
    order = setups(tuned)
    figure, axes = figures.panels(max(1, len(shown)), height=0.6 + 0.2 * len(order), sharey=True)
    for panel, (column, label) in zip(axes, shown.items(), strict=False):
        figures.dots(panel, trials, "setup", order, column, label)
    return Figure(
        figures.save(figure, tuned.path / "figures", "resnet18_cost"),
        "What each setup takes: bar, mean over seeds; marks, single seeds "
        f"({figures.seeds_text(trials, 'setup')}).",
        "Bars per setup of training seconds and memory.",
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
    return [
        section(
            "Result",
            answers.summary(*numbers),
            _short_cnn(shown[0]) if len(numbers[0]) else None,
            _short_tuned(shown[1]) if len(numbers[1]) else None,
            answers.recomputed(checked),
        ),
        section(
            "The questions, answered", answers.answers(cnn, tuned, *numbers, mode_numbers(cnn))
        ),
        section(
            "Curves of the CNN",
            cnn_figure(cnn, "val_accuracy", "validation accuracy (%)", 100.0),
            _loss_figure(cnn),
        )
        if len(cnn.history)
        else None,
        section("Curves of ResNet-18", tuned_figure(tuned), cost_figure(tuned))
        if len(tuned.history)
        else None,
        section("What was frozen has stayed the same", answers.proof(frozen.numbers), frozen)
        if len(frozen.numbers)
        else None,
        section("Training and evaluation mode", modes if len(modes.numbers) else None),
        section("Layer sizes", layer_table("listing")),
        section(
            "Beside published figures",
            answers.beside(results),
            tables.published(
                answers.PUBLISHED,
                answers.PUBLISHED_LINKS,
                "**Other people's results on CIFAR-10**, not measured here.",
            ),
        ),
        section("Limits", answers.limits(results, *numbers)),
        section("Every trial", trial_table(results), optional=True),
    ]


def _short_cnn(table: tables.Table) -> tables.Table:
    against = ["minus none (points)", "p (Holm)"] if _has(table.numbers) else []
    return table.show(
        "bn", "lr", "seeds", "val accuracy (%)", "the lab prints", *against, "dead", "s/epoch"
    )


def _short_tuned(table: tables.Table) -> tables.Table:
    against = ["minus all (points)"] if _has(table.numbers) else []
    return table.show(
        "trained", "seeds", "trained parameters", "val accuracy (%)", *against,
        "s/epoch", "peak MiB", "frozen kept",
    )  # fmt: skip


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


def _spread(numbers: pd.DataFrame) -> str:
    several = len(numbers) and numbers["n"].max() > 1
    return "mean [95 % t interval] over seeds" if several else "one seed, no interval"


def _with_mean(
    table: pd.DataFrame, trials: pd.DataFrame, keys: list[str], metric: str
) -> pd.DataFrame:
    if metric not in trials:
        return table.assign(**{metric: float("nan")})
    return statistics.joined(table, trials, keys, metric, ends=False)


def _with_difference(
    table: pd.DataFrame, against: Sequence[pd.DataFrame], keys: list[str]
) -> pd.DataFrame:
    """Add paired differences, with Holm's correction over all of them."""
    both = pd.concat(against).drop(columns="std").rename(columns=statistics.DIFFERENCE)
    both["p_holm"] = statistics.holm(both["p"].to_numpy(dtype=float))
    return table.merge(both, on=keys, how="left")


def _with_training(table: pd.DataFrame, part: Results, keys: list[str]) -> pd.DataFrame:
    """Add train_accuracy and train_loss at each trial's best epoch, running ones if no others."""
    best = part.at_best()
    for metric in ("accuracy", "loss"):
        values = best.get(train_metric(best, metric), float("nan"))
        table = _with_mean(
            table, best.assign(**{f"train_{metric}": values}), keys, f"train_{metric}"
        )
    return table


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
    moving = checked["setup"].iloc[0].endswith("moving BN")
    if moving:
        return "weights" if kept else "no"
    return "yes" if kept and checked["statistics_kept"].all() else "no"
