"""Tests of analysis/saliency."""
