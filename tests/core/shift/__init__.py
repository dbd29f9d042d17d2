"""Tests of core/shift."""
