"""Sentences of the norms report, made from the study's own numbers, in markup."""

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import arms, tables
from analysis.document.markup import escape
from analysis.document.provenance import duration, image_counts
from analysis.document.report import join
from analysis.document.tables import decimal, show_p, significant
from analysis.document.words import (
    ONE_SEED,
    SMALLER,
    answered,
    count,
    listed,
    percent,
    points,
    sampling,
    scaled,
    signed,
    span,
)
from analysis.results import statistics
from analysis.results.folder import Results, train_metric
from analysis.results.recomputed import Recomputed

NAMES = {
    "torch_bn": "torch's batch norm",
    "bn": "batch norm",
    "in": "instance norm",
    "bin": "batch-instance norm",
    "ln": "layer norm",
    "gn": "group norm",
    "none": "no normalisation",
}

# Source, setting, result: as their authors give them.
PUBLISHED = tables.published(
    (
        (
            "Wu & He 2018",
            "ImageNet, ResNet-50, validation error; 32 images per GPU, then 2 per GPU",
            "BN 23.6 %, GN 24.1 %, LN 25.3 %, IN 28.4 %; at 2: BN 34.7 %, GN 24.1 %",
        ),
        (
            "Wu, GroupNorm-reproduce",
            "CIFAR-10, the author's own code",
            "GN 7.3 % error, about 1.3 points worse than BN",
        ),
        (
            "Nam & Kim 2018",
            "CIFAR-10, ResNet-110, accuracy",
            "BN 93.72 ± 0.18 %, BIN 94.29 ± 0.09 %",
        ),
        (
            "PiyushC1480, course report",
            "the lab's birds, n = 2, SGD 0.1 with cosine, 50 epochs, augmented; validation "
            "accuracy",
            "none 70.5 %, BN 79.3 %, torch's BN 79.5 %, GN 80.0 %, LN 81.9 %, IN 85.4 %, "
            "BIN 85.6 %",
        ),
        (
            "the same report",
            "the lab's birds, SGD 1e-4 as the lab says, 50 epochs",
            "24 to 29 % for all six",
        ),
        (
            "CosmoLuminous, course report",
            "CIFAR-10, 100 epochs, test accuracy",
            "torch's BN 89.57 %, BN 89.14 %, BIN 87.65 %, IN 87.21 %, LN 87.11 %, GN 86.84 %, "
            "none 86.77 %",
        ),
    ),
    "Sources: [Wu & He, Group Normalization](https://arxiv.org/abs/1803.08494); "
    "[GroupNorm-reproduce](https://github.com/ppwwyyxx/GroupNorm-reproduce); "
    "[Nam & Kim, Batch-Instance Normalization](https://arxiv.org/abs/1805.07925); "
    "[PiyushC1480](https://github.com/PiyushC1480/COL775-Deep-Learning); "
    "[CosmoLuminous](https://github.com/CosmoLuminous/deep-learning-col775).",
)


def summary(results: Results, numbers: pd.DataFrame) -> str:
    """The result in one paragraph."""
    ranked = arms.ranked(numbers)
    if ranked.empty:
        return arms.NO_RESULT
    epochs, rows = int(results.history["epoch"].max()), ranked.to_dict("records")
    means = join([f"`{row['norm']}` {percent(row['val_accuracy'])}" for row in rows])
    names = ", ".join(f"`{norm}` {NAMES[norm]}" for norm in results.levels("norm") if norm in NAMES)
    seeds = count(ranked["n"].max(), "seed")
    return (
        f"Mean validation accuracy after {epochs} epochs over {seeds}, best first: {means}. "
        f"{_best_sentence(results, ranked)}\n\nThe names: {names}."
    )


def recomputed(checked: Recomputed | None) -> str:
    """What computing the metrics again from the stored scores gave."""
    if checked is None:
        return "No scores are stored, so the metrics could not be computed again."
    subject = (
        f"Computed again from the stored scores of {count(checked.trials, 'trial')} "
        f"({checked.images:,} validation images each), accuracy and macro-F1"
    )
    worst = checked.largest()
    sentence = (
        f"{subject} are those reported, to the last digit."
        if worst == 0
        else f"{subject} differ from those reported by at most "
        f"{significant(checked.largest('val_accuracy'))} and "
        f"{significant(checked.largest('val_macro_f1'))} (as fractions)."
    )
    if worst > 1e-6:
        return f"**{sentence} The stored scores do not belong to the reported metrics.**"
    return sentence


def answers(results: Results, numbers: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The lab's questions, each with an answer from the numbers."""
    ranked = arms.ranked(numbers)
    if ranked.empty:
        return arms.NO_ANSWER
    pairs = [
        ("Which norm trains best?", _best(results, ranked)),
        ("Is the own batch norm identical to torch's?", identical(differences)),
        ("What happens without normalisation?", _without(results, ranked)),
        ("Why does micro-F1 equal accuracy?", _micro(results, ranked)),
        ("How large is the gap between training and validation?", _gap(results, ranked)),
        ("What does each norm cost?", _cost_sentence(ranked)),
    ]
    return answered(pairs)


def identical(differences: pd.DataFrame) -> str:
    """Largest difference of the curves of bn and torch_bn, in one sentence."""
    if differences.empty:
        return (
            "`bn` and `torch_bn` did not both finish with a shared seed, so this was not checked."
        )
    seeds, epochs = differences["seed"].nunique(), int(differences["epoch"].max())
    sizes = differences.drop(columns=["seed", "epoch"]).abs()
    accuracies = sizes[["val_accuracy", "train_accuracy_running"]].max(axis=1)
    worst, loss = accuracies.max(), sizes["train_loss_running"].max()
    first = accuracies[differences["epoch"] <= 3].max()
    verdicts = {
        "to the last digit": worst == loss == 0,
        "within 0.1 points": worst < 1e-3,
        "within 0.1 points at first, and less later": first < 1e-3,
        "only roughly": True,
    }
    verdict = next(words for words, true in verdicts.items() if true)
    return (
        f"Over {count(seeds, 'shared seed')} and {count(epochs, 'epoch')} the curves of `bn` and "
        f"`torch_bn` agree {verdict}: the largest difference is "
        f"{points(worst)} in accuracy ({points(first)} in the first 3 epochs) and "
        f"{significant(loss)} nats in running training loss."
    )


def cost(results: Results, numbers: pd.DataFrame) -> str:
    """Time and memory, and on what they were measured."""
    seconds = results.trials["seconds"].dropna() if "seconds" in results.trials else pd.Series()
    total = f" All trials shown here took {duration(seconds.sum())}." if len(seconds) else ""
    counted = "optimizer" in results.trials  # commits before took what the process had grown by
    cpu = ", on a CPU that of the tensors of a training step" if counted else ""
    memory = (
        f" Peak memory is what the trial itself recorded, on a GPU that of its CUDA allocator{cpu}."
        if numbers["peak_memory_mib"].notna().any()
        else " Peak memory was not recorded."
    )
    return (
        f"{_cost_sentence(numbers[numbers['n'] > 0])}{memory}{total} Times hold for this machine "
        "under the load of this study."
    )


def classes(recalls: pd.DataFrame, matrix: np.ndarray) -> str:
    """Hardest and easiest classes and the most frequent confusions of the best trial."""
    mean = recalls.mean(axis=1).sort_values(kind="stable")
    hard, easy = (
        join([f"{escape(name)} ({percent(value)})" for name, value in some.items()])
        for some in (mean.head(3), mean.tail(3)[::-1])
    )
    off, names = matrix - np.diag(np.diag(matrix)), [escape(name) for name in recalls.index]
    mixed = [
        f"{names[true]} taken for {names[seen]} ({off[true, seen]} of {matrix[true].sum()})"
        for flat in np.argsort(-off, axis=None, kind="stable")[:3]
        for true, seen in [np.unravel_index(flat, off.shape)]
        if off[true, seen]
    ]
    confused = f" The best trial's most frequent mistakes: {join(mixed)}." if mixed else ""
    return f"Recall averaged over the norms is lowest for {hard} and highest for {easy}.{confused}"


def recipes(results: Results, numbers: pd.DataFrame) -> str:
    """How far two recipes come: accuracies, learning rates, steps and losses."""
    finished = arms.ranked(numbers)
    means = finished.groupby("recipe")["val_accuracy"].mean().sort_values(kind="stable")
    if len(means) < 2:
        return "Only one recipe has finished trials, so they cannot be compared yet."
    names = means.index[0], means.index[-1]
    low, high = (finished[finished["recipe"] == n].mean(numeric_only=True) for n in names)
    weak, strong = (f"`{escape(name)}`" for name in names)
    found = results.data.get("classes") or 0  # their names or number
    chance = found if isinstance(found, int) else len(found)
    guess = f" (guessing among {chance} classes: {decimal(math.log(chance), 3)})" if chance else ""
    gap = low["best_train_accuracy"] - low["best_val_accuracy"]
    steps = _steps(results, str(names[0]))
    return (
        f"Recipe {weak} reaches {percent(low['val_accuracy'])} validation accuracy on "
        f"average over the norms, recipe {strong} {percent(high['val_accuracy'])}. "
        f"{_rates(low, high, weak, strong)}{steps}At the best epoch its training "
        f"loss is {decimal(low['best_train_loss'], 3)} nats, that of {strong} "
        f"{decimal(high['best_train_loss'], 3)}{guess}. On its training images it is then at "
        f"{percent(low['best_train_accuracy'])}, {signed(gap)} points from validation."
    )


def _rates(low: pd.Series, high: pd.Series, weak: str, strong: str) -> str:
    """Learning rates of two recipes, where they were recorded."""
    if "lr_sum" not in low or not low["lr_sum"] > 0:
        return ""
    ratio = high["lr_sum"] / low["lr_sum"]
    return (
        f"{weak} starts with a learning rate of {significant(low['lr'])}, {strong} with "
        f"{significant(high['lr'])}; added up over all epochs {strong} has {significant(ratio)} "
        "times as much, momentum not counted. "
    )


def beside(results: Results) -> str:
    """How far the published figures can be compared with this study."""
    own = "This study ran on generated images, so its levels cannot be compared with any of them."
    return (
        "The table below holds results of others, on other data and with other budgets: orders of "
        "magnitude. The highest accuracy is batch norm's in its ImageNet row and batch-instance "
        "norm's on the lab's birds, both without an interval."
        + (f" {own}" if results.synthetic else "")
    )


def limits(results: Results, numbers: pd.DataFrame) -> str:
    """What the numbers cannot carry."""
    ranked = arms.ranked(numbers)
    most = arms.most_seeds(ranked)
    one = statistics.t_interval(np.arange(most))
    factor = decimal((one.high - one.mean) / one.std, 1)
    more = "With three it is 2.5: `--seeds 3`. " if most == 2 else ""
    beyond = (ranked["val_accuracy_low"] < 0).any() or (ranked["val_accuracy_high"] > 1).any()
    images = image_counts(results.data).get("val")
    items: list[Any] = [
        f"{most} seeds: a 95 % t interval over {most} values is {factor} standard "
        f"deviations wide on each side. {more}{_overlap(ranked)}"
        if most > 1
        else ONE_SEED,
        beyond
        and "Some intervals reach beyond 0 or 100 %: the t interval supposes a normal spread, and "
        "says here how little so few seeds tell.",
        "Seeds vary initial weights, order and augmentation; the split into training and "
        "validation images is the same for all.",
        images
        and f"{sampling(images)}. The intervals over seeds do not contain it; all norms share the "
        "images.",
        results.synthetic
        and "Generated images, not photographs: the ranking need not hold for photographs.",
        *scaled(results.study, SMALLER),
        "One learning rate for all norms; a rate tuned for each could change the order. Results "
        "are of the last epoch, where nothing is chosen on the validation images; what is said of "
        "a best epoch (training values, stored scores, weights) has its epoch chosen on them.",
    ]
    return listed(items)


def _own(ranked: pd.DataFrame) -> pd.DataFrame:
    """The six norms of the lab: torch_bn is there to check bn, not to win."""
    own = ranked[ranked["norm"] != "torch_bn"]
    return own if len(own) else ranked


def _best_sentence(results: Results, ranked: pd.DataFrame) -> str:
    own = _own(ranked)
    if len(own) < 2:
        return "Only one norm has finished trials, so there is nothing to compare it with."
    first, second = own.iloc[0]["norm"], own.iloc[1]["norm"]
    lead = arms.lead(results.trials, "norm", "val_accuracy", first, second)
    if not lead["n"]:
        return f"`{first}` and `{second}` share no seed, so nothing says which is ahead."
    size = points(lead["difference"], signed=True)
    if math.isnan(lead["low"]):
        why = statistics.no_interval(lead["n"])
        return f"`{first}` minus `{second}` is {size}: {why}, so it may be chance."
    size += f", {span(lead['low'], lead['high'])}"
    if lead["low"] > 0:
        return f"`{first}` leads `{second}` on the same seeds by {size}."
    return (
        f"`{first}` minus `{second}` is {size}: an interval with 0 in it, so these seeds do not "
        "separate the two."
    )


def _best(results: Results, ranked: pd.DataFrame) -> str:
    own = _own(ranked)
    best = own.iloc[0]
    text = (
        f"`{best['norm']}` ({NAMES.get(best['norm'], best['norm'])}) has the highest mean "
        f"validation accuracy, {percent(best['val_accuracy'])}. {_best_sentence(results, ranked)} "
    )
    if best["norm"] != "bn" and not math.isnan(best["difference"]):
        p = "" if math.isnan(best["p_holm"]) else f", Holm p {show_p(best['p_holm'])}"
        text += f"Against `bn` it is {_minus_bn(best, p)}. "
    loss = own.dropna(subset=["best_train_loss"]).sort_values("best_train_loss", kind="stable")
    for low in loss.head(1).to_dict("records"):
        same = "also " if low["norm"] == best["norm"] else ""
        text += (
            f"The lowest training loss at the best epoch is {same}that of `{low['norm']}`, "
            f"{decimal(low['best_train_loss'], 3)} nats."
        )
    return text + _separated(ranked)


def _minus_bn(row: Any, p: str = "", against: str = "") -> str:
    ends = span(row["difference_low"], row["difference_high"])
    return f"{points(row['difference'], signed=True)}{against} ({ends}{p})"


def _separated(ranked: pd.DataFrame) -> str:
    tested = ranked.dropna(subset=["p_holm"])  # torch_bn has none: it is no rival
    if tested.empty:
        return ""
    sure = tested[tested["p_holm"] < 0.05]
    if sure.empty:
        return (
            " After Holm's correction no norm differs from `bn` beyond the spread of the seeds "
            "(all p ≥ 0.05)."
        )
    norms = join([f"`{norm}`" for norm in sure["norm"]])
    verb = "differs" if len(sure) == 1 else "differ"
    return f" After Holm's correction {norms} {verb} from `bn` (p < 0.05)."


def _without(results: Results, ranked: pd.DataFrame) -> str:
    trials = results.trials[results.trials["norm"] == "none"]
    if trials.empty:
        return "The study has no trial without normalisation."
    bad = int(trials["state"].isin(["diverged", "failed"]).sum())
    broke = f"{bad} of {len(trials)} trials without normalisation did not survive training. "
    broke = broke if bad else ""
    row = ranked[ranked["norm"] == "none"]
    if row.empty:
        return broke + "None of its trials finished."
    row = row.iloc[0]
    text = f"{broke}`none` reaches {percent(row['val_accuracy'])} validation accuracy"
    if not math.isnan(row["difference"]):
        text += f", {_minus_bn(row, against=' against `bn`')}"
    place = _own(ranked)["norm"].tolist().index("none") + 1
    return f"{text}, place {place} of {len(_own(ranked))}. {_first_loss(results)}"


def _first_loss(results: Results) -> str:
    """Loss of the first epoch without normalisation and with batch norm."""
    curves, loss = statistics.finished(results.history), "train_loss_running"
    first = curves[curves["epoch"] == 1].reindex(columns=["norm", loss]).dropna()
    first = first.groupby("norm")[loss].mean()
    if not {"none", "bn"} <= set(first.index):
        return ""
    return (
        "In the first epoch its running training loss averages "
        f"{decimal(first['none'], 2)} nats, that of `bn` {decimal(first['bn'], 2)}."
    )


def _micro(results: Results, ranked: pd.DataFrame) -> str:
    history = results.history
    pairs = {"train_accuracy_running": "train_micro_f1_running", "val_accuracy": "val_micro_f1"}
    both = [(a, b) for a, b in pairs.items() if {a, b} <= set(history)]
    found = [(history[a] - history[b]).abs().max() for a, b in both]
    largest = max(found, default=math.nan)
    same = "are equal" if largest == 0 else f"differ by at most {significant(largest)}"
    macro = (ranked["val_macro_f1"] - ranked["val_accuracy"]).abs().max()
    return (
        "Each image has one label and gets one prediction, so every mistake is one false positive "
        "(of the class predicted) and one false negative (of the true class): summed over classes "
        "precision, recall and their mean F1 are all the share of correct images. Over all epochs "
        f"and trials here the two {same}. Macro-F1 averages over "
        f"classes instead; it is within {points(macro)} of accuracy here."
    )


def _gap(results: Results, ranked: pd.DataFrame) -> str:
    gaps = (ranked["best_train_accuracy"] - ranked["best_val_accuracy"]).set_axis(ranked["norm"])
    gaps = gaps.dropna().sort_values(ascending=False)
    if gaps.empty:
        return "Not recorded."
    each = ", ".join(f"`{norm}` {points(gap, signed=True)}" for norm, gap in gaps.items())
    running = train_metric(results.at_best(), "accuracy").endswith("_running")
    negative = " A negative gap is no error then." if running and (gaps < 0).any() else ""
    return (
        f"Training minus validation accuracy at each trial's best epoch: {each}. "
        f"{training_note(results)}{negative}"
    )


def training_note(results: Results) -> str:
    """On which images and weights the training metrics were measured."""
    if train_metric(results.at_best(), "accuracy") == "train_accuracy":
        return "Training values are of these weights, on the training images without augmentation."
    return (
        "Training values are running ones, of the training batches themselves: augmented images, "
        "weights still moving."
    )


def _cost_sentence(ranked: pd.DataFrame) -> str:
    ranked = ranked.set_index("norm")
    seconds = ranked["seconds_per_epoch"].dropna().sort_values()
    if seconds.empty:
        return "Times were not recorded."
    takes = [f"{decimal(value, 2)} s with `{norm}`" for norm, value in seconds.items()]
    text = f"An epoch takes {join(list(dict.fromkeys((takes[0], takes[-1]))))}"
    if {"bn", "torch_bn"} <= set(seconds.index):
        text += (
            f"; own `bn` takes {decimal(seconds['bn'] / seconds['torch_bn'], 2)} times as long as "
            "`torch_bn`"
        )
    memory = ranked["peak_memory_mib"].dropna().sort_values()
    if len(memory) > 1:
        each = [f"{decimal(value, 0)} MiB (`{norm}`)" for norm, value in memory.items()]
        text += f". Peak memory runs from {each[0]} to {each[-1]}"
    return text + "."


def _steps(results: Results, recipe: str) -> str:
    """How many optimiser steps a recipe took, where the batch size is known."""
    trials = results.trials[results.trials["recipe"] == recipe]
    images = image_counts(results.data).get("train")
    batch = trials.get("batch_size")
    if batch is None or batch.isna().all() or not images:
        return ""
    epochs = int(results.history[results.history["recipe"] == recipe]["epoch"].max())
    steps = math.ceil(images / int(batch.iloc[0]))
    return f"It takes {epochs} epochs of {steps:,} steps, {epochs * steps:,} in all. "


def _overlap(ranked: pd.DataFrame) -> str:
    own = _own(ranked).dropna(subset=["val_accuracy_low"])
    if len(own) < 2:
        return ""
    best = own.iloc[0]
    close = own[own["val_accuracy_high"] >= best["val_accuracy_low"]]["norm"].tolist()[1:]
    others = f"{'that' if len(close) == 1 else 'those'} of {join([f'`{norm}`' for norm in close])}"
    with_whom = others if close else "no other"
    return f"The interval of `{best['norm']}` overlaps with {with_whom}."
