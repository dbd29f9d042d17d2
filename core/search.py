"""A search for the best settings: Optuna proposes, the engine runs, nothing proposed is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from core import mirror, trial
from core.collect import best_row
from core.storage import write_json
from core.study import Choice, Planned, Range

DEFAULT = "default"  # the trial that runs the settings as they are, for comparison
NAME = "name"  # of the user attribute that holds a trial's name


@dataclass(frozen=True)
class Goal:
    """What is searched for.

    Attributes:
        space: setting -> range or choice.
        trials: how many configurations are tried.
        metric: the reported metric that is best at a trial's best epoch; `mode` says which way.
        mode: "max" or "min".
    """

    space: Mapping[str, Range | Choice]
    trials: int
    metric: str
    mode: str


class Search:
    """An Optuna study whose journal is a file of the result folder.

    Every proposal is in the journal, with its trial's name, before it runs. After a lost driver
    the same proposals go on, and as many new ones follow as are missing.

    Args:
        goal: what is searched for.
        config: settings of every trial besides the searched ones.
        folder: the result folder.
        check: raises UserError for a config that the trainable does not take.
        metric: `Planned.metric` of its trials.
    """

    def __init__(
        self,
        goal: Goal,
        config: Mapping[str, Any],
        folder: Path,
        check: Callable[..., object] = dict,
        metric: str = "",
    ):
        self.metric = metric
        self.goal, self.config, self.folder, self._check = goal, dict(config), folder, check
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.captureWarnings(True)  # of experimental parts, which users cannot act on
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / "search.journal"
        storage = JournalStorage(JournalFileBackend(str(self._journal)))
        kept = optuna.create_study(
            study_name="search",
            storage=storage,
            direction="maximize" if goal.mode == "max" else "minimize",
            load_if_exists=True,
        )
        # Another seed after a resume: the same one would propose the first configurations again.
        self._optuna = optuna.load_study(
            study_name="search",
            storage=storage,
            sampler=optuna.samplers.TPESampler(
                seed=len(kept.trials), n_startup_trials=max(3, goal.trials // 3), constant_liar=True
            ),
        )
        self._numbers = {t.user_attrs[NAME]: t.number for t in self._proposals()}

    def known(self) -> list[Planned]:
        """Return what has been proposed so far, in order, without the default."""
        return [self._planned(t.user_attrs[NAME], t.params) for t in self._proposals()]

    def propose(self) -> Planned | None:
        """Return a new configuration, or None when there are enough."""
        if len(self._numbers) >= self.goal.trials:
            return None
        asked = self._optuna.ask()
        for name, span in self.goal.space.items():
            if isinstance(span, Choice):
                asked.suggest_categorical(name, list(span.values))
            else:
                asked.suggest_float(name, span.low, span.high, log=span.log)
        name = f"search-{len(self._numbers):04}"
        asked.set_user_attr(NAME, name)
        self._numbers[name] = asked.number
        self._send()
        return self._planned(name, asked.params)

    def row(self, name: str, config: dict[str, Any], row: dict[str, Any]) -> None:
        """Tell the sampler of an epoch (as a listener of the engine)."""

    def ended(self, name: str, config: dict[str, Any], state: str, error: str) -> None:
        """Tell the sampler how a configuration did: by its best epoch, or that it failed."""
        number = self._numbers.get(name)
        if number is None or self._optuna.trials[number].state.is_finished():
            return
        values = [
            row[self.goal.metric]
            for row in trial.read_rows(self.folder / "trials" / name)
            if row.get(self.goal.metric) is not None
        ]
        if state in ("finished", "stopped") and values:
            self._optuna.tell(number, max(values) if self.goal.mode == "max" else min(values))
        else:
            self._optuna.tell(number, state=TrialState.FAIL)
        self._send()

    def tick(self) -> None:
        """Nothing to do between rows."""

    def write(self) -> None:
        """Write `best_config.json`, for `--config`, and `search.json` with the importances."""
        done = [t for t in self._optuna.trials if t.state == TrialState.COMPLETE]
        importances, why = None, ""
        if len(done) < 4:
            why = f"{len(done)} configurations ended, which are too few to tell"
        else:
            try:
                evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
                importances = optuna.importance.get_param_importances(
                    self._optuna, evaluator=evaluator
                )
            except (RuntimeError, ValueError) as e:
                why = str(e)
        write_json(self.folder / "search.json", {"importances": importances, "why": why})
        best = self.best()
        if best is not None:
            found = {name: best.config[name] for name in self.space}
            write_json(self.folder / "best_config.json", found)

    def best(self) -> Planned | None:
        """Return the first configuration with the best value at its best epoch, if any has one."""
        found: list[tuple[float, Planned]] = []
        for p in self.known():
            folder = self.folder / "trials" / p.trial
            ended = (trial.read_result(folder) or {}).get("state") in ("finished", "stopped")
            best = best_row(trial.read_rows(folder), self.goal.metric, self.goal.mode)
            if ended and best is not None:
                found.append((best[self.goal.metric], p))
        pick = max if self.goal.mode == "max" else min
        return pick(found, key=lambda pair: pair[0])[1] if found else None

    def record(self) -> dict[str, Any]:
        """Return what `study.json` says about the search."""
        space = {
            k: {"values": list(v.values)}
            if isinstance(v, Choice)
            else {"low": v.low, "high": v.high, "log": v.log}
            for k, v in self.space.items()
        }
        return {
            "sampler": "TPE",
            "trials": self.goal.trials,
            "metric": self.goal.metric,
            "space": space,
            "default": {name: self.config.get(name) for name in self.space},
        }

    @property
    def space(self) -> Mapping[str, Range | Choice]:
        """Return the searched settings."""
        return self.goal.space

    def _send(self) -> None:
        """Bring the journal to where results are mirrored: it is appended to, not written anew."""
        remote = mirror.of(self._journal)
        if remote is not None:
            remote.push(self._journal)

    def _proposals(self) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self._optuna.trials if NAME in t.user_attrs]

    def _planned(self, name: str, params: Mapping[str, Any]) -> Planned:
        config = {**self.config, **params}
        self._check(**config)
        return Planned(name, "search", config, self.metric)
