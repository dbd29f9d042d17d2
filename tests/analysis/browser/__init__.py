"""Tests of analysis/browser."""
