"""Layers and what is done to layers: norms, standardised weights, pairing, freezing."""
