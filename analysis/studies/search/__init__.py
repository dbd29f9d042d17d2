"""The report of a search."""

from core.later import Later

report = Later("analysis.studies.search.sections:report")
