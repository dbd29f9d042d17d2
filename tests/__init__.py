"""Tests; `tests/support/toy.py` is a study made for them."""
