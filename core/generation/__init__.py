"""Networks that make images, and how good these are."""
