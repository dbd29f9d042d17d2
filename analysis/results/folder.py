"""Read a finished (or interrupted) result folder: study.json, trials.csv, history.csv, predictions.

Nothing else of the folder is opened, so a copy without the engine's own files reads the same;
only `places` asks for one of these.
"""

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from core.storage.files import read_json

# What reading a damaged .npz raises; zlib's error is that of a byte that changed within.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
# Columns that stay text whatever they hold: a trial called "00012" is not the number 12.
_TEXT = {"trial", "part", "state", "error"}
_STUDY_KEYS = ("study", "question", "grid", "metric", "trials")
_METRICS = ("loss", "accuracy", "error", "micro_f1", "macro_f1", "map")  # of train and val alike
_STATES = ("finished", "failed", "diverged", "stopped", "unfinished")


@dataclass(frozen=True)
class Results:
    """One result folder."""

    path: Path
    study: dict[str, Any]  # the content of study.json
    # A row per trial, in the order of the study, with `state` one of finished, failed, diverged,
    # stopped, unfinished; trials that never started are there as unfinished.
    trials: pd.DataFrame
    # A row per trial and epoch (counted from 1), sorted; with every config column.
    history: pd.DataFrame

    @property
    def data(self) -> dict[str, Any]:
        """What the study recorded of its images."""
        return self.study.get("data") or {}

    @property
    def synthetic(self) -> bool:
        """Whether the images were generated."""
        return self.data.get("kind") == "synthetic"

    def levels(self, key: str) -> list[Any]:
        """Values of a grid key that occur among the trials, in the order the study lists them."""
        if key not in self.trials:
            return []
        present = set(self.trials[key].dropna())
        listed = [value for value in self.study["grid"].get(key, []) if value in present]
        return listed + sorted(present - set(listed), key=str)

    def where(self, **config: Any) -> "Results":
        """The same study cut down to the trials with these config values."""
        trials, history = self.trials, self.history
        for key, value in config.items():
            trials = trials[trials[key] == value]
        history = history[history["trial"].isin(trials["trial"])].reset_index(drop=True)
        return replace(self, trials=trials.reset_index(drop=True), history=history)

    def at_best(self) -> pd.DataFrame:
        """`trials` with the metrics of each trial's best epoch, whose weights and scores are kept.

        `train_*` are then those of these weights on unaugmented images, where they were measured.
        """
        if "best_epoch" not in self.trials:
            return self.trials
        best = self.trials.set_index("trial")["best_epoch"]
        rows = self.history[self.history["epoch"] == self.history["trial"].map(best)]
        settings = {key for entry in self.study["trials"] for key in entry.get("config", {})}
        names = [c for c in map(str, rows) if c.startswith(("train_", "val_"))]
        names = [c for c in names if c not in settings]
        found = rows.set_index("trial")[names].reindex(self.trials["trial"]).reset_index(drop=True)
        fixed = [c for c in map(str, self.trials) if c.startswith("best_train_")]
        found = found.assign(**{c.removeprefix("best_"): self.trials[c] for c in fixed})
        return self.trials.drop(columns=found.columns, errors="ignore").join(found)

    def reported(self, trial: str, epoch: int | None) -> dict[str, Any]:
        """What a trial reported after an epoch; None: after its last."""
        table = self.trials if epoch is None else self.history[self.history["epoch"] == epoch]
        row = table[table["trial"] == trial].iloc[0]
        return {str(key): value for key, value in row.items()}

    def with_predictions(self, states: Collection[str] = ()) -> list[str]:
        """Names of the trials (in one of `states`, if any are given) whose scores are stored."""
        stored = {file.stem for file in (self.path / "predictions").glob("*.npz")}
        trials = self.trials[self.trials["state"].isin(states)] if states else self.trials
        return [trial for trial in trials["trial"] if trial in stored]


@dataclass(frozen=True)
class Predictions:
    """Scores of one trial on the validation images."""

    scores: np.ndarray  # logits (N, C), float32; imported ones float64, maybe probabilities
    labels: np.ndarray  # int64 (N,) for one class an image, (N, C) of 1, 0 (ignored), -1 for more
    files: tuple[str, ...]  # N names relative to the data root
    classes: tuple[str, ...]  # C names
    config: dict[str, Any]  # of the trial
    epoch: int | None = None  # of the weights that gave the scores; None: the last


def load(path: str | Path) -> Results:
    """Read the result folder `path`.

    Raises UserError: a file is missing or damaged; the message names it.

    Args:
        path: a folder with study.json, trials.csv and history.csv.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a result folder; give one such as results/<study>/<name>")
    study = _read_study(path / "study.json")
    trials = _read_table(path / "trials.csv", required=("trial", "state"))
    history = _read_table(path / "history.csv", required=("trial", "epoch"))
    trials = trials.drop_duplicates("trial", keep="last")
    trials = _complete(trials, study, {str(key) for key in history})
    history = _sorted_history(history, trials, study)
    return Results(path, study, _named_running(trials), _named_running(history))


def train_metric(table: pd.DataFrame, metric: str) -> str:
    """Return the column of a training metric: with fixed weights where measured, else running."""
    fixed = f"train_{metric}"
    return fixed if fixed in table and table[fixed].notna().any() else f"{fixed}_running"


def _named_running(table: pd.DataFrame) -> pd.DataFrame:
    """Name figures of augmented batches and moving weights running: once they were `train_*`."""
    fixed = "train_eval" in table and bool(table["train_eval"].eq(True).any())
    if fixed or any(c.endswith("_running") for c in map(str, table)):
        return table
    scored = [m for m in _METRICS if f"val_{m}" in table or f"heldout_{m}" in table]
    return table.rename(columns={f"train_{m}": f"train_{m}_running" for m in scored})


def private(path: Path) -> dict[str, Any]:
    """Return the engine's note of where images and weights were (.private.json), if it is there.

    Raises StorageError: the note is there and cannot be read.
    """
    file = path / ".private.json"
    return read_json(file) if file.is_file() else {}


@contextmanager
def arrays(path: Path, trial: str) -> Iterator[Mapping[str, np.ndarray]]:
    """Open `path`/predictions/`trial`.npz to read arrays by their names; pickled ones are refused.

    Raises UserError: the file is missing or damaged, or lacks an array that is asked for.
    """
    name = f"predictions/{trial}.npz"
    try:
        # By way of memory: np.load leaves a damaged file open.
        content = io.BytesIO((path / name).read_bytes())
        with np.load(content, allow_pickle=False) as stored:
            yield stored
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{name} cannot be read ({type(error).__name__}): restore it, or delete it to report "
            "without it"
        ) from error


def about_arrays(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return classes, config and epoch of an opened file, as `Predictions` has them."""
    return {
        "classes": tuple(stored["classes"].tolist()),
        "config": json.loads(str(stored["config"])),
        "epoch": int(stored["epoch"]) if "epoch" in stored else None,
    }


def load_predictions(path: Path, trial: str) -> Predictions:
    """Read the scores of a trial.

    Raises UserError: the file is missing or damaged, or holds scores that are not finite.
    """
    name = f"predictions/{trial}.npz"
    with arrays(path, trial) as stored:
        files = tuple(stored["files"].tolist())
        about = about_arrays(stored)
        found = Predictions(stored["scores"], stored["labels"], files, **about)
    if len(found.scores) != len(found.labels) or not np.isfinite(found.scores).all():
        raise UserError(
            f"{name} holds scores that are not finite or not one row per label: restore it, or "
            "delete it to report without it"
        )
    return found


def _read_study(file: Path) -> dict[str, Any]:
    study = read_json(file)
    missing = [key for key in _STUDY_KEYS if not isinstance(study, dict) or key not in study]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: it is not a study's declaration")
    return study


def _read_table(file: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV with empty cells as the only missing values ("none" is a norm, not a hole)."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            header = next(reader, None)
            rows = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: this is not a whole result folder") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it from a copy") from error
    if header == [] and not rows and "epoch" in required:  # how no epoch at all was once written
        header = list(required)
    header = header or []
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(f"{file} lacks the column {', '.join(missing)}: restore it from a copy")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{file} is damaged: row {line} has {len(row)} cells, the header {len(header)}; "
                "restore it from a copy"
            )
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return pd.DataFrame(
        {name: _typed(name, cells) for name, cells in zip(header, columns, strict=True)},
        columns=header,
    )


def _typed(name: str, cells: Sequence[str]) -> pd.Series:
    """Integers, floats or booleans when every filled cell is one, else text."""
    if name in _TEXT:
        return pd.Series(list(cells), dtype=object)
    full = bool(cells) and all(cells)
    if full and set(cells) <= {"True", "False"}:
        return pd.Series([cell == "True" for cell in cells], dtype=bool)
    if not any("_" in cell for cell in cells):  # int() and float() take "1_000" for a number
        with suppress(ValueError, OverflowError):
            if full:
                return pd.Series([int(cell) for cell in cells])
        with suppress(ValueError):
            return pd.Series([float(cell or "nan") for cell in cells], dtype=float)
    return pd.Series([cell or None for cell in cells], dtype=object)


def _complete(
    trials: pd.DataFrame, study: dict[str, Any], reported: Collection[str]
) -> pd.DataFrame:
    """Add the declared trials that have no row yet, put all in the study's order, check states.

    What is compared, and settings that share their name with a reported metric, such as lr, are
    taken from the declaration: earlier versions wrote the metric of the last epoch in their column.
    """
    planned = {entry["trial"]: entry for entry in study["trials"]}
    absent = [
        {"trial": name, "part": entry.get("part", ""), "state": "unfinished", "error": ""}
        | entry.get("config", {})
        for name, entry in planned.items()
        if name not in set(trials["trial"])
    ]
    rows = trials.to_dict("records") + absent
    for row in rows:
        config = planned.get(row["trial"], {}).get("config", {})
        for key in {*study["grid"], *reported} & config.keys():
            row[key] = math.nan if config[key] is None else config[key]
    unknown = {row["state"] for row in rows} - set(_STATES)
    if unknown:
        raise UserError(
            f"trials.csv holds the state {sorted(unknown)[0]!r}, not one of {', '.join(_STATES)}"
        )
    place = {name: number for number, name in enumerate(planned)}
    rows.sort(key=lambda row: (place.get(row["trial"], len(place)), row["trial"]))
    columns = dict.fromkeys([*trials, *(key for row in rows for key in row)])
    return pd.DataFrame(rows, columns=list(columns))


def _sorted_history(
    history: pd.DataFrame, trials: pd.DataFrame, study: dict[str, Any]
) -> pd.DataFrame:
    """Drop epochs told twice (a resumed trial repeats its last one), add state and config."""
    history = history.drop_duplicates(["trial", "epoch"], keep="last")
    history = history[history["trial"].isin(trials["trial"])]
    history = history.drop(columns=[key for key in ("part", "state") if key in history])
    config = {key for entry in study["trials"] for key in entry.get("config", {})}
    keys = [key for key in trials if key in {"part", "state", *config} and key not in history]
    history = history.merge(trials[["trial", *keys]], on="trial", how="left")
    place = {name: number for number, name in enumerate(trials["trial"])}
    order = history.assign(trial=history["trial"].map(place)).sort_values(["trial", "epoch"])
    return history.loc[order.index].reset_index(drop=True)
