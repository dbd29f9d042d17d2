"""The report of the weight-standardisation study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def report(folder: Path) -> None:
    """Write tables, figures and report of a finished result folder."""
    from analysis.studies.weight_standardization import sections  # brings pandas and matplotlib

    sections.report(folder)


def check(settings: Mapping[str, Any], folder: Path) -> int:
    """Compare logits and layers of a network before and after its conversion, on images."""
    from analysis.studies.weight_standardization import conversion
    from core.models import conversion_check  # brings torch

    return conversion.report(conversion_check.run(settings), folder)
