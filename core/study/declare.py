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
    """How large a study is run.

    Attributes:
        seeds: how many, counted from 0.
        settings: replace the defaults of `Config`.
        patience: a trial ends when its metric has not been better for so many epochs; 0: never.
    """

    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    patience: int = 0


@dataclass(frozen=True)
class Data:
    """What is done before any trial starts, in a process of its own: the driver loads no torch.

    Attributes:
        prepare: checks and decodes the data; takes the settings all trials share and returns a
            description of the data for `study.json`. Its key `settled`, if any, holds settings
            that were open until the data were seen: every trial gets them.
        check: refuses configs that the data cannot serve; takes the configs of all trials and what
            `prepare` returned, raises UserError.
        fit: chooses, once the slots are known, settings that all trials take over so that each
            fits; takes the configs of all trials, what `prepare` returned, the bytes of the
            smallest slot (None: as asked) and whether every card has bfloat16, returns the
            settings and the bytes that the largest trial then needs, raises UserError.
    """

    prepare: Callable[[Mapping[str, Any]], dict[str, Any]]
    check: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None] | None = None
    fit: Callable[..., tuple[dict[str, Any], int]] | None = None


@dataclass(frozen=True)
class Settings:
    """What a study's command line takes beside `--set` and the common options.

    Attributes:
        private: settings that say where things are; used, but not part of a trial's identity.
        flags: option -> setting that it is short for (`--folds 3` for `--set folds=3`; the flag of
            a setting that is true or false takes no value).
        adjust: further settings that follow from what the user set (grid settings as lists) at a
            scale; what the user set goes before them.
        rates: learning rate -> what converts it, as the study states it, for another `optimizer`
            that the user chooses: takes the rate, the stated and the chosen optimiser. Those that
            the user sets stay.
        actions: option -> what the file does instead of running the study: takes the settings that
            the user gave and the study's result folder, returns the exit code.
    """

    private: Sequence[str] = ("data_dir", "skip_broken")
    flags: Mapping[str, str] = field(default_factory=dict)
    adjust: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None
    rates: Mapping[str, Callable[[float, Any, Any], float]] = field(default_factory=dict)
    actions: Mapping[str, Callable[[Mapping[str, Any], Path], int]] = field(default_factory=dict)


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
class Search:
    """What `--search` does in place of the grid.

    A config with a setting `holdout` is trained in a search without that share of the training
    images, which are scored in place of the validation images: the metrics are then named
    `heldout_...`, not `val_...`.

    Attributes:
        space: setting -> range or choice that is varied.
        stopping: rules of early stopping; options of the command line change them. Halving (asha)
            is for searches: among compared trials it would select.
        report: writes the report of a search; none: that of the study.
    """

    space: Mapping[str, Range | Choice]
    stopping: Stopping = field(default_factory=Stopping)
    report: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Study:
    """The declaration that a file in `studies/` consists of.

    Attributes:
        name: folder under the results folder.
        question: what the study answers, one sentence.
        metric: the reported metric that picks best epochs and the best trial.
        mode: "max" or "min".
        trainable: `trainable(config, report=...)`, reports one row of metrics per epoch.
        config: dataclass of the trainable's settings; defaults are the full scale.
        parts: name -> grid; all that belong to the chosen scale are run.
        scales: "demo", "full" and "smoke".
        data: what is done with the data before any trial starts.
        report: writes tables, figures and report of a finished result folder.
        settings: what the command line takes beside the common options.
        search: what `--search` does; none: the study has no search.
    """

    name: str
    question: str
    metric: str
    mode: str
    trainable: Callable[..., None]
    config: type
    parts: Mapping[str, Part]
    scales: Mapping[str, Scale]
    data: Data
    report: Callable[[Path], None]
    settings: Settings = field(default_factory=Settings)
    search: Search | None = None
