"""Trials one after another in this process: for a debugger, unit tests, a machine without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.cluster import slots
from core.cluster.work import Work
from core.study.declare import Study
from core.study.options import Options
from core.study.progress import Listener
from core.trial import api, records, running
from core.trial import run as trial_run
from core.trial.stopping import Halving


class One:
    """One slot: this process.

    Args:
        memory: bytes of a slot; None for whole cards.
        cores: cores of a slot.
    """

    def __init__(self, memory: int | None, cores: int):
        node = slots.this_machine()
        self.memory = memory
        self.announce: Callable[[str], None] = print
        self.least = 0
        self.slot = slots.on_node(node, memory, cores, use_gpus=bool(node.cards))

    @property
    def slots(self) -> list[slots.Slots]:
        """Return the slot of this process."""
        return [self.slot]

    def count(self) -> int:
        """Return how many trials run at once."""
        return 1

    def sentence(self) -> str:
        """Return the slots in words."""
        return "one at a time in this process"

    def record(self) -> list[dict]:
        """Return the slots as JSON keeps them."""
        return [self.slot.record() | {"count": 1}]


@contextmanager
def session(
    opts: Options, study: Path, paths: tuple[str, ...], announce: Callable[[str], None] = print
) -> Iterator[One]:
    """Need nothing but this process."""
    memory = slots.parse_memory(opts.slot_memory)
    slots.check([slots.this_machine()], memory, opts.slot_memory)
    yield One(memory, opts.slot_cores)


def run(
    study: Study,
    work: Work,
    nodes: One,
    listeners: Sequence[Listener],
    opts: Options,
    halving: Halving | None = None,
) -> None:
    """Run all the work; each trial records its own end."""
    attempt = running.Attempt(threads=nodes.slot.threads, memory=nodes.slot.memory)
    while (spec := work.take()) is not None:
        config = dict(spec.config)

        def forward(row: running.Row, name: str = spec.name, config: dict = config) -> None:
            for listener in listeners:
                listener.row(name, config, row)
            if halving is not None:
                api.stop(halving.decide(name, row))

        trial_run.run(study.trainable, spec, forward, attempt)
        result = records.read_result(spec.folder)
        assert result is not None  # trial.run has just written it
        for listener in listeners:
            listener.ended(spec.name, config, result["state"], result["error"])
