"""Tests of core/study."""
