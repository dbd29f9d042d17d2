"""Contact sheets: the ten images a class is surest on, and the ten it is surest are without it."""

import hashlib
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from analysis.document import figures
from analysis.document.markup import escape
from analysis.document.provenance import relative
from analysis.document.report import Figure, Section, Text, join
from analysis.results import ranking
from analysis.results.folder import Predictions, Results
from analysis.results.pictures import Pictures, find_root
from core.errors import UserError
from core.storage.files import read_json, write_bytes, write_json

EACH, CLASSES, SEED = 10, 3, 0
TILE, LINE, GAP = 150, 22, 6  # pixels; a sheet is as wide as ten tiles
_RULE = 1  # part of what kept sheets are told by: raise it when a change can move a pixel
_SAID = {
    ranking.PRESENT: ("✓ present", "#0a5c36"),
    ranking.IGNORED: ("○ difficult", "#5a4a00"),
    ranking.ABSENT: ("✗ absent", "#a11212"),
}


def section(results: Results, trial: str, stored: Predictions, ap: np.ndarray) -> Section:
    """Return the section with the sheets of three classes drawn by seed; writes them to figures/.

    Sheets that were drawn before from the same scores are shown again where the images are not
    found, so that a copy of the folder gives the same report.

    Args:
        results: the study.
        trial: whose scores.
        stored: of that trial.
        ap: (C,) average precision; a class without one has nothing to show.
    """
    title = "The top and the bottom of the ranking"
    chosen = drawn_classes(ap)
    if not len(chosen):
        return Section(title, (Text("No class has any image, so there is nothing to show."),))
    asked = _asked(trial, stored, chosen)
    files = {label: _name(label, stored.classes[label]) for label in chosen}
    folder = results.path / "figures"
    if not _kept(folder, asked, list(files.values())):
        problem = _draw(results, stored, files, folder)
        if problem:
            return Section(title, (Text(problem),))
        write_json(folder / "ranked.json", asked)
    about = Text(
        f"Classes drawn by seed {SEED}: {join([*map(escape, asked['classes'])])}. Under each "
        "image: its score, and whether the class is there by the annotation. "
        "`analysis/browse.py` shows every class, the top 50, the bottom 50 and all between."
    )
    sheets = (_figure(folder / files[label], stored, label) for label in chosen)
    return Section(title, (about, *sheets))


def drawn_classes(ap: np.ndarray) -> np.ndarray:
    """Return up to three classes with an average precision, drawn by a fixed seed, in order."""
    defined = np.flatnonzero(np.isfinite(ap))
    return np.sort(np.random.default_rng(SEED).permutation(defined)[:CLASSES])


def sheet(pictures: Pictures, stored: Predictions, label: int) -> bytes | None:
    """Draw the top and the bottom ten of a class as JPEG; None if none of the images is there."""
    order = ranking.ranking(stored.scores[:, label])
    rows = (("top", order[:EACH]), ("bottom", order[::-1][:EACH]))
    signs = ranking.signs(stored.labels, len(stored.classes))[:, label]
    height = LINE + TILE * 3 // 4 + 2 * LINE + GAP
    canvas = Image.new("RGB", (EACH * TILE, 2 * height), "white")
    draw = ImageDraw.Draw(canvas)
    found = 0
    for row, (words, images) in enumerate(rows):
        y = row * height
        draw.text((2, y), f"{words} {len(images)}", fill="black", font=_font())
        for place, image in enumerate(images):
            x = place * TILE
            found += _tile(canvas, (x, y + LINE), pictures.thumbnail(stored.files[image]))
            below = y + LINE + TILE * 3 // 4
            score = f"{stored.scores[image, label]:.3f}".replace("-", "−")
            said, colour = _SAID[int(signs[image])]
            draw.text((x + 2, below), score, fill="black", font=_font())
            draw.text((x + 2, below + LINE - 2), said, fill=colour, font=_font())
    if not found:
        return None
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=85)
    return out.getvalue()


def _tile(canvas: Image.Image, at: tuple[int, int], content: bytes | None) -> bool:
    """Put a thumbnail, or a frame where there is none, into a cell; return whether it is there."""
    width, height = TILE - GAP, TILE * 3 // 4 - 2
    draw = ImageDraw.Draw(canvas)
    if content is None:
        draw.rectangle((at[0], at[1], at[0] + width, at[1] + height), outline="#888888")
        draw.text((at[0] + 8, at[1] + 8), "no image", fill="#444444", font=_font())
        return False
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
    small.thumbnail((width, height), Image.Resampling.BILINEAR)
    canvas.paste(small, (at[0] + (width - small.width) // 2, at[1] + height - small.height))
    return True


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font that comes with Matplotlib: the same letters on every machine."""
    fonts = Path(figures.matplotlib().get_data_path(), "fonts/ttf")
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", 17)


def _draw(results: Results, stored: Predictions, files: dict[int, str], folder: Path) -> str:
    """Write the sheets; return what went wrong as a sentence, or nothing."""
    try:
        root = find_root(results)
    except UserError as e:
        return f"There are no pictures: {escape(relative(str(e)))}."
    if root is None:
        return (
            "There are no pictures, because the images are not on this machine: run "
            "`--report-only` where the study ran, or see them by `analysis/browse.py` with "
            "`--data-dir`."
        )
    pictures = Pictures(root, stored.files)
    for label, name in files.items():
        content = sheet(pictures, stored, label)
        if content is None:
            return "There are no pictures: the images are no longer where the study found them."
        write_bytes(folder / name, content)
    return ""


def _figure(path: Path, stored: Predictions, label: int) -> Figure:
    name, scores = stored.classes[label], stored.scores[:, label]
    signs = ranking.signs(stored.labels, len(stored.classes))[:, label]
    order = ranking.ranking(scores)
    top = int((signs[order[:EACH]] == ranking.PRESENT).sum())
    bottom = int((signs[order[::-1][:EACH]] == ranking.PRESENT).sum())
    shown = min(EACH, len(order))
    return Figure(
        path,
        f"**{escape(name)}**: the {shown} highest scores ({top} with the class) and the {shown} "
        f"lowest ({bottom} with the class), from left to right.",
        f"Two rows of images: the highest and the lowest scores of {name}.",
    )


def _asked(trial: str, stored: Predictions, chosen: np.ndarray) -> dict[str, Any]:
    """Return what tells one set of sheets from another."""
    told = hashlib.sha256(np.ascontiguousarray(stored.scores).tobytes())
    told.update(json.dumps([stored.files, stored.classes]).encode("utf-8", "surrogatepass"))
    told.update(np.ascontiguousarray(stored.labels).tobytes())
    return {
        "rule": _RULE,
        "trial": trial,
        "classes": [stored.classes[label] for label in chosen],
        "predictions": told.hexdigest(),
    }


def _kept(folder: Path, asked: dict[str, Any], names: list[str]) -> bool:
    """Return whether these sheets are there already."""
    try:
        known = read_json(folder / "ranked.json")
    except UserError:
        return False
    return known == asked and all((folder / name).is_file() for name in names)


def _name(label: int, name: str) -> str:
    return f"ranked_{label:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')[:40]}.jpg"
