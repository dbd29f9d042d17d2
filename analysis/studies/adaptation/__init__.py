"""The report of the adaptation study."""

from core.later import Later

report = Later("analysis.studies.adaptation.sections:report")
