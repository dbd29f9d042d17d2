"""Layers, models, data, training and the study engine: what every study shares."""
