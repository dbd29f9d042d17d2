"""Tests of core/layers."""
