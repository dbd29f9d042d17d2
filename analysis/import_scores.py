"""Bring the scores of any other program as a result folder, to report and browse them like ours.

    python analysis/import_scores.py scores.csv.gz --name resnet18
    python analysis/import_scores.py scores.csv --labels labels.csv --name theirs --logits
    python analysis/browse.py results/voc/resnet18 --data-dir VOCdevkit

A scores file is a CSV, plain or compressed (.gz, .bz2, .xz, .zip), with a row per image:

    image,score_cat,score_dog,label_cat,label_dog
    2008_000002,0.93,0.04,1,0
    2008_000003,0.11,0.72,-1,1

The first column names the image: its path relative to the data root, or, with --files, the part
that is put in for {image}, as in --files "VOC2012/JPEGImages/{image}.jpg". Labels are 1 present, -1
absent, 0 only objects marked difficult (ignored); a file without any -1 uses 0 for absent. They may
stand in a file of their own (--labels), joined by the first column, its columns the class names
with or without label_; then the columns of scores need no score_ either.
"""

from __future__ import annotations

import datetime
import io
import json
import re
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro

from analysis import ranking, tables
from core.errors import UserError
from core.progress import patient_output
from core.storage import write_bytes, write_json, write_text

TRIAL = "imported"


@dataclass(frozen=True)
class Options:
    """Bring the scores of any other program as a result folder.

    Attributes:
        scores: CSV of scores, and labels unless --labels is given.
        name: of the result folder, results/<study>/<name>.
        study: whose report and page read them.
        labels: CSV of labels.
        logits: the scores are logits: a class counts as present above 0.
        probabilities: the scores are probabilities: a class counts as present above 0.5. Without
            either of the two, scores that all lie in [0, 1] are taken for probabilities.
        files: path of an image below the data root, with {image} for the first column.
        results_dir: where results go.
    """

    scores: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SCORES")]]
    name: str
    study: str = "voc"
    labels: Path | None = None
    logits: tyro.conf.FlagCreatePairsOff[bool] = False
    probabilities: tyro.conf.FlagCreatePairsOff[bool] = False
    files: str = "{image}"
    results_dir: Path = Path("results")


@dataclass(frozen=True)
class Scored:
    """Scores and labels of images.

    Attributes:
        images: N names, as the first column has them.
        classes: C names.
        scores: (N, C) float32.
        signs: (N, C) int8: 1 present, 0 ignored, -1 absent.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    scores: np.ndarray
    signs: np.ndarray


@patient_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Import as `argv` says; return 0, or 2 when something given cannot be used."""
    opts = tyro.cli(Options, args=argv, description=__doc__)
    try:
        folder = import_scores(opts, sys.argv[1:] if argv is None else argv)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    print(f"imported: {folder}; browse it by: python analysis/browse.py {folder}")
    return 0


def import_scores(opts: Options, argv: Sequence[str] = ()) -> Path:
    """Write the result folder of a scores file and return it.

    Raises:
        UserError: a file that cannot be used, or a folder that holds a study already.
    """
    for option, value in (("--name", opts.name), ("--study", opts.study)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise UserError(f"{option} {value}: use letters, digits, dot, dash and underscore")
    folder = opts.results_dir / opts.study / opts.name
    if (folder / "study.json").exists():
        raise UserError(f"{folder} already holds a study: choose another --name")
    found = read(opts.scores, opts.labels)
    kind = _kind(found.scores, opts)
    files = [_file(opts.files, image) for image in found.images]
    repeated = pd.Series(files)[pd.Series(files).duplicated()]
    if len(repeated):
        raise UserError(f"--files {opts.files}: several images become {repeated.iloc[0]}")
    config = {"scores": kind, "source": opts.scores.name}
    write_bytes(folder / "predictions" / f"{TRIAL}.npz", _npz(found, files, config))
    trials = pd.DataFrame([_row(found, kind, config)])
    write_text(folder / "trials.csv", tables.to_csv(trials))
    write_text(folder / "history.csv", "trial,part,epoch\n")  # how they were trained is not known
    write_json(folder / "study.json", _declaration(opts, found, config, argv))
    return folder


# ---- reading ----


def read(scores: Path, labels: Path | None = None) -> Scored:
    """Read a scores file, and a labels file if there is one.

    Raises:
        UserError: a file that cannot be used; the message names it and the column or image.
    """
    table = _table(scores)
    own = [name for name in table.columns[1:] if name.startswith("score_")]
    if labels is not None and not own:
        own = [name for name in table.columns[1:] if not name.startswith("label_")]
    classes = tuple(name.removeprefix("score_") for name in own)
    wanted = [f"label_{name}" for name in classes]
    if labels is not None:
        marked = _aligned(_table(labels), labels, table.iloc[:, 0], classes)
    else:
        lacking = [name for name in wanted or ["score_<class>"] if name not in table.columns]
        if lacking:
            raise UserError(
                f"{scores}: there is no column {lacking[0]}; give scores as score_<class> and "
                "labels as label_<class>, or the labels as a file of their own by --labels"
            )
        marked = table[wanted]
    values = _numbers(table[own], scores)
    truth = _numbers(marked.set_axis(wanted, axis=1), labels or scores)
    if not np.isin(truth, (1, 0, -1)).all():
        raise UserError(f"{labels or scores}: labels must be 1 (present), -1 (absent) or 0")
    signs = ranking.signs(truth.astype(np.int8), len(classes))
    return Scored(tuple(table.iloc[:, 0]), classes, values.astype(np.float32), signs)


def _table(file: Path) -> pd.DataFrame:
    """Read a CSV as text, its first column the names of images."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise UserError(f"{file}: there is no such file; give a CSV of scores") from e
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"{file} cannot be read as a CSV ({why}): export it again") from e
    if table.shape[1] < 2 or not len(table):
        raise UserError(f"{file}: a column of names, columns of numbers and rows are needed")
    names = table.iloc[:, 0]
    if names.duplicated().any():
        raise UserError(f"{file}: {names[names.duplicated()].iloc[0]} has several rows; keep one")
    return table


def _aligned(
    table: pd.DataFrame, file: Path, images: pd.Series, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Return the rows of a labels file in the order of the scores, its columns in theirs."""
    labelled = table.set_index(table.columns[0])
    labelled.columns = [name.removeprefix("label_") for name in labelled.columns]
    lacking = [name for name in classes if name not in labelled.columns]
    if lacking:
        raise UserError(f"{file}: there are no labels of the class {lacking[0]}")
    absent = images[~images.isin(labelled.index)]
    if len(absent):
        raise UserError(
            f"{file}: there are no labels of {len(absent):,} images of the scores, as "
            f"{absent.iloc[0]}; name images alike in both files"
        )
    return labelled.loc[list(images), list(classes)]


def _numbers(table: pd.DataFrame, file: Path) -> np.ndarray:
    """Return columns of text as finite numbers (N, C)."""
    found = []
    for name in table.columns:
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            said = str(table[name].iloc[bad[0]])[:40]
            raise UserError(
                f"{file}: column {name}, row {bad[0] + 2} holds {said!r}, not a finite number"
            )
        found.append(values)
    return np.stack(found, axis=1)


def _kind(scores: np.ndarray, opts: Options) -> str:
    if opts.logits and opts.probabilities:
        raise UserError("--logits and --probabilities exclude each other: give one")
    fits = ranking.are_probabilities(scores)
    if opts.probabilities and not fits:
        raise UserError(f"--probabilities: {opts.scores} holds scores outside [0, 1]")
    return "logits" if opts.logits or not fits else "probabilities"


def _file(pattern: str, image: str) -> str:
    """Return an image's path below the data root."""
    if "{image}" not in pattern:
        raise UserError(f"--files {pattern}: put {{image}} where the image's name stands")
    file = pattern.replace("{image}", image)
    path = PurePosixPath(file)
    if not image or path.is_absolute() or ".." in path.parts or "\0" in file:
        raise UserError(f"image {image!r}: names must be relative to the data root, without ..")
    return path.as_posix()


# ---- writing ----


def _npz(found: Scored, files: list[str], config: dict[str, Any]) -> bytes:
    """Return what `core.trial.save_predictions` would have stored."""
    out = io.BytesIO()
    np.savez_compressed(
        out,
        scores=found.scores,
        labels=found.signs,
        files=np.array(files),
        classes=np.array(found.classes),
        config=np.array(json.dumps(config, sort_keys=True)),
    )
    return out.getvalue()


def _row(found: Scored, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the trial's row: its metrics are computed from the scores."""
    from core.metrics import average_precision  # brings torch: not needed to say what is wrong

    ap = average_precision(found.scores, found.signs)
    predicted = found.scores > ranking.decision_threshold(found.scores, kind)
    counted = found.signs != ranking.IGNORED
    right = predicted == (found.signs == ranking.PRESENT)
    return {
        "trial": TRIAL,
        "part": TRIAL,
        "state": "finished",
        "error": "",
        "epochs_run": 0,
        **config,
        "val_map": float(np.nanmean(ap)) if np.isfinite(ap).any() else None,
        "val_accuracy": float(right[counted].mean()) if counted.any() else None,
    }


def _declaration(
    opts: Options, found: Scored, config: dict[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    from core import provenance

    present = (found.signs == ranking.PRESENT).sum(axis=0)
    difficult = (found.signs == ranking.IGNORED).sum(axis=0)
    counts = {
        name: {"val": dict(zip(found.classes, values.tolist(), strict=True))}
        for name, values in (("counts", present), ("difficult_counts", difficult))
    }
    return {
        "study": opts.study,
        "question": f"How well do the scores in {opts.scores.name} rank the images of each class?",
        "scale": "imported",
        "parts": [TRIAL],
        "notes": [f"scores of another program, imported from {opts.scores.name}"],
        "grid": {},
        "constants": config,
        "metric": "val_map",
        "mode": "max",
        "trials": [{"trial": TRIAL, "part": TRIAL, "config": config}],
        "data": {
            "kind": "imported",
            "description": f"scores ({config['scores']}) of another program",
            "classes": list(found.classes),
            **counts,
            "images": {"val": len(found.images)},
        },
        "command": ["python", "analysis/import_scores.py", *argv],
        "git": provenance.git(),
        "versions": provenance.versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    # Python puts this folder first in its path, where statistics.py would hide its own module.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    sys.exit(main())
