"""Class activation maps of a finished study."""

from core.later import Later

sections = Later("analysis.saliency.study:sections")  # of a report: where its best network looks
