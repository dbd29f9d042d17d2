"""Where tensors are computed."""

import torch


def device_here() -> torch.device:
    """Return where a trial computes: the GPU it was given, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
