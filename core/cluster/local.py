"""Trials one after another in this process: for a debugger, unit tests, a machine without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from core.cluster import slots
from core.cluster.slots import Node, Slots
from core.cluster.work import Decide, Listener, Work, stop_none
from core.trial import api, records, running
from core.trial import run as trial_run


class One:
    """One slot: this process.

    Attributes:
        memory: bytes of a slot; None for whole cards.
        slots: the slot of this process.
        least: bytes that a slot must have, once the study's trials are laid out.
    """

    def __init__(self, memory: int | None, slot: Slots):
        self.memory, self.slots, self.least = memory, [slot], 0
        self.announce: Callable[[str], None] = print

    def sentence(self) -> str:
        """Return the slots in words."""
        return "one at a time in this process"

    def record(self) -> list[dict[str, Any]]:
        """Return the slots as JSON keeps them."""
        return [slot.record() | {"count": 1} for slot in self.slots]


@contextmanager
def session(slot_memory: str, slot_cores: int, here: Node) -> Iterator[One]:
    """Need nothing but this process.

    Raises:
        UserError: the slot is larger than this machine's card.
    """
    memory = slots.parse_memory(slot_memory)
    slots.check([here], memory, slot_memory)
    yield One(memory, slots.on_node(here, memory, slot_cores, use_gpus=bool(here.cards)))


def run(
    trainable: Callable[..., None],
    work: Work,
    nodes: One,
    listeners: Sequence[Listener],
    decide: Decide = stop_none,
) -> None:
    """Run all the work; each trial records its own end."""
    (slot,) = nodes.slots
    attempt = running.Attempt(threads=slot.threads, memory=slot.memory)
    while (spec := work.take()) is not None:
        config = dict(spec.config)

        def forward(row: running.Row, name: str = spec.name, config: dict = config) -> None:
            for listener in listeners:
                listener.row(name, config, row)
            api.stop(decide(name, row))

        trial_run.run(trainable, spec, forward, attempt)
        result = records.read_result(spec.folder)
        assert result is not None  # trial.run has just written it
        for listener in listeners:
            listener.ended(spec.name, config, result["state"], result["error"])
