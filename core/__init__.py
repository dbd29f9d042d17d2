"""Layers, models, data, training and the study engine: what every study shares."""

from core import instruction_set

instruction_set.state = instruction_set.pin()
