"""Bring the scores of any other program as a result folder, to report and browse them like ours.

    python analysis/import_scores.py scores.csv.gz --name resnet18
    python analysis/import_scores.py scores.csv --labels labels.csv --name theirs --logits
    python analysis/browse.py results/voc/resnet18 --data-dir VOCdevkit

A scores file is a CSV (separated by commas, semicolons or tabs), plain or compressed (.gz, .bz2,
.xz, .zip), with a row per image:

    image,score_cat,score_dog,label_cat,label_dog
    2008_000002,0.93,0.04,1,0
    2008_000003,0.11,0.72,-1,1

The column `image`, or else the first, names the image: its path relative to the data root, or, with
--files, the part put in for {image}, as in --files "VOC2012/JPEGImages/{image}.jpg". Labels are 1
present, -1 absent, 0 only objects marked difficult (ignored); a file without any -1 is taken to use
0 for absent. Either is said where --zero does not say what 0 means. Labels may stand in a file of
their own (--labels), joined by the names, its columns the classes with or without label_; then the
columns of scores need no score_ either.
"""

import bz2
import codecs
import csv
import datetime
import gzip
import io
import json
import lzma
import math
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import tyro

from analysis.command import run
from analysis.document import tables
from analysis.results import ranking
from core import provenance
from core.errors import UserError
from core.storage.files import write_bytes, write_json, write_text

TRIAL = "imported"
Zero = Literal["absent", "ignored"]
_UNREADABLE = (csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


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
        zero: what a label 0 means: absent, or ignored (only objects marked difficult). Without it:
            ignored where -1 occurs in the file, else absent.
        files: path of an image below the data root, with {image} for the first column.
        results_dir: where results go.
    """

    scores: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SCORES")]]
    name: str
    study: str = "voc"
    labels: Path | None = None
    logits: tyro.conf.FlagCreatePairsOff[bool] = False
    probabilities: tyro.conf.FlagCreatePairsOff[bool] = False
    zero: Zero | None = None
    files: str = "{image}"
    results_dir: Path = Path("results")


@dataclass(frozen=True)
class Scored:
    """Scores and labels of images."""

    images: tuple[str, ...]  # N names, as their column has them
    classes: tuple[str, ...]  # C names
    scores: np.ndarray  # (N, C) float64: the file's own numbers, or the ranking has other ties
    signs: np.ndarray  # (N, C) int8: 1 present, 0 ignored, -1 absent
    zero: Zero  # what a 0 in the file was taken for


def main(argv: Sequence[str] | None = None) -> int:
    """Import as `argv` says; return 0, or 2 when something given cannot be used."""
    words = sys.argv[1:] if argv is None else argv
    return run(lambda opts: import_scores(opts, words), Options, __doc__, words)


def import_scores(opts: Options, argv: Sequence[str]) -> None:
    """Write the result folder of a scores file and name it.

    Raises UserError: a file that cannot be used, or a folder that holds a study already.
    """
    for option, value in (("--name", opts.name), ("--study", opts.study)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise UserError(f"{option} {value}: use letters, digits, dot, dash and underscore")
    folder = opts.results_dir / opts.study / opts.name
    if (folder / "study.json").exists():
        raise UserError(f"{folder} already holds a study: choose another --name")
    found = read(opts.scores, opts.labels, opts.zero)
    kind = _kind(found.scores, opts)
    files = [_file(opts.files, image) for image in found.images]
    repeated = pd.Series(files)[pd.Series(files).duplicated()]
    if len(repeated):
        raise UserError(f"--files {opts.files}: several images become {repeated.iloc[0]}")
    config = {"scores": kind, "zero": found.zero, "source": opts.scores.name}
    taken = _taken(opts, found, kind)
    for sentence in taken:
        print(sentence)
    write_bytes(folder / "predictions" / f"{TRIAL}.npz", _npz(found, files, config))
    trials = pd.DataFrame([_row(found, kind, config)])
    write_text(folder / "trials.csv", tables.to_csv(trials))
    write_text(folder / "history.csv", "trial,part,epoch\n")  # how they were trained is not known
    write_json(folder / "study.json", _declaration(opts, found, config, argv, taken))
    print(f"imported: {folder}; browse it by: python analysis/browse.py {folder}")


def _taken(opts: Options, found: Scored, kind: str) -> list[str]:
    """Say what was taken for granted, and which option says otherwise."""
    said = []
    ignored = int((found.signs == ranking.IGNORED).sum())
    if opts.zero is None and found.zero == "absent":
        said.append(
            "no label is -1, so 0 is taken for absent: where it marks difficult objects, say --zero"
            " ignored"
        )
    elif opts.zero is None and ignored:
        said.append(
            f"some labels are -1, so 0 is taken for ignored ({ignored:,} labels that count for"
            " nothing): where it means absent, say --zero absent"
        )
    if not (opts.logits or opts.probabilities):
        low, high = found.scores.min(), found.scores.max()
        cut = "0.5; say --logits where they are none" if kind == "probabilities" else "0"
        said.append(
            f"scores from {low:.9g} to {high:.9g} are taken for {kind} (present above {cut})"
        )
    return said


def read(scores: Path, labels: Path | None = None, zero: Zero | None = None) -> Scored:
    """Read a CSV of scores, and one of labels unless the first holds them.

    A label 0 means `zero`; None: ignored where -1 occurs in the file, else absent. Raises
    UserError: a file that cannot be used; the message names it and the column or image.
    """
    table = _table(scores)
    own = [name for name in table.columns if name.startswith("score_")]
    if labels is not None and not own:
        own = [name for name in table.columns if not name.startswith("label_")]
    classes = tuple(name.removeprefix("score_") for name in own)
    if labels is not None:
        marked = _aligned(_table(labels), labels, table.index, classes)
    else:
        marked = _beside(table, scores, classes)
    values = _numbers(table[own], scores)
    truth = _numbers(marked, labels or scores)
    odd = np.argwhere(~np.isin(truth, (1, 0, -1)))
    if len(odd):
        row, column = odd[0]
        cell = marked.iloc[row, column]
        raise UserError(
            f"{labels or scores}, line {cell.line}, column {marked.columns[column]}: {cell.text!r}:"
            " labels must be 1 (present), -1 (absent) or 0"
        )
    zero = zero or ("ignored" if (truth == -1).any() else "absent")
    signs = truth.astype(np.int8) if zero == "ignored" else ranking.signs(truth == 1, len(classes))
    return Scored(tuple(table.index), classes, values, signs, zero)


def _beside(table: pd.DataFrame, file: Path, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return the labels that stand in the file of the scores."""
    wanted = [f"label_{name}" for name in classes]
    lacking = [name for name in wanted or ["score_<class>"] if name not in table.columns]
    if lacking:
        raise UserError(
            f"{file}: there is no column {lacking[0]}; give scores as score_<class> and "
            "labels as label_<class>, or the labels as a file of their own by --labels"
        )
    return table[wanted]


class _Cell(NamedTuple):
    """A cell's text and the line of the file it stands on."""

    text: str
    line: int


def _table(file: Path) -> pd.DataFrame:
    """Read a CSV as cells, indexed by the names of images; none of these may be there twice."""
    separator, ((_, header), *rows) = _lines(file)
    kept = _named_columns(file, header, [cells for _, cells in rows])
    twice = [name for name, count in Counter(header[k] for k in kept).items() if count > 1]
    if twice:
        raise UserError(f"{file}: the column {twice[0]} is there twice; keep one")
    place = next((k for k in kept if header[k] == "image"), kept[0])
    names = pd.Index([cells[place] for _, cells in rows])
    if names.duplicated().any():
        raise UserError(f"{file}: {names[names.duplicated()][0]} has several rows; keep one")
    # Where the comma does not separate, it is the decimal sign of many a country's spreadsheets.
    comma = "," if separator == "," else "."
    table = {
        header[k]: [_Cell(cells[k].replace(",", comma), line) for line, cells in rows]
        for k in kept
        if k != place
    }
    return pd.DataFrame(table, index=names)


def _lines(file: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return what separates the cells of a CSV, and its header and rows with their line numbers."""
    try:
        text = _text(file)
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        read = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError as e:
        raise UserError(f"{file}: there is no such file; give a CSV of scores") from e
    except (OSError, EOFError, ValueError, RuntimeError, *_UNREADABLE) as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"{file} cannot be read as a CSV ({why}): export it again") from e
    lines = [(line, cells) for line, cells in read if any(cells)]
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise UserError(f"{file}: a column of names, columns of numbers and rows are needed")
    width = len(lines[0][1])
    for line, cells in lines:
        if len(cells) != width:
            raise UserError(
                f"{file}, line {line}: {len(cells)} cells where the header has {width}:"
                " export it again"
            )
    return separator, lines


def _text(file: Path) -> str:
    """Return the text of a file, plain or compressed: UTF-8, or UTF-16 with its mark."""
    if file.suffix.lower() == ".zip":
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            if len(inside) != 1:
                raise ValueError(f"it holds {len(inside)} files, not one")
            content = archive.read(inside[0])
    else:
        with _OPEN.get(file.suffix.lower(), open)(file, "rb") as stream:
            content = stream.read()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig")


def _named_columns(file: Path, header: list[str], rows: list[list[str]]) -> list[int]:
    """Return the places of the columns that count: of those without a name, the images' at most.

    Row numbers, as pandas writes them, are none of theirs.
    """
    bare = [k for k, name in enumerate(header) if re.fullmatch(r"(Unnamed: \d+)?", name)]
    if "image" not in header:
        numbers = [[str(k + start) for k in range(len(rows))] for start in (0, 1)]
        if 0 in bare and [cells[0] for cells in rows] not in numbers:
            bare.remove(0)
        odd = [k + 1 for k in bare if k and any(cells[k] for cells in rows)]
        if odd:
            raise UserError(f"{file}: column {odd[0]} has no name: give it one or take it out")
    named = [k for k in range(len(header)) if k not in bare]
    if "image" not in header and (not named or header[named[0]].startswith(("score_", "label_"))):
        raise UserError(f"{file}: no column names the images: call it image")
    return named


def _aligned(
    labelled: pd.DataFrame, file: Path, images: pd.Index, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Return the rows of a labels file in the order of the scores, its columns in theirs."""
    labelled.columns = [name.removeprefix("label_") for name in labelled.columns]
    lacking = [name for name in classes if name not in labelled.columns]
    if lacking:
        raise UserError(f"{file}: there are no labels of the class {lacking[0]}")
    absent = images[~images.isin(labelled.index)]
    if len(absent):
        raise UserError(
            f"{file}: there are no labels of {len(absent):,} images of the scores, as "
            f"{absent[0]}; name images alike in both files"
        )
    return labelled.loc[list(images), list(classes)]


def _numbers(table: pd.DataFrame, file: Path) -> np.ndarray:
    """Return columns of cells as finite numbers (N, C), each the float64 next to what it says."""
    found = np.empty(table.shape)
    for column, name in enumerate(table.columns):
        for row, cell in enumerate(table[name]):
            value = _number(cell.text)
            if value is None:
                raise UserError(
                    f"{file}, line {cell.line}, column {name}: {cell.text[:40]!r} is not a finite"
                    " number that a float64 can hold (as 0.93): correct it"
                )
            found[row, column] = value
    return found


def _number(text: str) -> float | None:
    """Return a number, or None for what is none, is not finite, or would become 0 unsaid."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    lost = value == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0])
    return value if math.isfinite(value) and not lost else None


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
    # brings torch: not needed to say what is wrong
    from core.training.metrics import average_precision

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
    opts: Options, found: Scored, config: dict[str, Any], argv: Sequence[str], taken: Sequence[str]
) -> dict[str, Any]:
    counts = {}
    for name, sign in (("counts", ranking.PRESENT), ("difficult_counts", ranking.IGNORED)):
        images = (found.signs == sign).sum(axis=0).tolist()
        counts[name] = {"val": dict(zip(found.classes, images, strict=True))}
    data = {
        "kind": "imported",
        "description": f"scores ({config['scores']}) of another program",
        "classes": list(found.classes),
        **counts,
        "images": {"val": len(found.images)},
        "notes": list(taken),
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
        "data": data,
        "command": ["python", "analysis/import_scores.py", *argv],
        "git": provenance.git(),
        "versions": provenance.versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    sys.exit(main())
