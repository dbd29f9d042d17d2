"""The door of a trainable: `from core import trial`. What it offers is loaded on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.trial.api import (
        Best,
        epochs,
        load_best,
        note,
        report,
        restore,
        save,
        save_picture,
        save_predictions,
        step_counter,
        stopped,
    )
    from core.trial.running import Report, Row, Stateful

__all__ = [
    "Best", "Report", "Row", "Stateful", "epochs", "load_best", "note", "report", "restore", "save",
    "save_picture", "save_predictions", "step_counter", "stopped",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"core.trial has no {name}")
    from core.trial import api, running  # bring torch, which a declaration does not need

    return getattr(api, name, None) or getattr(running, name)
