"""Adapt a classifier to shifted images by its batch-norm statistics, without labels.

Five methods, each on a copy of the source model:

* `none`: the source model in evaluation mode;
* `running`: the running statistics move towards those of a number of batches (Nado et al. 2020,
  arXiv:2006.10963; the way with a number of updates is that of the authors of Schneider et al.);
* `batch`: every batch is normalised by its own statistics;
* `prior`: by a blend of the source's statistics and its own (Schneider et al. 2020,
  arXiv:2006.16971, eq. 3);
* `tent`: by its own, and scale and shift follow the gradient of the predictions' entropy (Wang et
  al. 2021, arXiv:2006.10726).

What counts as batch norm: torch's `BatchNorm1d`, `2d`, `3d` and `SyncBatchNorm`, and this package's
`BatchNorm` and `BatchInstanceNorm`, with running statistics. A layer with
`track_running_stats=False` uses its batch in any case and is left as it is; so is
`FrozenBatchNorm2d` of torchvision, which has no statistics of a batch, and a subclass that never
takes them up. Batch norm whose scale and
shift are frozen (`requires_grad=False`) adapts by statistics as any other; `tent` leaves its scale
and shift alone. A layer that sees a single value per channel (`BatchNorm1d`, or a 1x1 map, at batch
size 1) has no variance to measure there: for that batch it keeps its running statistics.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.choices import Method, Order
from core.errors import UserError
from core.layers.norms import BatchInstanceNorm, BatchNorm

METHODS: tuple[Method, ...] = ("none", "running", "batch", "prior", "tent")
ORDERS: tuple[Order, ...] = ("shuffled", "sorted", "dirichlet")
_DIMENSIONS = {nn.BatchNorm1d: 0, nn.BatchNorm3d: 3}  # of space; of others 2
DIRICHLET = 0.1  # concentration of `dirichlet`, as in Gong et al. 2022 (arXiv:2208.05117)


class Adapted(NamedTuple):
    """A model that adapts or has been adapted, and the batches that moved it beforehand."""

    model: nn.Module
    updates: int


def adapt(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method,
    *,
    num_bn_updates: int = 50,
    momentum: float | None = None,
    cumulative: bool = False,
    prior: float = 16.0,
    lr: float = 1e-3,
) -> Adapted:
    """Return an adapted copy of `model`, which itself is not changed in any way.

    The copy of a compiled or replicated model (`torch.compile`, `DataParallel`) is the plain one:
    compiled code keeps to the layers as they were.

    `running` is done with `batches` here. The other methods look at the batches that the returned
    model is given: its output depends on what else is in the batch, and under `tent` also on the
    batches before.

    Args:
        model: a classifier with batch norm.
        batches: images (B, ...) as the model takes them, or tuples that begin with images; labels
            are never looked at. Used by `running` only, in order; it stops when they end.
        method: see the module's docstring.
        num_bn_updates: batches that `running` takes; 0 gives the source model exactly.
        momentum: weight of the newest batch in `running`; None: as in the model.
        cumulative: `running` forgets the source and averages all batches with equal weight.
        prior: N of `prior`, the number of images that the source's statistics count for.
        lr: of `tent` (Adam).

    Raises:
        UserError: an unknown method, numbers out of range, or a model that cannot adapt.
    """
    if method not in METHODS:
        raise UserError(f"method={method}: it must be one of {', '.join(METHODS)}")
    if num_bn_updates < 0 or prior < 0 or lr <= 0:
        raise UserError("num_bn_updates and prior must be at least 0, and lr above 0")
    if momentum is not None and not 0 < momentum <= 1:
        raise UserError(f"momentum={momentum}: it must be above 0 and at most 1")
    while (inner := _wrapped(model)) is not None:  # of which there may be no copy
        model = inner
    copied = _plain(copy.deepcopy(model)).eval()
    if method == "none":
        return Adapted(copied, 0)
    layers = bn_layers(copied)
    if method == "running":
        with torch.no_grad():
            made = _update(copied, layers, batches, num_bn_updates, momentum, cumulative)
        return Adapted(copied, made)
    for layer in layers.values():
        if method == "prior":
            source = layer.running_mean.clone(), layer.running_var.clone()
            layer.register_forward_pre_hook(functools.partial(_blend, source=source, prior=prior))
        else:  # in training mode it uses its batch, and without tracking that leaves no trace
            layer.track_running_stats = False
            layer.register_forward_pre_hook(_train_if_it_can)
    return Adapted(Tent(copied, layers.values(), lr) if method == "tent" else copied, 0)


def update_bn_params(model: nn.Module, loader: Iterable[Any], args: Any) -> nn.Module:
    """Return a copy of `model` after `args.num_bn_updates` batches of `loader`, as the lab asks.

    Fewer, if the loader ends before. Batches may hold labels; they are not looked at.
    """
    return adapt(model, loader, "running", num_bn_updates=args.num_bn_updates).model


def bn_layers(model: nn.Module) -> dict[str, Any]:
    """Return the batch-norm layers with running statistics that follow batches, by name.

    Raises:
        UserError: there is none, or part of the model is compiled code.
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
    while (inner := _wrapped(module)) is not None:
        module = inner
    for name, child in module.named_children():
        module.register_module(name, _plain(child))
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile` or `DataParallel` made a wrapper for, if any did."""
    replicas = nn.DataParallel | nn.parallel.DistributedDataParallel
    return module.module if isinstance(module, replicas) else getattr(module, "_orig_mod", None)


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


# --- methods ---


def _update(
    model: nn.Module,
    layers: Mapping[str, Any],
    batches: Iterable[Any],
    updates: int,
    momentum: float | None,
    cumulative: bool,
) -> int:
    """Move the running statistics by up to `updates` batches; return how many there were.

    Only the batch-norm layers are in training mode: dropout and stochastic depth stay off.
    """
    own = {name: layer.momentum for name, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(_train_if_it_can) for layer in layers.values()]
    made = 0
    try:
        for batch in batches if updates else ():
            if made == 0:
                _set_momentum(layers, momentum, cumulative)
            model(images_of(batch))
            made += 1
            if made == updates:  # before another batch is fetched for nothing
                break
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = own[name]
        model.eval()
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


def _train_if_it_can(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """Put a batch-norm layer in training mode, unless it sees one value per channel."""
    x = inputs[0]
    layer.train(x.numel() > x.shape[1])


def _blend(
    layer: Any, inputs: tuple[Tensor, ...], *, source: tuple[Tensor, Tensor], prior: float
) -> None:
    """Give a layer in evaluation mode the statistics for this batch, before it runs.

    With n images in the batch both mean and variance are N/(N+n) times the source's and n/(N+n)
    times the batch's (biased, as in training).
    """
    x = inputs[0].detach()
    mean, var = source
    if x.numel() > x.shape[1]:
        over = [d for d in range(x.dim()) if d != 1]
        own_var, own_mean = torch.var_mean(x.to(mean.dtype), over, correction=0)
        share = prior / (prior + len(x))
        mean, var = share * mean + (1 - share) * own_mean, share * var + (1 - share) * own_var
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)


class Tent(nn.Module):
    """Predict a batch, then take a step that makes such predictions more certain.

    Predictions are those before the step, as in the authors' code. The step descends the mean
    entropy along the scale and shift of the batch-norm layers only.

    Args:
        model: a copy to change.
        layers: its batch-norm layers.
        lr: of Adam.

    Raises:
        UserError: all of the layers are frozen or have no scale and shift.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], lr: float):
        super().__init__()
        self.model = model
        own = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
        adapted = [p for p in own if p is not None and p.requires_grad]
        if not adapted:
            raise UserError("method=tent: no batch-norm layer has a scale and shift to adapt")
        model.requires_grad_(False)
        for parameter in adapted:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(adapted, lr, fused=True)  # one rounding on every CPU

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, ...) to logits (B, C), and adapt to them."""
        # also inside `inference_mode`, whose tensors no gradient may pass
        with torch.inference_mode(False), torch.enable_grad():
            logits = self.model(x.clone())
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            self.optimizer.zero_grad()
            entropy.backward()
            self.optimizer.step()
        return logits.detach()


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch, which may be a tuple (images, labels)."""
    return batch[0] if isinstance(batch, tuple | list) else batch


# --- streams ---


def stream(
    labels: Sequence[int] | np.ndarray,
    order: Order = "shuffled",
    seed: int = 0,
    batch_size: int = 64,
    count: int | None = None,
    wrap: bool = False,
) -> list[np.ndarray]:
    """Return the order in which images come, as one index array per batch.

    * `shuffled`: a permutation from the seed; when it is used up, a further one.
    * `sorted`: by class, as an image folder lists its files: batches of one class.
    * `dirichlet`: every class is spread over the stream by proportions from a Dirichlet
      distribution of concentration `DIRICHLET`, so that classes come in bursts.

    Args:
        labels: class of each image.
        order: see above.
        seed: of `shuffled` and `dirichlet`.
        batch_size: images in a batch.
        count: batches, all of them full; None: every image once, the last batch with the rest.
        wrap: start again when the images are used up.

    Raises:
        UserError: an unknown order, a batch larger than the data, or (without `wrap`) more batches
            than the data have.
    """
    labels = np.asarray(labels)
    if order not in ORDERS:
        raise UserError(f"order={order}: it must be one of {', '.join(ORDERS)}")
    if not 1 <= batch_size <= len(labels):
        raise UserError(f"batch_size={batch_size}: give 1 to {len(labels):,}, the number of images")
    if count is None:
        one = _pass(labels, order, seed, 0, batch_size)
        return [one[start : start + batch_size] for start in range(0, len(one), batch_size)]
    wanted = count * batch_size
    if wanted > len(labels) and not wrap:
        raise UserError(
            f"num_bn_updates={count}: with batch_size={batch_size} that takes {wanted:,} images"
            f" and there are {len(labels):,}: give at most {len(labels) // batch_size}, or --wrap"
            " to go through them again"
        )
    passes = (_pass(labels, order, seed, k, batch_size) for k in range(-(-wanted // len(labels))))
    index = np.concatenate([np.empty(0, np.int64), *passes])[:wanted]
    return list(index.reshape(count, batch_size))


def _pass(labels: np.ndarray, order: Order, seed: int, number: int, size: int) -> np.ndarray:
    """Return the order of all images in one pass over them."""
    generator = np.random.default_rng((seed, number))
    if order == "shuffled":
        return generator.permutation(len(labels))
    if order == "sorted":
        return np.argsort(labels, kind="stable")
    slots: list[list[np.ndarray]] = [[] for _ in range(-(-len(labels) // size))]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(len(slots), DIRICHLET))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for slot, part in zip(slots, np.split(members, cuts), strict=True):
            slot.append(part)
    return np.concatenate([generator.permutation(np.concatenate(slot)) for slot in slots])


# --- what changed ---


class LayerChange(NamedTuple):
    """How far the statistics of one layer moved.

    Attributes:
        layer: name in the model.
        shift: root mean square over channels of the change of the mean, in units of the source's
            standard deviation of the channel.
        ratio: median over channels of the new over the source's standard deviation.
    """

    layer: str
    shift: float
    ratio: float


def changed_tensors(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters and buffers in which two models differ, to the bit."""
    old, new = before.state_dict(), after.state_dict()
    pairs = zip(old.values(), new.items(), strict=True)  # names of a compiled source are longer
    return tuple(name for value, (name, other) in pairs if not torch.equal(value, other))


def changes(before: nn.Module, after: nn.Module) -> list[LayerChange]:
    """Return how far the running statistics of each batch-norm layer moved, input side first."""
    return list(_changes(bn_layers(before), bn_layers(after)))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[LayerChange]:
    for old, (name, new) in zip(before.values(), after.items(), strict=True):
        # a channel that never fires has a variance of 0: eps is what the layer divides by there
        old_std = (old.running_var.double() + old.eps).sqrt()
        shift = (new.running_mean.double() - old.running_mean.double()) / old_std
        ratio = (new.running_var.double() + new.eps).sqrt() / old_std
        yield LayerChange(name, shift.square().mean().sqrt().item(), ratio.median().item())
