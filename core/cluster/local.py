"""Trials one after another in this process: for a debugger, unit tests, a machine without Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.cluster import slots
from core.cluster.slots import Node
from core.cluster.work import Work
from core.trial import api, records, running
from core.trial import run as trial_run


class One:
    """One slot: this process.

    Raises UserError: the slot is larger than this machine's card.

    Args:
        memory: bytes of a slot; None for whole cards.
        cores: cores of a slot.
        shown_memory: what the user gave for `memory`.
        here: this machine.

    Attributes:
        slots: the slot of this process.
        least: bytes that a slot must have, once the study's trials are laid out.
    """

    def __init__(self, memory: int | None, cores: int, shown_memory: str, here: Node):
        slots.check([here], memory, shown_memory)
        self.memory, self.least = memory, 0
        self.slots = [slots.on_node(here, memory, cores, use_gpus=bool(here.cards))]
        self.announce: Callable[[str], None] = print

    def sentence(self) -> str:
        """Return the slots in words."""
        return "one at a time in this process"

    def record(self) -> list[dict[str, Any]]:
        """Return the slots as JSON keeps them."""
        return [slot.record() | {"count": 1} for slot in self.slots]


def run(trainable: Callable[..., None], work: Work, nodes: One) -> None:
    """Run all the work; each trial records its own end."""
    (slot,) = nodes.slots
    attempt = running.Attempt(threads=slot.threads, memory=slot.memory)
    while (spec := work.take()) is not None:

        def forward(row: running.Row, spec: running.Spec = spec) -> None:
            work.row(spec, row)
            api.stop(work.why_stop(spec, row))

        trial_run.run(trainable, spec, forward, attempt)
        result = records.read_result(spec.folder)
        assert result is not None  # trial.run has just written it
        work.ended(spec, result)
