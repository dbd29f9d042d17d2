"""Tests of analysis/studies."""
