"""The door of a trainable: `from core import trial`."""

from core.trial.api import (
    Best,
    counted,
    load_best,
    note,
    report,
    restore,
    save,
    save_picture,
    save_predictions,
    stopped,
)
from core.trial.running import Report, Row, Stateful

__all__ = [
    "Best",
    "Report",
    "Row",
    "Stateful",
    "counted",
    "load_best",
    "note",
    "report",
    "restore",
    "save",
    "save_picture",
    "save_predictions",
    "stopped",
]
