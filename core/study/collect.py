"""The tables of a study, `trials.csv` and `history.csv`, from what its trials recorded."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.storage.files import names, read_bytes, read_json, write_bytes, write_json, write_text
from core.trial import records

KEPT_APART = ("epoch", "seconds")


def collect(folder: Path, metric: str, mode: str) -> list[dict[str, Any]]:
    """Write `trials.csv`, `history.csv` and `checkpoints/` of a result folder.

    A trial without a recorded end is kept as "unfinished", with the epochs it has.

    In `trials.csv` the column of a setting holds the setting. What a trial reported under the same
    name (such as the learning rate `lr` of an epoch) is there as `last_lr`, of the last epoch, and
    what it noted as `noted_lr`. `history.csv` keeps what was reported under its own name; a
    compared setting of that name is `set_lr` there.

    Returns:
        The rows of `trials.csv`.

    Raises:
        UserError: study.json names a trial as no trial is named.
        StorageError: a record cannot be read, or no table be written.
    """
    study = read_json(folder / "study.json")
    keys = [key for key in study["grid"] if key in study["trials"][0]["config"]]
    settings = {key for planned in study["trials"] for key in planned["config"]}
    found = []
    for planned in study["trials"]:
        if Path(planned["trial"]).name != planned["trial"]:  # it would lead out of the folder
            raise UserError(
                f"{folder / 'study.json'} names a trial {planned['trial']!r}, which is no name of"
                " a folder: restore it from a copy"
            )
        at = folder / "trials" / planned["trial"]
        rows = sorted(records.read_rows(at), key=lambda row: row.get("epoch", 0))
        result = records.read_result(at) or {"state": "unfinished", "error": "never ended"}
        found.append((planned, rows, result))
    facts = {key for _, _, result in found for key in result.get("facts", {})}
    reported = {key for _, rows, _ in found for row in rows for key in row}
    trials, history = [], []
    for planned, rows, result in found:
        scored = planned.get("metric", metric)  # a search's trials are not scored by the study's
        trials.append(_trial_row(planned, rows, result, scored, mode, settings, facts))
        own = {"trial": planned["trial"], "part": planned["part"]}
        shown = _renamed({key: planned["config"][key] for key in keys}, reported, "set")
        history += [{**own, **shown, **_renamed(row, own, "epoch")} for row in rows]
    _write_csv(folder / "trials.csv", trials)
    _write_csv(folder / "history.csv", history, empty=("trial", "part", *keys, "epoch"))
    _keep_best(folder, trials, metric, mode)
    return trials


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an existing `trials.csv`."""
    frame = pd.read_csv(folder / "trials.csv", keep_default_na=False)
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def best_row(rows: Sequence[Mapping[str, Any]], metric: str, mode: str) -> Mapping[str, Any] | None:
    """Return the first row with the best value of `metric`; None when no row has one."""
    having = [row for row in rows if row.get(metric) is not None]
    if not having:
        return None
    return (max if mode == "max" else min)(having, key=lambda row: row[metric])


def _trial_row(
    planned: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    metric: str,
    mode: str,
    settings: Collection[str],
    facts: Collection[str],
) -> dict[str, Any]:
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    best = best_row(rows, metric, mode)
    own = {
        "trial": planned["trial"],
        "part": planned["part"],
        "state": result["state"],
        "error": "" if result["state"] == "stopped" else result["error"],
        "stopped_by": result["error"] if result["state"] == "stopped" else "",
        "epochs_run": rows[-1].get("epoch", len(rows)) if rows else 0,
        "seconds": result.get("seconds"),
        "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else None,
        "peak_memory_mib": result.get("peak_memory_mib"),
        "peak_allocated_mib": result.get("peak_allocated_mib"),
    }
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if k not in KEPT_APART}
    return {
        **own,
        **_renamed(planned["config"], own, "set"),
        **_renamed(result.get("facts", {}), {*own, *settings}, "noted"),
        **_renamed(last, {*own, *settings, *facts}, "last"),
        "best_epoch": best.get("epoch") if best else None,
        f"best_{metric}": best[metric] if best else None,
    }


def _renamed(values: Mapping[str, Any], taken: Collection[str], prefix: str) -> dict[str, Any]:
    """Return `values` with a prefix to those names that are taken."""
    return {f"{prefix}_{k}" if k in taken else k: value for k, value in values.items()}


def _keep_best(folder: Path, trials: Sequence[Mapping[str, Any]], metric: str, mode: str) -> None:
    """Copy the weights of the best trial's best epoch to `checkpoints/`, with its config."""
    ended = [t for t in trials if t["state"] in ("finished", "stopped")]
    having = [t for t in ended if "best.pt" in names(folder / "trials" / t["trial"])]
    best = best_row(having, f"best_{metric}", mode)
    if best is None:
        return
    target = folder / "checkpoints"
    target.mkdir(exist_ok=True)
    write_bytes(target / "best.pt", read_bytes(folder / "trials" / best["trial"] / "best.pt"))
    config = next(
        p["config"]
        for p in read_json(folder / "study.json")["trials"]
        if p["trial"] == best["trial"]
    )
    write_json(
        target / "best.json",
        {
            "trial": best["trial"],
            "epoch": best["best_epoch"],
            metric: best[f"best_{metric}"],
            "config": config,
        },
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], empty: Sequence[str] = ()) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row)) or list(empty)
    frame = pd.DataFrame([dict(row) for row in rows], columns=columns)
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n")
    write_text(path, text.getvalue())
