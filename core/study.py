"""A study as data: what is asked, what is varied, what runs, what is shown."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.stopping import Stopping


@dataclass(frozen=True)
class Part:
    """One grid of a study.

    Attributes:
        grid: setting -> values that are compared; the grid is their product, over all seeds.
        fixed: settings that this part holds at another value than the scale does.
        scales: the scales at which the part belongs to the study.
        literal: the part repeats a text to the letter, so it is left out when `--set` changes a
            setting (unless it is asked for by `--part`).
        at: scale -> settings that this part holds at that scale only.
        when: the part belongs to the study only where this setting is given (`folds`).
    """

    grid: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    scales: Sequence[str] = ("demo", "full", "smoke")
    literal: bool = False
    at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    when: str = ""


@dataclass(frozen=True)
class Scale:
    """How large a study is run: its seeds, and settings that replace the defaults of `Config`."""

    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """Values among which a search looks: from `low` to `high`, evenly or (`log`) in magnitude."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """Values among which a search chooses."""

    values: Sequence[Any]


@dataclass(frozen=True)
class Study:
    """The declaration that a file in `studies/` consists of.

    Attributes:
        name: folder under the results folder.
        question: what the study answers, one sentence.
        trainable: `trainable(config, report=...)`, reports one row of metrics per epoch.
        config: dataclass of the trainable's settings; defaults are the full scale.
        parts: name -> grid; all that belong to the chosen scale are run.
        scales: "demo", "full" and "smoke".
        metric: the reported metric that picks best epochs and the best trial.
        mode: "max" or "min".
        report: writes tables, figures and report of a finished result folder.
        prepare: checks and decodes the data before any trial starts; takes the settings all
            trials share and returns a description of the data for `study.json`. Its key `settled`,
            if any, holds settings that were open until the data were seen: every trial gets them.
        private: settings that say where things are; used, but not part of a trial's identity.
        check: refuses, before any trial starts, configs that the data cannot serve; takes the
            configs of all trials and what `prepare` returned, raises UserError.
        fit: chooses, once the slots are known, settings that all trials take over so that each
            fits; takes the configs of all trials, what `prepare` returned, the bytes of the
            smallest slot (None: as asked) and whether every card has bfloat16, returns the
            settings and the bytes that the largest trial then needs, raises UserError.
        stopping: rules of early stopping; options of the command line change them. Halving (asha)
            is for searches: among compared trials it would select.
        search: setting -> range or choice that `--search` varies; none: the study has no search.
            A config with a setting `holdout` is trained in a search without that share of the
            training images, which are scored in place of the validation images: the metrics are
            then named `heldout_...`, not `val_...`.
        search_stopping: rules of early stopping of a search; none: those of the study.
        search_report: writes the report of a search.
        flags: option -> setting that it is short for (`--folds 3` for `--set folds=3`; the flag of
            a setting that is true or false takes no value).
        adjust: further settings that follow from what the user set (grid settings as lists) at a
            scale; what the user set goes before them.
        rates: settings that are learning rates: those that the study states are converted for
            another `optimizer` that the user chooses; those that the user sets stay.
        actions: option -> what the file does instead of running the study: takes the settings that
            the user gave and the study's result folder, returns the exit code.
    """

    name: str
    question: str
    trainable: Callable[..., None]
    config: type
    parts: Mapping[str, Part]
    scales: Mapping[str, Scale]
    metric: str
    mode: str
    report: Callable[[Path], None]
    prepare: Callable[[Mapping[str, Any]], dict[str, Any]]
    private: Sequence[str] = ("data_dir", "skip_broken")
    check: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None] | None = None
    fit: Callable[..., tuple[dict[str, Any], int]] | None = None
    stopping: Stopping = field(default_factory=Stopping)
    search: Mapping[str, Range | Choice] = field(default_factory=dict)
    search_stopping: Stopping | None = None
    search_report: Callable[[Path], None] | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    adjust: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None
    rates: Sequence[str] = ()
    actions: Mapping[str, Callable[[Mapping[str, Any], Path], int]] = field(default_factory=dict)


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

    Args:
        study: the declaration.
        scale: key of `study.scales`.
        part: run this part only; None runs all that belong to the scale.
        seeds: how many seeds, counted from 0; None takes the scale's number.
        settings: from `--set`, typed; a list replaces the values of a grid.

    Raises:
        UserError: a part or value that does not exist, or settings that no trial can have.
    """
    chosen, notes = _chosen_parts(study, scale, part, settings)
    size = study.scales[scale]
    seed_values = list(range(size.seeds if seeds is None else seeds))
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    single = {key: value for key, value in settings.items() if not isinstance(value, list)}
    compared = {key for p in study.parts.values() for key in p.grid} | {"seed"}
    trials: list[Planned] = []
    grid: dict[str, list[Any]] = {}
    for name, p in chosen.items():
        fixed = {**p.fixed, **p.at.get(scale, {})}
        rates = _converted_rates(study, {**size.settings, **fixed, **p.grid}, settings)
        axes = {key: lists.get(key, list(rates.get(key, p.grid[key]))) for key in p.grid}
        # What other parts compare and this one leaves open: one value holds for all parts.
        open_keys = lists.keys() - p.grid.keys() - fixed.keys() - {"seed"}
        axes |= {
            key: lists[key] for key in lists if key in open_keys and (part or len(lists[key]) == 1)
        }
        own_seeds = axes.pop("seed", seed_values)  # a part that needs more seeds than the others
        axes["seed"] = lists.get("seed", own_seeds if seeds is None else seed_values)
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            config = {**size.settings, **fixed, **rates, **single, **varied}
            shown = (
                varied if len(study.parts) == 1 or len(chosen) == 1 else {"part": name, **varied}
            )
            trials.append(Planned(trial_name(shown), name, _complete(study, config)))
        for key, values in {**{k: [v] for k, v in fixed.items()}, **axes}.items():
            if key in compared or len(chosen) > 1:
                grid[key] = list(dict.fromkeys([*grid.get(key, []), *values]))
    return Plan(trials, grid, notes)


def trial_name(varied: Mapping[str, Any]) -> str:
    """Return a folder name that shows what is varied, e.g. `norm=bn,seed=0`."""
    text = ",".join(f"{key}={value}" for key, value in varied.items())
    safe = re.sub(r"[^A-Za-z0-9=,._+-]", "_", text)
    if safe != text or len(safe) > 100:
        safe = f"{safe[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return safe


def main(study: Study) -> None:
    """Run the command line of a study file and exit; see `core.options` for the options."""
    from core.engine import command_line  # imports Ray: not needed to import a study

    sys.exit(command_line(study, sys.argv[1:]))


def _chosen_parts(
    study: Study, scale: str, part: str | None, settings: Mapping[str, Any]
) -> tuple[dict[str, Part], list[str]]:
    if part is not None:
        if part not in study.parts:
            raise UserError(f"--part {part}: {study.name} has {', '.join(study.parts)}")
        return {part: study.parts[part]}, []
    chosen, notes = {}, []
    compared = {key for p in study.parts.values() for key in p.grid} | {"seed", *study.private}
    changed = sorted(settings.keys() - compared)
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


def _converted_rates(
    study: Study, stated: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the learning rates of a part for the optimiser that the user chose."""
    if "optimizer" not in settings:
        return {}
    from core.training import converted_rate  # torch is not needed to declare a study

    known: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(study.config)}
    known |= stated

    def convert(rate: Any) -> Any:
        if isinstance(rate, list):
            return [convert(one) for one in rate]
        return rate and converted_rate(rate, known["optimizer"], settings["optimizer"])

    return {name: convert(known[name]) for name in study.rates}


def _complete(study: Study, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with the defaults filled in, checked, without the private settings."""
    checked = vars(study.config(**config))
    return {key: value for key, value in checked.items() if key not in study.private}
