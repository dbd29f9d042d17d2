"""The page on which the images of a study are browsed by the score of a class.

Everything is made on the server from stored predictions; the address says all that is shown, so a
link can be passed on. Images are asked for by their place in the stored list, never by name.
"""

import contextlib
import dataclasses
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.results import ranking
from analysis.results.folder import Predictions, Results, load_predictions
from analysis.results.pictures import Pictures
from core.errors import UserError, some

PAGE = 50  # images a page, so that the first pages are the top 50 and the bottom 50
ORDERS = {"top": "highest scores first", "bottom": "lowest scores first"}
TEMPLATES = Path(__file__).parent / "templates"
_MARKS = {"right": "✓", "wrong": "✗", "ignored": "○"}


class Ranked:
    """The predictions of one trial, its images at `root`, every class ranked when looked at."""

    def __init__(self, stored: Predictions, root: Path | None):
        self.scores = stored.scores  # (N, C)
        self.signs = ranking.signs(stored.labels, len(stored.classes))  # (N, C) of 1, 0, -1
        self.files, self.classes = stored.files, stored.classes  # N and C names
        self.cut = ranking.decision_threshold(stored.scores, stored.config.get("scores", "logits"))
        self.pictures = Pictures(root, stored.files)
        self._orders: dict[int, np.ndarray] = {}
        self._folded = [file.casefold() for file in stored.files]

    def order(self, label: int) -> np.ndarray:
        """Return the images (N,) of a class from the highest score to the lowest."""
        if label not in self._orders:
            self._orders[label] = ranking.ranking(self.scores[:, label])
        return self._orders[label]

    def matching(self, find: str) -> np.ndarray:
        """Return for each image (N,) whether its file name holds `find`, in any case."""
        words = find.casefold()
        return np.array([words in file for file in self._folded], dtype=bool)

    def scale(self) -> tuple[float, float, int]:
        """Return lowest and highest threshold to choose from, and their decimals."""
        low, high = float(self.scores.min()), float(self.scores.max())
        low, high = min(low, self.cut), max(high, self.cut)
        digits = max(0, 3 - math.floor(math.log10(max(high - low, 1e-6))))
        step = 10**-digits
        return math.floor(low / step) * step, math.ceil(high / step) * step, digits


class Shown:
    """A result folder as it is browsed, with its images at `root`, if anywhere.

    `trial` is the one to start with; by default the best of those with stored scores. Raises
    UserError: no scores are stored, or none of `trial`.
    """

    def __init__(self, results: Results, root: Path | None, trial: str | None = None):
        self.results, self.root = results, root
        self.trials = tuple(results.with_predictions())
        if not self.trials:
            raise UserError(f"{results.path}/predictions holds no scores: there is nothing to show")
        if trial is not None and trial not in self.trials:
            known = some(self.trials, 8)
            raise UserError(f"--trial {trial}: no scores of it are stored; choose of {known}")
        self.first = trial or best_trial(results, self.trials)
        self._ranked: dict[str, Ranked] = {}
        self.ranked(self.first)  # a damaged file is told before a browser opens

    def ranked(self, trial: str) -> Ranked:
        """Return the predictions of a trial, read once."""
        if trial not in self._ranked:
            self._ranked[trial] = Ranked(load_predictions(self.results.path, trial), self.root)
        return self._ranked[trial]

    @property
    def title(self) -> str:
        """Return the study's and the folder's name."""
        return f"{self.results.study['study']}/{self.results.path.resolve().name}"


def best_trial(results: Results, trials: Sequence[str]) -> str:
    """Return the trial with the best metric of the study among `trials`, the first without any."""
    metric, largest = str(results.study["metric"]), results.study.get("mode") != "min"
    table = results.trials[results.trials["trial"].isin(trials)]
    column = next((name for name in (f"best_{metric}", metric) if name in table), None)
    if column is None or table[column].isna().all():
        return trials[0]
    values = table[column].astype(float).dropna()
    return str(table.loc[values.idxmax() if largest else values.idxmin(), "trial"])


@dataclass(frozen=True)
class View:
    """What an address shows."""

    trial: str  # whose scores
    label: int = 0  # index of the class
    order: str = "top"  # or "bottom"
    page: int = 1  # counted from 1
    find: str = ""  # part of a file name; empty: all images
    threshold: float | None = None  # on the scale of the scores; None: where the network decides


class Unknown(LookupError):
    """An address names something that is not there."""


def view_of(shown: Shown, asked: Mapping[str, str]) -> View:
    """Read an address; what it leaves out or spells wrongly falls back to the default.

    Raises Unknown: a trial or class that is not there (a link to something else).
    """
    trial = asked.get("trial") or shown.first
    if trial not in shown.trials:
        raise Unknown("There is no such trial in this study.")
    ranked = shown.ranked(trial)
    name = asked.get("class") or ranked.classes[0]
    if name not in ranked.classes:
        raise Unknown("There is no such class in this study.")
    order = asked.get("order", "top")
    page, threshold = asked.get("page", ""), None
    with contextlib.suppress(ValueError):
        threshold = float(asked.get("threshold", ""))
    return View(
        trial=trial,
        label=ranked.classes.index(name),
        order=order if order in ORDERS else "top",
        page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 10 else 1,
        find=asked.get("find", "").strip(),
        threshold=threshold if threshold is not None and math.isfinite(threshold) else None,
    )


def address(shown: Shown, view: View) -> str:
    """Return the address of a view, relative to the server."""
    told: dict[str, Any] = {"class": shown.ranked(view.trial).classes[view.label]}
    told |= {"order": view.order, "page": view.page}
    if view.find:
        told["find"] = view.find
    if view.threshold is not None:
        told["threshold"] = repr(view.threshold)
    if view.trial != shown.first:
        told["trial"] = view.trial
    return "/?" + urllib.parse.urlencode(told, quote_via=urllib.parse.quote)


def selected(ranked: Ranked, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (M,) in the stored list of a view's images, in its order, over all pages.

    With them comes the rank (M,) of each among all N images, counted from 1 at the top.
    """
    order = ranked.order(view.label)
    ranks = np.arange(1, len(order) + 1)
    if view.find:
        kept = ranked.matching(view.find)[order]
        order, ranks = order[kept], ranks[kept]
    return (order[::-1], ranks[::-1]) if view.order == "bottom" else (order, ranks)


def marks(sign: int, name: str) -> dict[str, str]:
    """Return what a tile says above and below the threshold, as "kind|words"."""
    if sign == ranking.IGNORED:
        words = f"ignored|{_MARKS['ignored']} not counted: only difficult {name}"
        return {"above": words, "below": words}
    present = sign == ranking.PRESENT
    above = ("right", f"has {name}") if present else ("wrong", f"no {name}, false alarm")
    below = ("wrong", f"{name} missed") if present else ("right", f"no {name}")
    return {
        side: f"{kind}|{_MARKS[kind]} {kind}: {words}"
        for side, (kind, words) in (("above", above), ("below", below))
    }


def tiles(ranked: Ranked, view: View, numbers: np.ndarray, ranks: np.ndarray) -> list[dict]:
    """Return what the template needs of each image."""
    name, cut = ranked.classes[view.label], cut_of(ranked, view)
    found = []
    for number, rank in zip(numbers.tolist(), ranks.tolist(), strict=True):
        score, signs = float(ranked.scores[number, view.label]), ranked.signs[number]
        said = marks(int(signs[view.label]), name)
        kind, _, words = said["above" if score > cut else "below"].partition("|")
        file = ranked.files[number]
        tile = {"number": number, "rank": rank, "score": score, "kind": kind, "words": words}
        tile |= {"file": file, "short": file.rpartition("/")[2], **said}
        for key, sign in (("present", ranking.PRESENT), ("difficult", ranking.IGNORED)):
            tile[key] = [ranked.classes[c] for c in np.flatnonzero(signs == sign)]
        found.append(tile | {"there": ranked.pictures.path(file) is not None})
    return found


def cut_of(ranked: Ranked, view: View) -> float:
    """Return the threshold of a view."""
    return ranked.cut if view.threshold is None else view.threshold


def point_text(ranked: Ranked, view: View) -> str:
    """Say precision and recall of the class at the threshold, with the counts behind them."""
    name = ranked.classes[view.label]
    scores, signs = ranked.scores[:, view.label], ranked.signs[:, view.label]
    at = ranking.point(scores, signs, cut_of(ranked, view))
    above, present = at.hits + at.false_alarms, at.hits + at.misses
    precision = f"precision {_percent(at.precision)} ({at.hits:,} of {above:,} above it"
    recall = f"recall {_percent(at.recall)} ({at.hits:,} of {present:,} with {name}"
    ignored = f"; {at.ignored:,} ignored" if at.ignored else ""
    return f"{precision}{ignored}), {recall})"


def context(shown: Shown, view: View) -> dict[str, Any]:
    """Return everything the template shows for a view; a page past the last becomes the last."""
    ranked = shown.ranked(view.trial)
    numbers, ranks = selected(ranked, view)
    pages = max(1, math.ceil(len(numbers) / PAGE))
    view = dataclasses.replace(view, page=min(view.page, pages))
    start = (view.page - 1) * PAGE
    here = slice(start, start + PAGE)
    low, high, digits = ranked.scale()
    signs = (("present", ranking.PRESENT), ("absent", ranking.ABSENT), ("ignored", ranking.IGNORED))

    def link(**changes: Any) -> str:
        return address(shown, dataclasses.replace(view, **changes))

    return {
        "shown": shown,
        "ranked": ranked,
        "view": view,
        "name": ranked.classes[view.label],
        "place": shown.trials.index(view.trial),
        "order": ORDERS[view.order],
        "tiles": tiles(ranked, view, numbers[here], ranks[here]),
        "start": start,
        "count": len(numbers),
        "pages": pages,
        **{key: int((ranked.signs[:, view.label] == sign).sum()) for key, sign in signs},
        "low": f"{low:.{digits}f}",
        "high": f"{high:.{digits}f}",
        "step": f"{10**-digits:.{digits}f}",
        "cut": _shown(cut_of(ranked, view), digits),
        "cut_given": "" if view.threshold is None else repr(view.threshold),
        "point": point_text(ranked, view),
        "top": link(order="top", page=1),
        "bottom": link(order="bottom", page=1),
        "back": link(page=view.page - 1) if view.page > 1 else "",
        "forward": link(page=view.page + 1) if view.page < pages else "",
        "everything": link(find="", page=1),
    }


def _shown(cut: float, digits: int) -> str:
    """Return a threshold as the slider says it, or in full where its steps are too coarse."""
    rounded = f"{cut:.{digits}f}"
    return rounded if float(rounded) == cut else repr(cut)


def _percent(share: float) -> str:
    return "undefined" if math.isnan(share) else f"{100 * share:.1f}\u00a0%"
