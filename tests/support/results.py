"""Result folders whose numbers follow formulas, for tests of analysis: one builder per study."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from core.data.synthetic.species import CLASSES
from core.training.metrics import average_precision

Row = dict[str, Any]
IMAGES = 250
DIVERGED = "Loss is not finite in epoch 3, step 37, learning rate 0.1: lower lr."
NORMS = ("torch_bn", "bn", "in", "bin", "ln", "gn", "none")
SPECIES = CLASSES  # of the drawn birds


# --- what they share ---


def write(
    path: Path, study: Row, trials: list[Row], history: list[Row],
    columns: Sequence[str] = ("trial", "epoch"), predictions: Mapping[str, Row] | None = None,
) -> Path:  # fmt: skip
    """Write study.json, trials.csv, history.csv and predictions/ into `path`, and return it.

    Args:
        path: the result folder to make.
        study: content of study.json; see `declare`.
        trials: rows of trials.csv, by which keys come first in any of them.
        history: rows of history.csv.
        columns: of a history without rows.
        predictions: arrays of each trial that has some.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "study.json").write_text(json.dumps(study, indent=1), encoding="utf-8")
    for name, rows in (("trials", trials), ("history", history)):
        header = list(dict.fromkeys(key for row in rows for key in row)) or columns
        with (path / f"{name}.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for name, arrays in (predictions or {}).items():
        store(path, name, **arrays)
    return path


@contextlib.contextmanager
def edited(file: Path) -> Iterator[Any]:
    """Yield the content of a JSON file or of a table, and write it back as it is changed."""
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        yield content
        file.write_text(json.dumps(content))
        return
    table = pd.read_csv(file, keep_default_na=False).astype(object)
    yield table
    table.to_csv(file, index=False)


def store(path: Path, name: str, config: Mapping | None = None, **arrays) -> None:
    """Write predictions/<name>.npz."""
    (path / "predictions").mkdir(parents=True, exist_ok=True)
    arrays["config"] = np.array(json.dumps(config or {}, sort_keys=True))
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez(path / "predictions" / f"{name}.npz", **arrays)


def declare(study: str, question: str, planned: list[Row], **more: Any) -> Row:
    """Return study.json's content: of one place, machine and time, for `planned` trials."""
    return {
        "study": study, "question": question, "scale": "demo",
        "parts": list(dict.fromkeys(entry["part"] for entry in planned)), "constants": {},
        "notes": [], "metric": "val_accuracy", "mode": "max", "trials": planned,
        "command": ["python", f"studies/{study}.py", "--data-dir", "/home/someone/data"],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "ray": "2.60.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "hardware": {"system": "Linux x86_64", "processor": "a CPU", "cores": 2, "gpus": []},
        "slot": {"cpu": 1}, "started": "2026-11-22T07:00:00Z", "seconds": 301.5, **more,
    }  # fmt: skip


def birds_data(kind: str) -> Row:
    """Return what study.json says of 25 species with 60 and 10 images each."""
    counts = {"train": dict.fromkeys(SPECIES, 60), "val": dict.fromkeys(SPECIES, 10)}
    return {
        "kind": kind, "description": "25 drawn bird species", "counts": counts,
        "classes": list(SPECIES), "image_size": 32, "fingerprint": "sha256:00ff", "duplicates": 1,
        "duplicate_examples": [["train/Hoopoe/1.jpg", "val/Hoopoe/9.jpg"]],
        "skipped": ["train/Hoopoe/broken.jpg"],
    }  # fmt: skip


def ended(planned: Row, rows: list[Row], seconds: float, state: str = "finished", **more) -> Row:
    """Return a row of trials.csv: what the engine knows of each trial, its settings, and `more`."""
    each = seconds / len(rows) if rows else ""
    return {
        "trial": planned["trial"], "part": planned["part"], "state": state, "error": "",
        "epochs_run": len(rows), "seconds": seconds, "seconds_per_epoch": each,
        **planned["config"], **more,
    }  # fmt: skip


# --- norms ---


def norms(
    path: Path, norms=NORMS, seeds: int = 3, epochs: int = 6, recipes=("good",),
    diverged=(("none", 2),), unfinished=(), predictions: bool = True, data_kind: str = "synthetic",
    old: bool = False,
) -> Path:  # fmt: skip
    """Write a folder of the norms study.

    Args:
        path: the result folder to make.
        norms: values of the grid key norm.
        seeds: number of seeds.
        epochs: epochs of each trial.
        recipes: values of the grid key recipe; none leaves the column out.
        diverged: (norm, seed) of trials that stop after epoch 2.
        unfinished: (norm, seed) of trials that have not started.
        predictions: store scores that give exactly the reported accuracy.
        data_kind: "synthetic" or "folder".
        old: as commit 8948c4d wrote it: running figures without that word, scores of the last
            epoch, none of fixed weights on training images.
    """
    planned, trials, history = [], [], []
    for recipe, norm, seed in product(recipes or [None], norms, range(seeds)):
        config = {"norm": norm, "seed": seed, "batch_size": 32, "epochs": epochs}
        config |= {"recipe": recipe} if recipe else {}
        config |= {} if old else {"optimizer": "sgd"}
        name = f"norm={norm},seed={seed}" + (f",recipe={recipe}" if recipe else "")
        entry = {"trial": name, "part": "norms", "config": config}
        planned.append(entry)
        if (norm, seed) in unfinished:
            continue
        broken = (norm, seed) in diverged
        last = 2 if broken else epochs
        rows = [_norms_epoch(config, epoch, epochs, old) for epoch in range(1, last + 1)]
        best = max(rows, key=lambda row: row["val_accuracy"])
        if predictions and not broken:
            kept = rows[-1] if old else best
            kept |= _birds_scores(path, name, config, kept["val_accuracy"], kept["epoch"], old)
        history += [{"trial": name, "part": "norms", **row} for row in rows]
        more = {key: v for key, v in rows[-1].items() if key.startswith(("train_", "val_", "lr"))}
        more |= {"peak_memory_mib": 100 + 5 * NORMS.index(norm), "best_epoch": best["epoch"]}
        more |= {"error": DIVERGED} if broken else {}
        more["best_val_accuracy"] = best["val_accuracy"]
        if not old:  # of fixed weights: 0.02 above the running ones
            names = ("loss", "accuracy", "micro_f1", "macro_f1", "error")
            more |= {f"best_train_{m}": best[f"train_{m}_running"] + 0.02 for m in names}
            more["base_lr"] = 0.1
        state, seconds = "diverged" if broken else "finished", sum(row["seconds"] for row in rows)
        trials.append(ended(entry, rows, seconds, state, **more))
    grid = {"norm": list(norms), "seed": list(range(seeds))}
    grid |= {"recipe": list(recipes)} if recipes else {}
    question = "Which normalisation layer trains a small ResNet best?"
    more = {"grid": grid, "constants": {"n": 2, "image_size": 32, "batch_size": 32}}
    study = declare("norms", question, planned, **more, data=birds_data(data_kind))
    study["command"] += ["--name", "x"]
    return write(path, study, trials, history)


def _norms_epoch(config: Row, epoch: int, epochs: int, old: bool) -> Row:
    """Curves that rise like 1 - exp(-epoch); bn and torch_bn differ by less than 1e-4."""
    place = ("none", "bn", "gn", "ln", "in", "bin").index(config["norm"].replace("torch_", ""))
    weak = config.get("recipe") == "lab"
    top = 0.30 if weak else 0.70 + 0.03 * place
    done = 1 - math.exp(-epoch * 3.0 / epochs)
    noise = 0.012 * math.sin(7 * place + 3 * config["seed"] + epoch)
    own = 4e-5 * math.cos(epoch) if config["norm"] == "torch_bn" else 0.0
    val = round((top * done + noise) * IMAGES) / IMAGES
    train = top * done + 0.03 + 0.5 * noise + own
    row = {key: config[key] for key in ("norm", "seed", "recipe") if key in config}
    row["epoch"] = epoch
    for split, accuracy in (("train", train), ("val", val)):
        running = "_running" if split == "train" and not old else ""
        values = {"loss": 3.2 * (1 - 0.9 * accuracy) + own, "accuracy": accuracy}
        values |= {"micro_f1": accuracy, "macro_f1": accuracy - 0.004, "error": 1 - accuracy}
        row |= {f"{split}_{name}{running}": value for name, value in values.items()}
    row["lr"] = (1e-4 if weak else 0.1) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    row["seconds"] = 2.0 + 0.1 * place + 0.01 * config["seed"]
    return row


def _birds_scores(path: Path, name: str, config: Row, accuracy: float, epoch: int, old) -> Row:
    """Store scores with `accuracy` correct; return the metrics that follow from them."""
    from sklearn.metrics import f1_score

    labels = np.arange(IMAGES) % len(SPECIES)
    wrong = np.arange(IMAGES) * 7 % IMAGES >= round(accuracy * IMAGES)
    predicted = np.where(wrong, (labels * 3 + 1) % len(SPECIES), labels)
    scores = np.eye(len(SPECIES), dtype=np.float32)[predicted] * 4
    files = [f"val/{SPECIES[label]}/{number:04d}.jpg" for number, label in enumerate(labels)]
    at = {} if old else {"epoch": epoch}
    store(path, name, config, scores=scores, labels=labels, files=files, classes=SPECIES, **at)
    right = float((predicted == labels).mean())
    macro = float(f1_score(labels, predicted, average="macro"))
    return {"val_accuracy": right, "val_micro_f1": right, "val_error": 1 - right,
            "val_macro_f1": macro}  # fmt: skip


# --- VOC ---

VOC_CLASSES = ("aeroplane", "bicycle", "dog", "person", "sofa")
VOC_CONFIG = {
    "weights": "embedded", "image_size": 64, "fit": "squash", "batch_size": 16, "epochs": 4,
    "optimizer": "sgd", "lr": 0.003, "head_lr": None, "momentum": 0.9, "weight_decay": 0.0001,
    "schedule": "cosine", "warmup": 0.1, "max_norm": 0.0, "augment": 0.5, "loss": "bce",
    "class_weights": "none", "difficult": "ignore", "folds": 0, "fold": None, "train_images": None,
    "val_images": None, "untrained": None, "year": None, "precision": "float32",
}  # fmt: skip


def voc(
    path: Path, images: int = 130, seeds: int = 2, folds: int = 0,
    classes: tuple[str, ...] = VOC_CLASSES, seconds: float = 30.0, undefined: str = "",
) -> Path:  # fmt: skip
    """Write a folder of the VOC study, with checkpoints/ and predictions/.

    Args:
        path: the result folder to make.
        images: of the validation list; as many are in the training list.
        seeds: number of seeds.
        folds: K of cross-validation; 0: none.
        classes: names.
        seconds: what the trials are said to have taken.
        undefined: a class that no validation image has.
    """
    labels = draw_labels(images, classes)
    if undefined:
        labels[:, classes.index(undefined)] = -1
    planned, trials, history = [], [], []

    def add(name: str, part: str, config: Row, rows: list[Row], **more) -> None:
        planned.append({"trial": name, "part": part, "config": config})
        told = {key: config[key] for key in ("seed", "fold") if config[key] is not None}
        history.extend({"trial": name, "part": part, **told, **row} for row in rows)
        last = {key: v for key, v in rows[-1].items() if key not in ("epoch", "seconds")}
        more = {"peak_memory_mib": 640.0, **config, **last, **more}
        trials.append(ended(planned[-1], rows, seconds, **more))

    for seed in range(seeds):
        config = VOC_CONFIG | {"seed": seed}
        rows, scores = _voc_rows(labels, seed)
        best = max(range(4), key=lambda epoch: rows[epoch]["val_map"])
        name = f"part=main,seed={seed}" if folds else f"seed={seed}"
        store(path, name, config, scores=scores[best], labels=labels, files=names(images, "v"),
              classes=classes, epoch=best + 1, train_files=names(images, "t"))  # fmt: skip
        add(name, "main", config, rows, best_epoch=best + 1, best_val_map=rows[best]["val_map"])
        for fold in range(folds):
            config = VOC_CONFIG | {"seed": seed, "folds": folds, "fold": fold}
            name = f"part=folds,fold={fold},seed={seed}"
            add(name, "folds", config, _voc_fold(path, name, config, labels, classes))
    write(path, _voc_study(planned, seeds, folds, classes, labels, seconds), trials, history)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "best.pt").write_bytes(b"weights")
    best = {"trial": planned[0]["trial"], "epoch": 4, "config": planned[0]["config"]}
    (path / "checkpoints" / "best.json").write_text(json.dumps(best))
    return path


def draw_labels(images: int, classes: tuple[str, ...]) -> np.ndarray:
    """Return labels (N, C) of which the last class is rare and a few are difficult only."""
    rng = np.random.default_rng(7)
    share = np.linspace(0.5, 0.08, len(classes))
    labels = np.where(rng.random((images, len(classes))) < share, 1, -1)
    labels[rng.random(labels.shape) < 0.03] = 0
    labels[:2] = 1  # every class has some
    return labels.astype(np.int8)


def names(images: int, letter: str) -> tuple[str, ...]:
    """Return names of images relative to the data root."""
    return tuple(f"VOC2012/JPEGImages/2008_{letter}{number:05d}.jpg" for number in range(images))


def draw_images(root: Path, images: int = 130) -> Path:
    """Draw an image for each name below `root`: its number on a colour of its own."""
    (root / "VOC2012" / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names(images, "v")):
        colour = tuple(int(v) for v in np.random.default_rng(number).integers(40, 256, 3))
        picture = Image.new("RGB", (500, 375 if number % 3 else 500), colour)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((150, 90, 350, 290), fill=tuple(255 - v for v in colour))
        draw.text((200, 170), str(number), fill=(0, 0, 0), font_size=60)
        picture.save(root / name, quality=80)
    return root


def _voc_scores(labels: np.ndarray, skill: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    return (skill * labels + 1.5 * noise - 1.0).astype(np.float32)


def _voc_rows(labels: np.ndarray, seed: int) -> tuple[list[Row], list[np.ndarray]]:
    """Return the rows of a trial, and its scores after each epoch."""
    scores = [_voc_scores(labels, 0.4 * epoch, 100 * seed + epoch) for epoch in range(1, 5)]
    counted = labels != 0
    return [
        {
            "epoch": epoch, "lr": 0.003 / epoch, "head_lr": 0.03 / epoch,
            "train_loss": 0.5 / epoch, "train_map": 0.9 - 0.3 / epoch, "train_accuracy": 0.9,
            "val_loss": 0.6 / epoch, "val_map": float(np.nanmean(average_precision(s, labels))),
            "val_accuracy": float(((s > 0) == (labels > 0))[counted].mean()), "seconds": 3.0,
        }
        for epoch, s in enumerate(scores, 1)
    ], scores  # fmt: skip


def _voc_fold(path: Path, name: str, config: Row, val: np.ndarray, classes) -> list[Row]:
    fold, folds, seed = config["fold"], config["folds"], config["seed"]
    everything = draw_labels(len(val), classes)
    held = np.arange(len(everything)) % folds == fold
    files = np.array(names(len(everything), "t"))
    epochs = range(1, config["epochs"] + 1)
    shift = 10 * fold + seed
    heldout = [_voc_scores(everything[held], 0.4 * e, 1000 + shift + e) for e in epochs]
    on_val = [_voc_scores(val, 0.4 * e, 2000 + shift + e) for e in epochs]
    store(
        path, name, config, scores=heldout[-1], labels=everything[held], files=files[held],
        classes=classes, epoch=config["epochs"], train_files=files[~held],
        heldout_scores=np.stack(heldout), val_scores=np.stack(on_val), val_labels=val,
        val_files=names(len(val), "v"), fold=fold, folds=folds,
    )  # fmt: skip
    return [
        {
            "epoch": e, "lr": 0.003, "train_loss": 0.5 / e, "train_map": 0.7,
            "train_accuracy": 0.9, "heldout_loss": 0.6 / e, "heldout_accuracy": 0.9,
            "heldout_map": float(np.nanmean(average_precision(s, everything[held]))),
            "seconds": 3.0,
        }
        for e, s in zip(epochs, heldout, strict=True)
    ]  # fmt: skip


def _voc_study(planned, seeds, folds, classes, labels, seconds) -> Row:
    counts, difficult = (
        dict(zip(classes, (labels == sign).sum(axis=0).tolist(), strict=True)) for sign in (1, 0)
    )
    data = {
        "kind": "folder", "description": "drawn photographs", "classes": list(classes),
        "counts": {"train": counts, "val": counts}, "image_size": 64,
        "difficult_counts": {"train": difficult, "val": difficult},
        "images": {"train": len(labels), "val": len(labels)}, "fingerprint": "sha256:00ff",
        "year_folder": "VOC2012", "lists": {"train": "train.txt", "val": "val.txt"}, "notes": [],
        "weights": {"given": "embedded", "digest": "00ff"},
    }  # fmt: skip
    grid = {"seed": list(range(seeds))} | ({"fold": list(range(folds))} if folds else {})
    constants = {k: v for k, v in VOC_CONFIG.items() if not (folds and k in ("folds", "fold"))}
    question = "Which objects are on a photograph, and how sure is the network?"
    study = declare("voc", question, planned, grid=grid, constants=constants, metric="val_map",
                    data=data, slots=None, seconds=10 * seconds)  # fmt: skip
    study["command"][-1] = "/home/someone/VOCdevkit"
    study["git"]["dirty"] = False
    study["versions"] |= {"scikit-learn": "1.9.1"}
    return study | {"started": f"2026-11-22T07:00:{int(seconds) % 60:02d}Z"}
