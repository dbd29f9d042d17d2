"""Every name, switch and private part of Ray and Tune that labtune stands on, and what we believe.

A new Ray breaks here first. What shows only in a whole run is tested there: test_tune.py (the
words of Ray's memory monitor, ports on loopback) and test_cluster.py (nodes that leave).
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core import provenance, trial
from core.cluster import SETTINGS, fleet, session, tune  # before ray, which reads SETTINGS
from core.errors import UserError

# isort: split
import ray
from ray import cloudpickle
from ray._private import ray_constants, services
from ray._private.authentication import authentication_token_setup
from ray._private.runtime_env.context import Language, RuntimeEnvContext
from ray.autoscaler import sdk
from ray.job_config import JobConfig
from ray.tune.callback import Callback
from ray.tune.constants import TUNE_ENV_VARS
from ray.tune.execution import class_cache, tune_controller
from ray.tune.experiment import Trial
from ray.tune.experimental.output import get_air_verbosity
from ray.tune.logger import JsonLoggerCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.tune import _setup_signal_catching
from ray.tune.utils.callback import _create_default_callbacks
from ray.util import scheduling_strategies

from tests.support.calls import ROOT


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_every_switch_is_one_that_this_ray_knows():
    """And is set here, before Ray was loaded: what it read then is in the next tests."""
    assert all(os.environ[key] == value for key, value in SETTINGS.items())
    known = {
        ray_constants.RAY_WORKER_NICENESS,
        ray.train.constants.RAY_CHDIR_TO_TRIAL_DIR,
        importlib.import_module("ray._common.usage.usage_constants").USAGE_STATS_ENABLED_ENV_VAR,
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
        "RAY_DEDUP_LOGS_SKIP_REGEX",
        *importlib.import_module("ray.air.constants").AIR_ENV_VARS,
        *TUNE_ENV_VARS,
    }
    assert SETTINGS.keys() <= known


def test_switches_of_ray_have_their_effect():
    assert ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV is False
    assert SETTINGS["RAY_DEDUP_LOGS_SKIP_REGEX"] == ray_constants.RAY_DEDUP_LOGS_SKIP_REGEX
    usage = importlib.import_module("ray._common.usage.usage_lib")
    assert not usage.usage_stats_enabled()
    # Workers are told by the driver not to change their folder.
    assert ray.train.constants.RAY_CHDIR_TO_TRIAL_DIR in class_cache.ENV_VARS_TO_PROPAGATE


def test_switches_of_tune_have_their_effect():
    verbosity = get_air_verbosity(0)
    assert verbosity is None  # the old output, which `Silent` replaces
    ours = [tune.Silent(), JsonLoggerCallback()]
    assert _create_default_callbacks(list(ours), air_verbosity=verbosity) == ours
    assert tune_controller._get_max_pending_trials(None) == 10_000
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        _setup_signal_catching()
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("ours", "base", "names"),
    [
        (tune.Next, Searcher, "suggest on_trial_complete save restore"),
        (tune.Watch, FIFOScheduler, "on_trial_result choose_trial_to_run"),
        (tune.Tell, Callback, "on_step_end on_trial_result on_trial_complete on_trial_error"),
        (tune.Silent, TrialProgressCallback, "on_trial_result on_trial_complete on_trial_error"),
    ],
)
def test_what_tune_calls_has_the_parameters_that_tune_gives(ours, base, names):
    for name in names.split():
        takes = inspect.signature(getattr(ours, name))
        if {p.kind for p in takes.parameters.values()} >= {inspect.Parameter.VAR_POSITIONAL}:
            assert hasattr(base, name)
            continue
        gives = inspect.signature(getattr(base, name)).parameters.values()
        arguments = [None] * sum(p.kind == p.POSITIONAL_OR_KEYWORD for p in gives)
        takes.bind(*arguments)
        takes.bind(None, **{p.name: 1 for p in list(gives)[1:] if p.kind != p.VAR_KEYWORD})


def test_names_on_trials_and_decisions():
    assert Searcher.FINISHED == "FINISHED"  # None: ask again
    assert (FIFOScheduler.STOP, FIFOScheduler.CONTINUE) == ("STOP", "CONTINUE")
    assert Trial.PENDING == "PENDING"
    trial = Trial("x", stub=True)
    assert {"trial_id", "config", "status"} <= set(dir(trial))
    assert callable(trial.get_pickled_error)
    controller = tune_controller.TuneController
    assert "trial" in parameters(controller.stop_trial)
    assert not parameters(controller.get_live_trials) - {"self"}
    added = {"training_iteration", "time_total_s", "pid", "hostname", "node_ip", "config"}
    assert added <= set(AUTO_RESULT_KEYS) and not {"epoch", "seconds"} & set(AUTO_RESULT_KEYS)


def test_what_a_trial_raised_is_the_cause_of_what_tune_stores():
    error = ray.exceptions.RayTaskError("train", "Traceback", OSError("disk full"))
    assert isinstance(error.cause, OSError)
    # A process that is gone has no such cause: the trial is started again.
    assert getattr(ray.exceptions.RayActorError(), "cause", None) is None


def test_tune_pickles_what_it_is_given_without_the_dispatch():
    for ours in (tune.Next, tune.Watch, tune.Tell):
        kept = cloudpickle.loads(cloudpickle.dumps(ours(object())))  # type: ignore[arg-type]
        assert type(kept) is ours and not hasattr(kept, "dispatch")


def test_what_tuner_takes_and_ray_offers():
    from ray import tune as theirs

    for function, names in (
        (theirs.TuneConfig, "search_alg scheduler num_samples reuse_actors"),
        (theirs.RunConfig, "name storage_path verbose failure_config callbacks"),
        (theirs.FailureConfig, "max_failures"),
        (ray.init, "address num_cpus include_dashboard object_store_memory runtime_env job_config"),
        (ray.init, "logging_level log_to_driver"),
        (authentication_token_setup.maybe_enable_token_auth_if_token_available, "warn_if_disabled"),
        (services.canonicalize_bootstrap_address, "addr"),
        (scheduling_strategies.NodeAffinitySchedulingStrategy, "node_id soft"),
        (sdk.request_resources, "bundles"),
    ):
        assert set(names.split()) <= parameters(function)
    assert "_temp_dir" in inspect.getsource(ray.init)
    for name in ("Authentication", "NodeDied", "OutOfMemory", "Ray", "TaskUnschedulable"):
        assert issubclass(getattr(ray.exceptions, f"{name}Error"), Exception)
    assert issubclass(ray.exceptions.WorkerCrashedError, Exception)
    slot = {"cpu": 1.0, "gpu": 0.2, "node": "abc"}
    factory = tune._resources({"slot": slot})  # the bundle goes to the node that it names
    assert factory.bundles == [{"CPU": 1.0, "GPU": 0.2}]
    groups = importlib.import_module("ray.util.placement_group")  # also the name of a function
    assert groups.NODE_ID_LABEL_KEY == "ray.io/node-id"
    assert callable(theirs.with_resources(lambda config: None, tune._resources))


def test_asha_keeps_rungs_by_trial_and_draws_from_numpy():
    from ray.tune.schedulers import AsyncHyperBandScheduler

    asha = AsyncHyperBandScheduler("epoch", "acc", "max", max_t=8, reduction_factor=2, brackets=2)
    generator = np.random.RandomState(0)
    np.random.seed(0)
    asha.on_trial_add(None, tune._Named("a"))
    bracket = asha._trial_info["a"]
    generator.random_sample()
    assert np.random.random_sample() == generator.random_sample()  # it drew one number
    milestones = [rung for rung, _ in bracket._rungs]
    assert milestones == sorted(milestones, reverse=True) and milestones[0] <= 8
    assert bracket.cutoff({}) is None and bracket.cutoff({"x": 1.0, "y": 3.0}) == 2.0
    assert asha.on_trial_result(None, tune._Named("a"), {"epoch": 8, "acc": 1}) == "STOP"
    assert asha.on_trial_result(None, tune._Named("a"), {"acc": 1}) == "CONTINUE"


def test_ray_takes_this_for_a_system_without_clusters_and_listens_on_loopback(monkeypatch):
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    assert services.get_node_ip_address() in ("127.0.0.1", "::1")


def test_ray_adds_its_folders_to_the_list_that_it_is_given():
    """Not to a copy: ours puts them before the checkout, and the last one counts most."""
    config = session._our_modules_first()
    assert isinstance(config, JobConfig)
    config._py_driver_sys_path.extend(["/somewhere", os.getcwd()])
    assert config._py_driver_sys_path[0] == "/somewhere"
    assert config._py_driver_sys_path[-1] == str(ROOT)
    connect = inspect.getsource(importlib.import_module("ray._private.worker").connect)
    assert "job_config._py_driver_sys_path.extend(" in connect


def test_a_worker_is_started_by_a_shell_that_reads_the_interpreter_as_it_is(monkeypatch, tmp_path):
    """Whence `session._interpreter`; should Ray quote it one day, ours must not."""
    spaced = tmp_path / "a path with spaces"
    spaced.symlink_to(Path(sys.executable).parent)
    python = spaced / Path(sys.executable).name
    monkeypatch.setattr(sys, "executable", str(python))
    given = session._interpreter()
    assert given == {"py_executable": shlex.quote(str(python))}
    started = []
    monkeypatch.setattr(os, "execvp", lambda file, args: started.append(args))
    for interpreter in (given["py_executable"], None):
        context = RuntimeEnvContext(py_executable=interpreter)
        context.exec_worker(["-c", "print(6 * 7)"], Language.PYTHON)
    shown = [subprocess.run(c, capture_output=True, text=True).stdout for c in started]
    assert shown == ["42\n", ""]


def tell(config):
    """Report what the worker is like, and one row more for each epoch."""
    trial.report({"nice": os.nice(0), "folder": os.getcwd(), "epoch": 0})
    for epoch in range(config["epochs"]):
        trial.report({"epoch": epoch + 1, "val_accuracy": 0.5})


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Run Ray in this process, in a folder of its own."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with session._started():
            yield folder


@pytest.mark.ray
def test_a_trainable_that_tune_itself_calls_reports_to_it(started):
    """And what a node says of itself, and what the switches of workers do."""
    from ray import tune as theirs

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    (node,) = ray.nodes()
    assert {"NodeID", "Alive", "Resources", "Labels", "NodeManagerHostname"} <= node.keys()
    assert node["Alive"] and node["Resources"]["CPU"] >= 1
    callbacks = [tune.Silent(), JsonLoggerCallback()]
    config = theirs.RunConfig(storage_path=str(started), verbose=0, callbacks=callbacks)
    theirs.Tuner(tell, param_space={"epochs": 3}, run_config=config).fit()
    (file,) = started.rglob("result.json")
    first, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert first.keys() - tune.TUNES_OWN == {"nice", "folder", "epoch"}  # all else is Tune's own
    assert first["nice"] == os.nice(0)
    assert first["folder"] == str(started)
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[0]["val_accuracy"] > 0


@pytest.mark.ray
def test_a_node_with_other_code_is_refused(started, tmp_path, monkeypatch):
    """The driver sees another folder where the node has labtune's trainables."""
    for name in ("core", "trainables"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "trainables" / "rules.py").write_text("# changed\n")
    nodes = fleet.Fleet(None, 1, "none", errand=fleet.Errand(tmp_path, None, "x", {}))
    provenance.code.cache_clear()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"runs another labtune .* the same files to every node"):
        nodes.find()
    provenance.code.cache_clear()
    monkeypatch.undo()
    nodes.find()
    assert sum(s.count for s in nodes.slots) >= 1
