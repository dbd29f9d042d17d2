"""The report of the CIFAR study."""

from core.later import Later

report = Later("analysis.studies.cifar.sections:report")
print_layers = Later("analysis.studies.cifar.layers:print_layers")
