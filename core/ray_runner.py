"""Trials scheduled by Ray Tune, here or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Ray and Tune read these when they are imported or initialised.
SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this environment, not one built by uv
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they import torch here and flush on every report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must end the study, not look like its end
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # we say it in a line of our own
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # the dispatcher alone decides how many wait for Ray
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _key, _value in SETTINGS.items():
    os.environ.setdefault(_key, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._private.authentication.authentication_token_setup import (  # noqa: E402
    maybe_enable_token_auth_if_token_available,
)
from ray.job_config import JobConfig  # noqa: E402
from ray.tune.logger import JsonLoggerCallback  # noqa: E402
from ray.tune.progress_reporter import TrialProgressCallback  # noqa: E402
from ray.tune.result import AUTO_RESULT_KEYS  # noqa: E402
from ray.tune.schedulers import FIFOScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from core import fleet, instruction_set, mirror, provenance, scratch  # noqa: E402
from core.errors import StorageError, UserError  # noqa: E402
from core.fleet import Fleet  # noqa: E402
from core.options import Options  # noqa: E402
from core.progress import Listener  # noqa: E402
from core.slots import cores_here, parse_memory  # noqa: E402
from core.stopping import Halving  # noqa: E402
from core.study import Study  # noqa: E402
from core.trial import Attempt, Spec, read_attempt, read_result, read_rows, write_result  # noqa: E402
from core.trial import run as run_trial  # noqa: E402
from core.work import Work  # noqa: E402

TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
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


@contextlib.contextmanager
def session(
    opts: Options, study: Path, paths: tuple[str, ...], announce: Callable[[str], None] = print
) -> Iterator[Fleet]:
    """Join the cluster that `opts` names, or start Ray on this machine and stop it afterwards.

    Args:
        opts: address, slots, limits.
        study: the result folder, which every node must be able to write.
        paths: files that trials read, which every node must have.
        announce: prints a line.

    Raises:
        UserError: no such cluster, or a node of it cannot work for this study.
    """
    on_terminate = signal.getsignal(signal.SIGTERM)
    remote = mirror.of(study / "study.json")
    errand = None
    if opts.address is not None:
        token = secrets.token_hex(8)
        errand = fleet.Errand(study, remote, token, paths, opts.slot_cores)
    with contextlib.ExitStack() as stack:
        if opts.address is None:
            stack.enter_context(_started())
        else:
            _join(opts.address)
            stack.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler ends the process at once
        nodes = Fleet(
            parse_memory(opts.slot_memory),
            opts.slot_cores,
            opts.slot_memory,
            limit=opts.max_concurrent,
            errand=errand,
            announce=announce,
        )
        try:
            if errand is not None and remote is None:
                fleet.leave_token(study, errand.token)
            nodes.find()
            yield nodes
        finally:
            if errand is not None:
                nodes.want(0)
                fleet.clean(study)


@contextlib.contextmanager
def _started() -> Iterator[None]:
    """Run Ray on this machine, reachable from this machine only."""
    # A folder of our own: Ray's default is shared, never cleaned, and may name someone
    # else's cluster. Ray lets everybody enter what it makes, so it makes it further in.
    with scratch.folder() as temporary, _own_token():
        # Ray listens on every interface, unless it takes this for a system on which it forms no
        # clusters; whoever reaches its ports can run code (see docs/cluster.md). A test scans them.
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(
            address="local",
            num_cpus=cores_here(),
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=str(temporary / "r"),
            runtime_env=_interpreter(),
            job_config=_our_modules_first(),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Give the Ray of this study a token of its own, in the environment of its processes.

    Ray would leave one in the home, with which every later `ray start` there demands it.
    """
    own = {} if TOKENS & os.environ.keys() else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(own)
    try:
        yield
    finally:
        for key in own:
            os.environ.pop(key, None)


class _Ours(list):
    """The folders in which workers look for modules, the one that counts most at the end."""

    def extend(self, folders: Iterable[str]) -> None:
        """Put what Ray adds before ours, and not the folder we were started in, or its `core` wins.

        Where the driver itself looks there (`python -m`), its workers do so as well.
        """
        here, known = os.getcwd(), {os.path.abspath(entry) for entry in sys.path}
        self[:0] = [folder for folder in folders if folder != here or here in known]


def _our_modules_first() -> JobConfig:
    return JobConfig(_py_driver_sys_path=_Ours([str(provenance.ROOT)]))


def _interpreter() -> dict[str, str]:
    """Return a runtime environment for workers when this one's path needs quotes, as with spaces.

    Ray 2.60 starts workers through `bash -c` and quotes their arguments, but not the interpreter;
    with a space in its path they never start, and the study would wait for ever.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _join(address: str) -> None:
    """Connect to a running cluster; what Ray prints meanwhile is kept back."""
    try:
        with _quiet_stderr():
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            ray.init(
                address=address,
                runtime_env={**_interpreter(), "env_vars": instruction_set.passed_on()},
                job_config=_our_modules_first(),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except ray.exceptions.AuthenticationError as e:
        raise UserError(
            f"--address {address}: Ray's token is missing here: bring the cluster's"
            " ~/.ray/auth_token to this machine (mode 0600; see docs/cluster.md)"
        ) from e
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise UserError(f"--address {address}: {_why_not(e)}") from e


def _why_not(error: Exception) -> str:
    """Return why a cluster cannot be joined, and what to do."""
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        numbers = re.findall(r"(Ray|Python): ([\w.]+)", text)
        theirs, here = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        there, mine = (" and ".join(f"{n} {v}" for n, v in pairs) for pairs in (theirs, here))
        return f"the cluster runs {there}, this driver {mine}: use the same on every node"
    reason = re.sub(r"\x1b\[[0-9;]*m", "", text)[:200] or type(error).__name__
    return (
        f"no Ray cluster can be joined there ({reason}); start one with `ray up cluster.yaml`,"
        " give this driver the cluster's token (~/.ray/auth_token and RAY_AUTH_MODE=token, see"
        " docs/cluster.md), or leave --address out"
    )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2, as Ray's C++ code repeats itself each second."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
