"""A small result folder of the norms study with numbers from a formula, for tests of analysis."""

import csv
import json
import math
from pathlib import Path

import numpy as np

NORMS = ("torch_bn", "bn", "in", "bin", "ln", "gn", "none")
SPECIES = (
    "Asian Green Bee-Eater",
    "Brown-Headed Barbet",
    "Cattle Egret",
    "Common Kingfisher",
    "Common Myna",
    "Common Rosefinch",
    "Common Tailorbird",
    "Coppersmith Barbet",
    "Forest Wagtail",
    "Gray Wagtail",
    "Hoopoe",
    "House Crow",
    "Indian Grey Hornbill",
    "Indian Peacock",
    "Indian Pitta",
    "Indian Roller",
    "Jungle Babbler",
    "Northern Lapwing",
    "Red-Wattled Lapwing",
    "Ruddy Shelduck",
    "Rufous Treepie",
    "Sarus Crane",
    "White Wagtail",
    "White-Breasted Kingfisher",
    "White-Breasted Waterhen",
)
IMAGES = 250
DIVERGED = "Loss is not finite in epoch 3, step 37, learning rate 0.1: lower lr."


def build(
    path: Path,
    norms=NORMS,
    seeds: int = 3,
    epochs: int = 6,
    recipes=("good",),
    diverged=(("none", 2),),
    unfinished=(),
    predictions: bool = True,
    data_kind: str = "synthetic",
    old: bool = False,
) -> Path:
    """Write study.json, trials.csv, history.csv and predictions/ into `path`.

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
    path.mkdir(parents=True, exist_ok=True)
    planned, trials, history = [], [], []
    for recipe in recipes or [None]:
        for norm in norms:
            for seed in range(seeds):
                config = {"norm": norm, "seed": seed, "batch_size": 32, "epochs": epochs}
                if recipe:
                    config["recipe"] = recipe
                if not old:
                    config["optimizer"] = "sgd"
                name = f"norm={norm},seed={seed}" + (f",recipe={recipe}" if recipe else "")
                planned.append({"trial": name, "part": "norms", "config": config})
                if (norm, seed) in unfinished:
                    continue
                broken = (norm, seed) in diverged
                rows = [
                    _epoch(config, epoch, epochs, old)
                    for epoch in range(1, (2 if broken else epochs) + 1)
                ]
                best = max(rows, key=lambda row: row["val_accuracy"])
                if predictions and not broken:
                    kept = rows[-1] if old else best
                    kept |= _store(path, name, config, kept["val_accuracy"], kept["epoch"], old)
                history += [{"trial": name, "part": "norms", **row} for row in rows]
                trials.append(_trial(name, config, rows, broken) | _best(best, old))
    _write_csv(path / "trials.csv", trials)
    _write_csv(path / "history.csv", history)
    study = _study(planned, norms, seeds, recipes, data_kind)
    (path / "study.json").write_text(json.dumps(study, indent=1), encoding="utf-8")
    return path


def _best(best: dict, old: bool) -> dict:
    """What trials.csv says of the best epoch; training metrics 0.02 above the running ones."""
    told = {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}
    if old:
        return told
    for metric in ("loss", "accuracy", "micro_f1", "macro_f1", "error"):
        told[f"best_train_{metric}"] = best[f"train_{metric}_running"] + 0.02
    return told | {"base_lr": 0.1}


def _epoch(config: dict, epoch: int, epochs: int, old: bool) -> dict:
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
        row |= {
            f"{split}_loss{running}": 3.2 * (1 - 0.9 * accuracy) + own,
            f"{split}_accuracy{running}": accuracy,
            f"{split}_micro_f1{running}": accuracy,
            f"{split}_macro_f1{running}": accuracy - 0.004,
            f"{split}_error{running}": 1 - accuracy,
        }
    start = 1e-4 if weak else 0.1
    row["lr"] = start * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    row["seconds"] = 2.0 + 0.1 * place + 0.01 * config["seed"]
    return row


def _store(path: Path, name: str, config: dict, accuracy: float, epoch: int, old: bool) -> dict:
    """Scores with `accuracy` correct; returns the metrics that follow from them."""
    from sklearn.metrics import f1_score

    labels = np.arange(IMAGES) % len(SPECIES)
    wrong = np.arange(IMAGES) * 7 % IMAGES >= round(accuracy * IMAGES)
    predicted = np.where(wrong, (labels * 3 + 1) % len(SPECIES), labels)
    scores = np.eye(len(SPECIES), dtype=np.float32)[predicted] * 4
    files = [f"val/{SPECIES[label]}/{number:04d}.jpg" for number, label in enumerate(labels)]
    (path / "predictions").mkdir(exist_ok=True)
    np.savez(
        path / "predictions" / f"{name}.npz",
        scores=scores,
        labels=labels,
        files=np.array(files),
        classes=np.array(SPECIES),
        config=np.array(json.dumps(config)),
        **({} if old else {"epoch": np.array(epoch)}),
    )
    accuracy = float((predicted == labels).mean())
    return {
        "val_accuracy": accuracy,
        "val_micro_f1": accuracy,
        "val_error": 1 - accuracy,
        "val_macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


def _trial(name: str, config: dict, rows: list[dict], broken: bool) -> dict:
    metrics = {key: value for key, value in rows[-1].items() if key.startswith(("train_", "val_"))}
    return {
        "trial": name,
        "part": "norms",
        "state": "diverged" if broken else "finished",
        "error": DIVERGED if broken else "",
        "epochs_run": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "seconds_per_epoch": sum(row["seconds"] for row in rows) / len(rows),
        "peak_memory_mib": 100 + 5 * NORMS.index(config["norm"]),
        **config,
        **metrics,
        "lr": rows[-1]["lr"],
    }


def _study(planned: list, norms, seeds: int, recipes, data_kind: str) -> dict:
    grid = {"norm": list(norms), "seed": list(range(seeds))}
    if recipes:
        grid["recipe"] = list(recipes)
    return {
        "study": "norms",
        "question": "Which normalisation layer trains a small ResNet best?",
        "scale": "demo",
        "parts": ["norms"],
        "grid": grid,
        "constants": {"n": 2, "image_size": 32, "batch_size": 32},
        "notes": [],
        "metric": "val_accuracy",
        "mode": "max",
        "trials": planned,
        "command": [
            "python",
            "studies/norms.py",
            "--data-dir",
            "/home/someone/data",
            "--name",
            "x",
        ],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "ray": "2.60.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "hardware": {"system": "Linux x86_64", "processor": "a CPU", "cores": 2, "gpus": []},
        "data": {
            "kind": data_kind,
            "description": "25 drawn bird species",
            "counts": {
                "train": {name: 60 for name in SPECIES},
                "val": {name: IMAGES // len(SPECIES) for name in SPECIES},
            },
            "classes": list(SPECIES),
            "image_size": 32,
            "fingerprint": "sha256:00ff",
            "duplicates": 1,
            "duplicate_examples": [["train/Hoopoe/1.jpg", "val/Hoopoe/9.jpg"]],
            "skipped": ["train/Hoopoe/broken.jpg"],
        },
        "slot": {"cpu": 1},
        "started": "2026-11-22T07:00:00Z",
        "seconds": 301.5,
    }


def _write_csv(file: Path, rows: list[dict]) -> None:
    header = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
