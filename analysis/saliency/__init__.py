"""Class activation maps of a finished study."""

from typing import Any


def sections(*arguments: Any) -> Any:
    """Return the sections of a report that show where its best network looks."""
    from analysis.saliency import study  # brings torch

    return study.sections(*arguments)
