"""The report of the batch-size study."""

from core.later import Later

report = Later("analysis.studies.batch_size.sections:report")
