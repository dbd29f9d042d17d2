"""Sentences of the VOC report, made from the study's own numbers, in markup."""

import ast
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import tables
from analysis.document.markup import escape
from analysis.document.provenance import image_counts
from analysis.document.report import join
from analysis.document.tables import decimal, significant
from analysis.document.words import bracket, count, percent, signed
from analysis.results import ranking, statistics
from analysis.results.folder import Predictions, Results
from analysis.studies.voc.tail_accuracy import TailAccuracy, undefined_text

# Source, setting, mean average precision, as their authors give it or as computed from the scores
# that they published.
PUBLISHED = tables.published(
    (
        (
            "keshik6, ResNet-18",
            "VOC 2012, train to val; all layers, 300 pixels, 15 epochs; difficult counted as "
            "absent; computed again from the published scores (the program's own log, which "
            "averages over batches, says 91.0)",
            "84.46",
        ),
        ("keshik6, ResNet-50", "the same", "87.74"),
        (
            "FjeldMats, ResNet-18",
            "VOC 2012 val; only the last layer is trained, Adam 1e-3, 16 epochs; difficult counted "
            "as present",
            "81.57",
        ),
        ("Ridnik et al. 2021, TResNet-XL", "VOC 2007 test, 448 pixels, asymmetric loss", "96.0"),
        ("leaderboard, SYSU_KESD", "VOC 2012 test (comp2), VOC's own definition", "95.4"),
    ),
    "Sources: [keshik6](https://github.com/keshik6/pascal-voc-classification); "
    "[FjeldMats](https://github.com/FjeldMats/VOC2012-resnet18); [ASL model "
    "zoo](https://github.com/Alibaba-MIIL/ASL); "
    "[leaderboard](http://host.robots.ox.ac.uk:8080/leaderboard/displaylb.php?challengeid=11&compid=2).",
    "**Other people's results** on photographs, not measured here.",
    tables.text("result", "mAP (%)"),
)
MEANING = {
    "seed": "of the last layer, the order and the augmentation",
    "weights": "of the body before training",
    "image_size": "pixels",
    "fit": "how an image is made square",
    "batch_size": "images per step",
    "epochs": "passes over the training images",
    "optimizer": "",
    "lr": "highest learning rate of the body",
    "head_lr": "highest learning rate of the last layer; None: ten times lr",
    "momentum": "of SGD",
    "weight_decay": "L2 penalty",
    "schedule": "shape of the learning rate",
    "warmup": "share of the steps with rising learning rate",
    "max_norm": "largest L2 norm of the gradient; 0: any",
    "augment": "strength of zoom, shift and recolouring, 0 to 1",
    "loss": "",
    "class_weights": "weights of present pairs",
    "difficult": "classes with difficult objects only",
    "folds": "of the cross-validation; 0: none",
    "fold": "left out; None: trained on all training images",
    "train_images": "limit; None: all",
    "val_images": "limit; None: all",
    "train_eval": "training images are scored after each epoch too",
    "untrained": "classes without training example; None: only VOC's own are kept",
    "year": "folder of the devkit; None: the only one",
    "precision": "of the arithmetic",
    "channels_last": "memory layout",
}
_DIFFICULT = {
    "ignore": "counts neither as present nor as absent, in training, in every metric and in the "
    "tail (the rule of the official development kit)",
    "negative": "counts as absent",
    "positive": "counts as present",
}


def decision(stored: Predictions) -> float:
    """Return the score above which a class counts as present."""
    return ranking.decision_threshold(stored.scores, stored.config.get("scores", "logits"))


def author(name: str) -> str:
    """Name and matriculation number, or a line to fill them in."""
    if name.strip():
        return f"**Author:** {escape(name)}"
    return "**Name and matriculation number:** ........................................"


def summary(results: Results, total: Mapping[str, Any], trials: int, best: str) -> str:
    """The result in one paragraph."""
    images = image_counts(results.data)
    counts = join([f"{number:,} {split} images" for split, number in images.items()])
    over = f"over {trials} seeds" if trials > 1 else "of one trial"
    low, high = (decimal(100 * total[end], 1) for end in ("low", "high"))
    interval = "" if math.isnan(total["low"]) else f" [{low}, {high}]"
    factor = total["best_ap"] / total["random"] if total["random"] else math.nan
    chosen = (
        "Scores are those of the epoch that is best on the validation images themselves, the lab's "
        "short cut, which may flatter. "
    )
    chosen = chosen if results.study.get("scale") != "imported" else ""
    return (
        f"Mean average precision over the classes is **{percent(total['ap'])}**{interval} {over} "
        f"({counts}); a random order would give {percent(total['random'])}, and the best trial "
        f"(`{best}`, {percent(total['best_ap'])}) is {decimal(factor, 1)} times that. "
        f"{chosen}Every average precision is over the whole validation list, never over batches."
    )


def undefined(classes: Sequence[str], ap: np.ndarray) -> str:
    """Name the classes without an average precision."""
    absent = [escape(name) for name, value in zip(classes, ap, strict=True) if math.isnan(value)]
    if not absent:
        return "Every class occurs, so the mean is over all."
    return (
        f"No validation image shows {join(absent)}: nothing is to be found there, so its AP is "
        f"undefined (not 0), and the means are over {len(classes) - len(absent)} classes."
    )


def recomputed(trials: int, images: int, difference: float) -> str:
    """What computing mAP again from the stored scores gave."""
    subject = (
        f"Computed again from the stored scores of {count(trials, 'trial')} "
        f"({images:,} validation images each), mAP"
    )
    if difference == 0:
        return f"{subject} is what was reported, to the last digit."
    sentence = f"{subject} differs from what was reported by at most {significant(difference)}."
    wrong = " The stored scores do not belong to the reported metrics."
    return f"**{sentence}{wrong}**" if difference > 1e-6 else sentence


def difficult(config: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """The rule for difficult objects, with how many pairs it touches."""
    counts = (study.get("data") or {}).get("difficult_counts") or {}
    pairs = {split: sum(found.values()) for split, found in counts.items()}
    touched = join([f"{number:,} image-class pairs in {split}" for split, number in pairs.items()])
    rule = _DIFFICULT.get(str(config.get("difficult", "ignore")), "")
    said = f" Here these are {touched}." if any(pairs.values()) else ""
    subject = "**Difficult objects.** A class of which an image shows difficult objects only"
    return f"{subject} {rule}.{said}"


def last_layer(classes: int, features: int = 512) -> str:
    """What the last layer is."""
    weights = features * classes + classes
    return (
        f"**Last layer.** ResNet-18 (He et al. 2016); its last layer is replaced by a linear one "
        f"from {features} features to {classes} outputs, {weights:,} new parameters "
        f"({features} x {classes} weights and {classes} biases). Each output is the logit of a "
        "classifier of its own: no softmax and no choice of a single class, as several classes may "
        "be on an image. All layers are trained."
    )


def loss_formula(config: Mapping[str, Any]) -> tuple[str, str]:
    """The loss as TeX and in words."""
    weight = "w_c\\," if config.get("class_weights") == "balanced" else ""
    name, tail = (
        "Binary cross-entropy with logits",
        r"y_{ic} \log \sigma(z_{ic}) + (1 - y_{ic}) \log(1 - \sigma(z_{ic}))",
    )
    if config.get("loss") == "asymmetric":
        name, tail = (
            "The asymmetric loss",
            r"y_{ic} (1 - s_{ic})^{\gamma_+} \log s_{ic}"
            r" + (1 - y_{ic})\, m_{ic}^{\gamma_-} \log(1 - m_{ic})",
        )
    tex = r"L = -\frac{1}{|K|} \sum_{(i,c) \in K} \left[" + weight + tail + r"\right]"
    return tex, f"{name}, the mean over the image-class pairs that count."


def loss(config: Mapping[str, Any]) -> str:
    """The symbols of the loss, and why it is computed from logits."""
    found = (
        "K: the pairs of image i and class c that are not ignored, z their logit, y 1 if the class "
        "is present and else 0, σ the logistic function: one binary classifier per class."
    )
    if config.get("loss") == "asymmetric":
        found += (
            " s = σ(z), m = max(s − margin, 0), focusing γ (Ridnik et al. 2021): easy absent pairs "
            "hardly count."
        )
    if config.get("class_weights") == "balanced":
        found += " w: absent over present training images of the class."
    return f"{found} It is computed from logits, since a logistic function saturates:"


def loss_code(config: Mapping[str, Any]) -> str:
    """The function that computes the loss of each pair, as it runs, without its docstring."""
    from core.training import multilabel  # brings torch

    name = "asymmetric_loss" if config.get("loss") == "asymmetric" else "binary_cross_entropy"
    tree = ast.parse(inspect.getsource(getattr(multilabel, name)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = function.body[1:]
    return ast.unparse(tree)


def schedule(config: Mapping[str, Any]) -> str:
    """The learning-rate scheme with its numbers."""
    lr, head = float(config["lr"]), config.get("head_lr")
    head_lr = 10 * lr if head is None else float(head)
    warmup = float(config.get("warmup", 0.0))
    rise = f"rises linearly over the first {100 * warmup:g}\u00a0% of the steps, then "
    shape = {
        "cosine": "falls to 0 along half a cosine",
        "step": "falls to a tenth after each third of the rest",
        "constant": "stays",
    }[str(config.get("schedule", "cosine"))]
    return (
        f"**Learning rate.** {lr:g} for the body and {head_lr:g} for the last layer at its "
        f"highest; it {rise if warmup else ''}{shape}, changing with every step."
    )


def procedure(config: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Optimiser, batches, augmentation, evaluation and seeds in short sentences."""
    optimizer = {
        "sgd": "SGD with Nesterov momentum", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"
    }[str(config["optimizer"])]  # fmt: skip
    weights = ((study.get("data") or {}).get("weights") or {}).get("given", "-")
    return (
        f"**Procedure.** {optimizer}, batches of {config['batch_size']}, {config['epochs']} "
        f"epochs; training images are mirrored at random and varied with strength "
        f"{config['augment']:g}. The body starts from the weights `{weights}`. Validation images "
        "are neither shuffled nor varied; their file names are stored with their scores, in that "
        "order. The seed fixes Python's, NumPy's and torch's generators; on CPUs with the same "
        "fingerprint of numerics the same seed gives the same numbers bit for bit."
    )


def curves(results: Results) -> str:
    """Which epoch was best, and what became of mAP after it."""
    history = results.history
    history = history[history["fold"].isna()] if "fold" in history else history
    best = history.loc[history.groupby("trial")["val_map"].idxmax()]
    last = history.groupby("trial").tail(1).set_index("trial")["val_map"]
    loss_of = best.set_index("trial")["val_map"] - last
    first, final = int(best["epoch"].min()), int(best["epoch"].max())
    which = str(first) if first == final else f"{first} to {final}"
    return (
        f"The best epoch on the validation images is {which} of {int(history['epoch'].max())}; at "
        f"the last epoch mAP is lower by {decimal(100 * float(loss_of.mean()), 2)} points on "
        "average."
    )


def folds(numbers: pd.DataFrame, study: Mapping[str, Any]) -> str:
    """The proper number, the short cut and the difference, each named."""
    number = ((study.get("data") or {}).get("folds") or {}).get("number", "K")
    both = numbers.dropna(subset=["proper", "shortcut"])
    over = f"mean of {count(len(numbers), 'seed')}"
    text = (
        "The lab chooses the epoch on the very images it then reports on, so its number may be "
        "too good for new images. The proper way never looks at them while choosing: "
        f"{number} networks, each trained without one of {number} parts of the training images, "
        "choose the epoch by their mean mAP on the parts left out; their scores are averaged and "
        "evaluated on the validation images once."
    )
    if both.empty:
        return f"{text} Proper: mAP {percent(numbers['proper'].mean())} ({over})."
    gap = statistics.t_interval((both["shortcut"] - both["proper"]).to_numpy())
    # a network that stopped earlier has no score at the epoch that the folds chose
    optimism = statistics.t_interval((both["shortcut"] - both["same_epoch"]).dropna())
    alone = f", which alone makes {signed(optimism.mean, 2)} points" if optimism.n else ""
    return (
        f"{text}\n\n**Proper: {percent(both['proper'].mean())}. Short cut: "
        f"{percent(both['shortcut'].mean())}. Difference (short cut minus proper): "
        f"{signed(gap.mean)} points**{bracket(gap.low, gap.high)} ({over}). Two things are in it: "
        f"choosing on val{alone}{bracket(optimism.low, optimism.high)} (the short cut's own "
        "network, against its "
        "score at the epoch that the folds chose), and averaging several networks that each saw "
        "fewer images."
    )


def accuracy(total: Mapping[str, Any], stored: Predictions) -> str:
    """Accuracy beside average precision, and what saying no to everything reaches."""
    gain = total["accuracy"] - total["all_negative"]
    return (
        f"Of all image-class pairs {percent(total['accuracy'])} are decided rightly (best trial, "
        f"score above {decision(stored):g}). But a program that says no to every class on every "
        f"image is right in {percent(total['all_negative'])} without having seen one: the network "
        f"minus that is {signed(gain)} points. Average precision asks what a user of the ranking "
        "sees: are the images with the class above those without? There the same scores reach "
        f"{percent(total['best_ap'])}, a random order {percent(total['random'])}."
    )


def tail(found: TailAccuracy, mean_ap: float) -> str:
    """Why the top of a ranking looks good though its average precision is not perfect."""
    defined = np.flatnonzero(found.classes == found.classes[0])
    if not found.classes[0]:
        return "No score is above the decision threshold, so there is no tail to look at."
    first, last = found.mean[0], found.mean[defined[-1]]
    same = f"At the decision threshold it is {percent(first)}. "
    if len(defined) > 1:
        same = (
            f"From {percent(first)} at the decision threshold it goes to {percent(last)} at t = "
            f"{decimal(float(found.thresholds[defined[-1]]), 3)}, the highest threshold with as "
            "many classes. "
        )
    rises = len(defined) > 1 and last > first
    reason = "**Here it does not rise**: the top of these rankings looks no better than the rest."
    asked = "Why do the top 50 look good although" if rises else "Do the top 50 look good, where"
    return (
        f"**{asked} mAP is {percent(mean_ap)}?** {same}{_RISES if rises else reason} "
        f"{undefined_text(found)}"
    )


_RISES = (
    "Tail accuracy is the precision among the images that the network is surest of, and who "
    "looks at a ranking sees its top. mAP measures down to the last image with the class. So "
    "what errors cost is also a matter of how results are shown: a page that starts with the "
    "surest images hides many of them, and one that has to find every image does not."
)


def beside(study: Mapping[str, Any]) -> str:
    """How far other people's numbers can be compared."""
    own = (
        "The numbers above are of generated pictures and cannot be compared with these. "
        if (study.get("data") or {}).get("kind") == "synthetic"
        else ""
    )
    return (
        f"{own}The leaderboard is of the test images, whose labels are not public, not of val, so "
        "it is no direct comparison. Its server takes two submissions a week: hand in only what is "
        "above 90 on val, twice at most, and hide it from the board. labtune submits nothing. The "
        "11-point interpolation of VOC 2007 and scikit-learn's definition may differ by points on "
        "the same scores: compare like with like."
    )
