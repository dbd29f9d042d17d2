"""The trials of a study under given options."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import UserError
from core.study.declare import Part, Study


@dataclass(frozen=True)
class Planned:
    """One trial of a plan.

    Attributes:
        trial: its name.
        part: the part it belongs to.
        config: its whole config.
        metric: what it is scored by, where that is not the study's metric.
    """

    trial: str
    part: str
    config: Mapping[str, Any]
    metric: str = ""

    def record(self) -> dict[str, Any]:
        """Return the trial as `study.json` keeps it."""
        known = {"trial": self.trial, "part": self.part, "config": dict(self.config)}
        return known | ({"metric": self.metric} if self.metric else {})


@dataclass(frozen=True)
class Plan:
    """The trials of a study under given options.

    Attributes:
        trials: in the order in which they start.
        grid: every setting that is compared, with its values over all parts.
        notes: what was left out and why, for the user and the report.
    """

    trials: Sequence[Planned]
    grid: Mapping[str, Sequence[Any]]
    notes: Sequence[str]

    def settled(self, settings: Mapping[str, Any]) -> Plan:
        """Return the plan with these settings in every trial."""
        trials = [replace(p, config={**p.config, **settings}) for p in self.trials]
        return replace(self, trials=trials)


def plan(
    study: Study, scale: str, part: str | None, seeds: int | None, settings: Mapping[str, Any]
) -> Plan:
    """Expand the parts of `study` into trials, every config checked by the study's dataclass.

    Raises UserError: a part or value that does not exist, or settings that no trial can have.

    Args:
        study: the declaration.
        scale: key of `study.scales`.
        part: run this part only; None runs all that belong to the scale.
        seeds: how many seeds, counted from 0; None takes the scale's number.
        settings: from `--set`, typed; a list replaces the values of a grid.
    """
    chosen, notes = _chosen_parts(study, scale, part, settings)
    size = study.scales[scale]
    seed_values = list(range(size.seeds if seeds is None else seeds))
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    single = {key: value for key, value in settings.items() if not isinstance(value, list)}
    trials: list[Planned] = []
    grid: dict[str, list[Any]] = {}
    for name, p in chosen.items():
        fixed = {**p.fixed, **p.at.get(scale, {})}
        held = {**size.settings, **fixed}
        rates = _converted_rates(study, {**held, **p.grid}, settings)
        axes = {key: lists.get(key, list(rates.get(key, p.grid[key]))) for key in p.grid}
        # What other parts compare and this one leaves open: one value holds for all parts.
        free = lists.keys() - p.grid.keys() - fixed.keys() - {"seed"}
        axes |= {k: v for k, v in lists.items() if k in free and (part or len(v) == 1)}
        own_seeds = axes.pop("seed", seed_values)  # a part that needs more seeds than the others
        axes["seed"] = lists.get("seed", own_seeds if seeds is None else seed_values)
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            shown = varied if len(chosen) == 1 else {"part": name, **varied}
            config = _complete(study, {**held, **rates, **single, **varied})
            trials.append(Planned(trial_name(shown), name, config))
        for key, values in {**{k: [v] for k, v in fixed.items()}, **axes}.items():
            if len(chosen) > 1 or key in _compared(study):
                grid[key] = list(dict.fromkeys([*grid.get(key, []), *values]))
    return Plan(trials, grid, notes)


def trial_name(varied: Mapping[str, Any]) -> str:
    """Return a folder name that shows what is varied, e.g. `norm=bn,seed=0`."""
    text = ",".join(f"{key}={value}" for key, value in varied.items())
    safe = re.sub(r"[^A-Za-z0-9=,._+-]", "_", text)
    if safe != text or len(safe) > 100:
        safe = f"{safe[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return safe


def _chosen_parts(
    study: Study, scale: str, part: str | None, settings: Mapping[str, Any]
) -> tuple[dict[str, Part], list[str]]:
    if part is not None:
        if part not in study.parts:
            raise UserError(f"--part {part}: {study.name} has {', '.join(study.parts)}")
        return {part: study.parts[part]}, []
    chosen, notes = {}, []
    changed = sorted(settings.keys() - _compared(study) - {*study.settings.private})
    for name, p in study.parts.items():
        if scale not in p.scales or (p.when and not settings.get(p.when)):
            continue
        if p.literal and changed:
            notes.append(
                f"part {name} repeats its text to the letter and is left out, because --set"
                f" changes {', '.join(changed)}; --part {name} runs it all the same"
            )
            continue
        chosen[name] = p
    return chosen, notes


def _compared(study: Study) -> set[str]:
    """Return every setting that a part of the study compares."""
    return {"seed", *(key for p in study.parts.values() for key in p.grid)}


def _converted_rates(
    study: Study, stated: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the learning rates of a part for the optimiser that the user chose."""
    if "optimizer" not in settings:
        return {}
    known: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(study.config)}
    known |= stated

    def convert(rate: Any, how: Callable[[float, Any, Any], float]) -> Any:
        if isinstance(rate, list):
            return [convert(one, how) for one in rate]
        return rate and how(rate, known["optimizer"], settings["optimizer"])

    return {name: convert(known[name], how) for name, how in study.settings.rates.items()}


def _complete(study: Study, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with the defaults filled in, checked, without the private settings."""
    checked = vars(study.config(**config))
    return {key: value for key, value in checked.items() if key not in study.settings.private}
