"""Trials one after another in this process: for a debugger, unit tests, a machine without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from core import trial
from core.options import Options
from core.progress import Listener
from core.slots import Slot
from core.study import Study


def session(address: str | None) -> AbstractContextManager[None]:
    """Need nothing."""
    return nullcontext()


def run(
    study: Study,
    pending: Sequence[trial.Spec],
    slot: Slot,
    listeners: Sequence[Listener],
    opts: Options,
) -> None:
    """Run every pending trial; each records its own end."""
    for spec in pending:
        config = dict(spec.config)

        def forward(row: trial.Row, name: str = spec.name, config: dict = config) -> None:
            for listener in listeners:
                listener.row(name, config, row)

        trial.run(study.trainable, spec, forward)
        result = trial.read_result(spec.folder)
        assert result is not None  # trial.run has just written it
        for listener in listeners:
            listener.ended(spec.name, config, result["state"], result["error"])
