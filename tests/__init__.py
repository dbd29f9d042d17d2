"""Tests; `tests/toy.py` is a study made for them."""
