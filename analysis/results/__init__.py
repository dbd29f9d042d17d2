"""Finished results as tables: reading them, statistics, rankings."""
