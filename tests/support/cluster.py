"""A Ray cluster of several nodes on this machine, with cards that are only pretended.

python tests/support/cluster.py 2x11GB 1x24GB 0     starts one and prints its address, until Ctrl-C
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

import core.cluster  # noqa: F401 - Ray reads its settings from the environment
from core.cluster.fleet import LABEL

# isort: split
from ray.cluster_utils import Cluster

CORES = 2  # of a pretended node; Ray starts as many workers in advance


class Nodes:
    """A head without work and nodes that can be added and lost.

    Args:
        environment: variables of every node's processes.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        self.environment = dict(environment or {})
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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    with nodes(*sys.argv[1:]) as running:
        print(running.address, flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])
