"""The trials that a study still has to run, in the order in which they start, and who listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.trial.running import Row, Spec

Decide = Callable[[str, Mapping[str, Any]], str]


class Listener:
    """What wants to know of the trials while they run."""

    def row(self, name: str, row: Row) -> None:
        """Hear of one epoch of the trial `name`."""

    def ended(self, name: str, state: str, error: str) -> None:
        """Hear of the end of the trial `name`."""

    def tick(self) -> None:
        """Be called often, also when nothing happened."""


class Work:
    """Trials that have not ended, and who hears of them; a search adds to them while it goes on.

    Args:
        specs: the trials that are known, in their order.
        example: any trial of the study, also where none of `specs` is left.
        listeners: who is told of epochs and ends.
        decide: why the trial of a name must stop after an epoch, if it must; none: never.
        propose: gives one more trial, or None when there are enough.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        example: Spec,
        listeners: Sequence[Listener],
        decide: Decide | None = None,
        propose: Callable[[], Spec | None] | None = None,
    ):
        self.example, self.listeners = example, listeners
        self._waiting, self._decide, self._propose = deque(specs), decide, propose

    def take(self) -> Spec | None:
        """Return the next trial; None when none is left (one may still be put back)."""
        if self._waiting:
            return self._waiting.popleft()
        spec = self._propose() if self._propose else None
        if spec is None:
            self._propose = None
        return spec

    def put_back(self, spec: Spec) -> None:
        """Have a trial that was taken be the next one."""
        self._waiting.appendleft(spec)

    def waiting(self) -> int:
        """Return how many known trials wait."""
        return len(self._waiting)

    def is_empty(self) -> bool:
        """Return whether nothing is left to take."""
        return not self._waiting and self._propose is None

    def row(self, spec: Spec, row: Row) -> None:
        """Hand on one epoch of a trial."""
        for listener in self.listeners:
            listener.row(spec.name, row)

    def why_stop(self, spec: Spec, row: Row) -> str:
        """Return why a trial stops here, doing worse than others did at the same epoch, if so."""
        return self._decide(spec.name, row) if self._decide else ""

    def ended(self, spec: Spec, result: Mapping[str, Any]) -> None:
        """Hand on how a trial ended, as `result.json` says it."""
        for listener in self.listeners:
            listener.ended(spec.name, result["state"], result["error"])

    def tick(self) -> None:
        """Give listeners a chance to print."""
        for listener in self.listeners:
            listener.tick()
