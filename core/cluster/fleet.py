"""The nodes of a Ray cluster as slots: found, checked, followed as they join and leave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core import provenance
from core.cluster import slots
from core.cluster.slots import Node, Slots
from core.errors import UserError
from core.storage.files import write_bytes
from core.storage.mirror import Mirror

LABEL = "labtune-gpu-memory"  # a node's own word on the memory of its cards
PATIENCE = 120.0  # seconds in which a node must answer: it starts a worker first
SUSPICION = 20.0  # seconds; longer than Ray takes to declare a node dead
LOOK_EVERY = 2.0  # seconds between looks at who has joined or left

GONE = (TaskUnschedulableError, NodeDiedError, WorkerCrashedError)


@dataclass(frozen=True)
class Errand:
    """What a node is asked to do before it gets trials.

    Attributes:
        study: the result folder.
        remote: the object store that mirrors it, if any.
        token: what the driver wrote to the file `.driver-check` there, to be found again.
        digits: the groups of the driver's `numerics.Fingerprint`.
        paths: files and folders that trials read.
        threads: of a trial on a CPU.
    """

    study: Path
    remote: Mirror | None
    token: str
    digits: Mapping[str, str]
    paths: tuple[str, ...] = ()
    threads: int = 1


def look(node: str, errand: Errand) -> dict[str, Any]:
    """Return what a node has and whether it can work for this study; runs on that node."""
    return {
        "cards": slots.card_memory(),
        "cores": provenance.cores_here(),
        "bfloat16": slots.cards_have_bfloat16(),
        "host": os.uname().nodename,
        "code": provenance.code(),
        "python": provenance.versions()["python"],
        "digits": _other_digits(errand),
        "trouble": _trouble(node, errand),
    }


def _other_digits(errand: Errand) -> str:
    """Return in what a node's CPU adds up otherwise than the driver's, or nothing."""
    from core import numerics  # brings torch, which a driver does without

    groups = numerics.difference(numerics.fingerprint(errand.threads).groups, errand.digits)
    return f"its CPU has other digits than the driver's: {', '.join(groups)}" if groups else ""


def _trouble(node: str, errand: Errand) -> str:
    """Return why a node cannot work for this study, or nothing."""
    check = errand.study / ".driver-check"
    try:
        if errand.remote is not None:
            errand.remote.check(node[:8])
        elif check.is_file() and check.read_text() == errand.token:
            write_bytes(errand.study / f".node-check-{node[:8]}", errand.token.encode())
        else:
            give = "give a --results-dir that all nodes share, or s3://BUCKET/FOLDER"
            return f"{errand.study} there is not the driver's folder: {give}"
    except UserError as e:
        return str(e)
    missing = [path for path in errand.paths if not Path(path).exists()]
    return f"--data-dir {missing[0]} does not exist there" if missing else ""


class Fleet:
    """Knows every node's slots and hands them out.

    Args:
        memory: bytes of a slot; None for whole cards.
        cores: cores of a slot.
        shown_memory: what the user gave for `memory`.
        limit: at most so many trials at once.
        here: this machine, when there is no other.
        errand: what nodes are asked to check, when there are others.
    """

    def __init__(
        self,
        memory: int | None,
        cores: int,
        shown_memory: str,
        limit: int | None = None,
        here: Node | None = None,
        errand: Errand | None = None,
    ):
        self.memory, self.cores, self.shown_memory = memory, cores, shown_memory
        self.limit, self.here, self.errand = limit, here, errand
        self.announce: Callable[[str], None] = print
        self.least = 0  # bytes that a slot must have, once the study's trials are laid out
        self.nodes: dict[str, Node] = {}
        self.taken: Counter[str] = Counter()
        self._asked: dict[str, tuple[ray.ObjectRef, Mapping[str, Any]]] = {}
        self._refused: set[str] = set()
        self._suspect: dict[str, float] = {}  # until when
        self._looked = 0.0
        self._requested = 0

    def find(self) -> None:
        """Look at every node that is there and wait for their answers.

        Raises UserError: a node cannot work for this study, or the slot is larger than every card.
        """
        if self.errand is not None and self.errand.remote is None:
            write_bytes(self.errand.study / ".driver-check", self.errand.token.encode())
        self._ask_new_nodes()
        deadline = time.monotonic() + PATIENCE
        while self._asked and time.monotonic() < deadline:
            ray.wait([ref for ref, _ in self._asked.values()], timeout=1.0)
            for _, reason in self._answers():
                raise UserError(reason)
        if self._asked:
            raise UserError(
                f"node {next(iter(self._asked))[:8]} has not answered for {PATIENCE:.0f} s: see"
                " `ray status`, restart it or leave it out"
            )
        slots.check(list(self.nodes.values()), self.memory, self.shown_memory)

    def leave(self) -> None:
        """Ask an autoscaler for no more GPUs, and remove what the checks left in the folder."""
        if self.errand is not None:
            self.want(0)
            study = self.errand.study
            for path in [*study.glob(".driver-check"), *study.glob(".node-check-*")]:
                path.unlink(missing_ok=True)

    @property
    def slots(self) -> list[Slots]:
        """Return the slots of every node, also of those without any."""
        size, gpus = (self.memory, self.cores), self.uses_gpus()
        return [slots.on_node(node, *size, use_gpus=gpus) for node in self.nodes.values()]

    def uses_gpus(self) -> bool:
        """Return whether trials run on GPUs: there is one, or nothing else to run on."""
        nodes = self.nodes.values()
        return any(n.cards for n in nodes) or not any(n.cpus >= self.cores for n in nodes)

    def sentence(self) -> str:
        """Return the slots in words."""
        words = slots.sentence(self.slots, self.memory)
        limited = self.limit is not None and self.limit < sum(s.count for s in self.slots)
        return f"{words}, at most {self.limit} at once" if limited else words

    def record(self) -> list[dict[str, Any]]:
        """Return the slots as JSON keeps them."""
        return [s.record() for s in self.slots]

    def refresh(self) -> None:
        """Notice nodes that joined or left; takes no time when it was done just now."""
        if self.errand is None or time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._ask_new_nodes()
        for node, reason in self._answers():
            self._refused.add(node)
            self.announce(f"not used: {reason}")

    def take(self) -> Slots | None:
        """Take a free slot, on the node with the most of them; None when all are taken."""
        if self.limit is not None and sum(self.taken.values()) >= self.limit:
            return None
        now = time.monotonic()
        usable = [s for s in self.slots if s.count]
        until = {s.node: max(now, self._suspect.get(s.node, now)) for s in usable}
        # Where every node has lost a trial of late, the one that lost its last the longest ago.
        least = min(until.values(), default=now)
        free = [s for s in usable if until[s.node] == least and s.count > self.taken[s.node]]
        if not free:
            return None
        chosen = max(free, key=lambda s: s.count - self.taken[s.node])
        self.taken[chosen.node] += 1
        return chosen

    def give(self, node: str) -> None:
        """Give a slot back."""
        self.taken[node] -= 1

    def suspect(self, node: str) -> None:
        """Give a node nothing for a while, if there are others: a trial has just died there.

        Ray takes a dozen seconds to find that a node is gone; until then trials sent there die.
        """
        self._suspect[node] = time.monotonic() + SUSPICION
        self._looked = 0.0

    def want(self, trials: int) -> None:
        """Ask an autoscaler, if the cluster has one, for the GPUs that `trials` need."""
        if self.errand is None or not self.uses_gpus():
            return
        per_card = [s.count // s.gpus for s in self.slots if s.count]
        gpus = -(-trials // (max(per_card) if per_card else 1))
        if gpus != self._requested:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"GPU": 1}] * gpus)
            self._requested = gpus

    def _ask_new_nodes(self) -> None:
        self._looked = time.monotonic()
        alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        for gone in [node for node in self.nodes if node not in alive]:
            node = self.nodes.pop(gone)
            self.announce(f"node {gone[:8]} ({node.host}) is lost: its trials move")
        self._asked = {node: asked for node, asked in self._asked.items() if node in alive}
        for node, info in alive.items():
            if node in self.nodes or node in self._asked or node in self._refused:
                continue
            if self.errand is None:
                assert self.here is not None
                cpus = info["Resources"].get("CPU", 0.0)
                self.nodes[node] = dataclasses.replace(self.here, id=node, cpus=cpus)
                continue
            pinned = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=pinned)
            self._asked[node] = task.remote(node, self.errand), info

    def _answers(self) -> list[tuple[str, str]]:
        """Take in the nodes that have answered; return those that cannot be used, and why."""
        refused = []
        for node, (ref, info) in list(self._asked.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            del self._asked[node]
            name = f"node {info['NodeManagerHostname']} ({node[:8]})"
            try:
                told = ray.get(ref)
            except GONE:
                continue  # the node left meanwhile; should it be there after all, it is asked again
            except RayError as e:
                lines = [line.strip() for line in str(e).splitlines() if line.strip()]
                cause = lines[-1] if lines else type(e).__name__
                refused.append((node, f"{name} cannot run this labtune: {cause}"))
                continue
            if reason := self._why_not(node, info, told):
                refused.append((node, f"{name}: {reason}"))
                continue
            if self.taken:
                self.announce(f"{name} has joined: {self.sentence()}")
            if told["digits"]:
                self.announce(f"{name}: {told['digits']}")
        return refused

    def _why_not(self, node: str, info: Mapping[str, Any], told: Mapping[str, Any]) -> str:
        """Take in a node that has answered, or return why it cannot be used."""
        if reason := _difference(told) or told["trouble"] or self._share_back(node):
            return reason
        cards, unknown = _cards(info, told["cards"])
        if unknown and self.memory is not None:
            return unknown
        # Ray counts the machine's cores, whatever of them its processes may use.
        cpus = min(info["Resources"].get("CPU", 0.0), float(told["cores"]))
        joined = Node(node, told["host"], cpus, cards, told["bfloat16"])
        offered = slots.on_node(joined, self.memory, self.cores, use_gpus=bool(cards))
        if reason := slots.too_small([offered], self.least):
            return reason
        self.nodes[node] = joined
        return ""

    def _share_back(self, node: str) -> str:
        """Return why the driver does not see what the node wrote, or nothing."""
        assert self.errand is not None
        if self.errand.remote is not None:
            return ""
        path = self.errand.study / f".node-check-{node[:8]}"
        with contextlib.suppress(OSError):
            seen = path.read_text()
            path.unlink()
            if seen == self.errand.token:
                return ""
        return f"what it writes to {self.errand.study} is not seen here"


def _cards(info: Mapping[str, Any], found: list[int]) -> tuple[tuple[int, ...], str]:
    """Return the memory of the cards that Ray may use on a node, or why it is unknown."""
    count = int(info["Resources"].get("GPU", 0))
    if not count:
        return (), ""
    if label := (info.get("Labels") or {}).get(LABEL):
        return (slots.parse_memory(label, f"label {LABEL}") or 0,) * count, ""
    if found:
        # Fewer for Ray than there are, and not known which: count each as the smallest.
        return tuple(found) if len(found) == count else (min(found),) * count, ""
    return (1,) * count, (
        f"the memory of its {count} GPUs is not known (nvidia-smi does not answer): start it with"
        f" --labels {LABEL}=11GiB, or use --slot-memory none"
    )


def _difference(told: Mapping[str, Any]) -> str:
    """Return how a node's labtune or Python differs from the driver's, or nothing."""
    python, code = provenance.versions()["python"], provenance.code()
    if told["python"] != python:
        return f"runs Python {told['python']}, the driver {python}: use the same on every node"
    if told["code"] != code:
        theirs = f"runs another labtune ({told['code'][:8]}) than the driver ({code[:8]})"
        return f"{theirs}: bring the same files to every node"
    return ""
