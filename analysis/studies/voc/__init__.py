"""The report of the VOC study."""

from pathlib import Path


def report(folder: Path) -> None:
    """Write tables, figures and report of a finished result folder."""
    from analysis.studies.voc import sections  # brings pandas and matplotlib

    sections.report(folder)
