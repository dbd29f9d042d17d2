"""Ray on this machine, or a cluster that is joined, for as long as a study needs it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.job_config import JobConfig

from core import instruction_set, provenance
from core.cluster.fleet import Fleet
from core.errors import UserError
from core.storage import scratch

TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def session(nodes: Fleet, address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start Ray on this machine and stop it afterwards.

    Raises UserError: no such cluster, or a node of it cannot work for this study.

    Args:
        nodes: finds those that are there.
        address: of a running cluster; None to start Ray.
    """
    on_terminate = signal.getsignal(signal.SIGTERM)
    with _started() if address is None else _joined(address):
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler ends the process at once
        try:
            nodes.find()
            yield
        finally:
            nodes.leave()


@contextlib.contextmanager
def _started() -> Iterator[None]:
    """Run Ray on this machine, reachable from this machine only."""
    # A folder of our own: Ray's default is shared, never cleaned, and may name someone
    # else's cluster. Ray lets everybody enter what it makes, so it makes it further in.
    with scratch.folder() as temporary, _own_token():
        # Ray listens on every interface, unless it takes this for a system on which it forms no
        # clusters; whoever reaches its ports can run code (see docs/cluster.md). A test scans them.
        ray_constants.ENABLE_RAY_CLUSTER = False
        _init(
            "local",
            num_cpus=provenance.cores_here(),
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=str(temporary / "r"),
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


def _init(address: str, *, runtime_env: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Start or join Ray, with this process's interpreter and modules for the workers."""
    ray.init(
        address=address,
        runtime_env={**_interpreter(), **(runtime_env or {})},
        job_config=_our_modules_first(),
        logging_level=logging.ERROR,
        log_to_driver=False,
        **options,
    )


def _our_modules_first() -> JobConfig:
    return JobConfig(_py_driver_sys_path=_Ours([str(provenance.ROOT)]))


def _interpreter() -> dict[str, str]:
    """Return a runtime environment for workers when this one's path needs quotes, as with spaces.

    Ray 2.60 starts workers through `bash -c` and quotes their arguments, but not the interpreter;
    with a space in its path they never start, and the study would wait for ever.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Connect to a running cluster; what Ray prints meanwhile is kept back."""
    try:
        with _quiet_stderr():
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            _init(address, runtime_env={"env_vars": instruction_set.passed_on()})
    except ray.exceptions.AuthenticationError as e:
        raise UserError(
            f"--address {address}: Ray's token is missing here: bring the cluster's"
            " ~/.ray/auth_token to this machine (mode 0600; see docs/cluster.md)"
        ) from e
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise UserError(f"--address {address}: {_why_not(e)}") from e
    try:
        yield
    finally:
        ray.shutdown()


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
