"""The trials that a study still has to run, in the order in which they start, and who listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from core.trial.running import Row, Spec

Decide = Callable[[str, Mapping[str, Any]], str]


class Listener(Protocol):
    """What wants to know of the trials while they run."""

    def row(self, name: str, config: dict[str, Any], row: Row) -> None:
        """Hear of one epoch of the trial `name`."""
        ...

    def ended(self, name: str, config: dict[str, Any], state: str, error: str) -> None:
        """Hear of the end of the trial `name`."""
        ...

    def tick(self) -> None:
        """Be called often, also when nothing happened."""
        ...


def stop_none(name: str, row: Mapping[str, Any]) -> str:
    """Return why the trial `name` must stop after this epoch: never."""
    return ""


class Work:
    """Trials that have not ended; a search adds to them while it goes on.

    Args:
        specs: the trials that are known, in their order.
        propose: gives one more trial, or None when there are enough.
    """

    def __init__(self, specs: Sequence[Spec], propose: Callable[[], Spec | None] | None = None):
        self.specs = {spec.name: spec for spec in specs}
        self._waiting = deque(specs)
        self._propose = propose

    def take(self) -> Spec | None:
        """Return the next trial; None when none is left (one may still be put back)."""
        if self._waiting:
            return self._waiting.popleft()
        if self._propose is None:
            return None
        spec = self._propose()
        if spec is None:
            self._propose = None
        else:
            self.specs[spec.name] = spec
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
