"""The report of the norms study: which normalisation layer trains a small ResNet best?

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder.
Where the study holds several recipes, its main tables and curves are those of the recipe "good".
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.document import figures, provenance, tables
from analysis.document.report import Block, Figure, Section, section
from analysis.document.words import count, curve_note
from analysis.results import statistics
from analysis.results.folder import Predictions, Results, load_predictions, train_metric
from analysis.results.recomputed import Recomputed
from analysis.studies.norms import answers

BASELINE = "bn"
MAIN_RECIPE = "good"
SPLITS = {"train": "train", "val": "val"}
METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
CURVES = {
    "error": ("error (%)", 100.0),
    "loss": ("loss (nats)", 1.0),
    "accuracy": ("accuracy (%)", 100.0),
    "micro_f1": ("micro-F1 (%)", 100.0),
    "macro_f1": ("macro-F1 (%)", 100.0),
}
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
    main = main_recipe(results)
    table = norm_table(main)
    written = [table, splits_table(main), seed_table(results)]
    if len(results.levels("recipe")) > 1:
        written += [recipe_table(results), *(splits_table(one) for one in other_recipes(results))]
    title = "Normalisation layers in a small ResNet"
    sections = [*_sections(results, main, table), *extra(results)]
    sources = ("predictions/", "gradcam.npz")
    provenance.publish(results, title, sections, written, [headline(table)], sources=sources)


def headline(table: tables.Table) -> tables.Table:
    """The columns of the main table that fit a terminal, best first."""
    against = ["minus bn (points)"] if _has_baseline(table.numbers) else ["val macro-F1 (%)"]
    short = table.show("norm", "seeds", "val accuracy (%)", *against, "s/epoch")
    numbers, note = table.numbers, "Mean [95 % t interval]."
    seeds = count(int(numbers["of"].max()) if len(numbers) else 0, "seed")
    missing = int((numbers["of"] - numbers["n"]).sum())
    if missing:
        be = "trial is" if missing == 1 else "trials are"
        note += f" {missing} {be} in no mean; the report names them."
    caption = f"Norms: validation accuracy over {seeds}, best first."
    return replace(short, caption=caption, note=note)


def main_recipe(results: Results) -> Results:
    """The trials of the recipe "good", or of the first recipe where there is none of that name."""
    recipes = results.levels("recipe")
    if not recipes:
        return results
    return results.where(recipe=MAIN_RECIPE if MAIN_RECIPE in recipes else recipes[0])


def other_recipes(results: Results) -> list[Results]:
    """The trials of each recipe but the main one."""
    names = results.levels("recipe")
    main = MAIN_RECIPE if MAIN_RECIPE in names else names[0]
    return [results.where(recipe=name) for name in names if name != main]


def with_best(results: Results) -> pd.DataFrame:
    """The trials, with `best_<split>_<metric>` of both splits: those of each trial's best epoch."""
    kept = results.at_best()
    found = {
        f"best_{split}_{metric}": train_metric(kept, metric)
        if split == "train"
        else f"val_{metric}"
        for split in SPLITS
        for metric in (*METRICS, "loss")
    }
    values = {name: kept[column].astype(float) for name, column in found.items() if column in kept}
    return results.trials.assign(**{**dict.fromkeys(found, float("nan")), **values})


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
    best = [f"best_{split}_{metric}" for split in SPLITS for metric in (*METRICS, "loss")]
    for name in (*(f"val_{metric}" for metric in METRICS), *best):
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
    columns = [tables.text("norm", "norm"), tables.count_of("n", "of")]
    for metric, words in METRICS.items():
        name = f"val_{metric}"
        columns.append(tables.interval(name, f"val {words} (%)"))
    columns += [
        tables.difference("difference", f"minus {BASELINE} (points)"),
        tables.p_value("p_holm"),
        tables.number("seconds_per_epoch", "s/epoch", 2),
        tables.number("peak_memory_mib", "peak MiB", 0),
    ]
    recipe = "".join(f", recipe {name}" for name in results.levels("recipe")[:1])
    caption = f"Norms compared{recipe}, best validation accuracy first."
    return tables.Table("norms", numbers, tuple(columns), caption, _note(numbers))


def splits_table(results: Results) -> tables.Table:
    """Both splits at each trial's best epoch: tables/splits, of another recipe splits_<recipe>."""
    recipes = results.levels("recipe")
    other = f"_{recipes[0]}" if recipes and recipes[0] != MAIN_RECIPE else ""
    numbers = norm_numbers(results)
    columns = [tables.text("norm", "norm")]
    for split in ("val", "train"):
        for metric, words in {**METRICS, "loss": "loss (nats)"}.items():
            name, percent = f"best_{split}_{metric}", metric != "loss"
            digits, scale = (1, 100.0) if percent else (3, 1.0)
            columns.append(tables.plus_minus(name, f"{split} {words}", digits, scale))
    return tables.Table(
        f"splits{other}",
        numbers,
        tuple(columns),
        "Accuracy, micro-F1, macro-F1 (%) and loss on validation and training images"
        + (f", recipe {recipes[0]}." if other else "."),
        "Best epoch of each trial by validation accuracy, whose weights are kept; mean ± half of "
        f"the 95 % t interval over seeds. {answers.training_note(results)}",
    )


def _note(numbers: pd.DataFrame) -> str:
    """What the cells of the main table mean, given how many seeds there are."""
    spread = (
        "mean [95 % t interval] over seeds" if numbers["n"].max() > 1 else "one seed, no interval"
    )
    against = (
        f"“minus {BASELINE}”: validation accuracy less that of {BASELINE} with the same seed, mean "
        "over seeds [95 % t interval], paired t test with Holm's correction (torch_bn aside). "
    )
    if not _has_baseline(numbers):
        against = f"No trial of {BASELINE} finished, so there are no differences to it. "
    return f"Last epoch; {spread}. {against}Time is the mean over seeds, memory the largest peak."


def _has_baseline(numbers: pd.DataFrame) -> bool:
    return bool((numbers.loc[numbers["norm"] == BASELINE, "n"] > 0).any())


def seed_table(results: Results) -> tables.Table:
    """Every trial by itself: tables/norms_by_seed."""
    keys = [key for key in ("recipe", "norm", "seed") if key in results.trials]
    values = [f"{of}_{metric}" for of in _SHOWN for metric in (*METRICS, "loss")]
    rest = ["state", "epochs_run", "best_epoch", "seconds_per_epoch", "peak_memory_mib"]
    trials = with_best(results).reindex(columns=["trial", *keys, *values, *rest])
    trials[values] = trials[values].astype(float)
    columns = [tables.text(key, key) for key in keys] + [tables.text("state", "state")]
    for of, split in _SHOWN.items():
        columns += [
            tables.number(f"{of}_{metric}", f"{split} {words} (%)", 1, 100.0)
            for metric, words in METRICS.items()
        ]
        columns.append(tables.number(f"{of}_loss", f"{split} loss (nats)", 3))
    columns.append(tables.number("best_epoch", "best epoch"))
    columns.append(tables.number("seconds_per_epoch", "s/epoch", 2))
    return tables.Table(
        "norms_by_seed",
        trials,
        tuple(columns),
        "Every trial: validation at its last epoch, training at its best.",
        answers.training_note(results),
    )


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
    order = {norm: place for place, norm in enumerate(results.levels("norm"))}
    recipes = {recipe: place for place, recipe in enumerate(results.levels("recipe"))}
    return table.sort_values(
        keys, key=lambda column: column.map(order if column.name == "norm" else recipes)
    ).reset_index(drop=True)


def recipe_table(results: Results) -> tables.Table:
    """The recipes side by side: tables/recipes."""
    numbers = recipe_numbers(results)
    columns = [
        tables.text("norm", "norm"),
        tables.text("recipe", "recipe"),
        tables.count_of("n", "of"),
        tables.interval("val_accuracy", "val accuracy (%)"),
        tables.number("best_train_accuracy", "train accuracy (%)", 1, 100.0),
        tables.number("best_train_loss", "train loss (nats)", 3),
    ]
    if "lr" in numbers:
        columns.append(tables.scientific("lr", "first lr"))
        columns.append(tables.scientific("lr_sum", "sum of lr"))
    return tables.Table(
        "recipes",
        numbers,
        tuple(columns),
        "The same networks under different recipes: validation at the last epoch, training at the "
        "best.",
        f"{answers.training_note(results)} Mean [95 % t interval] over seeds. Sum of lr: the "
        "learning rates of all epochs added up, a measure of how far plain SGD could move the "
        "weights.",
    )


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


def confusion(stored: Predictions) -> np.ndarray:
    """Count matrix of the predictions of one class per image, see `statistics.confusion`."""
    return statistics.confusion(stored.labels, stored.scores.argmax(1), len(stored.classes))


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
    recalls, best = {}, None
    for norm in results.levels("norm"):
        group = trials[trials["norm"] == norm]
        if group.empty:
            continue
        stored = load_predictions(results.path, group.iloc[0]["trial"])
        matrix = confusion(stored)
        recalls[norm] = pd.Series(statistics.recall(matrix), index=list(stored.classes))
        if group.iloc[0]["trial"] == trials.iloc[0]["trial"]:
            best = matrix
    assert best is not None
    return pd.DataFrame(recalls), best


def curve_figures(results: Results, suffix: str = "") -> list[Figure]:
    """Overlay plots of all norms, training beside validation, one figure per metric."""
    found = []
    norms = results.levels("norm")
    history = results.history
    of = f", recipe {results.levels('recipe')[0]}" if suffix else ""
    whole = history["state"].isin(statistics.FINISHED).all()
    broken = "" if whole else " Thin lines that end in a cross: trials that did not finish."
    for metric, (label, scale) in CURVES.items():
        train = train_metric(history, metric)
        running = train.endswith("_running")
        names = {train: "running training" if running else "training"}
        names |= {f"val_{metric}": "validation"}
        if not set(names) <= set(history):
            continue
        shown = figures.splits(history, names, "norm")
        drawn = figures.curves(shown, "norm", norms, label, scale=scale, height=2.1)
        path = figures.save(drawn, results.path / "figures", f"{metric}{suffix}")
        words = label.split(" (")[0]
        line = f"Curves of {words} over epochs, a line per norm; training left, validation right."
        found.append(
            Figure(
                path,
                f"{words[0].upper()}{words[1:]} of every norm on training and validation "
                f"images{of}. {curve_note(running)}{figures.band_text(history, 'norm')}{broken}",
                line,
            )
        )
    return found


@figures.styled
def sanity_figure(results: Results) -> Figure:
    """Own and torch's batch norm on top of each other, seed by seed."""
    history = statistics.finished(results.history)
    look = figures.NORM_STYLES
    figure, axes = figures.panels(2, height=2.1)
    for panel, (metric, label, scale) in zip(
        axes,
        (
            ("val_error", "validation error (%)", 100.0),
            ("train_loss_running", "running training loss (nats)", 1.0),
        ),
        strict=True,
    ):
        for norm, width, line in (("torch_bn", 3.2, "-"), ("bn", 1.1, "--")):
            for number, (_, one) in enumerate(history[history["norm"] == norm].groupby("seed")):
                panel.plot(
                    one["epoch"],
                    one[metric] * scale,
                    line,
                    linewidth=width,
                    color="#aaaaaa" if norm == "torch_bn" else look[norm].color,
                    label=norm if number == 0 else None,
                )
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "epoch")
    figures.legend_below(figure, axes[0], 2)
    return Figure(
        figures.save(figure, results.path / "figures", "sanity"),
        "Own bn (blue, dashed) over torch's (grey, wide): a line per seed. Where only blue on grey "
        "is seen, the two agree.",
        "Curves of own batch norm drawn over those of torch's batch norm.",
    )


@figures.styled
def cost_figure(results: Results) -> Figure:
    """Seconds per epoch and peak memory, a row per norm, a dot per seed."""
    shown = {
        column: label
        for column, label in (
            ("seconds_per_epoch", "seconds per epoch"),
            ("peak_memory_mib", "peak memory (MiB)"),
        )
        if column in results.trials and results.trials[column].notna().any()
    }
    norms = results.levels("norm")
    figure, axes = figures.panels(max(1, len(shown)), height=0.55 + 0.2 * len(norms))
    for panel, (column, label) in zip(axes, shown.items(), strict=False):
        figures.dots(panel, results.trials, "norm", norms, column, label)
    words = " and ".join(shown.values())
    return Figure(
        figures.save(figure, results.path / "figures", "cost"),
        f"{words[0].upper()}{words[1:]} of each norm: bar, mean over seeds; marks, "
        f"single seeds ({figures.seeds_text(results.trials, 'norm')}).",
        f"Bars per norm of {words}.",
    )


@figures.styled
def class_figure(results: Results, recalls: pd.DataFrame) -> Figure:
    """Recall of each class under each norm; of many classes the hardest."""
    order = recalls.mean(axis=1).sort_values(kind="stable").index[:_MOST_CLASSES]
    shown = recalls.loc[order]
    figure, (axes, *_) = figures.panels(height=0.5 + 0.16 * len(shown))
    figures.heatmap(
        axes,
        shown.to_numpy() * 100,
        [str(name) for name in shown.index],
        list(shown.columns),
        "{:.0f}".format,
        low=np.floor(np.nanmin(shown.to_numpy()) * 10) * 10,
        high=100,
        label="recall (%)",
    )
    cut = (
        ""
        if len(shown) == len(recalls)
        else f" The {len(shown)} hardest of {len(recalls)} classes."
    )
    return Figure(
        figures.save(figure, results.path / "figures", "classes"),
        "Recall (%) of each class on validation images, hardest class first, for the best trial of "
        f"each norm (one seed each), at the epoch whose scores are stored.{cut}",
        "Heat map of recall per class and norm.",
    )


def recipe_figure(results: Results) -> Figure:
    """Validation accuracy of every norm, a panel per recipe."""
    norms, shown = results.levels("norm"), []
    for recipe in results.levels("recipe"):
        part = results.where(recipe=recipe).history
        title = f"recipe {recipe} ({figures.seeds_text(part, 'norm')})"
        shown.append((title, part, "val_accuracy"))
    label = "validation accuracy (%)"
    drawn = figures.curves(shown, "norm", norms, label, scale=100.0, height=2.1)
    return Figure(
        figures.save(drawn, results.path / "figures", "recipes"),
        "Validation accuracy under each recipe. "
        + figures.band_text(results.history, ["recipe", "norm"]),
        "Curves of validation accuracy over epochs, one panel per recipe.",
    )


def _sections(results: Results, main: Results, table: tables.Table) -> list[Section | None]:
    numbers, differences, found = table.numbers, own_against_torch(main), class_recall(main)
    against = ["minus bn (points)", "p (Holm)"] if _has_baseline(numbers) else []
    every = seed_table(results)
    shown = [key for key in ("recipe", "norm", "seed") if key in every.numbers]
    shown += ["state", "val accuracy (%)", "val macro-F1 (%)", "val loss (nats)"]
    shown += ["train accuracy (%)", "train loss (nats)", "s/epoch"]
    return [
        section(
            "Result",
            answers.summary(main, numbers),
            table.show("norm", "seeds", "val accuracy (%)", *against, "s/epoch", "peak MiB"),
            splits_table(main),
            answers.recomputed(recompute(results)),
        ),
        section("The questions, answered", answers.answers(main, numbers, differences)),
        Section("Curves", tuple(curve_figures(main))),
        None
        if differences.empty
        else section(
            "Sanity check: own bn against torch's",
            answers.identical(differences),
            sanity_figure(main),
        ),
        section("Time and memory", answers.cost(main, numbers), cost_figure(main)),
        section("Classes", answers.classes(*found), class_figure(main, found[0]))
        if found
        else None,
        section("Recipes", *_recipes(results)) if len(results.levels("recipe")) > 1 else None,
        section(
            "Beside published figures",
            answers.beside(results),
            tables.published(answers.PUBLISHED, answers.PUBLISHED_LINKS),
        ),
        section("Limits", answers.limits(main, numbers)),
        section("Every trial", every.show(*shown), optional=True),
    ]


def _recipes(results: Results) -> list[Block | str]:
    table = recipe_table(results)
    blocks: list[Block | str] = [
        answers.recipes(results, table.numbers),
        table,
        recipe_figure(results),
    ]
    for other in other_recipes(results):
        blocks += [splits_table(other), *curve_figures(other, f"_{other.levels('recipe')[0]}")]
    return blocks
