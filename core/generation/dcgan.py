"""A deep convolutional adversarial network (Radford et al., arXiv:1511.06434)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generation import family
from core.generation.family import Average, Family, Options, Shape, build_optimizer

LR = 2e-4  # from 64 channels on, as in the paper; narrower networks get more, with 1 / width
BETAS = (0.5, 0.999)  # of Adam, from the paper (section 4)
LATENT = 100


class Maker(nn.Module):
    """Latents (B, latent) and labels to images (B, C, S, S) in (-1, 1): the paper's generator."""

    def __init__(self, shape: Shape, width: int, classes: int, latent: int):
        super().__init__()
        channels = family.channels(shape, width)[::-1]
        self.labels, extra = family.label_embedding(classes)
        size = latent + extra
        layers: list[nn.Module] = [
            nn.Unflatten(1, (size, 1, 1)),
            nn.ConvTranspose2d(size, channels[0], 4, bias=False),
        ]
        for before, after in itertools.pairwise((*channels, shape[0])):
            last = after == shape[0]
            grow = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=last)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), grow]
        self.body = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialise)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return the images."""
        return self.body(family.labelled(latents, self.labels, labels))


class Judge(nn.Module):
    """Images (B, C, S, S) to logits (B,) of being real: the paper's discriminator.

    Labels enter as a projection: the inner product of features and a label's embedding is added to
    the logit (Miyato & Koyama, arXiv:1802.05637).
    """

    def __init__(self, shape: Shape, width: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = (shape[0], *family.channels(shape, width))
        for level, (before, after) in enumerate(itertools.pairwise(channels)):
            conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=level == 0)
            norm = [nn.BatchNorm2d(after)] if level else []  # none on the first, as in the paper
            layers += [conv, *norm, nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        features = channels[-1] * 16
        self.head = nn.Linear(features, 1)
        self.labels = nn.Embedding(classes, features) if classes else None
        self.apply(_initialise)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits."""
        features = self.body(images)
        logits = self.head(features).squeeze(1)
        return logits if self.labels is None else logits + (self.labels(labels) * features).sum(1)


class DCGAN(Family):
    """Generator against discriminator, one step of each per batch, an optimiser for each.

    The generator's loss is the non-saturating one (Goodfellow et al., arXiv:1406.2661, section 3).
    Real and made images go through the discriminator apart, so that its batch norms see one kind.

    Without an lr of its own it is the paper's 2e-4 of adam, below 64 channels times 64 / width,
    without a latent the paper's 100. The moving average is the generator's.
    """

    def __init__(self, shape: Shape, width: int, classes: int, options: Options):
        super().__init__(shape, classes)
        latent = LATENT if options.latent is None else options.latent
        self.latent_shape = (latent,)
        self.maker = Maker(shape, width, classes, latent)
        self.judge = Judge(shape, width, classes)
        self.networks = {"generator": self.maker, "discriminator": self.judge}
        own = LR * max(1.0, 64 / width)
        self.optimizers = {
            name: build_optimizer(options, part.parameters(), own, BETAS)
            for name, part in self.networks.items()
        }
        self.average = Average(self.maker, options.ema)

    def train_step(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Family`.

        Returns loss (the generator's), discriminator_loss, both in nats, and the discriminator's
        mean probability of real images being real, real_score, and of made ones, made_score.
        """
        self.maker.train()
        latents = self.latents(len(images), generator).to(images.device)
        made = self.maker(latents, labels)
        real_logits = self.judge(images, labels)
        made_logits = self.judge(made.detach(), labels)
        against = F.softplus(-real_logits).mean() + F.softplus(made_logits).mean()
        self.step("discriminator", against)
        loss = F.softplus(-self.judge(made, labels)).mean()
        self.step("generator", loss)
        self.average.update()
        return {
            "loss": loss.detach(),
            "discriminator_loss": against.detach(),
            "real_score": real_logits.detach().sigmoid().mean(),
            "made_score": made_logits.detach().sigmoid().mean(),
        }


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), batch norm's from N(1, 0.02), as the paper (section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
