"""Running statistics of batch norms: which layers keep them, moving them, and how far they moved.

What counts as batch norm: torch's `BatchNorm1d`, `2d`, `3d` and `SyncBatchNorm`, and this package's
`BatchNorm` and `BatchInstanceNorm`, with running statistics. A layer with
`track_running_stats=False` uses its batch in any case and is left as it is; so is
`FrozenBatchNorm2d` of torchvision, which has no statistics of a batch, and a subclass that never
takes them up. A layer that sees a single value per channel (`BatchNorm1d`, or a 1x1 map, at batch
size 1) has no variance to measure there: for that batch it keeps its running statistics.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import UserError
from core.layers.norms import BatchInstanceNorm, BatchNorm

_DIMENSIONS = {nn.BatchNorm1d: 0, nn.BatchNorm3d: 3}  # of space; of others 2


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode; of a compiled or replicated one, the plain one.

    Compiled code keeps to the layers as they were.
    """
    return _plain(copy.deepcopy(_unwrapped(model))).eval()  # of a wrapper there may be no copy


def bn_layers(model: nn.Module) -> dict[str, Any]:
    """Return the batch-norm layers with running statistics that follow batches, by name.

    Raises UserError: there is none, or part of the model is compiled code.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError(
            "a scripted or traced model cannot be adapted, as its layers are compiled in: give the"
            " nn.Module that it was made from"
        )
    kinds = (_BatchNorm, BatchNorm, BatchInstanceNorm)
    found = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    tracked = {n: m for n, m in found.items() if m.running_mean is not None and _follows(m)}
    if not tracked:
        why = "none of its batch-norm layers keeps running statistics that move" if found else ""
        raise UserError(
            f"{type(model).__name__} cannot be adapted:"
            f" {why or 'it has no batch-norm layer'}; give a model with batch norm"
        )
    return tracked


def _plain(module: nn.Module) -> nn.Module:
    """Take out, also within, what runs compiled code or replicas of a module in its place."""
    module = _unwrapped(module)
    for name, child in module.named_children():
        module.register_module(name, _plain(child))
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` or `DataParallel` made wrappers for, or itself."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    inner = getattr(module, "_orig_mod", None)
    return module if inner is None else _unwrapped(inner)


def _follows(layer: Any) -> bool:
    """Return whether a layer in training mode takes up its batch: frozen subclasses do not."""
    probe = copy.deepcopy(layer)
    probe._forward_hooks.clear()
    probe._forward_pre_hooks.clear()
    probe.momentum, probe.track_running_stats = 0.5, True
    dimensions = next((d for kind, d in _DIMENSIONS.items() if isinstance(layer, kind)), 2)
    shape = (4, probe.running_mean.numel(), *[2] * dimensions)
    like = probe.running_mean if getattr(probe, "weight", None) is None else probe.weight
    x = torch.arange(math.prod(shape)).sin().reshape(shape).to(like)
    with torch.no_grad():
        probe.train()(x)
    return not torch.equal(probe.running_mean, layer.running_mean)


@torch.no_grad()
def update(
    model: nn.Module,
    layers: Mapping[str, Any],
    batches: Iterable[Any],
    updates: int,
    momentum: float | None,
    cumulative: bool,
) -> int:
    """Move the running statistics by up to `updates` batches; return how many there were.

    Only the batch-norm layers are in training mode: dropout and stochastic depth stay off.

    Args:
        model: in evaluation mode; changed.
        layers: those of `bn_layers`.
        batches: images (B, ...) as the model takes them, or tuples that begin with images.
        updates: batches at most; 0 changes nothing.
        momentum: weight of the newest batch; None: as in the model.
        cumulative: forget what the statistics were and average all batches with equal weight.
    """
    made = 0
    with ExitStack() as undo:
        undo.callback(model.eval)
        for layer in layers.values():
            undo.callback(setattr, layer, "momentum", layer.momentum)
            undo.enter_context(layer.register_forward_pre_hook(train_if_it_can))
        wanted = itertools.islice(batches, updates) if updates else ()  # no more are fetched
        for made, batch in enumerate(wanted, 1):
            if made == 1:
                _set_momentum(layers, momentum, cumulative)
            model(images_of(batch))
    return made


def _set_momentum(layers: Mapping[str, Any], momentum: float | None, cumulative: bool) -> None:
    """Set the weight of new batches; forget the source where all batches are to weigh the same.

    A checkpoint keeps the batches of its training in `num_batches_tracked`: averaged with those,
    tens of thousands, the new ones would change nothing.
    """
    for layer in layers.values():
        if momentum is not None:
            layer.momentum = momentum
        if cumulative or layer.momentum is None:
            layer.momentum = None
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
            layer.num_batches_tracked.zero_()


def train_if_it_can(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """Put a batch-norm layer in training mode, unless it sees one value per channel."""
    x = inputs[0]
    layer.train(x.numel() > x.shape[1])


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch, which may be a tuple (images, labels)."""
    return batch[0] if isinstance(batch, tuple | list) else batch


class LayerChange(NamedTuple):
    """How far the statistics of one layer moved."""

    layer: str  # name in the model
    # root mean square over channels of the change of the mean, in the source's standard deviations
    shift: float
    ratio: float  # median over channels of the new over the source's standard deviation


def changed_tensors(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters and buffers in which two models differ, to the bit."""
    old, new = before.state_dict(), after.state_dict()
    pairs = zip(old.values(), new.items(), strict=True)  # names of a compiled source are longer
    return tuple(name for value, (name, other) in pairs if not torch.equal(value, other))


def changes(before: nn.Module, after: nn.Module) -> list[LayerChange]:
    """Return how far the running statistics of each batch-norm layer moved, input side first."""
    found = []
    pairs = zip(bn_layers(before).values(), bn_layers(after).items(), strict=True)
    for old, (name, new) in pairs:
        # a channel that never fires has a variance of 0: eps is what the layer divides by there
        old_std = (old.running_var.double() + old.eps).sqrt()
        shift = (new.running_mean.double() - old.running_mean.double()) / old_std
        ratio = (new.running_var.double() + new.eps).sqrt() / old_std
        moved = shift.square().mean().sqrt().item(), ratio.median().item()
        found.append(LayerChange(name, *moved))
    return found
