"""Which images of a finished study are looked at, and what their maps say."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy
from PIL import Image

from analysis.document import provenance
from analysis.document.markup import escape
from analysis.document.report import Section, Text
from analysis.results.folder import Results, load_predictions, private
from analysis.saliency import page
from analysis.saliency.maps import (
    BLUR,
    STEPS,
    aggregate,
    at_once,
    faithfulness,
    layer_maps,
    normalised,
    probabilities_of,
    shares,
)
from analysis.saliency.page import EACH, Maps
from core.data import folders
from core.data import images as data_images
from core.data.synthetic import birds
from core.errors import UserError
from core.storage.files import read_json

if TYPE_CHECKING:  # torch takes seconds to load: only where maps are made
    from core.models.resnet import ResNet

Pick = Literal["confident", "random"]

LAB_CLASSES = (
    "Cattle Egret",
    "Coppersmith Barbet",
    "Indian Peacock",
    "Red Wattled Lapwing",
    "Ruddy Shelduck",
    "White Breasted Kingfisher",
    "White Breasted Waterhen",
)
_RULE = 1  # part of what a stored gradcam.npz is told by: raise it when a change can move a number


def sections(
    results: Results,
    data_dir: Path | str | None = None,
    classes: Sequence[str] = (),
    pick: Pick = "confident",
    seed: int = 0,
) -> list[Section]:
    """Draw the maps of a study and return what its report says of them.

    Writes figures/gradcam_<class>, tables/gradcam, tables/gradcam_images and gradcam.npz. Maps
    that were made before from the same weights are shown again, so that a copy of the folder gives
    the same report without the images.

    Args:
        results: a study with `checkpoints/`.
        data_dir: root of its images; None for the embedded birds.
        classes: names as `core.data.folders.match_class` takes them; by default the lab's seven, or
            the first seven where there are none of them.
        pick: "confident" or "random", see `choose`.
        seed: of "random".

    Returns:
        A section on all classes, then one for each; or one that says in a sentence why there are no
        maps, with nothing drawn.
    """
    try:
        best = _checkpoint(results.path)
        kept = page.restore(results.path)
        asked = _asked(best, classes, pick, seed)
        if kept is not None and kept.about["asked"] == asked:
            found = kept
        else:
            found = _again(kept, results, asked, data_dir)
    except UserError as e:
        reason = provenance.relative(str(e))
        return [Section("Grad-CAM", (Text(f"There are no maps: {escape(reason)}."),))]
    if found is not kept:
        page.store(found, results.path)
    return page.sections(results, found)


def _again(
    kept: Maps | None, results: Results, asked: dict[str, Any], data_dir: Path | str | None
) -> Maps:
    """Make the maps that are asked for; where that fails, take kept ones of the same weights."""
    try:
        return compute(results, data_dir, asked["classes"], asked["pick"], asked["seed"])
    except UserError:
        same = ("rule", "checkpoint")
        if kept is None or any(kept.about["asked"][key] != asked[key] for key in same):
            raise
        return kept


def compute(
    results: Results,
    data_dir: Path | str | None = None,
    classes: Sequence[str] = (),
    pick: Pick = "confident",
    seed: int = 0,
) -> Maps:
    """Score the validation images with the best network and map those of the chosen classes.

    It takes what `sections` takes. Raises UserError: no checkpoint or a damaged one, no images,
    images of other classes, or a class that is not there.
    """
    best = _checkpoint(results.path)
    root = _root(results, data_dir)
    val = _images(results, root, best["config"])
    chosen, note = _chosen(classes, val.classes)
    model = _network(results.path, best["config"], len(val.classes))
    probabilities = probabilities_of(model, val, results.path)
    frame = choose(frame_of(val, probabilities, chosen), pick, seed)

    number = np.asarray(frame["number"])
    maps = _aggregated(model, val, number)
    size = val.images.shape[-1]
    masks = [_mask(root, val.files[i], size) for i in number]
    places = np.asarray(frame["place"])
    rows = np.argsort(places, kind="stable")[np.sum(places < 0) :]
    pictures = val.images[number[rows]]
    areas = faithfulness(model, normalised(pictures), val.labels[number[rows]], maps[rows])
    frame = frame.assign(**shares(maps, masks, size)).join(pd.DataFrame(areas, index=rows))

    about = {
        "asked": _asked(best, classes, pick, seed),
        "trial": best["trial"],
        "epoch": best["epoch"],
        "layers": 2 * best["config"]["n"],
        "note": note,
        "steps": STEPS,
        "blur": BLUR,
        **_check(results, best, val, probabilities),
    }
    return Maps(
        frame.drop(columns="number"), pictures, maps[rows], val.classes, tuple(chosen), about
    )


def _aggregated(model: ResNet, val: data_images.ImageSet, number: np.ndarray) -> np.ndarray:
    """Return the maps (len(number), size, size) of these images for their true classes."""
    step = at_once(val.images.shape[-1])
    parts = (number[start : start + step] for start in range(0, len(number), step))
    return np.concatenate(
        [aggregate(layer_maps(model, normalised(val.images[i]), val.labels[i])) for i in parts]
    )


def _checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of checkpoints/best.json with the SHA-256 of best.pt as "sha256"."""
    weights, told = path / "checkpoints" / "best.pt", path / "checkpoints" / "best.json"
    missing = [file.name for file in (weights, told) if not file.is_file()]
    if missing:
        raise UserError(
            f"{path} holds no {' and no '.join(missing)} in checkpoints/: Grad-CAM needs the "
            "weights of a trial that finished"
        )
    best = read_json(told)
    config = best.get("config") if isinstance(best, dict) else None
    if not isinstance(config, dict) or not {"trial", "epoch"} <= best.keys():
        raise UserError(f"{told} is damaged (no trial with its config): restore it from a copy")
    sizes = (config.get("n"), config.get("image_size"))
    if not all(isinstance(n, int) and n > 0 for n in sizes) or "norm" not in config:
        raise UserError(
            f"{told} does not describe a residual network for images (n, norm and image_size): "
            "there is no Grad-CAM for it"
        )
    return best | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:32]}


def _network(path: Path, config: dict[str, Any], num_classes: int) -> ResNet:
    from core.layers.norms import NORMS
    from core.models.resnet import load_weights, resnet

    if config["norm"] not in NORMS:
        raise UserError(
            f"{path}/checkpoints/best.json names the norm {config['norm']!r}, not one of "
            f"{', '.join(NORMS)}: restore it from a copy"
        )
    model = resnet(config["n"], num_classes, config["norm"])
    load_weights(model, path / "checkpoints" / "best.pt")
    # Only the mapped stage needs gradients: a backward pass through the rest would cost most.
    model.requires_grad_(False)
    model.stage3.requires_grad_(True)
    return model.eval()


def _root(results: Results, data_dir: Path | str | None) -> Path:
    if data_dir is not None:
        return Path(data_dir)
    if results.synthetic:
        return birds.default_birds()
    recorded = private(results.path).get("data_dir")
    if recorded is not None and Path(recorded).is_dir():
        return Path(recorded)
    raise UserError(
        "the study was run on images of your own, and its folder does not say where they are: "
        f"name their folder, as in python analysis/gradcam.py {results.path} --data-dir PATH"
    )


def _images(results: Results, root: Path, config: dict[str, Any]) -> data_images.ImageSet:
    """Return the validation images of the study, labelled as in its training."""
    # of both splits: where they spell a class in two ways, train's counts
    listing = folders.scan(root)
    recorded = results.data
    classes = recorded.get("classes")
    if classes is not None and tuple(classes) != listing.classes:
        raise UserError(
            f"--data-dir {root} holds other classes than the study's ({len(listing.classes)} and "
            f"{len(classes)}, as {listing.classes[0]} and {classes[0]}): give the one it was run on"
        )
    limit, skip = {"val": config.get("val_images")}, bool(recorded.get("skipped"))
    sets = data_images.load(root, config["image_size"], ("val",), limit=limit, skip_broken=skip)
    val = sets["val"]
    label = {file.path: file.label for file in listing.files["val"]}
    labels = np.array([label[file] for file in val.files], dtype=np.int64)
    return dataclasses.replace(val, labels=labels, classes=listing.classes)


def _chosen(names: Sequence[str], classes: tuple[str, ...]) -> tuple[list[int], str]:
    """Return the labels of the classes to show and, for a default, a sentence on what it became."""
    found = {name: folders.match_class(name, classes) for name in names or LAB_CLASSES}
    unknown = [name for name, match in found.items() if match is None]
    labels = list(dict.fromkeys(classes.index(match) for match in found.values() if match))
    if names:
        if unknown:
            raise UserError(
                f"--classes: there is no {', '.join(unknown)} among the study's classes: "
                f"{', '.join(classes)}"
            )
        return labels, ""
    if labels:
        note = f"The lab's classes that these images do not have: {', '.join(unknown)}."
        return labels, note if unknown else ""
    first = list(range(min(len(LAB_CLASSES), len(classes))))
    return first, (
        "None of the classes that the lab names is among these images: shown are the first "
        f"{len(first)}."
    )


def _asked(best: dict[str, Any], classes: Sequence[str], pick: str, seed: int) -> dict[str, Any]:
    """Return what tells one set of maps from another."""
    return {
        "rule": _RULE,
        "checkpoint": best["sha256"],
        "classes": list(classes),
        "pick": pick,
        "seed": seed,
    }


def _mask(root: Path, file: str, size: int) -> np.ndarray | None:
    """Return the share of each pixel that the object covers, (size, size) in [0, 1].

    Masks lie at masks/<split>/<class>/<stem>.png below the data root; None where there is none.
    """
    path = root / "masks" / PurePosixPath(file).with_suffix(".png")
    try:
        with Image.open(path) as mask:
            grey = mask.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError) as e:
        raise UserError(f"the mask {path} cannot be read ({e}): restore or remove it") from e
    return np.asarray(grey, dtype=np.float64) / 255


def _check(
    results: Results, best: dict[str, Any], val: data_images.ImageSet, probabilities: np.ndarray
) -> dict[str, Any]:
    """Compare what the network says now with what the study recorded.

    Returns:
        images, accuracy (now), recorded (of the same epoch; None if not told) and difference (the
        largest of any probability; None unless the stored scores are of the same epoch: they once
        were of the last).
    """
    history = results.history
    row = history[(history["trial"] == best["trial"]) & (history["epoch"] == best["epoch"])]
    recorded = row["val_accuracy"].iloc[0] if len(row) and "val_accuracy" in row else None
    last = history.loc[history["trial"] == best["trial"], "epoch"].max()
    difference = None
    if best["trial"] in results.with_predictions():
        stored = load_predictions(results.path, best["trial"])
        place = {file: number for number, file in enumerate(stored.files)}
        same = best["epoch"] == (last if stored.epoch is None else stored.epoch)
        if same and all(file in place for file in val.files):
            scores = stored.scores[[place[file] for file in val.files]].astype(np.float64)
            there = scipy.special.softmax(scores, axis=1)
            difference = float(np.abs(there - probabilities).max())
    return {
        "images": len(val),
        "accuracy": float((probabilities.argmax(1) == val.labels).mean()),
        "recorded": None if recorded is None else float(recorded),
        "difference": difference,
    }


def frame_of(
    val: data_images.ImageSet, probabilities: np.ndarray, chosen: Sequence[int]
) -> pd.DataFrame:
    """Return a row per validation image of the chosen classes, class by class.

    Args:
        val: N images.
        probabilities: (N, C), rows that sum to 1.
        chosen: labels.

    Returns:
        number (in `val`), file, label, predicted (a label), right, true_probability and
        predicted_probability in [0, 1].
    """
    number = np.concatenate([np.flatnonzero(val.labels == label) for label in chosen])
    labels, p = val.labels[number], probabilities[number]
    predicted = p.argmax(axis=1)
    row = np.arange(len(number))
    return pd.DataFrame(
        {
            "number": number,
            "file": [val.files[i] for i in number],
            "label": labels,
            "predicted": predicted,
            "right": predicted == labels,
            "true_probability": p[row, labels],
            "predicted_probability": p[row, predicted],
        }
    )


def choose(frame: pd.DataFrame, pick: Pick = "confident", seed: int = 0) -> pd.DataFrame:
    """Choose up to `EACH` right and `EACH` wrong images of each class.

    Args:
        frame: from `frame_of`, its index counting from 0.
        pick: "confident": those with the most probable prediction, ties by file name; "random":
            drawn by `seed`, for each class independently of which others are shown.
        seed: of "random".

    Returns:
        `frame` with the column place: 0, 1, ... for the images to show, by class, right ones
        first, then in the order of the choice; -1 for the others.
    """
    places = np.full(len(frame), -1)
    count = 0
    for label in frame["label"].unique():
        for right in (True, False):
            group = frame[(frame["label"] == label) & (frame["right"] == right)]
            group = group.sort_values("file", kind="stable")
            if pick == "random":
                drawn = np.random.default_rng([seed, int(label), right]).permutation(len(group))
                group = group.iloc[drawn]
            else:
                group = group.sort_values("predicted_probability", ascending=False, kind="stable")
            shown = np.asarray(group.index[:EACH])
            places[shown] = np.arange(count, count + len(shown))
            count += len(shown)
    return frame.assign(place=places)
