"""How much memory a training step takes: before it is tried on a card, and of a trial on a CPU.

Before: the step is run on a few small batches on the CPU while every tensor's birth and death is
watched; the peak grows linearly with the batch, so two batches give the peak of any. On a CPU the
first steps of the trial itself are watched, since a process that has run other trials has grown.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.errors import UserError
from core.training.epoch import autocast
from core.training.recipe import Precision

PROBES = (2, 4)  # images; batch norm needs more than one
WORKSPACE = 96 * 2**20  # bytes for cuDNN and for the norms' temporaries on a GPU
COUNTED = 2  # steps of a trial: the optimiser's state is made in the first
B = TypeVar("B")


@functools.lru_cache(maxsize=64)  # a worker runs many trials that differ in seed and batch only
def measure(
    build: Callable[..., nn.Module], args: tuple[Hashable, ...], image_size: int, recompute: bool
) -> tuple[float, float]:
    """Measure a step's activations, and add the weights' gradients and momentum.

    Returns the bytes of a step in float32 without images, and those of each image of the batch.
    `build` makes the model from `args`, on the CPU and with a settable `recompute`: whether
    activations are computed again for the backward pass. `image_size` is in pixels.
    """
    with torch.random.fork_rng(devices=[]):  # a trial's own draws are not to depend on this
        model = build(*args)
    model.recompute = recompute  # type: ignore[assignment]
    small, large = (step_bytes(model, image_size, probe, "float32") for probe in PROBES)
    per_image = (large - small) / (PROBES[1] - PROBES[0])
    weights = sum(p.nbytes for p in model.parameters())
    return small - per_image * PROBES[0] + 2 * weights, per_image


@dataclass(frozen=True)
class Step:
    """A training step of a trial."""

    build: Callable[..., nn.Module]  # makes the model from `args`
    args: tuple[Hashable, ...]  # all that tells the model from others
    image_size: int  # pixels
    batch: int  # images that are run at once
    precision: Precision = "float32"  # of the forward pass
    recompute: bool = False  # whether activations are computed again for the backward pass

    def facts(self) -> dict[str, Any]:
        """Return what the trial notes of it."""
        estimate, plain = self.estimate()
        mib = {"estimated_mib": estimate / 2**20, "plain_mib": plain / 2**20}
        return {"chosen_precision": self.precision, "chosen_recompute": self.recompute, **mib}

    def estimate(self) -> tuple[int, int]:
        """Return the bytes that the step takes as run, and in float32 without recomputation.

        In half precision images and weights stay float32.
        """
        of = (self.build, self.args, self.image_size)
        lines = [measure(*of, recompute) for recompute in (False, self.recompute)]
        plain, estimate = (int(fixed + per_image * self.batch) for fixed, per_image in lines)
        if self.precision != "float32":
            images = self.batch * 3 * self.image_size**2 * 4
            estimate = (estimate - images) // 2 + images + images // 2
        return estimate, plain


def share(
    steps: Mapping[str, Step], slot: int | None, half: Precision
) -> tuple[dict[str, Any], int]:
    """Choose the first way in which all trials fit: as asked, recomputed, in half precision too.

    One way for all, so that what is compared does not differ by its rounding. Recomputation comes
    first because it changes no number. Returns the settings that every trial takes over, and the
    bytes that the largest then needs. Raises UserError: the largest step fits in no way; the
    message gives its estimate.

    Args:
        steps: a trial's step in words -> the step.
        slot: bytes of the smallest slot; None: as asked.
        half: the precision that the cards compute in, should float32 not fit.
    """
    ways: list[dict[str, Any]] = [{}, {"recompute": True}, {"recompute": True, "precision": half}]
    needed, largest = 0, ""
    for settings in ways:
        needed, largest = max(
            (replace(step, **settings).estimate()[0] + WORKSPACE, name)
            for name, step in steps.items()
        )
        if slot is None or needed <= slot:
            return settings, needed
    assert slot is not None
    raise UserError(
        f"{largest} needs about {needed / 2**30:.1f} GiB even in {half} and with recomputation,"
        f" the smallest slot has {slot / 2**30:.1f} GiB: lower batch_size or image_size, set"
        " accumulate (with batch norm another computation), or raise --slot-memory"
    )


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

    The model is on the CPU, its weights are not counted; images are (batch, 3, size, size) pixels.
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
    batches: Iterable[B], note: Callable[[int], None] | None, *models: nn.Module
) -> Iterator[B]:
    """Yield `batches`; the first two steps made of them are counted, without changing a number.

    Args:
        batches: of an epoch, on the CPU; all but the first two pass unwatched.
        note: is told the most bytes that were alive in tensors during these steps: the models' own,
            the batch, activations, gradients and the optimiser's state. What libraries hold beside
            (oneDNN's copies of weights, the decoded images) is not counted. None: no counting.
        models: whose weights and buffers are there already.
    """
    left = iter(batches)
    if note is not None:
        known = [t for model in models for t in (*model.parameters(), *model.buffers())]
        storages = [t.untyped_storage() for t in known]
        sizes = {storage._cdata: storage.nbytes() for storage in storages}
        with _Watch(known) as watch:
            yield from islice(left, COUNTED)
        note(sum(sizes.values()) + watch.peak)
    yield from left
