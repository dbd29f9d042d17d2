"""How much memory a training step takes: before it is tried on a card, and of a trial on a CPU.

Before: the step is run on a few small batches on the CPU while every tensor's birth and death is
watched; the peak grows linearly with the batch, so two batches give the peak of any. On a CPU the
first steps of the trial itself are watched, since a process that has run other trials has grown.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.errors import TrialError
from core.training import Precision, autocast

PROBES = (2, 4)  # images; batch norm needs more than one
WORKSPACE = 96 * 2**20  # bytes for cuDNN and for the norms' temporaries on a GPU
COUNTED = 2  # steps of a trial: the optimiser's state is made in the first
B = TypeVar("B")


@dataclass(frozen=True)
class Fit:
    """How a trial is run so that it fits, and what it takes.

    Attributes:
        precision: of the forward pass.
        recompute: whether activations are computed again for the backward pass.
        estimate: bytes as run.
        plain: bytes in float32 without recomputation.
    """

    precision: Precision
    recompute: bool
    estimate: int
    plain: int

    def facts(self) -> dict[str, Any]:
        """Return what the trial notes of it."""
        return {
            "chosen_precision": self.precision,
            "chosen_recompute": self.recompute,
            "estimated_mib": self.estimate / 2**20,
            "plain_mib": self.plain / 2**20,
        }


def fit(
    build: Callable[[], nn.Module],
    image_size: int,
    batch: int,
    slot: int | None,
    precision: Precision = "float32",
    recompute: bool = False,
) -> Fit:
    """Choose the first way to run a step that fits: as asked, recomputed, in bfloat16, both.

    Args:
        build: makes the model (with a settable `recompute`) on the CPU.
        image_size: pixels.
        batch: images per step.
        slot: bytes that the trial may take; None: as asked.
        precision: as asked.
        recompute: as asked.

    Raises:
        TrialError: none fits; the message gives the estimate.
    """
    estimates = {again: _extrapolated(build, image_size, batch, again) for again in (False, True)}
    half: Precision = "bfloat16" if precision == "float32" else precision
    ways: list[tuple[Precision, bool]] = [(precision, recompute)]
    if slot is not None:
        ways += [(precision, True), (half, recompute), (half, True)]
    needed = 0
    for chosen, again in ways:
        needed = _in_precision(estimates[again], image_size, batch, chosen)
        if slot is None or needed + WORKSPACE <= slot:
            return Fit(chosen, again, needed, estimates[False])
    assert slot is not None
    raise TrialError(
        f"batch {batch} at {image_size}x{image_size} needs about {needed / 2**30:.1f} GiB even in"
        f" {half} and with recomputation, the slot has {slot / 2**30:.1f} GiB: lower batch_size or"
        " image_size, set accumulate (with batch norm another computation), or raise --slot-memory"
    )


def _extrapolated(build: Callable[[], nn.Module], size: int, batch: int, again: bool) -> int:
    """Return the bytes of a step in float32, with the weights, gradients and momentum."""
    with torch.random.fork_rng(devices=[]):  # a trial's own draws are not to depend on this
        model = build()
    model.recompute = again  # type: ignore[assignment]
    small, large = (step_bytes(model, size, probe, "float32") for probe in PROBES)
    per_image = (large - small) / (PROBES[1] - PROBES[0])
    weights = sum(p.nbytes for p in model.parameters())
    return int(small + per_image * (batch - PROBES[0])) + 2 * weights


def _in_precision(plain: int, size: int, batch: int, precision: Precision) -> int:
    """Halve the activations of a half-precision step; images and weights stay float32."""
    if precision == "float32":
        return plain
    images = batch * 3 * size * size * 4
    return (plain - images) // 2 + images + images // 2


class _Watch(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive, but for those of `known` tensors."""

    def __init__(self, known: Sequence[torch.Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}  # views of them, too

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def step_bytes(model: nn.Module, image_size: int, batch: int, precision: Precision) -> int:
    """Return the peak bytes of one training step's activations and gradients, by running it.

    Args:
        model: on the CPU; its weights are not counted.
        image_size: pixels; images are (batch, 3, image_size, image_size).
        batch: images.
        precision: of the forward pass.
    """
    model.train()
    with _Watch([*model.parameters(), *model.buffers()]) as watch:
        x = torch.zeros(batch, 3, image_size, image_size)
        y = torch.zeros(batch, dtype=torch.int64)
        with autocast(torch.device("cpu"), precision):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        del loss
    model.zero_grad(set_to_none=True)
    return watch.peak


def counted(
    batches: Iterable[B], tensors: Iterable[torch.Tensor], note: Callable[[int], None]
) -> Iterator[B]:
    """Yield `batches`; count the first two steps made of them, without changing a number.

    Args:
        batches: of an epoch, on the CPU; all but the first two pass unwatched.
        tensors: what is there already and belongs to the trial: weights, buffers.
        note: is told the most bytes that were alive in tensors during these steps: `tensors`, the
            batch, activations, gradients and the optimiser's state. What libraries hold beside
            (oneDNN's copies of weights, the decoded images) is not counted.
    """
    left, known = iter(batches), list(tensors)
    sizes = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in known)}
    with _Watch(known) as watch:
        yield from islice(left, COUNTED)
    note(sum(sizes.values()) + watch.peak)
    yield from left
