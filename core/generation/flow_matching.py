"""Flow matching along straight lines, with a small U-Net.

A network v(x, t) learns the velocity that carries noise to images: from x_0 ~ N(0, 1) to an image
x_1 on the line x_t = (1 - t) x_0 + t x_1, whose velocity is x_1 - x_0 (Lipman et al.,
arXiv:2210.02747, with their sigma_min at 0; Liu et al., arXiv:2209.03003). Sampling integrates
dx/dt = v(x, t) from t = 0 to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from core.generation import family
from core.generation.family import Average, Family, Options, Shape

MAX_NORM = 1.0  # of the gradient: a few steps at the start are far larger than the rest


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; time and label scale and shift its middle.

    Their embedding has `size` entries; `before` and `after` are channels in and out.
    """

    def __init__(self, before: int, after: int, size: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, before), nn.GroupNorm(8, after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.embedding = nn.Linear(size, 2 * after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        for parameter in self.conv2.parameters():  # starts as the shortcut alone
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return maps (B, after, H, W) of maps (B, before, H, W)."""
        scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.norm2(y) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(y))


class Attention(nn.Module):
    """Self-attention over all pixels, with a shortcut; for the smallest maps.

    Heads have 32 channels or, in narrow networks, all.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape (B, C, H, W)."""
        b, c, h, w = x.shape
        parts = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(y.reshape(b, c, h, w))


class UNet(nn.Module):
    """Velocity (B, C, S, S) at images, times (B,) and labels (B,).

    Squares of `patch` x `patch` pixels are one position with as many more channels, so that all
    convolutions run on maps of S / patch; that costs detail and saves most of the time. A level for
    each halving from there down to 4; channels are `width` at the first and twice that below.

    Label number `classes` means that it is not told. `patch` is 1, 2 or 4, with S / patch at least
    4.
    """

    def __init__(self, shape: Shape, width: int, classes: int, patch: int = 1):
        super().__init__()
        size, ends = 4 * width, shape[0] * patch**2
        self.width, self.patch = width, patch
        self.time = nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))
        self.labels = nn.Embedding(classes + 1, size) if classes else None
        channels = [width, *[2 * width] * family.halvings(shape[1] // patch)]
        self.stem = nn.Conv2d(ends, width, 3, padding=1)
        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        for here, below in itertools.pairwise(channels):
            self.down.append(Block(here, here, size))
            self.shrink.append(nn.Conv2d(here, below, 3, stride=2, padding=1))
            self.grow.insert(0, nn.Conv2d(below, here, 3, padding=1))
            self.up.insert(0, Block(2 * here, here, size))
        last = channels[-1]
        self.middle = nn.ModuleList([Block(last, last, size), Block(last, last, size)])
        self.attention = Attention(last)
        self.head = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, ends, 3, padding=1)
        )

    def forward(self, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        """Return the velocity."""
        embedding = self.time(waves(times, self.width))
        if self.labels is not None:
            assert labels is not None
            embedding = embedding + self.labels(labels)
        embedding = F.silu(embedding)
        x = self.stem(F.pixel_unshuffle(x, self.patch))
        skipped = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, embedding)
            skipped.append(x)
            x = shrink(x)
        x = self.middle[1](self.attention(self.middle[0](x, embedding)), embedding)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = grow(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = block(torch.cat([x, skipped.pop()], 1), embedding)
        return F.pixel_shuffle(self.head(x), self.patch)


def waves(times: Tensor, size: int) -> Tensor:
    """Return sines and cosines (B, size) of times in [0, 1], as Vaswani et al. 2017 for 0..1000."""
    half = size // 2
    powers = torch.arange(half, device=times.device, dtype=torch.float32) / half
    angles = 1000 * times[:, None] * (-math.log(10_000) * powers).exp()
    return torch.cat([angles.sin(), angles.cos()], 1)


def integrate(
    velocity: Callable[[Tensor, float], Tensor],
    start: Tensor,
    steps: int,
    sampler: Literal["euler", "heun"],
) -> list[tuple[float, Tensor]]:
    """Solve dx/dt = velocity(x, t) from t = 0 to 1 in equal steps.

    Euler's method calls `velocity` once a step; Heun's twice, and its error falls with the square
    of the step. Returns steps + 1 pairs of time and state, from (0, start) to (1, end).
    """
    states, x = [(0.0, start)], start
    for step in range(steps):
        now, then = step / steps, (step + 1) / steps
        slope = velocity(x, now)
        ahead = x + slope / steps
        if sampler == "heun":
            ahead = x + (slope + velocity(ahead, then)) / (2 * steps)
        x = ahead
        states.append((then, x))
    return states


class FlowMatching(Family):
    """Flow matching, conditional on labels where there are any.

    Some training images have their label hidden, so that one network knows both velocities and
    sampling can push towards the label: v = v_none + guidance (v_label - v_none) (Ho & Salimans,
    arXiv:2207.12598, with guidance = 1 + their w). At guidance 1 only v_label is computed.

    Without an lr of its own it is `small_rate`'s of adam.
    """

    def __init__(self, shape: Shape, width: int, classes: int, options: Options):
        super().__init__(shape, classes)
        patch = options.patch
        if patch not in (1, 2, 4) or shape[1] // patch < 4:
            raise UserError(f"--set patch={patch}: give 1, 2 or 4, at most image_size / 4")
        self.latent_shape, self.options = shape, options
        self.network = UNet(shape, width, classes, patch)
        self.networks = {"network": self.network}
        weights, rate = self.network.parameters(), family.small_rate(width)
        self.optimizers = {"network": family.build_optimizer(options, weights, rate)}
        self.average = Average(self.network, options.ema)

    def train_step(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Family`; the loss is the mean squared error of the velocity."""
        count, device = len(images), images.device
        noise = torch.randn(images.shape, generator=generator).to(device)
        times, hide = torch.rand(2, count, generator=generator).to(device)
        told = torch.where(hide < self.options.label_dropout, self.classes, labels)
        t = times[:, None, None, None]
        predicted = self.network((1 - t) * noise + t * images, times, told)
        loss = F.mse_loss(predicted, images - noise)
        self.step("network", loss, MAX_NORM)
        self.average.update()
        return {"loss": loss.detach()}

    def path(self, latents: Tensor, labels: Tensor) -> list[tuple[float, Tensor]]:
        """See `Family`: the states of the integration, from noise to image."""
        steps, sampler = self.options.sampler_steps, self.options.sampler
        return integrate(lambda x, t: self.velocity(x, t, labels), latents, steps, sampler)

    def velocity(self, x: Tensor, time: float, labels: Tensor) -> Tensor:
        """Return the guided velocity (B, C, S, S) at one time for all images."""
        network, guidance = self.average.network, self.options.guidance
        times = torch.full((len(x),), time, device=x.device)
        if not self.classes or guidance == 1:
            return network(x, times, labels)
        nothing = torch.full_like(labels, self.classes)
        both = network(x.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([labels, nothing]))
        told, untold = both.chunk(2)
        return untold + guidance * (told - untold)
