"""Trials scheduled by Ray Tune, here or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from core.cluster.fleet import Fleet
from core.cluster.work import Work
from core.errors import StorageError, UserError
from core.storage import mirror, scratch
from core.study.declare import Study
from core.study.options import Options
from core.study.progress import Listener
from core.trial.records import read_attempt, read_result, read_rows, write_result
from core.trial.run import run as run_trial
from core.trial.running import Attempt, Spec
from core.trial.stopping import Halving

TUNES_OWN = {*AUTO_RESULT_KEYS, "date", "timestamp", "checkpoint_dir_name", "time_since_restore"}


def run(
    study: Study,
    work: Work,
    nodes: Fleet,
    listeners: Sequence[Listener],
    opts: Options,
    halving: Halving | None = None,
) -> None:
    """Run all the work inside a `session`; return when every trial of it has a recorded end."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures get our own lines
    first = next(iter(work.specs.values()))
    dispatcher = Dispatcher(work, nodes, opts.max_retries, halving)
    bridge = Bridge(dispatcher, listeners)
    # Not in the result folder, which may be full or in an object store; moved there afterwards.
    with scratch.folder() as storage:
        while not work.is_empty():
            try:
                _fit(_objective(study.trainable, first), dispatcher, bridge, storage)
            except Exception as e:
                told = next((one for one in _causes(e) if isinstance(one, UserError)), None)
                if told is not None:  # of a listener or a search; Tune has wrapped it
                    raise told from e
                killed = _killed_for_memory(e)
                if killed is None:
                    raise
                # Tune ends with it, the other trials' processes included: they go on in a new run.
                bridge.out_of_memory(killed)
            finally:
                with contextlib.suppress(OSError):
                    shutil.move(storage / "run", _unused(first.study / "ray"))


def _fit(
    objective: Callable[[dict], None], dispatcher: Dispatcher, bridge: Bridge, storage: Path
) -> None:
    """Have Tune run what the dispatcher gives it. No metric: nothing asks Tune what is best."""
    tune.Tuner(
        tune.with_resources(objective, _resources),
        tune_config=tune.TuneConfig(
            search_alg=dispatcher,
            scheduler=Watch(dispatcher),
            num_samples=-1,
            reuse_actors=True,  # a worker with torch takes seconds to start
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(storage),
            verbose=0,
            # A trial that lost its process is a new one to Tune, on whichever node is free.
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[bridge, Silent(), JsonLoggerCallback()],
        ),
    ).fit()


class Dispatcher(Searcher):
    """Gives Tune the next trial when a node has a slot for it; keeps those that lost a process.

    Tune itself would give every trial one share of a GPU, whatever card it lands on, and would
    bring a lost one back with the share of the node that is gone.

    Args:
        work: the trials.
        nodes: who has slots.
        retries: how often a trial may lose its process or node and start again.
        halving: which trials stop early, if any do.
    """

    def __init__(
        self, work: Work, nodes: Fleet | None, retries: int, halving: Halving | None = None
    ):
        super().__init__()
        self.work, self.halving = work, halving
        self.stops: dict[str, str] = {}  # by Tune's id of an attempt: why it stops early
        self.running: dict[str, dict[str, Any]] = {}  # by Tune's id of an attempt
        self.withdrawn: set[str] = set()  # attempts taken back before they began
        self.lost: dict[str, int] = {}
        self.nodes, self.retries = nodes, retries

    def __reduce__(self) -> tuple:
        """Leave everything out: Tune pickles its searcher, for a restore that is not used."""
        return Dispatcher, (Work(()), None, 0)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict, **spec: Any
    ) -> bool:
        """Accept that Tune has nothing to search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial and its slot, None to be asked again, FINISHED after the last."""
        if self.work.is_empty():
            return None if self.running else Searcher.FINISHED
        assert self.nodes is not None
        self.nodes.refresh()
        self.nodes.want(self.work.waiting() + len(self.running))
        slot = self.nodes.take()
        if slot is None:
            return None
        spec = self.work.take()
        if spec is None:
            self.nodes.give(slot.node)
            return None
        attempt = self.lost.get(spec.name, 0) + 1
        chosen = {
            "trial": spec.name, "config": dict(spec.config),
            "slot": slot.record(), "attempt": attempt,
        }  # fmt: skip
        self.running[trial_id] = chosen
        return chosen

    def ended(self, trial_id: str) -> None:
        """Free the slot of an attempt."""
        chosen = self.running.pop(trial_id)
        assert self.nodes is not None
        self.nodes.give(chosen["slot"]["node"])

    def again(self, trial_id: str, *, counted: bool) -> bool:
        """Free the slot and put the trial first in the queue, unless it was lost too often.

        Args:
            trial_id: Tune's id of the attempt.
            counted: whether the loss counts: a trial that had not begun has lost nothing.
        """
        name, node = (self.running[trial_id][key] for key in ("trial", "slot"))
        self.ended(trial_id)
        if counted and self.nodes is not None:
            self.nodes.suspect(node["node"])
        self.lost[name] = self.lost.get(name, 0) + counted
        if self.lost[name] > self.retries:
            return False
        self.work.put_back(self.work.specs[name])
        return True

    def stranded(self, trial_id: str) -> bool:
        """Return whether the node that an attempt was to run on is gone."""
        chosen = self.running.get(trial_id)
        assert self.nodes is not None
        return chosen is not None and not self.nodes.has(chosen["slot"]["node"])

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Learn nothing here: `Bridge` knows why the trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the result folder says what has ended."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class Watch(FIFOScheduler):
    """Takes back attempts that wait for a node which is gone: Ray would wait for ever."""

    def __init__(self, dispatcher: Dispatcher | None = None):
        super().__init__()
        self.dispatcher = dispatcher

    def __reduce__(self) -> tuple:
        """Leave the dispatcher out, as `Dispatcher.__reduce__` does."""
        return Watch, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Stop a trial that does worse than others did at the same epoch."""
        assert self.dispatcher is not None
        halving = self.dispatcher.halving
        reason = halving.decide(trial.config["trial"], result) if halving is not None else ""
        if not reason:
            return self.CONTINUE
        self.dispatcher.stops[trial.trial_id] = reason
        return self.STOP

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Any:
        """Stop stranded attempts, then leave the choice to Tune."""
        assert self.dispatcher is not None and self.dispatcher.nodes is not None
        self.dispatcher.nodes.refresh()  # also when no trial is left to give out
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == trial.PENDING and self.dispatcher.stranded(trial.trial_id):
                self.dispatcher.withdrawn.add(trial.trial_id)
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)


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


class Bridge(tune.Callback):
    """Tells the dispatcher and the listeners what Tune hears of the trials."""

    def __init__(self, dispatcher: Dispatcher | None, listeners: Sequence[Listener]):
        self.dispatcher, self.listeners = dispatcher, listeners
        self.specs = {} if dispatcher is None else dispatcher.work.specs

    def __reduce__(self) -> tuple:
        """Leave everything out: Tune pickles its callbacks, for a restore that is not used."""
        return Bridge, (None, ())

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Give listeners a chance to print."""
        self._tell("tick")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Hand on one epoch."""
        row = {k: v for k, v in result.items() if k not in TUNES_OWN and k != "config"}
        self._tell("row", *self._identity(trial), row)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Hand on how a trial ended, or take it back when its node went before it began."""
        assert self.dispatcher is not None
        if trial.trial_id in self.dispatcher.withdrawn:
            self.dispatcher.again(trial.trial_id, counted=False)
            return
        self.dispatcher.ended(trial.trial_id)
        reason = self.dispatcher.stops.pop(trial.trial_id, "")
        self._end(self._identity(trial)[0], "stopped", reason)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Start a trial again that lost its process; record the end of one that cannot go on."""
        assert self.dispatcher is not None
        name, _ = self._identity(trial)
        error = trial.get_pickled_error()
        cause = getattr(error, "cause", None)
        if isinstance(cause, StorageError):  # it could not even record its end
            self.dispatcher.ended(trial.trial_id)
            self._end(name, "failed", str(cause))
        elif self.dispatcher.again(trial.trial_id, counted=True):
            number, retries = self.dispatcher.lost[name], self.dispatcher.retries
            self._announce(
                f"{name}: its worker died, retry {number}/{retries} from epoch"
                f" {len(read_rows(self._fetched(name)))}"
            )
        else:
            times = self.dispatcher.lost[name]
            counted = "once" if times == 1 else f"{times} times"
            self._end(name, "failed", f"its worker process died {counted}")

    def out_of_memory(self, killed: Sequence[int]) -> None:
        """Record the end of the trials whose processes were ended for want of main memory.

        Args:
            killed: their process ids; the other trials that ran go back into the queue.
        """
        assert self.dispatcher is not None
        for trial_id, chosen in list(self.dispatcher.running.items()):
            name = chosen["trial"]
            attempt = read_attempt(self._fetched(name))
            if read_result(self.specs[name].folder) is None and attempt.get("pid") not in killed:
                self.dispatcher.again(trial_id, counted=False)
                continue
            self.dispatcher.ended(trial_id)
            said = "the machine ran out of main memory: lower batch_size, or --max-concurrent"
            self._end(name, "failed", said)

    def _end(self, name: str, state: str, error: str) -> None:
        """Record an end that the trial itself could not, and tell the listeners."""
        spec = self.specs[name]
        config = dict(spec.config)
        result = read_result(self._fetched(name))
        if result is None:
            result = {"state": state, "error": error}
            with contextlib.suppress(StorageError):  # the listeners hear of it all the same
                write_result(spec, state, error)
        self._tell("ended", name, config, result["state"], result["error"])

    def _fetched(self, name: str) -> Path:
        """Return a trial's folder, with what another node wrote to an object store."""
        spec = self.specs[name]
        remote = mirror.of(spec.study / "study.json")
        if remote is not None:
            remote.pull(f"trials/{name}", only=(".json", ".txt"))
        return spec.folder

    def _identity(self, tune_trial: Any) -> tuple[str, dict[str, Any]]:
        name = tune_trial.config["trial"]
        return name, dict(self.specs[name].config)

    def _announce(self, text: str) -> None:
        for listener in self.listeners:
            if hasattr(listener, "announce"):
                listener.announce(text)

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*arguments)


def _killed_for_memory(error: BaseException) -> list[int] | None:
    """Return the processes that Ray's memory monitor ended; None if the error is another one."""
    for one in _causes(error):
        if isinstance(one, ray.exceptions.OutOfMemoryError):
            chosen = re.findall(r"Selected to kill: \(Actor.*? pid=(\d+)", str(one))
            return [int(pid) for pid in chosen]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Silent(TrialProgressCallback):
    """Takes the place of Tune's own printing, which is loud even at verbose=0."""

    def on_trial_result(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""


def _unused(folder: Path) -> Path:
    """Return a name below `folder` that no earlier run has."""
    folder.mkdir(exist_ok=True)
    return folder / f"run-{len(list(folder.glob('run-*'))) + 1:03}"
