"""The report of the norms study: which normalisation layer trains a small ResNet best?

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder.
Where the study holds several recipes, its main tables and curves are those of the recipe "good".
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.document import arms, figures, provenance, tables
from analysis.document.report import Block, Figure, Section, section
from analysis.document.words import count, curve_note
from analysis.results import statistics
from analysis.results.folder import Results, load_predictions, train_metric
from analysis.results.recomputed import Recomputed, confusion
from analysis.studies.norms import answers

BASELINE = "bn"
MAIN_RECIPE = "good"
METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
CURVES = {
    "error": ("error (%)", 100.0),
    "loss": ("loss (nats)", 1.0),
    "accuracy": ("accuracy (%)", 100.0),
    "micro_f1": ("micro-F1 (%)", 100.0),
    "macro_f1": ("macro-F1 (%)", 100.0),
}
# What is measured on both splits at a trial's best epoch: split and metric by column.
_BEST = {f"best_{s}_{m}": (s, m) for s in ("train", "val") for m in (*METRICS, "loss")}
_MOST_CLASSES = 30
_SHOWN = {"val": "val", "best_train": "train"}  # validation of the last epoch, training of the best


@provenance.of_finished
def report(
    results: Results, extra: Callable[[Results], list[Section]] = lambda results: []
) -> None:
    """Write tables/, figures/, report.html and report.pdf of the norms study, print its headline.

    Args:
        results: the study.
        extra: gives sections that follow the study's own.
    """
    main, *others = by_recipe(results)
    table = norm_table(main)
    splits = [splits_table(main, table.numbers)]
    splits += [splits_table(other, norm_numbers(other)) for other in others]
    written = [table, splits[0], seed_table(results)]
    written += [recipe_table(results), *splits[1:]] if others else []
    title = "Normalisation layers in a small ResNet"
    sections = [*_sections(results, main, table, splits), *extra(results)]
    sources = ("predictions/", "gradcam.npz")
    provenance.publish(results, title, sections, written, [headline(table)], sources=sources)


def headline(table: tables.Table) -> tables.Table:
    """The columns of the main table that fit a terminal, best first."""
    against = ["minus bn (points)"] if _has_baseline(table.numbers) else ["val macro-F1 (%)"]
    short = table.show("norm", "seeds", "val accuracy (%)", *against, "s/epoch")
    numbers, note = table.numbers, "Mean [95 % t interval]."
    missing = int((numbers["of"] - numbers["n"]).sum())
    if missing:
        be = "trial is" if missing == 1 else "trials are"
        note += f" {missing} {be} in no mean; the report names them."
    seeds = count(numbers["of"].max(), "seed")
    caption = f"Norms: validation accuracy over {seeds}, best first."
    return replace(short, caption=caption, note=note)


def by_recipe(results: Results) -> list[Results]:
    """The trials of each recipe, the main one first: "good", or the first where there is none."""
    names = sorted(results.levels("recipe"), key=lambda name: name != MAIN_RECIPE)
    return [results.where(recipe=name) for name in names] or [results]


def with_best(results: Results) -> pd.DataFrame:
    """The trials, with `best_<split>_<metric>` of both splits: those of each trial's best epoch."""
    kept = results.at_best()
    names = {
        n: train_metric(kept, m) if s == "train" else f"val_{m}" for n, (s, m) in _BEST.items()
    }
    values = kept.reindex(columns=list(dict.fromkeys(names.values()))).astype(float)
    return results.trials.assign(**{name: values[column] for name, column in names.items()})


def norm_numbers(results: Results) -> pd.DataFrame:
    """Every number of the main table in full precision, a row per norm, best first.

    Returns:
        norm, n, of; mean, low, high of val_accuracy, val_micro_f1, val_macro_f1 at the last epoch
        and of these and the loss of both splits at each trial's best epoch (`best_val_accuracy`,
        `best_train_accuracy`, ...); the paired difference of validation accuracy to bn with low,
        high, p, p_holm, pairs (NaN without bn); means of seconds_per_epoch and the largest
        peak_memory_mib.
    """
    table = statistics.compare(results.trials, "norm", "val_accuracy")[["norm", "n", "of"]]
    trials = with_best(results)
    for name in (*(f"val_{metric}" for metric in METRICS), *_BEST):
        table = statistics.joined(table, trials, ["norm"], name)
    against = statistics.paired(results.trials, "norm", "val_accuracy", BASELINE)
    against = against[["norm", "difference", "low", "high", "p", "p_holm", "n"]]
    against = against.rename(columns=statistics.DIFFERENCE)
    # torch_bn checks bn and is no rival of it: it must not weaken the tests of the others.
    against["p_holm"] = statistics.holm(
        against["p"].where(against["norm"] != "torch_bn").to_numpy(dtype=float)
    )
    table = table.merge(against, on="norm", how="left")
    finished = statistics.finished(results.trials)
    for column, summary in (("seconds_per_epoch", "mean"), ("peak_memory_mib", "max")):
        values = finished.groupby("norm")[column].agg(summary) if column in finished else {}
        table[column] = table["norm"].map(values).astype(float)
    return table


def norm_table(results: Results) -> tables.Table:
    """The main table: tables/norms."""
    numbers = norm_numbers(results)
    columns = (
        tables.text("norm", "norm"),
        tables.count_of("n", "of"),
        *(tables.interval(f"val_{m}", f"val {words} (%)") for m, words in METRICS.items()),
        tables.difference("difference", f"minus {BASELINE} (points)"),
        tables.p_value("p_holm"),
        tables.number("seconds_per_epoch", "s/epoch", 2),
        tables.number("peak_memory_mib", "peak MiB", 0),
    )
    recipe = "".join(f", recipe {name}" for name in results.levels("recipe")[:1])
    caption = f"Norms compared{recipe}, best validation accuracy first."
    return tables.Table("norms", numbers, columns, caption, _note(numbers))


def splits_table(results: Results, numbers: pd.DataFrame) -> tables.Table:
    """Both splits at each trial's best epoch: tables/splits, of another recipe splits_<recipe>."""
    recipes = results.levels("recipe")
    other = f"_{recipes[0]}" if recipes and recipes[0] != MAIN_RECIPE else ""
    columns = [tables.text("norm", "norm")]
    for split in ("val", "train"):
        for metric, words in METRICS.items():
            columns.append(tables.plus_minus(f"best_{split}_{metric}", f"{split} {words}"))
        columns.append(tables.plus_minus(f"best_{split}_loss", f"{split} loss (nats)", 3, 1.0))
    caption = "Accuracy, micro-F1, macro-F1 (%) and loss on validation and training images"
    caption += f", recipe {recipes[0]}." if other else "."
    note = (
        "Best epoch of each trial by validation accuracy, whose weights are kept; mean ± half of "
        f"the 95 % t interval over seeds. {answers.training_note(results)}"
    )
    return tables.Table(f"splits{other}", numbers, tuple(columns), caption, note)


def _note(numbers: pd.DataFrame) -> str:
    """What the cells of the main table mean, given how many seeds there are."""
    against = (
        f"“minus {BASELINE}”: validation accuracy less that of {BASELINE} with the same seed, mean "
        "over seeds [95 % t interval], paired t test with Holm's correction (torch_bn aside). "
    )
    if not _has_baseline(numbers):
        against = f"No trial of {BASELINE} finished, so there are no differences to it. "
    rest = "Time is the mean over seeds, memory the largest peak."
    return f"Last epoch; {arms.spread(numbers)}. {against}{rest}"


def _has_baseline(numbers: pd.DataFrame) -> bool:
    return bool((numbers.loc[numbers["norm"] == BASELINE, "n"] > 0).any())


def seed_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/norms_by_seed."""
    keys = [key for key in ("recipe", "norm", "seed") if key in results.trials]
    values = [f"{of}_{metric}" for of in _SHOWN for metric in (*METRICS, "loss")]
    rest = ["state", "epochs_run", "best_epoch", "seconds_per_epoch", "peak_memory_mib"]
    trials = with_best(results).reindex(columns=["trial", *keys, *values, *rest])
    trials[values] = trials[values].astype(float)
    columns = arms.texts(*keys, "state")
    for of, split in _SHOWN.items():
        columns += arms.shares(**{f"{of}_{m}": f"{split} {words}" for m, words in METRICS.items()})
        columns.append(tables.number(f"{of}_loss", f"{split} loss (nats)", 3))
    columns.append(tables.number("best_epoch", "best epoch"))
    columns.append(tables.number("seconds_per_epoch", "s/epoch", 2))
    caption = "Every trial: validation at its last epoch, training at its best."
    note = answers.training_note(results)
    return tables.Table("norms_by_seed", trials, tuple(columns), caption, note)


def recipe_numbers(results: Results) -> pd.DataFrame:
    """A row per norm and recipe: accuracies, loss, learning rates and how far it could move.

    Returns:
        norm, recipe, n, of, val_accuracy with low and high at the last epoch; best_val_accuracy,
        best_train_accuracy, best_train_loss (nats) at the best; lr of the first epoch, lr_sum (sum
        of the learning rates over the epochs).
    """
    trials, keys = with_best(results), ["norm", "recipe"]
    table = statistics.named(trials, keys, "val_accuracy")
    for metric in ("best_val_accuracy", "best_train_accuracy", "best_train_loss"):
        table = statistics.joined(table, trials, keys, metric, ends=False)
    history = statistics.finished(results.history)
    if "lr" in history:
        rates = history.groupby([*keys, "trial"])["lr"].agg(["first", "sum"]).groupby(keys).mean()
        rates.columns = ["lr", "lr_sum"]
        table = table.merge(rates.reset_index(), on=keys, how="left")
    return arms.in_order(table, **{key: results.levels(key) for key in keys})


def recipe_table(results: Results) -> tables.Table:
    """The recipes side by side: tables/recipes."""
    numbers = recipe_numbers(results)
    columns = [
        *arms.texts("norm", "recipe"),
        tables.count_of("n", "of"),
        tables.interval("val_accuracy", "val accuracy (%)"),
        *arms.shares(best_train_accuracy="train accuracy"),
        tables.number("best_train_loss", "train loss (nats)", 3),
    ]
    if "lr" in numbers:
        columns += [tables.scientific("lr", "first lr"), tables.scientific("lr_sum", "sum of lr")]
    caption = (
        "The same networks under different recipes: validation at the last epoch, training at the "
        "best."
    )
    note = (
        f"{answers.training_note(results)} Mean [95 % t interval] over seeds. Sum of lr: the "
        "learning rates of all epochs added up, a measure of how far plain SGD could move the "
        "weights."
    )
    return tables.Table("recipes", numbers, tuple(columns), caption, note)


def own_against_torch(results: Results) -> pd.DataFrame:
    """Curves of bn minus those of torch_bn for every shared seed and epoch.

    Returns:
        seed, epoch, and the differences of val_accuracy, train_accuracy_running, val_loss and
        train_loss_running; empty when either norm is missing.
    """
    history = statistics.finished(results.history)
    metrics = ["val_accuracy", "train_accuracy_running", "val_loss", "train_loss_running"]
    history = history.reindex(columns=[*history, *(m for m in metrics if m not in history)])
    own, torch = (
        history[history["norm"] == norm].set_index(["seed", "epoch"])[metrics]
        for norm in ("bn", "torch_bn")
    )
    return (own - torch).dropna(how="all").reset_index()


def recompute(results: Results) -> Recomputed | None:
    """Compute validation accuracy and macro-F1 again from the stored scores; None without any.

    They are compared with the metrics of the epoch that the file names, or of the last.
    """
    stored = results.with_predictions(statistics.FINISHED)
    checked = Recomputed(trials=len(stored))
    for trial in stored:
        scores = load_predictions(results.path, trial)
        checked.images, matrix = len(scores.labels), confusion(scores)
        again = {
            "val_accuracy": statistics.accuracy(matrix),
            "val_macro_f1": statistics.macro_f1(matrix),
        }
        checked.compare(trial, again, results.reported(trial, scores.epoch))
    return checked if stored else None


def class_recall(results: Results) -> tuple[pd.DataFrame, np.ndarray] | None:
    """Recall per class and norm on the validation images, and the best trial's confusion matrix.

    Returns:
        A frame (class, norm) of recalls in [0, 1], each norm by its trial of best validation
        accuracy (at the epoch whose scores are stored) among those with stored scores; the matrix
        of the best of these. None without any.
    """
    trials = statistics.usable(results.at_best(), "val_accuracy")
    trials = trials[trials["trial"].isin(results.with_predictions())]
    if trials.empty:
        return None
    trials = trials.sort_values("val_accuracy", ascending=False, kind="stable")
    chosen = trials.drop_duplicates("norm").set_index("norm")["trial"]
    stored = {norm: load_predictions(results.path, trial) for norm, trial in chosen.items()}
    matrices = {norm: confusion(scores) for norm, scores in stored.items()}
    recalls = {
        norm: pd.Series(statistics.recall(matrices[norm]), index=list(stored[norm].classes))
        for norm in results.levels("norm")
        if norm in stored
    }
    return pd.DataFrame(recalls), matrices[chosen.index[0]]


def curve_figures(results: Results, suffix: str = "") -> list[Figure]:
    """Overlay plots of all norms, training beside validation, one figure per metric."""
    history, found = results.history, []
    of = f", recipe {results.levels('recipe')[0]}" if suffix else ""
    whole = history["state"].isin(statistics.FINISHED).all()
    broken = "" if whole else " Thin lines that end in a cross: trials that did not finish."
    for metric, (label, scale) in CURVES.items():
        train, title = arms.train_column(history, metric)
        names = {train: title, f"val_{metric}": "validation"}
        if not set(names) <= set(history):
            continue
        shown = figures.splits(history, names, "norm")
        norms, words = results.levels("norm"), label.split(" (")[0]
        drawn = figures.curves(shown, "norm", norms, label, scale=scale, height=2.1)
        caption = (
            f"{arms.capital(words)} of every norm on training and validation images{of}. "
            f"{curve_note(train.endswith('_running'))}{figures.band_text(history, 'norm')}{broken}"
        )
        line = f"Curves of {words} over epochs, a line per norm; training left, validation right."
        found.append(arms.saved(results, drawn, f"{metric}{suffix}", caption, line))
    return found


@arms.drawn("sanity", "Curves of own batch norm drawn over those of torch's batch norm.")
def sanity_figure(results: Results) -> arms.Drawn:
    """Own and torch's batch norm on top of each other, seed by seed."""
    history = statistics.finished(results.history)
    looks = {
        "torch_bn": {"linestyle": "-", "linewidth": 3.2, "color": "#aaaaaa"},
        "bn": {"linestyle": "--", "linewidth": 1.1, "color": figures.NORM_STYLES["bn"].color},
    }
    shown = (
        ("val_error", "validation error (%)", 100.0),
        ("train_loss_running", "running training loss (nats)", 1.0),
    )
    figure, axes = figures.panels(2, height=2.1)
    for panel, (metric, label, scale) in zip(axes, shown, strict=True):
        for norm, look in looks.items():
            for number, (_, one) in enumerate(history[history["norm"] == norm].groupby("seed")):
                name = norm if number == 0 else None
                panel.plot(one["epoch"], one[metric] * scale, label=name, **look)
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "epoch")
    figures.legend_below(figure, axes[0], 2)
    return figure, (
        "Own bn (blue, dashed) over torch's (grey, wide): a line per seed. Where only blue on grey "
        "is seen, the two agree."
    )


@figures.styled
def cost_figure(results: Results) -> Figure:
    """Seconds per epoch and peak memory, a row per norm, a dot per seed."""
    norms = results.levels("norm")
    columns = {"seconds_per_epoch": "seconds per epoch", "peak_memory_mib": "peak memory (MiB)"}
    figure, labels = arms.dotted(
        results.trials, "norm", columns, norms, height=0.55 + 0.2 * len(norms)
    )
    words = " and ".join(labels)
    caption = (
        f"{arms.capital(words)} of each norm: bar, mean over seeds; marks, single seeds "
        f"({figures.seeds_text(results.trials, 'norm')})."
    )
    return arms.saved(results, figure, "cost", caption, f"Bars per norm of {words}.")


@arms.drawn("classes", "Heat map of recall per class and norm.")
def class_figure(results: Results, recalls: pd.DataFrame) -> arms.Drawn:
    """Recall of each class under each norm; of many classes the hardest."""
    order = recalls.mean(axis=1).sort_values(kind="stable").index[:_MOST_CLASSES]
    shown = recalls.loc[order]
    figure, (axes, *_) = figures.panels(height=0.5 + 0.16 * len(shown))
    low = np.floor(np.nanmin(shown.to_numpy()) * 10) * 10
    names = [str(name) for name in shown.index], list(shown.columns)
    look = {"low": low, "high": 100, "label": "recall (%)"}
    figures.heatmap(axes, shown.to_numpy() * 100, *names, "{:.0f}".format, **look)
    cut = f" The {len(shown)} hardest of {len(recalls)} classes."
    return figure, (
        "Recall (%) of each class on validation images, hardest class first, for the best trial of "
        "each norm (one seed each), at the epoch whose scores are stored."
        + (cut if len(shown) < len(recalls) else "")
    )


@arms.drawn("recipes", "Curves of validation accuracy over epochs, one panel per recipe.")
def recipe_figure(results: Results) -> arms.Drawn:
    """Validation accuracy of every norm, a panel per recipe."""
    parts = {name: results.where(recipe=name).history for name in results.levels("recipe")}
    shown = [
        (f"recipe {name} ({figures.seeds_text(part, 'norm')})", part, "val_accuracy")
        for name, part in parts.items()
    ]
    label = "validation accuracy (%)"
    norms = results.levels("norm")
    drawn = figures.curves(shown, "norm", norms, label, scale=100.0, height=2.1)
    band = figures.band_text(results.history, ["recipe", "norm"])
    return drawn, f"Validation accuracy under each recipe. {band}"


def _sections(
    results: Results, main: Results, table: tables.Table, splits: list[tables.Table]
) -> list[Section | None]:
    numbers, differences, found = table.numbers, own_against_torch(main), class_recall(main)
    sanity = [] if differences.empty else [answers.identical(differences), sanity_figure(main)]
    against = ["minus bn (points)", "p (Holm)"] if _has_baseline(numbers) else []
    return [
        section(
            "Result",
            answers.summary(main, numbers),
            table.show("norm", "seeds", "val accuracy (%)", *against, "s/epoch", "peak MiB"),
            splits[0],
            answers.recomputed(recompute(results)),
        ),
        section("The questions, answered", answers.answers(main, numbers, differences)),
        Section("Curves", tuple(curve_figures(main))),
        section("Sanity check: own bn against torch's", *sanity),
        section("Time and memory", answers.cost(main, numbers), cost_figure(main)),
        found and section("Classes", answers.classes(*found), class_figure(main, found[0])),
        section("Recipes", *_recipes(results, splits)) if len(splits) > 1 else None,
        section("Beside published figures", answers.beside(results), answers.PUBLISHED),
        section("Limits", answers.limits(main, numbers)),
        section("Every trial", _every(results), optional=True),
    ]


def _every(results: Results) -> tables.Table:
    every = seed_table(results)
    shown = [key for key in ("recipe", "norm", "seed") if key in every.numbers]
    shown += ["state", "val accuracy (%)", "val macro-F1 (%)", "val loss (nats)"]
    return every.show(*shown, "train accuracy (%)", "train loss (nats)", "s/epoch")


def _recipes(results: Results, splits: list[tables.Table]) -> list[Block | str]:
    rows = recipe_table(results)
    told = answers.recipes(results, rows.numbers)
    blocks: list[Block | str] = [told, rows, recipe_figure(results)]
    for other, table in list(zip(by_recipe(results), splits, strict=True))[1:]:
        blocks += [table, *curve_figures(other, f"_{other.levels('recipe')[0]}")]
    return blocks
