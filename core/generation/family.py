"""What the generative families share: one interface, moving averages, latents and their paths.

A family (`core.generation.vae`, `core.generation.dcgan`, `core.generation.flow_matching`) turns
latents into images of [-1, 1]. It holds its networks and optimisers, takes training steps, and its
whole state goes into a checkpoint. Nothing in it draws from torch's global generator once it is
built.

Of the networks, `shape` is (C, S, S), `width` the channels at the widest resolution, a multiple of
8, `classes` the number of labels, 0 without any, and `latent` the entries of a latent.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.choices import SIZES
from core.errors import UserError
from core.training.optimizer import make_optimizer
from core.training.recipe import OptimizerName, converted_rate

_AT_ONCE = 250  # images decoded together: bounds the memory of sampling
_LABEL = 16  # entries of a label's embedding
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Options:
    """Settings of the families; a trial's config holds them under the same names."""

    optimizer: OptimizerName = "adam"
    lr: float | None = None  # learning rate; None: the family's own
    ema: float = 0.0  # decay of the moving average that samples are made with; 0: the weights alone
    latent: int | None = None  # entries of a latent (vae, dcgan); None: the family's own
    patch: int = 1  # pixels that are one position of the network (flow): 1, 2 or 4
    guidance: float = 1.0  # weight of the label (flow); 1: none, above: stronger
    sampler: Literal["euler", "heun"] = "heun"  # integrator (flow)
    sampler_steps: int = 10  # of the integrator (flow)
    label_dropout: float = 0.1  # share of training images whose label is hidden (flow)


class Average:
    """An exponential moving average of a network's weights, for sampling.

    weight <- d weight + (1 - d) current, with d = min(decay, (1 + n) / (10 + n)) at update n, so
    that the first, untrained weights are forgotten quickly. Buffers (running statistics) are
    copied. `decay` is in [0, 1); with 0 there is no second copy: the attribute `network`, else the
    averaged network in evaluation mode, is the network itself.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.source, self.decay, self.updates = network, decay, 0
        self.network = network
        if decay > 0:
            self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; call after each optimiser step."""
        if self.decay == 0:
            return
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, current in zip(self.network.parameters(), self.source.parameters(), strict=True):
            mean.lerp_(current, 1 - keep)
        for mean, current in zip(self.network.buffers(), self.source.buffers(), strict=True):
            mean.copy_(current)


class Family(ABC):
    """One way to make images of `shape` (C, S, S), with everything that its training changes.

    `classes` is the number of labels; 0 makes images without labels.
    """

    latent_shape: tuple[int, ...]  # of one latent; its entries are standard normal
    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    average: Average  # of the network that `decode` uses

    def __init__(self, shape: Shape, classes: int):
        if shape[1] not in SIZES or shape[1] != shape[2]:
            sizes = ", ".join(map(str, SIZES))
            raise UserError(f"--set image_size={shape[1]}: give one of {sizes}")
        self.shape, self.classes = shape, classes

    def step(self, name: str, loss: Tensor, max_norm: float = 0.0) -> None:
        """Take a step of one optimiser on its own weights, their gradient cut to a norm."""
        optimizer = self.optimizers[name]
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=weights)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(weights, max_norm)
        optimizer.step()

    @abstractmethod
    def train_step(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Train on one batch: images (B, C, S, S) float32 in [-1, 1].

        Labels (B,) int64 are not looked at by a family without classes. Every random number of the
        step comes from `generator`, which is on the CPU. Returns the step's losses as scalars
        without gradient, the same names each time.
        """

    def path(self, latents: Tensor, labels: Tensor) -> list[tuple[float, Tensor]]:
        """Return the states on the way from latents to images: [(time in [0, 1], images)].

        A family that makes images in one pass has the image alone, at time 1.
        """
        return [(1.0, self.average.network(latents, labels))]

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` latents from a generator on the CPU, so that all devices get the same."""
        return torch.randn(count, *self.latent_shape, generator=generator)

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Turn latents (N, *latent_shape) and labels (N,) int64 into images, on the CPU.

        They are (N, C, S, S) in [-1, 1].
        """
        parts = []
        with self._evaluated() as device:
            for z, y in zip(latents.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True):
                images = self.path(z.to(device), y.to(device))[-1][1]
                parts.append(images.clamp(-1, 1).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def trajectory(self, latents: Tensor, labels: Tensor) -> tuple[list[float], Tensor]:
        """Return the times of `path` and its states (T, N, C, S, S), on the CPU."""
        with self._evaluated() as device:
            states = self.path(latents.to(device), labels.to(device))
        return [t for t, _ in states], torch.stack([x.float().cpu() for _, x in states])

    @contextmanager
    def _evaluated(self) -> Iterator[torch.device]:
        """Put the averaged network in evaluation mode meanwhile; yield the device it is on."""
        network = self.average.network
        training = network.training
        network.eval()
        yield next(network.parameters()).device
        network.train(training)

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Make one image per label: (N, C, S, S) float32 in [-1, 1], on the CPU."""
        return self.decode(self.latents(len(labels), generator), labels)

    def to(self, device: torch.device) -> Family:
        """Move every network to `device` (before the first step)."""
        for network in (*self.networks.values(), self.average.network):
            network.to(device)
        return self

    def parameters(self) -> int:
        """Return the number of trained weights in all networks."""
        return sum(p.numel() for network in self.networks.values() for p in network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, but the generator."""
        return {
            "networks": {name: part.state_dict() for name, part in self.networks.items()},
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.items()},
            "average": self.average.network.state_dict(),
            "updates": self.average.updates,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over such a state."""
        for name, part in self.networks.items():
            part.load_state_dict(state_dict["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict["optimizers"][name])
        self.average.network.load_state_dict(state_dict["average"])
        self.average.updates = state_dict["updates"]


class Draws(dict[str, torch.Generator]):
    """Named random generators on the CPU, each a stream of `seed`, as part of a checkpoint."""

    def __init__(self, seed: int, names: Sequence[str]):
        for number, name in enumerate(names):
            self[name] = torch.Generator().manual_seed(stream(seed, number))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every generator."""
        return {name: generator.get_state() for name, generator in self.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put every generator where it was."""
        for name, generator in self.items():
            generator.set_state(state_dict[name])


def build_optimizer(
    options: Options,
    parameters: Iterable[Tensor],
    own: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Build a family's optimiser, see `core.training.optimizer.make_optimizer`.

    `options` name it, and the learning rate unless that is the family's `own` of adam, which is
    converted for another optimiser.
    """
    rate = converted_rate(own, "adam", options.optimizer) if options.lr is None else options.lr
    return make_optimizer(options.optimizer, parameters, rate, betas=betas, fused=True)


def stream(seed: int, number: int) -> int:
    """Return the seed of stream `number` (below 1000) of a trial's seed."""
    return (seed * 1000 + number) % 2**63  # as torch takes no larger ones


def small_rate(width: int) -> float:
    """Return 2e-3 up to 32 channels; wider networks get less, in proportion to 1 / width."""
    return 2e-3 * min(1.0, 32 / width)


def halvings(size: int) -> int:
    """Return how often `size` (of `SIZES`) is halved until 4 is left."""
    return size.bit_length() - 3


def channels(shape: Shape, width: int) -> list[int]:
    """Return the channels at S/2, S/4, ... 4: they double each time, up to 4 times."""
    return [width * min(2**level, 4) for level in range(halvings(shape[1]))]


def label_embedding(classes: int) -> tuple[nn.Embedding | None, int]:
    """Return what `labelled` appends, and how many entries that is."""
    return (nn.Embedding(classes, _LABEL), _LABEL) if classes else (None, 0)


def labelled(features: Tensor, embedding: nn.Embedding | None, labels: Tensor) -> Tensor:
    """Append each label's embedding to its features (B, F), where there are labels."""
    return features if embedding is None else torch.cat([features, embedding(labels)], 1)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point at `share` of the arc from `a` to `b`, each (N, ...), as Shoemake 1985.

    Straight lines between normal vectors in many dimensions pass through lengths that no normal
    vector has (White, arXiv:1609.04468); arcs do not.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = nn.functional.cosine_similarity(flat_a, flat_b, dim=1, eps=1e-12).clamp(-1, 1)
    angle = cosine.arccos()[:, None]
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    first = torch.where(straight, 1 - share + 0 * sine, ((1 - share) * angle).sin() / safe)
    second = torch.where(straight, share + 0 * sine, (share * angle).sin() / safe)
    return (first * flat_a + second * flat_b).view(a.shape).to(a.dtype)
