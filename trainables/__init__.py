"""One function for Ray Tune per task: a config goes in, metrics per epoch come out."""
