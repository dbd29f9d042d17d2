"""A Ray cluster of several nodes on this machine, with cards that are only pretended.

python tests/support/cluster.py 2x11GB 1x24GB 0     starts one and prints its address; then it reads
                                                    `add CARDS`, `lose CARDS` and, to end it, `stop`
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

import core.cluster  # noqa: F401 - Ray reads its settings from the environment
from core.cluster.fleet import LABEL
from tests.support.calls import TOY, start

# isort: split
from ray.cluster_utils import Cluster

CORES = 2  # of a pretended node; Ray starts as many workers in advance
# A lost node is noticed after five seconds, in place of fifteen.
HEALTH = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}


class Nodes:
    """A head without work and nodes that can be added and lost.

    Args:
        environment: variables of every node's processes.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        self.environment = HEALTH | dict(environment or {})
        with self._environment({}):
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "object_store_memory": 80 * 2**20,
                },
            )

    @property
    def address(self) -> str:
        """Return HOST:PORT for `--address`."""
        return self.cluster.address

    def add(
        self, cards: str = "0", cpus: int = CORES, environment: Mapping[str, str] | None = None
    ) -> Any:
        """Add a node with `cards` such as "2x11GB", or without ("0")."""
        count, _, memory = cards.partition("x")
        labels = {"labels": {LABEL: memory}} if memory else {}
        with self._environment(environment or {}):
            return self.cluster.add_node(
                num_cpus=cpus, num_gpus=int(count), object_store_memory=80 * 2**20, **labels
            )

    def lose(self, node: Any) -> None:
        """Kill a node with everything on it, as a power cut would."""
        raylet = node.all_processes["raylet"][0].process
        workers = psutil.Process(raylet.pid).children(recursive=True)
        raylet.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """End every process of the cluster."""
        self.cluster.shutdown()

    @contextlib.contextmanager
    def _environment(self, more: Mapping[str, str]) -> Iterator[None]:
        wanted = self.environment | dict(more)
        before = {key: os.environ.get(key) for key in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextlib.contextmanager
def nodes(*cards: str, **options: Any) -> Iterator[Nodes]:
    """Start a cluster with one node for each of `cards`, and end it."""
    running = Nodes(**options)
    try:
        for each in cards:
            running.add(each)
        yield running
    finally:
        running.stop()


class Remote:
    """A cluster in a process of its own: Ray would change a test's signals and environment.

    Args:
        cards: a node for each.
        environment: variables of every node's processes, and of the drivers that join it.
        interpreter: that runs all of them.
    """

    def __init__(self, *cards: str, environment: dict[str, str], interpreter: str = sys.executable):
        self.environment, self.interpreter = environment, interpreter
        # The driver's choice of instructions counts, so the nodes have another.
        own = {**environment, "LABTUNE_CPU": "native"}
        script = "tests/support/cluster.py"
        own["interpreter"] = interpreter
        self.process = start(script, *cards, stdin=subprocess.PIPE, stderr=None, **own)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def tell(self, *words: str) -> None:
        """Have a node added or lost."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"

    def start(self, folder: Path | str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start the toy study on the cluster."""
        joined = (*TOY, folder, "--address", self.address, *arguments)
        known = {"interpreter": self.interpreter} | self.environment
        return start(*joined, **known | environment)

    def run(self, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run the toy study on the cluster; return its exit code and what it said."""
        process = self.start(folder, *arguments, **environment)
        shown, errors = process.communicate(timeout=280)
        return process.returncode, shown, errors

    def stop(self) -> None:
        """End every process of the cluster."""
        self.process.communicate("stop\n", timeout=60)


def serve(running: Nodes, cards: list[str]) -> None:
    """Add nodes, print the address, and do what each line of standard input says."""

    def add(cards: str) -> Any:  # results in an object store are copied to a folder of each node
        mirror = f"{os.environ.get('TOY_MARKER', '/tmp/labtune')}-mirror-of-{cards}"
        return running.add(cards, environment={"LABTUNE_MIRROR": mirror})

    known = {each: add(each) for each in cards}
    print(running.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["stop"]:
                break
            case ["add", each]:
                known[each] = add(each)
            case ["lose", each]:
                running.lose(known.pop(each))
        print("done", flush=True)


if __name__ == "__main__":
    with nodes() as running:
        serve(running, sys.argv[1:])
