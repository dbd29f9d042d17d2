"""A fingerprint of this machine's arithmetic: equal fingerprints, equal digits.

The operations that the studies use are run on small fixed inputs, and what comes out is hashed in
groups. Sums of floating-point numbers depend on the order in which they are added up, and with it
on the CPU, the instruction set, the libraries' versions and the number of threads; two machines
with the same digest add up alike, at these sizes. `docs/numerics.md` says what is known.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from core import instruction_set

# Of the machine on which README's tables were made: AMD EPYC (Zen 4), AVX2 pinned, one thread,
# torch 2.15.0, NumPy 2.4.6. `python -m core.numerics` prints those of the machine at hand.
README: dict[str, str] = {
    "convolutions": "405fbcb354aa",
    "transposed convolutions": "b9051ca8716c",
    "linear layers": "c1c9a90c1bb3",
    "linear layers of odd shapes": "5446a7d84b81",
    "matrix products": "8da06ec6b53f",
    "decompositions": "d50c37280de7",
    "norms": "8c0b49d72685",
    "own norms": "308d1660ba63",
    "pooling": "89285be98579",
    "activations": "349e1e8f59f0",
    "losses": "79fbb99a6e89",
    "optimisers": "c00c28ed1162",
    "exp, log, square roots": "02a28cf04815",
    "random numbers": "1bf5446da5a3",
    "resampling": "db3b2886f87b",
    "sums": "5c1138a85f7c",
    "NumPy sums": "7c76294a9251",
}

# (batch, channels in, channels out, kernel, stride, padding, pixels): the small networks' stem,
# stages and shortcut; ResNet-18's; the CIFAR lab's; the generators'.
_CONVOLUTIONS = (
    (10, 3, 16, 3, 1, 1, 20),
    (10, 16, 16, 3, 1, 1, 20),
    (10, 16, 32, 3, 2, 1, 20),
    (10, 16, 32, 1, 2, 0, 20),
    (10, 64, 64, 3, 1, 1, 5),
    (2, 3, 64, 7, 2, 3, 32),
    (2, 64, 128, 3, 2, 1, 8),
    (4, 256, 256, 3, 1, 1, 2),
    (4, 3, 6, 5, 1, 0, 32),
    (4, 3, 64, 4, 2, 1, 16),
)
_TRANSPOSED = ((4, 64, 128, 4, 1, 0, 1), (4, 128, 64, 4, 2, 1, 4), (4, 64, 3, 4, 2, 1, 8))
# (batch, features in, features out): of the small networks, ResNet-18, the CIFAR lab's. MKL adds
# some shapes up in another order on another maker's CPU: those with 10, 512 or 1 outputs, and
# batches of 1, 2 or more than 192 (`docs/numerics.md`).
_LINEAR = ((50, 64, 25), (8, 512, 20), (32, 512, 25), (20, 400, 120), (20, 120, 84))
_ODD_LINEAR = ((50, 64, 10), (20, 84, 10), (64, 256, 512), (25, 64, 1), (1, 64, 25), (256, 64, 25))


@dataclass(frozen=True)
class Fingerprint:
    """How a process computes with `threads` of torch: a digest for each kind of operation."""

    threads: int
    groups: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Return one digest of all groups."""
        told = "".join(f"{name} {value}\n" for name, value in sorted(self.groups.items()))
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def record(self) -> dict[str, Any]:
        """Return what `study.json` keeps."""
        found = {"cpu": instruction_set.state, "threads": self.threads, "digest": self.digest}
        return found | {"groups": dict(self.groups)}

    def sentence(self, on_gpus: bool = False) -> str:
        """Say whether these digits are README's, or in which groups they differ.

        Args:
            on_gpus: trials run there, and README's ran on a CPU.
        """
        if on_gpus:
            return "digits: not README's, which were made on a CPU"
        how = f"CPU {instruction_set.state}, {self.threads} thread"
        how += f"{'' if self.threads == 1 else 's'}, {self.digest}"
        other = difference(self.groups, README)
        if not other:
            return f"digits: README's ({how})"
        return f"digits: not README's: {', '.join(other)} differ ({how}); see docs/numerics.md"


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return the groups in which two fingerprints differ."""
    return [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]


def label(threads: int) -> str:
    """Return what a trial of this process records: the digest, and the card that it computes on.

    A GPU's own arithmetic is not measured: some of its kernels add up in no fixed order.
    """
    card = f" on {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return fingerprint(threads).digest + card


@functools.cache
def fingerprint(threads: int) -> Fingerprint:
    """Run every operation once on the CPU with `threads` threads; half a second, once a process.

    Generators, torch's flags and its thread count are left as they were.
    """
    with alone(threads):
        return Fingerprint(threads, {name: _digest(run()) for name, run in _GROUPS.items()})


@contextmanager
def alone(threads: int) -> Iterator[None]:
    """Compute as a new process would, whatever the caller has set."""
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(before)


def _digest(results: Iterator[Tensor | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for result in results:
        values = result.detach().numpy() if isinstance(result, Tensor) else result
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:12]


def _fixed(*shape: int, salt: int = 0, scale: float = 1.0) -> Tensor:
    """Return the same numbers in [-scale, scale) everywhere: integers hashed (splitmix64)."""
    count = int(np.prod(shape))
    bits = np.arange(1 + salt * 1_000_003, 1 + salt * 1_000_003 + count, dtype=np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    values = (bits >> np.uint64(41)).astype(np.float32) / np.float32(2**22) - np.float32(1)
    return torch.from_numpy(values).mul(scale).view(shape)


def _both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Iterator[Tensor]:
    """Yield a function's result and its gradients with respect to each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    yield result
    gradient = _fixed(*result.shape, salt=9)
    if result.dim() == 4 and not result.is_contiguous():
        gradient = gradient.to(memory_format=torch.channels_last)
    yield from torch.autograd.grad(result, leaves, gradient)


def _formats(*shape: int) -> Iterator[Tensor]:
    """Yield images in torch's own memory format, and in channels-last."""
    yield _fixed(*shape)
    yield _fixed(*shape).to(memory_format=torch.channels_last)


def _convolutions(
    function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]]
) -> Iterator[Tensor]:
    for batch, before, after, kernel, stride, padding, side in shapes:
        for x in _formats(batch, before, side, side):
            own = functools.partial(function, stride=stride, padding=padding)
            planes = (before, after) if function is F.conv_transpose2d else (after, before)
            weight = _fixed(*planes, kernel, kernel, salt=1, scale=0.2)
            yield from _both_ways(own, x, weight, _fixed(after, salt=2))


def _layers(shapes: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
    for batch, before, after in shapes:
        weight = _fixed(after, before, salt=1, scale=0.2)
        yield from _both_ways(F.linear, _fixed(batch, before), weight, _fixed(after, salt=2))


def _matrices() -> Iterator[Tensor]:
    a, b = _fixed(80, 48), _fixed(60, 48, salt=1)
    yield a @ b.T
    yield a @ b[0]
    yield torch.cdist(a, b)
    yield torch.cov(a.double().T)
    yield from _both_ways(F.scaled_dot_product_attention, *_fixed(3, 4, 2, 16, 16).unbind())


def _decompositions() -> Iterator[Tensor]:
    whole = (_fixed(40, 40) * 1000).round().double()  # exact, so that no product is needed
    yield from torch.linalg.eigh(whole + whole.T)
    yield torch.linalg.svdvals(whole)


def _norms() -> Iterator[Tensor]:
    weight, bias = _fixed(32, salt=1), _fixed(32, salt=2)
    for x in _formats(8, 32, 9, 9):
        mean, var = torch.zeros(32), torch.ones(32)
        for training in (True, False):
            own = functools.partial(F.batch_norm, x, mean, var, training=training)
            yield from _both_ways(lambda w, b, own=own: own(weight=w, bias=b), weight, bias)
        yield from (mean, var)
        yield from _both_ways(lambda x, w, b: F.instance_norm(x, None, None, w, b), x, weight, bias)
        yield from _both_ways(lambda x, w, b: F.group_norm(x, 8, w, b), x, weight, bias)
        yield from _both_ways(
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x, weight, bias
        )
    yield from _both_ways(lambda x, w: F.layer_norm(x, (48,), w), _fixed(20, 48), _fixed(48))


def _own_norms() -> Iterator[Tensor]:
    # Here, when they are measured: what only records and compares fingerprints needs no layers.
    from core.layers.norms import NORMS

    for build in NORMS.values():
        yield from _both_ways(build(16), _fixed(8, 16, 9, 9))


def _pooling() -> Iterator[Tensor]:
    for x in _formats(8, 16, 10, 10):
        yield from _both_ways(lambda x: F.max_pool2d(x, 3, 2, 1), x)
        yield from _both_ways(lambda x: F.adaptive_avg_pool2d(x, 1), x)
        yield from _both_ways(lambda x: F.interpolate(x, scale_factor=2.0), x)
        yield F.interpolate(x, size=(23, 23), mode="bilinear", align_corners=False)


def _activations() -> Iterator[Tensor]:
    x = _fixed(8, 16, 9, 9, scale=4)
    for function in (F.relu, F.leaky_relu, F.silu, F.sigmoid, F.softplus, F.logsigmoid, F.tanh):
        yield from _both_ways(function, x)


def _losses() -> Iterator[Tensor]:
    logits, targets = _fixed(50, 25, scale=4), torch.arange(50) % 25
    yield from _both_ways(lambda x: F.cross_entropy(x, targets), logits)
    yield from _both_ways(lambda x: F.cross_entropy(x, targets, label_smoothing=0.1), logits)
    hard = (logits > 1).float()
    yield from _both_ways(lambda x: F.binary_cross_entropy_with_logits(x, hard), logits)
    yield from _both_ways(lambda x: -(x.softmax(1) * x.log_softmax(1)).sum(1).mean(), logits)
    yield from _both_ways(lambda x: F.mse_loss(x, hard), logits)


def _optimizers() -> Iterator[Tensor]:
    """Yield weights after three steps; by torch's functions, as its classes load a compiler."""
    same = {"lr": 0.01, "weight_decay": 5e-4, "maximize": False}
    for fused in (False, True):
        weights = [_fixed(32, 16, 3, 3), _fixed(37, salt=3)]
        buffers: list[Tensor | None] = [torch.zeros_like(w) for w in weights]
        for turn in range(3):
            sgd(
                weights, _gradients(weights, turn), buffers, fused=fused,
                momentum=0.9, dampening=0.0, nesterov=not fused, **same,
            )  # fmt: skip
        yield from weights
    for step in (adam, adamw):
        weights = [_fixed(32, 16, 3, 3), _fixed(37, salt=3)]
        means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        counts = [torch.zeros(()) for _ in weights]
        for turn in range(3):
            step(
                weights, _gradients(weights, turn), means, squares, [], counts, fused=True,
                amsgrad=False, beta1=0.9, beta2=0.999, eps=1e-8, **same,
            )  # fmt: skip
        yield from weights


def _gradients(weights: Sequence[Tensor], turn: int) -> list[Tensor]:
    """Return gradients for a step, scaled down to a norm of 1 as training does."""
    grads = [_fixed(*w.shape, salt=10 + 2 * turn + at) for at, w in enumerate(weights)]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    return [g.div(norm) for g in grads]


def _square_roots() -> Iterator[Tensor]:
    x = _fixed(1000, scale=4)
    yield from (x.exp(), x.abs().add(0.1).log(), x.abs().sqrt(), x.double().abs().sqrt())


def _random() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(7)
    yield torch.rand(100, generator=generator)
    yield torch.randn(100, generator=generator)
    yield torch.randperm(100, generator=generator)
    yield torch.empty(100).bernoulli_(0.3, generator=generator)


def _resampling() -> Iterator[Tensor]:
    grid = _fixed(4, 20, 20, 2, scale=1.2)
    yield F.grid_sample(_fixed(4, 3, 20, 20), grid, "bilinear", "reflection", align_corners=False)


def _sums() -> Iterator[Tensor | np.ndarray]:
    for x in _formats(8, 16, 9, 9):
        yield from (x.sum(), x.mean((2, 3)), x.var((0, 2, 3)), x.norm(), x.square().sum((0, 2, 3)))


def _numpy_sums() -> Iterator[np.ndarray]:
    x = _fixed(100, 40).numpy()
    for values in (x, x.astype(np.float64)):
        yield from (values.sum(), values.mean(0), values.std(1), values.cumsum())


_GROUPS: dict[str, Callable[[], Iterator[Any]]] = {
    "convolutions": lambda: _convolutions(F.conv2d, _CONVOLUTIONS),
    "transposed convolutions": lambda: _convolutions(F.conv_transpose2d, _TRANSPOSED),
    "linear layers": lambda: _layers(_LINEAR),
    "linear layers of odd shapes": lambda: _layers(_ODD_LINEAR),
    "matrix products": _matrices,
    "decompositions": _decompositions,
    "norms": _norms,
    "own norms": _own_norms,
    "pooling": _pooling,
    "activations": _activations,
    "losses": _losses,
    "optimisers": _optimizers,
    "exp, log, square roots": _square_roots,
    "random numbers": _random,
    "resampling": _resampling,
    "sums": _sums,
    "NumPy sums": _numpy_sums,
}


if __name__ == "__main__":
    found = fingerprint(1)
    print(found.sentence())
    for name, digest in found.groups.items():
        print(f"{digest}  {name}")
