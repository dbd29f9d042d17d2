"""The door of a study file: what it declares a study with, and `main` that runs it."""

from core.study.command import main
from core.study.declare import Choice, Part, Range, Scale, Study
from core.trial.stopping import Stopping

__all__ = ["Choice", "Part", "Range", "Scale", "Stopping", "Study", "main"]
