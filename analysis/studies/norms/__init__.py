"""The report of the norms study."""

from core.later import Later

report = Later("analysis.studies.norms.sections:report")
