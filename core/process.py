"""A worker process between trials: known random state, known flags, memory given back."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import random
import resource
from pathlib import Path

import numpy as np
import torch

_started_mib = 0.0
_warm = False
atexit.register(gc.unfreeze)  # or libraries report what `reset` froze as leaked


def reset(seed: int, threads: int) -> None:
    """Leave nothing of the last trial: seed every generator, restore flags, free memory.

    Workers run many trials (starting one costs seconds), so whatever a trial may have changed is
    put back here before the next one starts.

    Args:
        seed: for python's, numpy's and torch's generators, on every device.
        threads: of torch; on a CPU sums depend on it, so it is part of what reproduces a curve.
    """
    global _started_mib, _warm
    if not _warm:
        _first_use()
        _warm = True
    gc.collect()
    gc.freeze()  # what lives on (modules) need not be searched again: 0.2 s at each later trial
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    _release_heap()
    _started_mib = _reset_peak()


def peak_memory_mib() -> float:
    """Return the most memory, in MiB, that was in use since `reset`.

    On a GPU what torch reserved there; otherwise what the process grew by in main memory.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return max(0.0, _status_mib("VmHWM") - _started_mib)


def device() -> torch.device:
    """Return where a trial computes: the GPU it was given, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _first_use() -> None:
    """Load what torch loads at the first step, or it would count as the first trial's memory."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.SGD(layers.parameters(), 0.1, momentum=0.9)
    layers(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def _release_heap() -> None:
    """Hand freed memory back to the system, so that the next trial's growth is its own."""
    with contextlib.suppress(OSError, AttributeError):  # with another C library: a lower bound
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> float:
    """Start a new peak measurement; return the memory in use now, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return _status_mib("VmHWM")
    return _status_mib("VmRSS")


def _status_mib(key: str) -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
