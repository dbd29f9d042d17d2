"""The report of the VOC study."""

from core.later import Later

report = Later("analysis.studies.voc.sections:report")
