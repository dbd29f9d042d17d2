"""Images like those of a data set: a VAE, a DCGAN or flow matching, judged without any download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, MultipleOf

from core.choices import NEIGHBOURS, SIZES, Dataset, Family
from core.errors import UserError
from core.later import Later
from core.ranges import Amount, Checked, Count, Natural, Says
from core.training.recipe import OptimizerName

Two = Annotated[int, Ge(2)]
Fraction = Annotated[float, Interval(ge=0, lt=1), Says("{name} is in [0, 1)")]

train_generator = Later("trainables.generation.train:train_generator")
describe_pictures = Later("trainables.generation.data:describe_pictures")


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial; the defaults are the full scale.

    Attributes:
        family: vae, dcgan or flow (flow matching with a small U-Net).
        width: channels of the layer at the highest resolution, a multiple of 8.
        seed: of weights, order, noise and samples.
        epochs: rounds of training, each followed by a report.
        epoch_steps: batches in a round; none: as many as one pass over the training images has.
        batch_size: images per step.
        optimizer: adam, adamw, sgd or rmsprop.
        lr: learning rate; none: the family's own of adam, converted for another optimiser.
        ema: decay of the moving average of weights that samples are made with; 0: none.
        conditional: tell the family the class of each image.
        latent: entries of a latent (vae, dcgan); none: the family's own.
        patch: flow: squares of so many pixels are one position (1, 2 or 4): faster, coarser.
        guidance: flow: weight of the class while sampling; 1: as learnt, above: stronger.
        label_dropout: flow: share of training images whose class is hidden, for guidance.
        sampler: flow: heun (two network calls a step) or euler (one).
        sampler_steps: flow: steps of the sampler.
        flip: mirror training images at random; none: photographs only.
        eval_samples: images made for each report; none: as many as there are held-out images, at
            most 2000.
        neighbours: k of precision, recall, density and coverage.
        samples: write so many images of the best trial to samples/ (PNG files and an .npz).
        dataset: digits, mnist, cifar10, folder, or auto (what --data-dir holds; digits without).
        image_size: pixels, 8 to 128, a power of 2; none: 16 for the embedded digits, otherwise 32.
        channels: grey, rgb, or auto (grey if every image is).
        train_images: use this many training images, balanced over classes.
        val_images: use this many held-out images, balanced over classes.
        inception: state dict of torchvision's inception_v3, for a distance in its features too.
        data_dir: where the data are; none: the embedded digits.
        skip_broken: leave unreadable images out.
        download: fetch mnist or cifar10 with torchvision where they are missing.
    """

    family: Family = "flow"
    width: Annotated[int, Ge(8), MultipleOf(8), Says("{name} must be a multiple of 8")] = 64
    seed: int = 0
    epochs: Count = 100
    epoch_steps: Count | None = None
    batch_size: Two = 128
    optimizer: OptimizerName = "adam"
    lr: Amount | None = None
    ema: Fraction = 0.999
    conditional: bool = True
    latent: Count | None = None
    patch: int = 1
    guidance: Amount = 1.0
    label_dropout: Fraction = 0.1
    sampler: Literal["euler", "heun"] = "heun"
    sampler_steps: Count = 25
    flip: bool | None = None
    eval_samples: Two | None = None
    neighbours: Count = NEIGHBOURS
    samples: Natural = 0
    dataset: Dataset = "auto"
    image_size: int | None = None
    channels: Literal["auto", "grey", "rgb"] = "auto"
    train_images: Count | None = None
    val_images: Count | None = None
    inception: str | None = None
    data_dir: str | None = None
    skip_broken: bool = False
    download: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None and self.image_size not in SIZES:
            sizes = ", ".join(map(str, SIZES))
            raise UserError(f"--set image_size={self.image_size}: give one of {sizes}")
        if self.patch not in (1, 2, 4) or (self.image_size or 16) // self.patch < 4:
            raise UserError(f"--set patch={self.patch}: give 1, 2 or 4, at most image_size / 4")
