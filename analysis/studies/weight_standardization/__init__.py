"""The report of the weight-standardisation study."""

from core.later import Later

report = Later("analysis.studies.weight_standardization.sections:report")
check = Later("analysis.studies.weight_standardization.conversion:check")
