"""The report of each study."""
