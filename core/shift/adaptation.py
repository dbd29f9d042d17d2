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

`core.layers.running` says what counts as batch norm. One whose scale and shift are frozen
(`requires_grad=False`) adapts by statistics as any other; `tent` leaves its scale and shift alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from core.choices import Method, Order
from core.errors import UserError
from core.layers.running import bn_layers, copy_of, train_if_it_can, update

METHODS: tuple[Method, ...] = ("none", "running", "batch", "prior", "tent")
ORDERS: tuple[Order, ...] = ("shuffled", "sorted", "dirichlet")
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

    The copy of a compiled or replicated model (`torch.compile`, `DataParallel`) is the plain one.

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

    Raises UserError: an unknown method, numbers out of range, or a model that cannot adapt.
    """
    _one_of("method", method, METHODS)
    if num_bn_updates < 0 or prior < 0 or lr <= 0:
        raise UserError("num_bn_updates and prior must be at least 0, and lr above 0")
    if momentum is not None and not 0 < momentum <= 1:
        raise UserError(f"momentum={momentum}: it must be above 0 and at most 1")
    copied = copy_of(model)
    layers = {} if method == "none" else bn_layers(copied)
    if method == "running":
        made = update(copied, layers, batches, num_bn_updates, momentum, cumulative)
        return Adapted(copied, made)
    for layer in layers.values():
        if method == "prior":
            source = layer.running_mean.clone(), layer.running_var.clone()
            layer.register_forward_pre_hook(functools.partial(_blend, source=source, prior=prior))
        else:  # in training mode it uses its batch, and without tracking that leaves no trace
            layer.track_running_stats = False
            layer.register_forward_pre_hook(train_if_it_can)
    return Adapted(Tent(copied, layers.values(), lr) if method == "tent" else copied, 0)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value}: it must be one of {', '.join(choices)}")


# --- methods ---


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

    `model` is a copy to change, `layers` are its batch-norm layers, `lr` is of Adam. Raises
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

    Raises UserError: an unknown order, a batch larger than the data, or (without `wrap`) more
    batches than the data have.
    """
    labels = np.asarray(labels)
    _one_of("order", order, ORDERS)
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
