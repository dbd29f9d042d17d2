"""The report of the CIFAR study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def report(folder: Path) -> None:
    """Write tables, figures and report of a finished result folder."""
    from analysis.studies.cifar import sections  # brings pandas and matplotlib

    sections.report(folder)


def print_layers(settings: Mapping[str, Any], folder: Path) -> int:
    """Print the networks' layer sizes."""
    from analysis.studies.cifar import sections

    return sections.print_layers(settings, folder)
