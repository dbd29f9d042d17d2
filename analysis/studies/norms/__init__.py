"""The report of the norms study."""

from collections.abc import Callable
from pathlib import Path


def report(folder: Path, extra: Callable) -> None:
    """Write tables, figures and report of a finished result folder; `extra` adds sections."""
    from analysis.studies.norms import sections  # brings pandas and matplotlib

    sections.report(folder, extra)
