"""A small result folder of the VOC study and its images, made from a formula, for tests."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from core.training.metrics import average_precision

CLASSES = ("aeroplane", "bicycle", "dog", "person", "sofa")
CONFIG = {
    "weights": "embedded", "image_size": 64, "fit": "squash", "batch_size": 16, "epochs": 4,
    "optimizer": "sgd", "lr": 0.003, "head_lr": None, "momentum": 0.9, "weight_decay": 0.0001,
    "schedule": "cosine", "warmup": 0.1, "max_norm": 0.0, "augment": 0.5, "loss": "bce",
    "class_weights": "none", "difficult": "ignore", "folds": 0, "fold": None, "train_images": None,
    "val_images": None, "untrained": None, "year": None, "precision": "float32",
}  # fmt: skip


def build(
    path: Path,
    images: int = 130,
    seeds: int = 2,
    folds: int = 0,
    classes: tuple[str, ...] = CLASSES,
    kind: str = "folder",
    seconds: float = 30.0,
    undefined: str = "",
) -> Path:
    """Write study.json, trials.csv, history.csv, predictions/ and checkpoints/ into `path`.

    Args:
        path: the result folder to make.
        images: of the validation list; as many are in the training list.
        seeds: number of seeds.
        folds: K of cross-validation; 0: none.
        classes: names.
        kind: "folder" or "synthetic".
        seconds: what the trials are said to have taken.
        undefined: a class that no validation image has.
    """
    labels = draw_labels(images, classes)
    if undefined:
        labels[:, classes.index(undefined)] = -1
    main = {"seed": seeds, "folds": None}
    planned, trials, history = [], [], []
    for seed in range(main["seed"]):
        name = f"part=main,seed={seed}" if folds else f"seed={seed}"
        config = CONFIG | {"seed": seed}
        rows, scores, best = _train(labels, seed)
        _store(path, name, config, scores[best], labels, names(images, "v"), classes, best + 1)
        planned.append({"trial": name, "part": "main", "config": config})
        history += [{"trial": name, "part": "main", "seed": seed, **row} for row in rows]
        shown = {"best_epoch": best + 1, "best_val_map": rows[best]["val_map"]}
        trials.append(_trial(name, "main", config, rows, seconds) | shown)
        for fold in range(folds):
            name = f"part=folds,fold={fold},seed={seed}"
            config = CONFIG | {"seed": seed, "folds": folds, "fold": fold}
            rows = _fold(path, name, config, labels, classes)
            planned.append({"trial": name, "part": "folds", "config": config})
            told = {"trial": name, "part": "folds", "fold": fold, "seed": seed}
            history += [told | row for row in rows]
            trials.append(_trial(name, "folds", config, rows, seconds))
    _write_csv(path / "trials.csv", trials)
    _write_csv(path / "history.csv", history)
    study = _study(planned, seeds, folds, classes, labels, kind, seconds)
    (path / "study.json").write_text(json.dumps(study, indent=1), encoding="utf-8")
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


def draw_images(root: Path, images: int = 130, letter: str = "v") -> Path:
    """Draw an image for each name below `root`: its number on a colour of its own."""
    (root / "VOC2012" / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names(images, letter)):
        colour = tuple(int(v) for v in np.random.default_rng(number).integers(40, 256, 3))
        picture = Image.new("RGB", (500, 375 if number % 3 else 500), colour)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((150, 90, 350, 290), fill=tuple(255 - v for v in colour))
        draw.text((200, 170), str(number), fill=(0, 0, 0), font_size=60)
        picture.save(root / name, quality=80)
    return root


def _scores(labels: np.ndarray, skill: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    return (skill * labels + 1.5 * noise - 1.0).astype(np.float32)


def _train(labels: np.ndarray, seed: int) -> tuple[list[dict], list[np.ndarray], int]:
    """Return the rows of a trial, its scores after each epoch, and the best epoch from 0."""
    rows, scores = [], []
    for epoch in range(1, CONFIG["epochs"] + 1):
        scores.append(_scores(labels, 0.4 * epoch, 100 * seed + epoch))
        ap = average_precision(scores[-1], labels)
        rows.append(
            {
                "epoch": epoch, "lr": 0.003 / epoch, "head_lr": 0.03 / epoch,
                "train_loss": 0.5 / epoch, "train_map": 0.9 - 0.3 / epoch, "train_accuracy": 0.9,
                "val_loss": 0.6 / epoch, "val_map": float(np.nanmean(ap)),
                "val_accuracy": _accuracy(scores[-1], labels), "seconds": 3.0,
            }
        )  # fmt: skip
    values = [row["val_map"] for row in rows]
    return rows, scores, values.index(max(values))


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    counted = labels != 0
    return float(((scores > 0) == (labels > 0))[counted].mean())


def _fold(path: Path, name: str, config: dict, val: np.ndarray, classes) -> list[dict]:
    fold, folds, seed = config["fold"], config["folds"], config["seed"]
    everything = draw_labels(len(val), classes)
    held = np.arange(len(everything)) % folds == fold
    files = np.array(names(len(everything), "t"))
    rows, heldout, on_val = [], [], []
    for epoch in range(1, config["epochs"] + 1):
        heldout.append(_scores(everything[held], 0.4 * epoch, 1000 + 10 * fold + epoch + seed))
        on_val.append(_scores(val, 0.4 * epoch, 2000 + 10 * fold + epoch + seed))
        ap = average_precision(heldout[-1], everything[held])
        rows.append(
            {
                "epoch": epoch, "lr": 0.003, "train_loss": 0.5 / epoch, "train_map": 0.7,
                "train_accuracy": 0.9, "heldout_loss": 0.6 / epoch,
                "heldout_map": float(np.nanmean(ap)), "heldout_accuracy": 0.9, "seconds": 3.0,
            }
        )  # fmt: skip
    _store(
        path, name, config, heldout[-1], everything[held], tuple(files[held]), classes,
        config["epochs"], train_files=files[~held], heldout_scores=np.stack(heldout),
        val_scores=np.stack(on_val), val_labels=val, val_files=np.array(names(len(val), "v")),
        fold=fold, folds=folds,
    )  # fmt: skip
    return rows


def _store(path, name, config, scores, labels, files, classes, epoch, **more) -> None:
    (path / "predictions").mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    more.setdefault("train_files", np.array(names(len(labels), "t")))
    np.savez_compressed(
        out, scores=scores, labels=labels, files=np.array(files), classes=np.array(classes),
        config=np.array(json.dumps(config, sort_keys=True)), epoch=np.array(epoch), **more,
    )  # fmt: skip
    (path / "predictions" / f"{name}.npz").write_bytes(out.getvalue())


def _trial(name: str, part: str, config: dict, rows: list[dict], seconds: float) -> dict:
    last = {key: value for key, value in rows[-1].items() if key not in ("epoch", "seconds")}
    return {
        "trial": name, "part": part, "state": "finished", "error": "", "epochs_run": len(rows),
        "seconds": seconds, "seconds_per_epoch": seconds / len(rows), "peak_memory_mib": 640.0,
        **config, **last,
    }  # fmt: skip


def _study(planned, seeds, folds, classes, labels, kind, seconds) -> dict:
    counts = dict(zip(classes, (labels == 1).sum(axis=0).tolist(), strict=True))
    difficult = dict(zip(classes, (labels == 0).sum(axis=0).tolist(), strict=True))
    constants = {k: v for k, v in CONFIG.items() if not (folds and k in ("folds", "fold"))}
    return {
        "study": "voc",
        "question": "Which objects are on a photograph, and how sure is the network?",
        "scale": "demo",
        "parts": ["main", "folds"] if folds else ["main"],
        "grid": {"seed": list(range(seeds)), **({"fold": list(range(folds))} if folds else {})},
        "constants": constants,
        "notes": [],
        "metric": "val_map",
        "mode": "max",
        "trials": planned,
        "command": ["python", "studies/voc.py", "--data-dir", "/home/someone/VOCdevkit"],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "scikit-learn": "1.9.1"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "hardware": {"system": "Linux x86_64", "processor": "a CPU", "cores": 2, "gpus": []},
        "data": {
            "kind": kind,
            "description": "drawn photographs",
            "classes": list(classes),
            "counts": {"train": counts, "val": counts},
            "difficult_counts": {"train": difficult, "val": difficult},
            "images": {"train": len(labels), "val": len(labels)},
            "image_size": 64,
            "fingerprint": "sha256:00ff",
            "year_folder": "VOC2012",
            "lists": {"train": "train.txt", "val": "val.txt"},
            "notes": [],
            "weights": {"given": "embedded", "digest": "00ff"},
        },
        "slots": None,
        "started": f"2026-11-22T07:00:{int(seconds) % 60:02d}Z",
        "seconds": 10 * seconds,
    }


def _write_csv(file: Path, rows: list[dict]) -> None:
    header = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
