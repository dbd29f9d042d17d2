"""Numbers and common facts in words."""

from __future__ import annotations

from typing import Any

from analysis.document.report import join
from analysis.document.tables import decimal, significant


def percent(fraction: float) -> str:
    """A fraction as "81.2 %" with a space that does not break."""
    return f"{decimal(fraction * 100, 1)}\u00a0%"


def points(fraction: float, signed: bool = False) -> str:
    """A difference of fractions in percentage points; small ones keep their digits."""
    value = fraction * 100
    shown = decimal(value, 1, signed) if abs(value) >= 0.05 else significant(value)
    return f"{shown}\u00a0points"


def curve_note(running: bool) -> str:
    """What training curves are of, if they are running ones."""
    return "Running: of augmented images, with the weights of each step. " if running else ""


def measured_words(study: dict[str, Any]) -> str:
    """What trials are stopped and chosen by: "validation accuracy", "held-out mAP"."""
    metric = (study.get("search") or {}).get("metric") or study.get("metric", "val_accuracy")
    where, _, name = str(metric).partition("_")
    name = {"map": "mAP"}.get(name, name)
    kind = {"val": "validation", "heldout": "held-out"}.get(where, where)
    return f"{kind} {name}"


def stopping_text(study: dict[str, Any]) -> str:
    """The values of ASHA and the plateau stop that were used, in words."""
    stopping = study.get("stopping")
    if not stopping:
        return "The study records no rule for early stopping."
    epochs = stopping.get("max_epochs")
    if stopping.get("scheduler") == "asha":
        grace, factor = int(stopping["grace"]), stopping["reduction_factor"]
        brackets = int(stopping.get("brackets", 1))
        first = (
            f"**ASHA** (asynchronous successive halving) over epochs: grace {grace}, reduction "
            f"factor {factor}, brackets {brackets}, at most {epochs} epochs. A trial is looked at "
            f"after {_rungs(grace, factor, epochs)} and goes on if its {measured_words(study)} is "
            f"in the best 1/{factor} of the trials seen there so far"
        )
        first += (
            f"; with {brackets} brackets some trials start at a later rung."
            if brackets > 1
            else "."
        )
    else:
        first = f"No scheduler compared the trials while they ran; at most {epochs} epochs."
    patience = int(stopping.get("patience") or 0)
    second = (
        f" **Plateau**: a trial ends when its {measured_words(study)} has not improved for "
        f"{patience} epochs."
        if patience
        else " The plateau stop was off."
    )
    return first + second


def _rungs(grace: int, factor: float, epochs: int | None) -> str:
    rungs, epoch = [], float(max(1, grace))
    while factor > 1 and epoch < (epochs or grace + 1):
        rungs.append(f"{epoch:g}")
        epoch *= factor
    if not rungs:
        return f"epoch {grace}, which is not before the last one,"
    return f"epoch{'s' if len(rungs) > 1 else ''} {join(rungs)}"
