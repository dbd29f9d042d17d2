"""Tests of core/trial."""
