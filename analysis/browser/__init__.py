"""The ranking page of a multi-label study."""
