"""The tables of a study, `trials.csv` and `history.csv`, from what its trials recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.storage.files import names, read_bytes, read_json, write_bytes, write_json, write_text
from core.trial import records

KEPT_APART = ("epoch", "seconds")
Row = Mapping[str, Any]


def collect(folder: Path, metric: str, mode: str) -> list[dict[str, Any]]:
    """Write `trials.csv`, `history.csv` and `checkpoints/` of a result folder.

    A trial without a recorded end is kept as "unfinished", with the epochs it has.

    In `trials.csv` the column of a setting holds the setting. What a trial reported under the same
    name (such as the learning rate `lr` of an epoch) is there as `last_lr`, of the last epoch, and
    what it noted as `noted_lr`. `history.csv` keeps what was reported under its own name; a
    compared setting of that name is `set_lr` there. Raises UserError: study.json names a trial as
    no trial is named; StorageError: a record cannot be read, or no table be written.

    Returns:
        The rows of `trials.csv`.
    """
    study = read_json(folder / "study.json")
    keys = [key for key in study["grid"] if key in study["trials"][0]["config"]]
    found = [(planned, *_recorded(folder, planned["trial"])) for planned in study["trials"]]
    settings = {key for planned, _, _ in found for key in planned["config"]}
    noted = settings | {key for _, _, result in found for key in result.get("facts", {})}
    reported = {key for _, rows, _ in found for row in rows for key in row}
    trials, history = [], []
    for planned, rows, result in found:
        own, last = _own(planned, rows, result), rows[-1] if rows else {}
        scored = planned.get("metric", metric)  # a search's trials are not scored by the study's
        best = best_row(rows, scored, mode) or {}
        trials.append(
            own
            | _renamed(planned["config"], own, "set")
            | _renamed(result.get("facts", {}), {*own, *settings}, "noted")
            | _renamed({k: last[k] for k in last if k not in KEPT_APART}, {*own, *noted}, "last")
            | {"best_epoch": best.get("epoch"), f"best_{scored}": best.get(scored)}
        )
        whose = {key: own[key] for key in ("trial", "part")}
        shown = whose | _renamed({key: planned["config"][key] for key in keys}, reported, "set")
        history += [shown | _renamed(row, whose, "epoch") for row in rows]
    _write_csv(folder / "trials.csv", trials)
    _write_csv(folder / "history.csv", history, empty=("trial", "part", *keys, "epoch"))
    _keep_best(folder, study["trials"], trials, metric, mode)
    return trials


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an existing `trials.csv`."""
    frame = pd.read_csv(folder / "trials.csv", keep_default_na=False)
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def best_row(rows: Sequence[Row], metric: str, mode: str) -> Row | None:
    """Return the first row with the best value of `metric`; None when no row has one."""
    having = [row for row in rows if row.get(metric) is not None]
    return (max if mode == "max" else min)(having, key=lambda row: row[metric], default=None)


def _recorded(folder: Path, trial: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of a trial in the order of their epochs, and how it ended."""
    if Path(trial).name != trial:  # it would lead out of the folder
        raise UserError(
            f"{folder / 'study.json'} names a trial {trial!r}, which is no name of"
            " a folder: restore it from a copy"
        )
    at = folder / "trials" / trial
    rows = sorted(records.read_rows(at), key=lambda row: row.get("epoch", 0))
    return rows, records.read_result(at) or {"state": "unfinished", "error": "never ended"}


def _own(planned: Mapping[str, Any], rows: Sequence[Row], result: Row) -> dict[str, Any]:
    """Return the columns that `trials.csv` has of every study."""
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    stopped = result["state"] == "stopped"
    return {
        "trial": planned["trial"],
        "part": planned["part"],
        "state": result["state"],
        "error": "" if stopped else result["error"],
        "stopped_by": result["error"] if stopped else "",
        "epochs_run": rows[-1].get("epoch", len(rows)) if rows else 0,
        "seconds": result.get("seconds"),
        "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else None,
        "peak_memory_mib": result.get("peak_memory_mib"),
        "peak_allocated_mib": result.get("peak_allocated_mib"),
    }


def _renamed(values: Mapping[str, Any], taken: Collection[str], prefix: str) -> dict[str, Any]:
    """Return `values` with a prefix to those names that are taken."""
    return {f"{prefix}_{k}" if k in taken else k: value for k, value in values.items()}


def _keep_best(
    folder: Path, planned: Sequence[Row], trials: Sequence[Row], metric: str, mode: str
) -> None:
    """Copy the weights of the best trial's best epoch to `checkpoints/`, with its config."""
    ended = [t for t in trials if t["state"] in ("finished", "stopped")]
    having = [t for t in ended if "best.pt" in names(folder / "trials" / t["trial"])]
    best = best_row(having, f"best_{metric}", mode)
    if best is None:
        return
    name, target = best["trial"], folder / "checkpoints"
    write_bytes(target / "best.pt", read_bytes(folder / "trials" / name / "best.pt"))
    kept = {"trial": name, "epoch": best["best_epoch"], metric: best[f"best_{metric}"]}
    kept["config"] = next(p["config"] for p in planned if p["trial"] == name)
    write_json(target / "best.json", kept)


def _write_csv(path: Path, rows: Sequence[Row], empty: Sequence[str] = ()) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row)) or list(empty)
    frame = pd.DataFrame(rows, columns=columns)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
