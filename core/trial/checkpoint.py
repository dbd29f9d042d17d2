"""Checkpoints of a trial: one file per epoch that is whole, verified and free of code."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.errors import TrialError
from core.storage.files import read_bytes, remove, write_bytes
from core.trial.records import checkpoints

KEPT = 2  # the newest, and one to fall back on should it be damaged


def save(folder: Path, epoch: int, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings and containers of them) after `epoch`.

    The file's name carries the SHA-256 of its bytes, so one rename publishes both: a flipped byte,
    which `torch.load` would accept, is noticed by `load_newest`. The newest two files stay. Raises
    StorageError: the folder cannot be written; older checkpoints are still there.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    path = folder / f"epoch-{epoch:05d}-{hashlib.sha256(data).hexdigest()[:32]}.pt"
    write_bytes(path, data)
    for old in [p for p in checkpoints(folder) if p != path][KEPT - 1 :]:
        remove(old)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """Return the newest checkpoint that is whole, or None, and the damaged files passed over.

    Raises StorageError: one cannot be read now, which says nothing about what it holds; TrialError:
    a checkpoint is whole, but holds more than tensors and plain values.
    """
    damaged = []
    for path in checkpoints(folder):
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest()[:32] != path.stem.rpartition("-")[2]:
            damaged.append(path)
            continue
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), damaged
        except pickle.UnpicklingError as e:  # whole, so nobody's accident
            raise TrialError(
                f"checkpoint {path.name} holds more than tensors, as code would be: refused;"
                " delete it if you did not put it there"
            ) from e
    return None, damaged


def rng_state() -> dict[str, Any]:
    """Return the state of the python, numpy and torch generators, for `torch.save`."""
    kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back where `rng_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
