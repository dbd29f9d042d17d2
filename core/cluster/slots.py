"""Slots: how many trials a node takes at once, so many GiB of a card or so many cores each.

Ray hands out shares of a GPU but knows nothing of its memory, and a custom memory resource does
not bound what lands on one card. So labtune works out for each node how many slots its cards have
and asks Ray for exactly that share of a card, on exactly that node.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import UserError
from core.provenance import cores_here

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
CARD_RESERVE = 200 * 2**20  # bytes of each card that are left to its driver
CONTEXT = 300 * 2**20  # bytes a process needs on a card besides what torch allocates
SHARE_STEPS = 10_000  # Ray counts resources in 1/10000; a share is rounded down to a step


@dataclass(frozen=True)
class Node:
    """A machine and what it offers.

    Attributes:
        id: Ray's id of it.
        host: its name.
        cpus: cores that Ray may hand out.
        cards: bytes of memory of each GPU; empty without GPUs.
        bfloat16: every GPU computes in bfloat16, rather than emulate it.
    """

    id: str
    host: str
    cpus: float
    cards: tuple[int, ...] = ()
    bfloat16: bool = True


@dataclass(frozen=True)
class Slots:
    """What each trial takes on one node, and how many fit at once.

    Attributes:
        node: Ray's id of the node.
        host: its name.
        count: trials at once.
        gpus: cards of the node.
        cpu: cores that Ray sets aside for a trial.
        gpu: share of one card, 0 without GPUs.
        threads: of torch on the CPU.
        memory: bytes that torch may allocate on the card; None for no cap.
        bfloat16: the cards compute in bfloat16.
    """

    node: str
    host: str
    count: int
    gpus: int
    cpu: float
    gpu: float
    threads: int
    memory: int | None
    bfloat16: bool = True

    def record(self) -> dict[str, Any]:
        """Return the slots as JSON keeps them."""
        return asdict(self)


def on_node(node: Node, memory: int | None, cores: int, *, use_gpus: bool) -> Slots:
    """Work out the slots of one node.

    Args:
        node: the node; of cards that differ, the smallest counts for all.
        memory: bytes of a slot; None for whole cards.
        cores: cores of a slot.
        use_gpus: trials of this study run on GPUs, so that a node without has no slots.
    """
    here = node.id, node.host
    if not use_gpus:
        return Slots(*here, int(node.cpus // cores), 0, float(cores), 0.0, cores, None)
    gpus, per_card = len(node.cards), per_cards(node.cards, memory)
    count = gpus * per_card
    if not count:
        return Slots(*here, 0, gpus, 0.0, 0.0, cores, memory)
    # On a card without room to spare, the processes' own needs come out of the slots.
    cap = None if memory is None else min(memory, min(node.cards) // per_card - CONTEXT)
    cpu, gpu = _step(min(float(cores), node.cpus / count)), _step(1 / per_card)
    return Slots(*here, count, gpus, cpu, gpu, cores, cap, node.bfloat16)


def per_cards(cards: Sequence[int], memory: int | None) -> int:
    """Return how many slots of `memory` bytes each of `cards` takes (the smallest decides)."""
    if memory is None:
        return min(1, len(cards))
    return max(0, min(cards, default=0) - CARD_RESERVE) // memory


def check(nodes: Sequence[Node], memory: int | None, text: str) -> None:
    """Refuse a slot that is larger than every card, or leaves nothing for a trial's tensors.

    Raises UserError: none of the cards can hold `memory` bytes, or a process needs as much for
    itself; `text` is what the user gave.
    """
    cards = [card for node in nodes for card in node.cards]
    if not cards or memory is None:
        return
    if memory <= CONTEXT:
        raise UserError(
            f"--slot-memory {text}: a process takes {CONTEXT / 2**20:.0f} MiB of a card before its"
            " first tensor: choose a larger slot"
        )
    if not per_cards((max(cards),), memory):
        raise UserError(
            f"--slot-memory {text} is more than the largest card offers"
            f" ({(max(cards) - CARD_RESERVE) / 2**30:.1f} GiB): choose a smaller slot"
        )


def too_small(offered: Sequence[Slots], least: int) -> str:
    """Return which slot is too small for trials that need `least` bytes of a card, or nothing."""
    for s in offered:
        if s.count and s.memory is not None and s.memory < least:
            return (
                f"a slot on {s.host} has {s.memory / 2**30:.2f} GiB, and the trials of this study"
                f" were laid out to need {least / 2**30:.2f} GiB: leave that node out, or raise"
                " --slot-memory"
            )
    return ""


def sentence(slots: Sequence[Slots], memory: int | None) -> str:
    """Return the slots of all nodes in words."""
    gpus, count = sum(s.gpus for s in slots), sum(s.count for s in slots)
    words = _counted(len(slots), "node")
    size = _counted(slots[0].threads, "core") if slots else "a core"
    if gpus:
        words += f", {_counted(gpus, 'GPU')}"
        size = "one whole GPU" if memory is None else f"{memory / 2**30:g} GiB"
    return f"{words}: {_counted(count, 'slot')} of {size}"


def this_machine() -> Node:
    """Return what this machine offers to this process."""
    import torch  # here, as a driver with a cluster does without

    cards, bfloat16 = [], True
    for i in range(torch.cuda.device_count()):
        cards.append(torch.cuda.get_device_properties(i).total_memory)
        with torch.cuda.device(i):
            bfloat16 &= torch.cuda.is_bf16_supported(including_emulation=False)
    return Node("", os.uname().nodename, cores_here(), tuple(cards), bfloat16)


def card_memory() -> list[int]:
    """Return the bytes of every card of this machine, as the driver's own tool tells them.

    For processes that Ray gave no GPU, in which CUDA shows none.
    """
    return [int(line) * 2**20 for line in _nvidia_smi("memory.total") if line.isdigit()]


def cards_have_bfloat16() -> bool:
    """Return whether every card of this machine computes in bfloat16, as the driver's tool tells.

    What `torch.cuda.is_bf16_supported` asks, compute capability 8 or more, for processes in which
    CUDA shows no card. An unknown one counts as without: float16 works on all.
    """
    found = [re.fullmatch(r"(\d+)\.\d+", line) for line in _nvidia_smi("compute_cap")]
    return bool(found) and all(match is not None and int(match[1]) >= 8 for match in found)


def _nvidia_smi(query: str) -> list[str]:
    """Return a line per card of this machine; none where the tool does not answer."""
    import subprocess  # here: --help does without

    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def parse_memory(text: str, option: str = "--slot-memory") -> int | None:
    """Return bytes from text such as `2GiB` or `1500MiB`; None for `none`.

    Raises UserError: not a positive size.
    """
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    size = int(float(match[1]) * UNITS.get(match[2].lower(), 0)) if match else 0
    if size <= 0:
        raise UserError(f"{option} {text}: give a size such as 2GiB or 1500MiB, or none")
    return size


def _step(share: float) -> float:
    """Round down to what Ray can count: seven times 0.1429 would be more than a card."""
    return math.floor(share * SHARE_STEPS + 1e-9) / SHARE_STEPS


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
