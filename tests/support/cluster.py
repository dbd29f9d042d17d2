"""A Ray cluster of several nodes on this machine, with cards that are only pretended.

python tests/support/cluster.py 2x11GB 1x24GB    starts one and prints its address; then it reads
                                                 `add CARDS`, `lose CARDS`, `claim RAY PYTHON` (to
                                                 be of these versions) and, to end it, `stop`
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

import core.cluster  # noqa: F401 - Ray reads its settings from the environment
from core.cluster.fleet import LABEL
from core.storage import scratch
from tests.support.calls import PATIENCE, TOY, start

# isort: split
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

CORES = 2  # of a pretended node
NODES = {
    # A lost node is noticed after five seconds, in place of fifteen.
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    # Workers started in advance are of no use: drivers bring an environment of their own.
    "RAY_prestart_worker_first_driver": "0",
    "LABTUNE_CPU": "native",  # the driver's choice of instructions counts
}  # fmt: skip


class Remote:
    """A cluster in a process of its own: Ray would change a test's signals and environment.

    Args:
        cards: such as "2x11GB", or "0" for none; a node for each, the first with the head.
        environment: variables of every node's processes, and of the drivers that join it.
        interpreter: that runs all of them.

    Attributes:
        cards: of the nodes that are there now.
    """

    def __init__(self, *cards: str, environment: dict[str, str], interpreter: str = sys.executable):
        self.environment, self.interpreter, self.cards = environment, interpreter, [*cards]
        own = {**environment, **NODES, "interpreter": interpreter}
        script = "tests/support/cluster.py"
        self.process = start(script, *cards, stdin=subprocess.PIPE, stderr=None, **own)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def tell(self, *words: str) -> None:
        """Have a node added or lost, or other versions claimed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"
        match words:
            case ["add", cards]:
                self.cards.append(cards)
            case ["lose", cards]:
                self.cards.remove(cards)

    def start(self, folder: Path | str, *arguments: str, **options: Any) -> subprocess.Popen:
        """Start the toy study on the cluster."""
        joined = (*TOY, folder, "--address", self.address, *arguments)
        return start(*joined, **{"interpreter": self.interpreter} | self.environment | options)

    def run(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        """Run the toy study on the cluster; return its exit code and what it said."""
        process = self.start(folder, *arguments)
        shown, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, shown, errors

    def stop(self) -> None:
        """End every process of the cluster."""
        self.process.communicate("stop\n", timeout=60)


def serve(cluster: Cluster, cards: list[str]) -> None:
    """Add nodes, print the address, and do what each line of standard input says."""
    known = {each: add(cluster, each) for each in cards[1:]}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["stop"]:
                break
            case ["add", each]:
                known[each] = add(cluster, each)
            case ["lose", each]:
                lose(cluster, known.pop(each))
            case ["claim", *versions]:
                claim(GcsClient(address=cluster.address), *versions)
        print("done", flush=True)


def add(cluster: Cluster, cards: str, **more: Any) -> Any:
    """Add a node with cards such as "2x11GB", or without ("0")."""
    # Results in an object store are copied to a folder of each node.
    place = os.environ.get("TOY_MARKER", "/tmp/labtune")
    os.environ["LABTUNE_MIRROR"] = f"{place}-mirror-of-{cards}"
    count, _, memory = cards.partition("x")
    labels = {"labels": {LABEL: memory}} if memory else {}
    sizes = {"num_cpus": CORES, "num_gpus": int(count), "object_store_memory": 80 * 2**20}
    return cluster.add_node(**sizes, **labels, **more)


def lose(cluster: Cluster, node: Any) -> None:
    """Kill a node with everything on it, as a power cut would."""
    raylet = node.all_processes["raylet"][0].process
    workers = psutil.Process(raylet.pid).children(recursive=True)
    raylet.kill()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    cluster.remove_node(node, allow_graceful=False)


def claim(kept: Any, ray: str, python: str) -> None:
    """Change the cluster's own record of its versions, as if others had started it."""
    content = json.loads(kept.internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
    content |= {"ray_version": ray, "python_version": python}
    kept.internal_kv_put(b"CLUSTER_METADATA", json.dumps(content).encode(), True, b"cluster")


if __name__ == "__main__":
    with scratch.folder() as folder:
        running, own = Cluster(), {"include_dashboard": False, "no_monitor": True}
        add(running, sys.argv[1], temp_dir=str(folder / "r"), include_log_monitor=False, **own)
        try:
            serve(running, sys.argv[1:])
        finally:
            running.shutdown()
