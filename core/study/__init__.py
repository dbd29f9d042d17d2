"""The door of a study file: what it declares a study with, and `main` that runs it."""

import sys

from core.study.declare import Choice, Data, Part, Range, Scale, Search, Settings, Study
from core.trial.stopping import Stopping

__all__ = [
    "Choice", "Data", "Part", "Range", "Scale", "Search", "Settings", "Stopping", "Study", "main",
]  # fmt: skip


def main(study: Study) -> None:
    """Run the command line of a study file and exit; see `core.study.options` for the options."""
    from core.study.command import command_line  # a declaration alone loads nothing heavy

    sys.exit(command_line(study, sys.argv[1:]))
