"""Trials scheduled by Ray Tune, here or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _key, _value in SETTINGS.items():
    os.environ.setdefault(_key, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.logger import JsonLoggerCallback  # noqa: E402
from ray.tune.progress_reporter import TrialProgressCallback  # noqa: E402
from ray.tune.result import AUTO_RESULT_KEYS  # noqa: E402

from core.errors import UserError  # noqa: E402
from core.options import Options  # noqa: E402
from core.progress import Listener  # noqa: E402
from core.slots import Slot  # noqa: E402
from core.study import Study  # noqa: E402
from core.trial import Spec, read_result, read_rows, write_result  # noqa: E402
from core.trial import run as run_trial  # noqa: E402

RETRIES = 2  # of a trial whose worker process or node died; what a trial raises is not retried
TUNES_OWN = {*AUTO_RESULT_KEYS, "date", "timestamp", "checkpoint_dir_name", "time_since_restore"}


def run(
    study: Study,
    pending: Sequence[Spec],
    slot: Slot,
    listeners: Sequence[Listener],
    opts: Options,
) -> None:
    """Run every pending trial inside a `session`; return when each has a recorded end."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures get our own lines
    specs = {spec.name: spec for spec in pending}
    objective = tune.with_resources(
        _objective(study.trainable, specs), {"cpu": slot.cpu, "gpu": slot.gpu}
    )
    storage = pending[0].study / "ray"
    # No metric is given: nothing here asks Tune which trial is best.
    tune.Tuner(
        objective,
        param_space={"trial": tune.grid_search(list(specs))},
        tune_config=tune.TuneConfig(
            reuse_actors=True,  # a worker with torch takes seconds to start
            max_concurrent_trials=opts.max_concurrent,
        ),
        run_config=tune.RunConfig(
            name=_run_name(storage),
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[Bridge(specs, listeners), Silent(), JsonLoggerCallback()],
        ),
    ).fit()


@contextlib.contextmanager
def session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start Ray on this machine and stop it afterwards.

    Raises:
        UserError: no such cluster.
    """
    temporary = None
    if address is None:
        # A folder of our own: Ray's default is shared, never cleaned, and may name someone
        # else's cluster. Short, because sockets in it have a path limit of 107 characters.
        base = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
        _remove_stale(base)
        temporary = tempfile.mkdtemp(prefix=f"labtune-{os.getpid()}-", dir=base)
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=temporary,
            runtime_env=_interpreter(),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as e:
        reason = str(e).strip().splitlines()
        raise UserError(
            f"--address {address}: no Ray cluster can be joined there"
            f" ({reason[0] if reason else type(e).__name__}); start one with `ray up cluster.yaml`,"
            " or leave --address out"
        ) from e


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


def _remove_stale(base: Path) -> None:
    """Remove the folders of drivers that were killed before they could."""
    for path in base.glob("labtune-*-*"):
        pid = path.name.split("-")[1]
        if not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)  # leaves what is not ours
        except PermissionError:  # runs, as another user
            pass


def _objective(trainable: Callable[..., None], specs: Mapping[str, Spec]) -> Callable[[dict], None]:
    """Return the function that Tune calls in a worker with `{"trial": name}`."""

    def objective(config: dict[str, Any]) -> None:
        run_trial(trainable, specs[config["trial"]], tune.report)

    return objective


class Bridge(tune.Callback):
    """Tells the listeners what Tune hears of the trials."""

    def __init__(self, specs: Mapping[str, Spec], listeners: Sequence[Listener]):
        self.specs, self.listeners = specs, listeners

    def __reduce__(self) -> tuple:
        """Leave the listeners out: Tune pickles its callbacks, for a restore that is not used."""
        return Bridge, ({}, ())

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Give listeners a chance to print."""
        self._tell("tick")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Hand on one epoch."""
        row = {k: v for k, v in result.items() if k not in TUNES_OWN and k != "config"}
        self._tell("row", *self._identity(trial), row)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Say that a trial's process died and that it starts again."""
        name, _ = self._identity(trial)
        rows = len(read_rows(self.specs[name].folder))
        for listener in self.listeners:
            if hasattr(listener, "announce"):
                listener.announce(
                    f"{name}: its worker died, retry {trial.num_failures}/{RETRIES}"
                    f" from epoch {rows}"
                )

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Hand on how a trial ended."""
        self._end(trial, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record the end of a trial whose process died too often."""
        self._end(trial, "failed", f"its worker process died {RETRIES + 1} times")

    def _end(self, tune_trial: Any, state: str, error: str) -> None:
        """Record an end that the trial itself could not, and tell the listeners."""
        name, config = self._identity(tune_trial)
        spec = self.specs[name]
        if read_result(spec.folder) is None:
            write_result(spec, state, error)
        result = read_result(spec.folder)
        assert result is not None
        self._tell("ended", name, config, result["state"], result["error"])

    def _identity(self, tune_trial: Any) -> tuple[str, dict[str, Any]]:
        name = tune_trial.config["trial"]
        return name, dict(self.specs[name].config)

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*arguments)


class Silent(TrialProgressCallback):
    """Takes the place of Tune's own printing, which is loud even at verbose=0."""

    def on_trial_result(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *arguments: Any, **info: Any) -> None:
        """Print nothing."""


def _run_name(storage: Path) -> str:
    """Return a name no earlier run used: Tune would overwrite a run of the same name."""
    used = len(list(storage.glob("run-*"))) if storage.is_dir() else 0
    return f"run-{used + 1:03}"
