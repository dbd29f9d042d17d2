"""Tests of analysis/document."""
