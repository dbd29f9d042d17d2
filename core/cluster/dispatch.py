"""Which trial starts next and where, which is lost and started again, and how each ends."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cluster.slots import Slots
from core.cluster.work import Work
from core.errors import StorageError
from core.storage import mirror
from core.trial.records import read_attempt, read_result, read_rows, write_result
from core.trial.running import Row, Spec

if TYPE_CHECKING:
    from core.cluster.fleet import Fleet  # brings Ray, of which nothing is asked here


class Dispatch:
    """Gives out trials where there are slots, takes back those that lost a process, tells of all.

    Tune itself would give every trial one share of a GPU, whatever card it lands on, and would
    bring a lost one back with the share of the node that is gone.

    An attempt is one process's try at a trial, under an id that is Tune's.

    Args:
        work: the trials.
        nodes: who has slots.
        retries: how often a trial may lose its process or node and start again.
    """

    def __init__(self, work: Work, nodes: Fleet, retries: int):
        self.work, self.nodes, self.retries = work, nodes, retries
        self.running: dict[str, tuple[Spec, Slots]] = {}  # by attempt
        self._stops: dict[str, str] = {}  # by attempt: why it stops early
        self._withdrawn: set[str] = set()  # attempts taken back before they began
        self._lost: Counter[str] = Counter()  # by trial

    def is_done(self) -> bool:
        """Return whether nothing runs and nothing is left to start."""
        return self.work.is_empty() and not self.running

    def start(self, attempt: str) -> dict[str, Any] | None:
        """Return the next trial with its slot, as a worker is told; None if none can start now."""
        if self.work.is_empty():
            return None
        self.nodes.refresh()
        self.nodes.want(self.work.waiting() + len(self.running))
        slot = self.nodes.take()
        if slot is None:
            return None
        spec = self.work.take()
        if spec is None:
            self.nodes.give(slot.node)
            return None
        self.running[attempt] = spec, slot
        told = {"trial": spec.name, "config": dict(spec.config), "slot": slot.record()}
        return told | {"attempt": self._lost[spec.name] + 1}

    def row(self, attempt: str, row: Row) -> None:
        """Hand on one epoch."""
        self.work.row(self.running[attempt][0], row)

    def must_stop(self, attempt: str, row: Row) -> bool:
        """Return whether a trial stops here, doing worse than others did at the same epoch."""
        reason = self.work.why_stop(self.running[attempt][0], row)
        if reason:
            self._stops[attempt] = reason
        return bool(reason)

    def withdraw_stranded(self, attempt: str) -> bool:
        """Take back an attempt that has not begun if its node is gone: Ray would wait for ever."""
        if attempt not in self.running or self.running[attempt][1].node in self.nodes.nodes:
            return False
        self._withdrawn.add(attempt)
        return True

    def completed(self, attempt: str) -> None:
        """Hand on how a trial ended, or have one start elsewhere that was taken back."""
        if attempt in self._withdrawn:
            self._again(attempt, counted=False)
        else:
            self._end(self._free(attempt), "stopped", self._stops.pop(attempt, ""))

    def failed(self, attempt: str, cause: BaseException | None) -> None:
        """Start a trial again that lost its process; record the end of one that cannot go on.

        Args:
            attempt: its id.
            cause: what was raised in the trial, None for a process that is gone.
        """
        spec, _ = self.running[attempt]
        if isinstance(cause, StorageError):  # it could not even record its end
            self._end(self._free(attempt), "failed", str(cause))
        elif self._again(attempt, counted=True):
            self.nodes.announce(
                f"{spec.name}: its worker died, retry {self._lost[spec.name]}/{self.retries} from"
                f" epoch {len(read_rows(_fetched(spec)))}"
            )
        else:
            times = self._lost[spec.name]
            counted = "once" if times == 1 else f"{times} times"
            self._end(spec, "failed", f"its worker process died {counted}")

    def out_of_memory(self, killed: Sequence[int]) -> None:
        """Record the end of the trials whose processes were killed for want of main memory.

        The other trials that ran go back into the queue.
        """
        for attempt, (spec, _) in list(self.running.items()):
            folder = _fetched(spec)
            if read_result(spec.folder) is None and read_attempt(folder).get("pid") not in killed:
                self._again(attempt, counted=False)
                continue
            said = "the machine ran out of main memory: lower batch_size, or --max-concurrent"
            self._end(self._free(attempt), "failed", said)

    def _free(self, attempt: str) -> Spec:
        """Free the slot of an attempt; return its trial."""
        spec, slot = self.running.pop(attempt)
        self.nodes.give(slot.node)
        return spec

    def _again(self, attempt: str, *, counted: bool) -> bool:
        """Free the slot and put the trial first in the queue, unless it was lost too often.

        Not every loss is `counted`: a trial that had not begun has lost nothing.
        """
        if counted:
            self.nodes.suspect(self.running[attempt][1].node)
        spec = self._free(attempt)
        self._lost[spec.name] += counted
        if self._lost[spec.name] > self.retries:
            return False
        self.work.put_back(spec)
        return True

    def _end(self, spec: Spec, state: str, error: str) -> None:
        """Record an end that the trial itself could not, and tell the listeners."""
        result = read_result(_fetched(spec))
        if result is None:
            result = {"state": state, "error": error}
            with contextlib.suppress(StorageError):  # the listeners hear of it all the same
                write_result(spec, state, error)
        self.work.ended(spec, result)


def _fetched(spec: Spec) -> Path:
    """Return a trial's folder, with what another node wrote to an object store."""
    if remote := mirror.of(spec.study / "study.json"):
        remote.pull(f"trials/{spec.name}", only=(".json", ".txt"))
    return spec.folder
