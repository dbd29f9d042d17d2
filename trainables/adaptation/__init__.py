"""One cell of a robustness table: a corruption at a severity, without and with adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from core.choices import Method, Normalisation, Order
from core.errors import UserError
from core.later import Later
from core.ranges import Checked, Count, Natural, Says

CLEAN = "clean"
SMALLEST = 32  # pixels; the corruptions are defined from there on

adapt_cell = Later("trainables.adaptation.cell:adapt_cell")
describe_cells = Later("trainables.adaptation.data:describe_cells")
check_cells = Later("trainables.adaptation.cell:check_cells")

Corruption = Literal[
    "clean", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness",
]  # fmt: skip
INFINITY = float("inf")
Side = Annotated[int, Ge(SMALLEST), Says(f"the corruptions need at least {SMALLEST}")]
Momentum = Annotated[float, Interval(gt=0, le=1), Says("give a number above 0, at most 1")]
Images = Annotated[float, Interval(ge=0, lt=INFINITY), Says("give a number of at least 0")]
Rate = Annotated[float, Interval(gt=0, lt=INFINITY), Says("give a number above 0")]


@dataclass(frozen=True)
class Config(Checked):
    """Settings of one trial, which is one cell: the defaults are the lab's.

    Attributes:
        corruption: one of the eight, or clean.
        severity: 1 to 5; of clean images 0.
        method: none, running (num_bn_updates batches move the running statistics), batch (each
            batch by its own statistics), prior (blended with the source's) or tent (own statistics,
            and scale and shift by the entropy of the predictions).
        num_bn_updates: batches that move the statistics under running; 0 changes nothing.
        batch_size: images in a batch of adaptation.
        order: in which images come: shuffled (by the seed), sorted (by class) or dirichlet (classes
            in bursts).
        seed: of the order of the images; the corrupted images are those of corruption_seed.
        momentum: weight of the newest batch under running; none: as in the model.
        cumulative: under running forget the source and average all batches.
        prior_n: images that the source's statistics count for under prior.
        tent_lr: learning rate of tent.
        wrap: go through the images again where the updates need more than there are.
        clean_reference: adapt to the clean images too, to see what adaptation costs there.
        corruption_seed: of what is random in a corruption.
        images: use so many images, taken evenly over the classes; none: all.
        image_size: pixels; none: as the model was trained, else 32 where all images are 32x32, else
            224 cropped as for ImageNet.
        checkpoint: weights: a file, a result folder, resnet18 and the like, or NAME:PATH; none: the
            embedded model.
        normalisation: mean and std of the pixels: imagenet, cifar10 or none (0 to 1); auto: that of
            the weights' training where it is known (torchvision's, labtune's, the public CIFAR
            ResNets), else the one under which the unadapted model is best on clean images.
        frost_dir: folder of frost photographs, in place of labtune's textures.
        data_dir: root with val/<class>/ or test/<class>/, or of CIFAR-10's python batches; none:
            the embedded synthetic birds.
        skip_broken: leave unreadable images out.
    """

    corruption: Corruption = "frost"
    severity: int = 2
    method: Method = "running"
    num_bn_updates: Natural = 50
    batch_size: Count = 64
    order: Order = "shuffled"
    seed: Natural = 0
    momentum: Momentum | None = None
    cumulative: bool = False
    prior_n: Images = 16.0
    tent_lr: Rate = 1e-3
    wrap: bool = False
    clean_reference: bool = False
    corruption_seed: Natural = 0
    images: Count | None = None
    image_size: Side | None = None
    checkpoint: str | None = None
    normalisation: Literal["auto", Normalisation] = "auto"
    frost_dir: str | None = None
    data_dir: str | None = None
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.corruption == CLEAN and self.severity != 0:
            raise UserError(f"--set severity={self.severity}: clean images have severity 0")
        if self.corruption != CLEAN and not 1 <= self.severity <= 5:
            raise UserError(f"--set severity={self.severity}: give 1, 2, 3, 4 or 5")


def no_silent_wrap(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return the settings that follow from the user's own: their updates wrap only if they say so.

    The lab's 50 x 64 may go through fewer images again; a number that the user gives may not.
    """
    return {"wrap": False} if "num_bn_updates" in settings else {}
