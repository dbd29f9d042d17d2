"""A study as data: what is asked, what is varied, what runs, what is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.trial.stopping import Stopping


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
