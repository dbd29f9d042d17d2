"""A worker process between trials: known random state, known flags, memory given back."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import random
import re

import numpy as np
import torch

from core import numerics

_capped: int | None = None  # bytes on the GPU
atexit.register(gc.unfreeze)  # or libraries report what `reset` froze as leaked


def reset(seed: int, threads: int, memory: int | None = None) -> None:
    """Leave nothing of the last trial: seed every generator, restore flags, free memory.

    Workers run many trials, as starting one costs seconds.

    Args:
        seed: for python's, numpy's and torch's generators, on every device.
        threads: of torch; on a CPU sums depend on it, so it is part of what reproduces a curve.
        memory: bytes that torch may allocate on the GPU; None for all of it.
    """
    _cap(memory)  # before anything is allocated there
    _first_use()
    numerics.fingerprint(threads)  # for the trial's record, and no part of its time and memory
    release()
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
        torch.cuda.reset_peak_memory_stats()


def release() -> None:
    """Give back what the last trial held, on the GPU and in main memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # with another C library: it stays
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # to the system: other workers need it


def memory_sentence(error: Exception) -> str:
    """Return what to tell of an error for want of memory; nothing for any other error."""
    text = str(error)
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if not on_gpu and not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in text:
        return ""
    asked = re.search(r"(?:Tried|tried) to allocate ([0-9.]+ ?\w+)", text)
    wanted = f"asked for {_readable(asked[1])} more" if asked else "asked for more"
    if not on_gpu:
        return f"out of main memory: {wanted}; lower batch_size or image_size"
    cap = "the card" if _capped is None else f"its slot of {_capped / 2**30:.2f} GiB"
    known = torch.cuda.is_available()
    having = f" with {torch.cuda.memory_reserved() / 2**30:.2f} GiB in use" if known else ""
    return (
        f"out of GPU memory: {wanted}{having}, over {cap}; lower batch_size or image_size, set"
        " precision=bfloat16 or recompute=true, or raise --slot-memory"
    )


def _cap(memory: int | None) -> None:
    """Have torch refuse to allocate more than `memory` bytes on the GPU of this process."""
    global _capped
    _capped = memory
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        share = 1.0 if memory is None else min(1.0, memory / total)
        torch.cuda.set_per_process_memory_fraction(share, 0)


def _readable(size: str) -> str:
    """Turn `8589934592 bytes` into GiB; leave what has a unit already."""
    number, _, unit = size.partition(" ")
    return f"{int(number) / 2**30:.2f} GiB" if unit == "bytes" and number.isdigit() else size


@functools.cache
def _first_use() -> None:
    """Load what torch loads at the first step, or it would count as the first trial's time."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.SGD(layers.parameters(), 0.1, momentum=0.9)
    layers(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
