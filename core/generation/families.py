"""The families of generators by name."""

from __future__ import annotations

from typing import Literal

from core import choices
from core.errors import UserError
from core.generation.family import Family, Shape
from core.training.recipe import OptimizerName

NAMES: tuple[str, ...] = ("vae", "dcgan", "flow")
# Settings of `build` that a trial's config holds under the same names.
OPTIONS = (
    "optimizer", "lr", "ema", "latent", "patch", "guidance", "sampler", "sampler_steps",
    "label_dropout",
)  # fmt: skip


def build(
    family: choices.Family,
    shape: Shape,
    width: int,
    classes: int,
    *,
    optimizer: OptimizerName = "adam",
    lr: float | None = None,
    ema: float = 0.0,
    latent: int | None = None,
    patch: int = 1,
    guidance: float = 1.0,
    sampler: Literal["euler", "heun"] = "heun",
    sampler_steps: int = 10,
    label_dropout: float = 0.1,
) -> Family:
    """Build a family with fresh weights (from torch's global generator).

    Args:
        family: "vae", "dcgan" or "flow".
        shape: (C, S, S) of the images; S one of `SIZES`.
        width: channels of the widest-resolution layer; a multiple of 8.
        classes: number of labels; 0 for images without labels.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: learning rate; None: the family's own.
        ema: decay of the moving average that samples are made with.
        latent: entries of a latent (vae, dcgan); None: the family's own.
        patch: pixels that are one position of the network (flow): 1, 2 or 4.
        guidance: weight of the label (flow); 1: none, above: stronger.
        sampler: integrator (flow).
        sampler_steps: of the integrator (flow).
        label_dropout: share of training images whose label is hidden (flow).

    Raises:
        UserError: a size, width or combination that the family cannot have.
    """
    if width % 8 or width < 8:
        raise UserError(f"--set width={width}: width must be a multiple of 8")
    if family == "vae":
        from core.generation.vae import VAE

        return VAE(shape, width, classes, optimizer=optimizer, lr=lr, ema=ema, latent=latent)
    if family == "dcgan":
        from core.generation.dcgan import DCGAN

        return DCGAN(shape, width, classes, optimizer=optimizer, lr=lr, ema=ema, latent=latent)
    from core.generation.flow_matching import FlowMatching

    return FlowMatching(
        shape,
        width,
        classes,
        optimizer=optimizer,
        lr=lr,
        ema=ema,
        patch=patch,
        guidance=guidance,
        sampler=sampler,
        steps=sampler_steps,
        label_dropout=label_dropout,
    )
