"""A convolutional variational autoencoder (Kingma & Welling, arXiv:1312.6114)."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generation import family
from core.generation.family import Average, Family, Options, Shape

LEAST_VARIANCE = 0.05  # of a pixel in [-1, 1]: finer errors are not paid for with latents


class Encoder(nn.Module):
    """Images (B, C, S, S) and labels to mean and log variance of latents, (B, latent) each."""

    def __init__(self, shape: Shape, width: int, classes: int, latent: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = (shape[0], *family.channels(shape, width))
        for before, after in itertools.pairwise(channels):
            conv = nn.Conv2d(before, after, 4, stride=2, padding=1)
            layers += [conv, nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.labels, extra = family.label_embedding(classes)
        first = nn.Linear(channels[-1] * 16 + extra, 4 * width)
        self.head = nn.Sequential(first, nn.SiLU(), nn.Linear(4 * width, 2 * latent))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance."""
        features = family.labelled(self.body(images), self.labels, labels)
        mean, log_variance = self.head(features).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)


class Decoder(nn.Module):
    """Latents (B, latent) and labels to images (B, C, S, S) in (-1, 1)."""

    def __init__(self, shape: Shape, width: int, classes: int, latent: int):
        super().__init__()
        channels = family.channels(shape, width)[::-1]
        self.labels, extra = family.label_embedding(classes)
        self.stem = nn.Sequential(
            nn.Linear(latent + extra, channels[0] * 16), nn.Unflatten(1, (channels[0], 4, 4))
        )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((*channels, width)):
            grow = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            layers += [nn.GroupNorm(8, before), nn.SiLU(), grow]
        self.body = nn.Sequential(
            *layers, nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, shape[0], 3, padding=1)
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return the images."""
        return self.body(self.stem(family.labelled(latents, self.labels, labels))).tanh()


class VAE(Family):
    """Encoder and decoder under the evidence bound, conditional on labels where there are any.

    Pixels are normal around the decoder's output with one variance for all, the one that explains
    the batch best: its mean squared error (Rybkin et al., arXiv:2006.13202, "optimal sigma"). So
    there is no weight between reconstruction and latents to tune. Unlike there it has a floor,
    `LEAST_VARIANCE`: on clean drawings it would otherwise fall until the latents of the training
    images leave no room for those drawn from the prior. Samples are the means, without pixel noise.

    Without an lr of its own it is `small_rate`'s of adam, without a latent S, 16 for images of
    16x16. The moving average is the decoder's.
    """

    def __init__(self, shape: Shape, width: int, classes: int, options: Options):
        super().__init__(shape, classes)
        latent = shape[1] if options.latent is None else options.latent
        self.latent_shape = (latent,)
        self.encoder = Encoder(shape, width, classes, latent)
        self.decoder = Decoder(shape, width, classes, latent)
        self.networks = {"encoder": self.encoder, "decoder": self.decoder}
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        rate = family.small_rate(width)
        self.optimizers = {"both": family.build_optimizer(options, weights, rate)}
        self.average = Average(self.decoder, options.ema)

    def train_step(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Family`.

        Returns loss (negative evidence bound, nats per pixel and channel), kl (nats per image) and
        squared_error (per pixel and channel).
        """
        mean, log_variance = self.encoder(images, labels)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        output = self.decoder(mean + (log_variance / 2).exp() * noise, labels)
        error = F.mse_loss(output, images)
        variance = error.detach().clamp_min(LEAST_VARIANCE)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        fit = (error / variance + variance.log() + math.log(2 * math.pi)) / 2
        loss = fit + kl / math.prod(self.shape)
        self.step("both", loss)
        self.average.update()
        return {"loss": loss.detach(), "kl": kl.detach(), "squared_error": error.detach()}
