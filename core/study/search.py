"""A search for the best settings: Optuna proposes, the engine runs, nothing proposed is lost."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from core.cluster.work import Listener
from core.errors import UserError
from core.storage.files import remove, write_json
from core.study.collect import best_row
from core.study.declare import Choice, Study
from core.study.plan import Plan, Planned, trial_name
from core.trial import records

DEFAULT = "default"  # the trial that runs the settings as they are, for comparison
HOLDOUT = 0.1  # share of the training images that a search is scored on
REPORTED_NOTE = (
    "the search is done: its best and the default settings are trained on all training images and"
    " scored on the validation images"
)
COUNTED = ("finished", "stopped")  # states whose best epoch is a value of the search


class Proposer(Listener):
    """Proposes configurations, each from its number and from what those before it came to.

    Nothing else goes into a proposal, so a search that is resumed proposes what an undisturbed one
    does. It keeps no file of its own: `study.json` holds every proposal before it runs, and the
    trials hold what came of it. Raises UserError: what was proposed lies outside the searched
    space.

    Args:
        study: the declaration; it has a search.
        trials: how many configurations are tried.
        first: the trial that runs the settings as they are.
        folder: the result folder.
        declared: what `study.json` says; of a search that is resumed, also what was proposed.
    """

    def __init__(
        self, study: Study, trials: int, first: Planned, folder: Path, declared: Mapping[str, Any]
    ):
        assert study.search is not None
        self.space, self.trials, self.folder = study.search.space, trials, folder
        self.config, self._check = dict(first.config), study.config
        self._planned_metric, self.metric = first.metric, first.metric or study.metric
        self._mode = study.mode
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.captureWarnings(True)  # of experimental parts, which users cannot act on
        self._params = {
            t["trial"]: {key: t["config"][key] for key in self.space}
            for t in declared["trials"]
            if t["part"] == "search" and t["trial"] != DEFAULT
        }
        self.uninformed = set(declared.get("search", {}).get("uninformed", ()))
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(list(span.values))
            if isinstance(span, Choice)
            else FloatDistribution(span.low, span.high, log=span.log)
            for name, span in self.space.items()
        }
        self._withdraw()
        self._optuna, self._failed = self._known_to_optuna(), False
        self._numbers = {name: number for number, name in enumerate(self._in_order())}

    def known(self) -> list[Planned]:
        """Return what has been proposed so far, in order, without the default."""
        return [self._planned(name) for name in self._in_order()]

    def propose(self) -> Planned | None:
        """Return a new configuration, or None when there are enough."""
        if len(self._params) >= self.trials:
            return None
        seed = next(i for i in itertools.count() if _name(i) not in self._params)
        name = _name(seed)
        # A sampler of its own: one that is kept would go on from wherever this process began.
        self._optuna.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(3, self.trials // 3), constant_liar=True
        )
        asked = self._optuna.ask(self._distributions)
        self._params[name] = dict(asked.params)
        self._numbers[name] = asked.number
        if self._failed:
            self.uninformed.add(name)
        return self._planned(name)

    def ended(self, name: str, state: str, error: str) -> None:
        """Tell the sampler how a configuration did: by its best epoch, or that it failed."""
        number = self._numbers.get(name)
        if number is None or self._optuna.trials[number].state.is_finished():
            return
        value = self._value(name) if state in COUNTED else None
        self._optuna.tell(number, value, TrialState.FAIL if value is None else None)
        self._failed |= state == "failed"

    def write(self) -> None:
        """Write `best_config.json`, for `--config`, and `search.json` with the importances."""
        study = self._known_to_optuna()  # in the order of the names, whoever ended first
        done = [t for t in study.trials if t.state == TrialState.COMPLETE]
        importances, why = None, f"{len(done)} configurations ended, which are too few to tell"
        if len(done) >= 4:
            try:
                evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
                importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
                why = ""
            except (RuntimeError, ValueError) as e:
                why = str(e)
        write_json(self.folder / "search.json", {"importances": importances, "why": why})
        if best := self.best():
            found = {name: best.config[name] for name in self.space}
            write_json(self.folder / "best_config.json", found)

    def best(self) -> Planned | None:
        """Return the first configuration with the best value at its best epoch, if any has one."""
        done = [p for p in self.known() if self._state(p.trial) in COUNTED]
        values = [{"value": self._value(p.trial), "planned": p} for p in done]
        best = best_row(values, "value", self._mode)
        return None if best is None else best["planned"]

    def record(self) -> dict[str, Any]:
        """Return what `study.json` says about the search."""
        return {
            "sampler": "TPE",
            "trials": self.trials,
            "metric": self.metric,
            "space": {name: asdict(span) for name, span in self.space.items()},
            "default": {name: self.config.get(name) for name in self.space},
            # Proposed while what an earlier one, which had failed, comes to was not known.
            "uninformed": sorted(self.uninformed),
        }

    def _withdraw(self) -> None:
        """Take back what failed and was proposed without the value of one that had failed.

        Now that those are run again, the sampler will know, as in a search in which nothing fails.
        """
        for name in sorted(self.uninformed & self._params.keys()):
            if self._state(name) == "failed":
                del self._params[name]
                # Its epochs are of other settings than the next of this name will have.
                found = list((self.folder / "trials" / name).rglob("*"))
                for path in (p for p in found if p.is_file() and p.name != "lock"):
                    remove(path)
        self.uninformed &= self._params.keys()

    def _known_to_optuna(self) -> optuna.Study:
        """Return a study of Optuna with all that is known, numbered in the order of the names."""
        study = optuna.create_study(
            direction="maximize" if self._mode == "max" else "minimize",
            storage=optuna.storages.InMemoryStorage(),
        )
        for name in self._in_order():
            ended, state = self._state(name), TrialState.RUNNING
            value = self._value(name) if ended in COUNTED else None
            if ended in (*COUNTED, "diverged"):
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
            known = {"params": self._params[name], "distributions": self._distributions}
            try:
                study.add_trial(create_trial(state=state, value=value, **known))
            except ValueError as e:
                raise UserError(
                    f"--resume: the searched space has changed since {name} was proposed ({e}):"
                    " put it back, or give a new --name"
                ) from e
        return study

    def _state(self, name: str) -> str:
        """Return how a trial ended, or nothing."""
        return (records.read_result(self.folder / "trials" / name) or {}).get("state", "")

    def _in_order(self) -> list[str]:
        return sorted(self._params, key=lambda name: int(name.rpartition("-")[2]))

    def _value(self, name: str) -> float | None:
        """Return the metric at a trial's best epoch; None when no epoch has one."""
        row = best_row(records.read_rows(self.folder / "trials" / name), self.metric, self._mode)
        return None if row is None else row[self.metric]

    def _planned(self, name: str) -> Planned:
        config = {**self.config, **self._params[name]}
        self._check(**config)
        return Planned(name, "search", config, self._planned_metric)


def search_plan(study: Study, planned: Plan, settings: Mapping[str, Any]) -> Plan:
    """Return the plan of a search: the settings as they are, once, and then what is proposed.

    Where the trainable can hold images out, a search is scored on a part of the training images:
    what chooses settings is not what they are reported on. Raises UserError: the study has nothing
    to search, or is to search on the reported images.

    Args:
        study: the declaration.
        planned: the plan of the study's grid; its first trial has the settings as they are.
        settings: what the user set.
    """
    if study.search is None:
        raise UserError(f"--search: {study.name} names no settings to search: run its grid")
    config, metric = dict(planned.trials[0].config), ""
    if "holdout" in config:
        config["holdout"] = settings.get("holdout", HOLDOUT)
        if not config["holdout"]:
            raise UserError(
                "--set holdout=0: a search is never scored on the validation images: give the share"
                f" of the training images that it is scored on, such as {HOLDOUT}"
            )
        metric = f"heldout_{study.metric.removeprefix('val_')}"
    seeded = planned.trials if metric else planned.trials[:1]
    seeds = dict.fromkeys(p.config["seed"] for p in seeded if "seed" in p.config)
    grid = {"seed": list(seeds)} if seeds else {}
    return Plan([Planned(DEFAULT, "search", config, metric)], grid, planned.notes)


def reported(planned: Plan, search: Proposer) -> list[Planned]:
    """Return the trials by which a search's outcome is reported: the default and the best.

    Both are trained on all training images, over the study's seeds, and scored on the validation
    images, which no trial of the search has seen. None where the search saw them, or found nothing.
    """
    best = search.best()
    if "holdout" not in search.config or best is None:
        return []
    found = {name: best.config[name] for name in search.space}
    return [
        Planned(
            trial_name({"reported": p.trial} | seed),
            f"reported-{kind}",
            {**search.config, "holdout": 0.0, **settings, **seed},
        )
        for kind, p, settings in (("default", planned.trials[0], {}), ("best", best, found))
        for seed in ([{"seed": seed} for seed in planned.grid.get("seed", ())] or [{}])
    ]


def _name(number: int) -> str:
    return f"search-{number:04}"
