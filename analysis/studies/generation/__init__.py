"""The report of the generation study."""

from core.later import Later

report = Later("analysis.studies.generation.sections:report")
