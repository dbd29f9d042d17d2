"""Sentences of the CIFAR report, made from the study's own numbers, in markup."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.document import arms, tables
from analysis.document.markup import escape
from analysis.document.provenance import image_counts
from analysis.document.report import join
from analysis.document.tables import decimal, significant
from analysis.document.words import answered, count, listed, percent, points, span
from analysis.results import statistics
from analysis.results.folder import Results
from analysis.results.recomputed import Recomputed

FORMS = {
    "none": "without batch norm",
    "listing": "with batch norm as the lab lists it",
    "meant": "with batch norm where it was meant",
}

# Source, setting, result: as their authors give them.
PUBLISHED = tables.published(
    (
        (
            "mmpretrain",
            "ResNet-18 for CIFAR, from scratch, 200 epochs",
            "94.82 % (ResNet-50: 95.55 %)",
        ),
        ("kuangliu/pytorch-cifar", "ResNet-18, 3x3 first convolution, no pool", "93.02 %"),
        ("huyvnphan/PyTorch_CIFAR10", "ResNet-18, 3x3 first convolution", "93.07 %"),
        (
            "akamaster/pytorch_resnet_cifar10",
            "ResNet-20 / 32 / 44 / 56 of He et al. 2016",
            "91.73 / 92.63 / 93.10 / 93.39 %",
        ),
        (
            "KellerJordan/cifar10-airbench",
            "time to an accuracy, one A100; there, a usual ResNet-18 training takes 7 minutes for "
            "96 %",
            "94.01 % in 2.59 s, 96.00 % in 27.3 s",
        ),
    ),
    "Sources: [mmpretrain](https://github.com/open-mmlab/mmpretrain); "
    "[pytorch-cifar](https://github.com/kuangliu/pytorch-cifar); "
    "[PyTorch_CIFAR10](https://github.com/huyvnphan/PyTorch_CIFAR10); "
    "[pytorch_resnet_cifar10](https://github.com/akamaster/pytorch_resnet_cifar10); "
    "[cifar10-airbench](https://github.com/KellerJordan/cifar10-airbench). Batch norm: "
    "[Ioffe & Szegedy 2015](https://arxiv.org/abs/1502.03167).",
    "**Other people's results on CIFAR-10**, not measured here.",
)


def floored(accuracy: float) -> str:
    """The accuracy as the lab's listing prints it: whole per cents, rounded down."""
    return "-" if math.isnan(accuracy) else f"{math.floor(100 * accuracy + 1e-9)}\u00a0%"


def summary(cnn: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """The result in a paragraph for each network."""
    found, ranked = [], arms.ranked(cnn)
    if len(ranked):
        best = ranked.sort_values("val_accuracy", ascending=False, kind="stable").iloc[0]
        found.append(
            f"The highest mean of the small CNN is {percent(best['val_accuracy'])} of the "
            f"validation images over {count(best['n'], 'seed')}, {FORMS[best['bn']]} at a learning "
            f"rate of {significant(best['lr'])}. {against_none(cnn)}"
        )
    each = [
        f"`{row['setup']}` {percent(row['val_accuracy'])} with "
        f"{int(row['trainable_parameters']):,} trained parameters"
        for row in arms.ranked(tuned).to_dict("records")
    ]
    if each:
        found.append(f"ResNet-18, by what is trained: {join(each)}.")
    return "\n\n".join(found) or arms.NO_RESULT


def recomputed(checked: Recomputed) -> str:
    """Which numbers come from stored scores, and whether they are those that were reported."""
    if not checked.trials:
        return "No scores are stored: the metrics are those that the trials reported."
    text = (
        f"Accuracy, F1 and loss on the validation images are computed from the stored scores of "
        f"{checked.trials} of {checked.of} finished trials"
    )
    wrong = [
        (name, *found)
        for name, found in checked.worst.items()
        if found[0] > (1e-4 if name == "val_loss" else 1e-6)  # sums in another order
    ]
    if not wrong:
        return f"{text}; they are those that the trials reported."
    told = [f"{name} of {escape(trial)} by {significant(apart)}" for name, apart, trial in wrong]
    return (
        f"{text}. **They differ from those that the trials reported, most in {join(told)}: a "
        "stored file has been changed or is of another run.**"
    )


def answers(
    cnn: Results, tuned: Results, cnn_numbers: pd.DataFrame, tuned_numbers: pd.DataFrame,
    modes: pd.DataFrame,
) -> str:  # fmt: skip
    """The lab's questions, each with an answer from the numbers."""
    pairs = []
    if len(arms.ranked(cnn_numbers)):
        unused = "The listing makes bn3 and bn4 and never calls them. What then?"
        pairs += [
            ("What does batch norm bring the small CNN?", brings(cnn, cnn_numbers)),
            (unused, dead(cnn, cnn_numbers)),
            ("Does it matter which mode the network is in?", forgotten(modes)),
            ("Why does the lab's number end in no decimals?", _floor_sentence(cnn)),
        ]
    if len(arms.ranked(tuned_numbers)):
        pairs += [
            ("What does freezing save, and what does it cost?", frozen(tuned_numbers)),
            ("The snippet freezes a random first convolution. What then?", stem(tuned)),
            ("Does `requires_grad = False` freeze batch norm?", moving(tuned)),
            ("Are the pretrained weights worth it?", pretrained(tuned)),
        ]
    return answered(pairs) or arms.NO_ANSWER


def against_none(numbers: pd.DataFrame) -> str:
    """Whether batch norm as it was meant beats none, at each learning rate, with the interval."""
    rows = numbers[(numbers["bn"] == "meant") & numbers["difference"].notna()]
    if rows.empty:
        return "Without trials of `meant` and `none` at one seed the two cannot be compared."
    said = []
    for row in rows.to_dict("records"):
        low, high = row["difference_low"], row["difference_high"]
        size = points(row["difference"], signed=True)
        verdict = {
            1: f"`meant` beats `none` by {size}",
            -1: f"`meant` is worse than `none` by {size}",
            0: f"`meant` is {size} from `none`"
            if math.isnan(low)
            else f"`meant` and `none` cannot be told apart: {size}",
        }[statistics.side(low, high)]
        said.append(f"at lr {significant(row['lr'])} {verdict} ({span(low, high)})")
    pairs = int(rows["pairs"].max())
    return f"Over {count(pairs, 'seed')}, paired: {'; '.join(said)}."


def brings(cnn: Results, numbers: pd.DataFrame) -> str:
    """Accuracy, speed and tolerance of the learning rate."""
    text = against_none(numbers)
    means = arms.ranked(numbers).groupby("bn")["val_accuracy"]
    lost = (means.max() - means.min())[means.count() > 1]
    if {"none", "meant"} <= set(lost.index):
        text += (
            f" Between the learning rates the mean accuracy changes by {points(lost['none'])} "
            f"without batch norm and by {points(lost['meant'])} with it."
        )
    history = statistics.finished(cnn.history)
    first = history[history["epoch"] == 1].groupby("bn")["val_accuracy"].mean()
    if {"none", "meant"} <= set(first.index):
        text += (
            f" After the first epoch, over all learning rates and seeds, `none` is at "
            f"{percent(first['none'])} and `meant` at {percent(first['meant'])}."
        )
    return text


def dead(cnn: Results, numbers: pd.DataFrame) -> str:
    """What the unused layers of the listing are, and what using them changes."""
    rows = arms.ranked(numbers)
    listing = rows[rows["bn"] == "listing"]
    if listing.empty or listing["dead_parameters"].isna().all():
        return "No trial of `listing` has finished."
    text = (
        f"They are {int(listing['dead_parameters'].max())} parameters of "
        f"{int(listing['trainable_parameters'].max()):,} that no gradient reaches: they stay at 1 "
        "and 0, are counted and saved, do nothing, and stop DistributedDataParallel unless it is "
        "told to look for unused parameters."
    )
    rates = {"lr": listing["lr"].tolist()}
    table = arms.against(cnn.trials, "bn", "val_accuracy", "listing", rates)
    changes = [
        f"{_changed(row)} at lr {significant(row['lr'])}"
        for row in table[(table["bn"] == "meant") & (table["pairs"] > 0)].to_dict("records")
    ]
    if changes:
        text += f" Calling them behind fc1 and fc2 changes the accuracy by {join(changes)}."
    return text


def forgotten(modes: pd.DataFrame) -> str:
    """What scoring in training mode does."""
    text = (
        "In training mode batch norm takes mean and variance from the batch it is given, so a "
        "prediction depends on the other images in it; in evaluation mode they are fixed, and "
        "neither batch size nor order matters."
    )
    known = modes.dropna(subset=["difference"]) if len(modes) else modes.assign(bn="none")
    normed = known[known["bn"] != "none"].to_dict("records")
    if not normed:
        return text
    worst = max(normed, key=lambda row: abs(row["difference"]))
    plain = known[known["bn"] == "none"]["difference"]
    without = f"; without batch norm by {points(plain.abs().max())}" if len(plain) else ""
    return (
        f"{text} Scoring without `net.eval()` changes the accuracy by up to "
        f"{_changed(worst, '')} (`{worst['bn']}`, lr {significant(worst['lr'])}){without}."
    )


def frozen(numbers: pd.DataFrame) -> str:
    """Parameters, time and accuracy of a part against the whole."""
    rows = arms.ranked(numbers).set_index("setup")
    if "all" not in rows.index:
        return "No trial that trains all weights has finished, so there is nothing to compare with."
    whole, said = rows.loc["all"], []
    for setup, row in rows.drop(index=["all", "scratch"], errors="ignore").iterrows():
        time = row["train_seconds"] / whole["train_seconds"]
        memory = row["peak_memory_mib"] / whole["peak_memory_mib"]
        cost = f"{decimal(100 * time, 0)}\u00a0% of the training time"
        if math.isfinite(memory):
            cost += f" and {decimal(100 * memory, 0)}\u00a0% of the memory"
        said.append(
            f"`{setup}` trains {int(row['trainable_parameters']):,} of {int(row['parameters']):,} "
            f"parameters in {cost}, accuracy {_changed(row)}"
        )
    if not said:
        return "No trial with a frozen part has finished."
    return (
        f"Against retraining all weights: {'; '.join(said)}. Times are of this machine under the "
        "load it had, which they may show rather than the setup."
    )


def stem(tuned: Results) -> str:
    """Frozen as printed, trained, and started from the averaged kernel."""
    text = (
        "The snippet replaces conv1 by a new 3x3 one and then freezes all but layer4 and the head, "
        "so what the frozen layers get is not what they were trained for. (Freezing first and "
        "replacing then would leave the new one trained: the order matters.)"
    )
    changes = _against(tuned, "layer4")
    words = {
        "layer4, conv1 trained": "training it",
        "layer4, conv1 averaged": "starting it from the 7x7 kernel before it, shrunk,",
    }
    said = [f"{words[s]} changes the accuracy by {changes[s]}" for s in words if s in changes]
    return f"{text} Compared with that, {'; '.join(said)}." if said else text


def moving(tuned: Results) -> str:
    """Running statistics of frozen layers."""
    change = _against(tuned, "layer4").get("layer4, moving BN")
    found = f" Letting them move changes the accuracy of `layer4` by {change}." if change else ""
    return (
        "No: running mean and variance are no parameters, and in training mode they follow the "
        "batches. Here the batch norms of frozen layers stay in evaluation mode, unless "
        f"`statistics=moving` asks for the snippet's behaviour.{found}"
    )


def pretrained(tuned: Results) -> str:
    """All weights retrained, against the same network from random weights."""
    change = _against(tuned, "scratch").get("all")
    origin = {
        "embedded": " The weights come from drawn birds, not from ImageNet: they show the "
        "mechanism, not what ImageNet's are worth.",
        "none": " No pretrained weights were used in this run, so this compares like with like.",
    }.get(str(tuned.data.get("weights")), "")
    if not change:
        return f"Trials of `all` and `scratch` with a common seed are missing.{origin}"
    return (
        f"Retraining all weights is {change} from training from scratch, in the same number "
        f"of steps.{origin}"
    )


def proof(checked: pd.DataFrame) -> str:
    """One line on whether frozen tensors are as they were."""
    still = ~checked["setup"].str.endswith("moving BN")
    weights, count = int(checked["weights_kept"].sum()), len(checked)
    stats, asked = int(checked[still]["statistics_kept"].sum()), int(still.sum())
    moved = int((~checked[~still]["statistics_kept"]).sum())
    text = (
        f"In {weights} of {count} trials with a frozen part every frozen weight is bit for bit "
        f"what it was before training; in {stats} of {asked} so are the running statistics of the "
        "frozen batch norms."
    )
    if asked < count:
        text += (
            f" Where moving statistics were asked for, they moved in {moved} of {count - asked}."
        )
    return text if weights == count and stats == asked else f"**{text}**"


def beside(results: Results) -> str:
    """How far the published figures can be compared with this study."""
    dataset = str(results.data.get("dataset", ""))
    words = {"digits": "embedded digits", "mnist": "MNIST"}.get(dataset, "other images")
    own = f" This study ran on {words}: its levels are not theirs."
    text = "Results of others on all of CIFAR-10, with far more epochs and augmentation."
    return text if dataset == "cifar10" else text + own


def limits(results: Results, cnn: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """What the numbers cannot carry."""
    seeds = max(arms.most_seeds(cnn), arms.most_seeds(tuned))
    items: list[Any] = [
        f"{count(seeds, 'seed')}: intervals are Student's t over them. Seeds vary initial "
        "weights, order and augmentation; the validation images are the same for all."
        if seeds > 1
        else "One seed: no interval, and differences may be chance. `--seeds 3` gives one."
    ]
    for name, part in (("The CNN", "cnn"), ("ResNet-18", "resnet18")):
        trials = results.trials[results.trials["model"] == part]
        items += [f"{name}: {_budget(results, first)}." for _, first in trials.head(1).iterrows()]
    items += [
        results.data.get("kind") == "embedded"
        and "The embedded digits are real handwriting, but 8x8 pixels and easy; those held out are "
        "the last of each class in the file.",
        f"{_epoch_of_result(results)} The learning rate of ResNet-18 is one "
        "for all setups; a rate tuned for each could change their order.",
    ]
    return listed(items)


def shown_epoch(trials: pd.DataFrame) -> str:
    """Which epoch a table shows, as the first words of its note."""
    if "scores_epoch" not in trials or trials["scores_epoch"].isna().all():
        return "Last epoch"
    kept, last = trials["scores_epoch"], trials["epochs_run"]
    return "Last epoch" if (kept == last)[kept.notna()].all() else "The epoch of the weights kept"


def _epoch_of_result(results: Results) -> str:
    if shown_epoch(results.trials) == "Last epoch":
        return "The result is the last epoch's, not the best one's."
    return (
        "The result is that of the epoch whose weights were kept, chosen on the images shown: its "
        "level is too high by that choice."
    )


def _budget(results: Results, trial: pd.Series) -> str:
    """Images, epochs, batch and pixels of a part."""
    counts = image_counts(results.data)
    images = [
        f"{int(limit) if limit == limit and limit is not None else counts.get(split, 0):,} {words}"
        for split, words in (("train", "training images"), ("val", "for validation"))
        for limit in [trial.get(f"{split}_images")]
    ]
    size = int(trial["image_size"])
    return (
        f"{join(images)}, {size}x{size} pixels, {int(trial['epochs'])} epochs, batches of "
        f"{int(trial['batch_size'])}"
    )


def _floor_sentence(cnn: Results) -> str:
    trials = statistics.usable(cnn.trials, "val_accuracy")
    if trials.empty:
        return "No trial has finished."
    fractions = (100 * trials["val_accuracy"].astype(float)) % 1
    row = trials.loc[fractions.idxmax()]
    value = float(row["val_accuracy"])
    return (
        f"`100 * correct // total` rounds down: {decimal(100 * value, 2)}\u00a0% prints as "
        f"{floored(value)} (trial {escape(row['trial'])}), and 99.99\u00a0% would as 99\u00a0%. "
        "Differences below a point vanish in it; the tables here keep decimals."
    )


def _against(tuned: Results, baseline: str) -> dict[str, str]:
    """Paired changes against one setup, by setup; those without a common seed are left out."""
    table = arms.against(tuned.trials, "setup", "val_accuracy", baseline, {})
    return {row["setup"]: _changed(row) for row in table[table["pairs"] > 0].to_dict("records")}


def _changed(row: Mapping[Any, Any] | pd.Series, prefix: str = "difference_") -> str:
    """A difference of accuracy with its interval, and whether it can be told from none."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    apart = "; cannot be told apart" if low <= 0 <= high else ""
    return f"{points(row['difference'], signed=True)} ({span(low, high)}{apart})"
