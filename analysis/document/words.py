"""Numbers and common facts in words."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.document.markup import escape
from analysis.document.report import join
from analysis.document.tables import decimal, significant

ONE_SEED = (
    "One seed: there is no interval, and differences may be chance. Run with `--seeds 3` or more."
)
SMALLER = (
    "smaller images, fewer of them and fewer epochs than the lab asks for; `--data-dir` runs the "
    "full scale."
)


def percent(fraction: float) -> str:
    """A fraction as "81.2 %" with a space that does not break."""
    return f"{decimal(fraction * 100, 1)}\u00a0%"


def signed(fraction: float, digits: int = 1) -> str:
    """A difference of fractions in percentage points with its sign: "+1.2"."""
    return decimal(fraction * 100, digits, signed=True)


def points(fraction: float, signed: bool = False) -> str:
    """A difference of fractions as "1.2 points"; small ones keep their digits."""
    value = fraction * 100
    shown = decimal(value, 1, signed) if abs(value) >= 0.05 else significant(value)
    return f"{shown}\u00a0points"


def span(low: float, high: float) -> str:
    """The ends of an interval of a difference: "95 % interval −0.1 to +2.3", or "no interval"."""
    if math.isnan(low):
        return "no interval"
    return f"95 % interval {signed(low)} to {signed(high)}"


def bracket(low: float, high: float) -> str:
    """The same as " [−0.1, +2.3]", to stand behind a number; "" where there is none."""
    return "" if math.isnan(low) else f" [{signed(low)}, {signed(high)}]"


def count(number: float, noun: str, most: float | None = None) -> str:
    """How many there are: "1 seed", "3 seeds", or "2 to 3 seeds" up to another `most`."""
    if most is not None and most != number:
        return f"{number:,.0f} to {most:,.0f} {noun}s"
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def answered(pairs: Iterable[tuple[str, str]]) -> str:
    """Questions in bold, each followed by its answer; those without one are left out."""
    return "\n\n".join(f"**{question}** {answer}" for question, answer in pairs if answer)


def listed(items: Iterable[str]) -> str:
    """Sentences as a list; empty ones are left out."""
    return "\n".join(f"- {item}" for item in items if item)


def scaled(study: Mapping[str, Any], meaning: str) -> list[str]:
    """What a study of another scale than the full one lacks, as a limit; nothing of the full."""
    scale = study.get("scale")
    return [] if scale in (None, "full") else [f"Scale `{escape(scale)}`: {meaning}"]


def sampling(images: int) -> str:
    """How far the accuracy on so many validation images is off by the choice of images."""
    return (
        f"{images:,} validation images: one accuracy has a sampling error of up to "
        f"{decimal(50 / images**0.5, 1)} points (one standard deviation)"
    )


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
    measured, epochs = measured_words(study), stopping.get("max_epochs")
    if stopping.get("scheduler") == "asha":
        first = _asha_text(stopping, measured, epochs)
    else:
        first = f"No scheduler compared the trials while they ran; at most {epochs} epochs."
    patience = int(stopping.get("patience") or 0)
    if not patience:
        return f"{first} The plateau stop was off."
    last = f"a trial ends when its {measured} has not improved for {patience} epochs."
    return f"{first} **Plateau**: {last}"


def _asha_text(stopping: Mapping[str, Any], measured: str, epochs: int | None) -> str:
    grace, factor = int(stopping["grace"]), stopping["reduction_factor"]
    brackets = int(stopping.get("brackets", 1))
    later = f"; with {brackets} brackets some trials start at a later rung" if brackets > 1 else ""
    return (
        f"**ASHA** (asynchronous successive halving) over epochs: grace {grace}, reduction "
        f"factor {factor}, brackets {brackets}, at most {epochs} epochs. A trial is looked at "
        f"after {_rungs(grace, factor, epochs)} and goes on if its {measured} is "
        f"in the best 1/{factor} of the trials seen there so far{later}."
    )


def _rungs(grace: int, factor: float, epochs: int | None) -> str:
    rungs, epoch = [], float(max(1, grace))
    while factor > 1 and epoch < (epochs or grace + 1):
        rungs.append(f"{epoch:g}")
        epoch *= factor
    if not rungs:
        return f"epoch {grace}, which is not before the last one,"
    return f"epoch{'s' if len(rungs) > 1 else ''} {join(rungs)}"
