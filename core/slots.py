"""A slot: what one trial may take of a machine, so many GiB of a card or so many cores."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from core.errors import UserError
from core.options import Options

UNITS = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


@dataclass(frozen=True)
class Slot:
    """What each trial takes, and how many fit at once.

    Attributes:
        cpu: cores that Ray sets aside for a trial.
        gpu: share of one GPU, 0 without GPUs.
        threads: of torch.
        count: trials at once on this machine.
        memory: bytes of GPU memory a trial may take; None for no cap.
    """

    cpu: float
    gpu: float
    threads: int
    count: int
    memory: int | None

    def record(self) -> dict[str, Any]:
        """Return the slot as `study.json` keeps it."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the slot in words."""
        if not self.gpu:
            cores = "core" if self.threads == 1 else "cores"
            return f"{self.count} at once, {self.threads} {cores} each"
        size = "a whole GPU" if self.memory is None else f"{self.memory / 2**30:g} GiB of a GPU"
        return f"{self.count} at once, {size} each"


def from_record(record: dict[str, Any]) -> Slot:
    """Return the slot that `Slot.record` described."""
    return Slot(**record)


def plan(opts: Options) -> Slot:
    """Work out the slots of this machine.

    Raises:
        UserError: the slot is larger than a card, or its size cannot be read.
    """
    memory = parse_memory(opts.slot_memory)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    gpus = torch.cuda.device_count()
    if not gpus:
        count = min(cores, opts.max_concurrent or cores)
        return Slot(cpu=1, gpu=0, threads=1, count=count, memory=None)
    card = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus))
    per_card = 1 if memory is None else card // memory
    if not per_card:
        raise UserError(
            f"--slot-memory {opts.slot_memory} is more than the card's {card / 2**30:.1f} GiB:"
            " choose a smaller slot"
        )
    count = min(gpus * per_card, opts.max_concurrent or gpus * per_card)
    cpu = min(1.0, cores / count)
    return Slot(cpu=cpu, gpu=1 / per_card, threads=1, count=count, memory=memory)


def parse_memory(text: str) -> int | None:
    """Return bytes from text such as `2GiB` or `1500MiB`; None for `none`.

    Raises:
        UserError: not a positive size.
    """
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise UserError(f"--slot-memory {text}: give a size such as 2GiB or 1500MiB, or none")
    return int(float(match[1]) * unit)
