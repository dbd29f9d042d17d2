"""Networks, their weights, what they need."""
