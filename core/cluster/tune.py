"""Trials scheduled by Ray Tune, here or on a cluster: the one door to `ray.tune`.

What is asked of Tune, and what it must keep doing, is in tests/core/cluster/test_ray_contract.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from core.cluster.dispatch import Dispatch
from core.cluster.fleet import Fleet
from core.cluster.work import Work
from core.errors import UserError
from core.storage import scratch
from core.trial.running import Attempt, Spec
from core.trial.stopping import Stopping

TUNES_OWN = {*AUTO_RESULT_KEYS, "done", "trial_id"}


def run(trainable: Callable[..., None], work: Work, nodes: Fleet, retries: int) -> None:
    """Run all the work inside a `session`; return when every trial of it has a recorded end.

    Args:
        trainable: `trainable(config, report=...)`.
        work: the trials.
        nodes: who has slots.
        retries: how often a trial may lose its process or node and start again.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures get our own lines
    dispatch = Dispatch(work, nodes, retries)
    # Not in the result folder, which may be full or in an object store; moved there afterwards.
    with scratch.folder() as storage:
        while not work.is_empty():
            try:
                _fit(_objective(trainable, work.example), dispatch, storage)
            except Exception as e:
                # Tune ends with it, the other trials' processes included: they go on in a new run.
                dispatch.out_of_memory(_killed_for_memory(e))
            finally:
                with contextlib.suppress(OSError):
                    kept = work.example.study / "ray"
                    kept.mkdir(exist_ok=True)
                    number = len(list(kept.glob("run-*"))) + 1
                    shutil.move(storage / "run", kept / f"run-{number:03}")


def _fit(objective: Callable[[dict], None], dispatch: Dispatch, storage: Path) -> None:
    """Have Tune run what is dispatched. No metric: nothing asks Tune what is best."""
    tune.Tuner(
        tune.with_resources(objective, _resources),
        tune_config=tune.TuneConfig(
            search_alg=Next(dispatch),
            scheduler=Watch(dispatch),
            num_samples=-1,
            reuse_actors=True,  # a worker with torch takes seconds to start
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(storage),
            verbose=0,
            # A trial that lost its process is a new one to Tune, on whichever node is free.
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[Tell(dispatch), Silent(), JsonLoggerCallback()],
        ),
    ).fit()


def _resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Ray sets aside for a trial: its share of a card, on the node it was given."""
    slot = config["slot"]
    here = {"ray.io/node-id": slot["node"]}
    return tune.PlacementGroupFactory(
        [{"CPU": slot["cpu"], "GPU": slot["gpu"]}], bundle_label_selector=[here]
    )


def _objective(trainable: Callable[..., None], any_spec: Spec) -> Callable[[dict], None]:
    """Return the function that Tune calls in a worker with a trial's name, config and slot."""

    def objective(config: dict[str, Any]) -> None:
        from core.trial.run import run as run_trial  # brings torch, which the driver does without

        slot = config["slot"]
        attempt = Attempt(
            number=config["attempt"],
            threads=slot["threads"],
            memory=slot["memory"],
            node=slot["node"][:8],
            gpus=tuple(str(gpu) for gpu in ray.get_gpu_ids()),
        )
        spec = dataclasses.replace(any_spec, name=config["trial"], config=config["config"])
        run_trial(trainable, spec, tune.report, attempt)

    return objective


class _Adapter:
    """What Tune calls; it asks and tells a `Dispatch`.

    Tune pickles its searcher, scheduler and callbacks, for a restore that is not used: they leave
    everything out.
    """

    dispatch: Dispatch

    def __init__(self, dispatch: Dispatch | None = None):
        super().__init__()
        if dispatch is not None:
            self.dispatch = dispatch

    def __reduce__(self) -> tuple:
        return type(self), ()


def _nothing(*arguments: Any, **info: Any) -> None:
    """Do nothing of what Tune asks for."""


class Next(_Adapter, Searcher):
    """Tells Tune which trial is next."""

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict, **spec: Any
    ) -> bool:
        """Accept that Tune has nothing to search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial and its slot, None to be asked again, FINISHED after the last."""
        return Searcher.FINISHED if self.dispatch.is_done() else self.dispatch.start(trial_id)

    on_trial_complete = _nothing  # `Tell` knows why it ended
    save = restore = _nothing  # the result folder says what has ended


class Watch(_Adapter, FIFOScheduler):
    """Stops trials early, and takes back those that wait for a node which is gone."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Stop a trial that does worse than others did at the same epoch."""
        return self.STOP if self.dispatch.must_stop(trial.trial_id, result) else self.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Any:
        """Stop stranded attempts, then leave the choice to Tune."""
        self.dispatch.nodes.refresh()  # also when no trial is left to give out
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == trial.PENDING and self.dispatch.withdraw_stranded(trial.trial_id):
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)


class Tell(_Adapter, tune.Callback):
    """Tells the dispatch what Tune hears of the trials."""

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Give listeners a chance to print."""
        self.dispatch.work.tick()

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Hand on one epoch."""
        row = {k: v for k, v in result.items() if k not in TUNES_OWN}
        self.dispatch.row(trial.trial_id, row)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Hand on that an attempt is over."""
        self.dispatch.completed(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Hand on that an attempt has failed."""
        self.dispatch.failed(trial.trial_id, getattr(trial.get_pickled_error(), "cause", None))


class Silent(TrialProgressCallback):
    """Takes the place of Tune's own printing, which is loud even at verbose=0."""

    on_trial_result = on_trial_error = on_trial_complete = _nothing


@dataclasses.dataclass(frozen=True)
class _Named:
    """What Tune's scheduler needs to know of a trial: ours keeps its name through retries."""

    trial_id: str


class Halving:
    """Ray Tune's ASHA, asked by trial name, so that its rungs outlive processes and `--resume`.

    Tune's own scheduler state is lost when a study is restored, and a trial that is started again
    would be another one to it. Here the rungs are filled again from the recorded rows.

    Args:
        stopping: the rules; the scheduler is "asha".
        metric: what is compared.
        mode: "max" or "min".
        max_epochs: epochs of a whole trial.
    """

    def __init__(self, stopping: Stopping, metric: str, mode: str, max_epochs: int):
        self.metric, self.max_epochs = metric, max_epochs
        self._asha: Any = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(max_epochs, stopping.grace),
            grace_period=stopping.grace,
            reduction_factor=stopping.reduction_factor,
            brackets=stopping.brackets,
        )
        self._sign = 1 if mode == "max" else -1
        self._known: set[str] = set()

    def decide(self, name: str, row: Mapping[str, Any]) -> str:
        """Take in an epoch of a trial; return why the trial must stop, or nothing."""
        trial = self._add(name)
        epoch, value = row["epoch"], row.get(self.metric)
        if value is None or value != value or epoch >= self.max_epochs:
            return ""
        cuts = self._cuts(name)
        if self._asha.on_trial_result(None, trial, dict(row)) != self._asha.STOP:
            return ""
        cut = cuts[max(rung for rung in cuts if rung <= epoch)]
        assert cut is not None  # or there would have been nothing to fall below
        side = "below" if self._sign > 0 else "above"
        what = f"ASHA at epoch {epoch}: {self.metric} {value:.4g}"
        return f"{what} is {side} the cut of {self._sign * cut:.4g}"

    def recall(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Fill the rungs again with what a trial reported earlier."""
        for row in rows:
            self.decide(name, row)

    def _add(self, name: str) -> Any:
        trial = _Named(name)
        if name not in self._known:
            self._known.add(name)
            # Tune draws the bracket from numpy's generator: the same one for the same name.
            state = np.random.get_state()
            np.random.seed(zlib.crc32(name.encode()))
            self._asha.on_trial_add(None, trial)
            np.random.set_state(state)
        return trial

    def _cuts(self, name: str) -> dict[int, float | None]:
        bracket = self._asha._trial_info[name]
        return {int(rung): bracket.cutoff(recorded) for rung, recorded in bracket._rungs}


def _killed_for_memory(error: BaseException) -> list[int]:
    """Return the processes that Ray's memory monitor ended, or raise what else has happened."""
    causes, one = [], error
    while one is not None:
        causes.append(one)
        one = one.__cause__ or one.__context__
    for one in causes:
        if isinstance(one, UserError):  # of a listener or a search; Tune has wrapped it
            raise one from error
    for one in causes:
        if isinstance(one, ray.exceptions.OutOfMemoryError):
            return [int(p) for p in re.findall(r"Selected to kill: \(Actor.*? pid=(\d+)", str(one))]
    raise error
