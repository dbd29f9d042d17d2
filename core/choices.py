"""The words that settings choose among, where what they name needs torch."""

from typing import Literal

Dataset = Literal["auto", "digits", "mnist", "cifar10", "folder"]  # core.data.small
Stem = Literal["printed", "trained", "averaged"]  # core.layers.freezing
Variant = Literal["all", "layer4", "head", "scratch"]
Form = Literal["none", "listing", "meant"]  # core.models.small_cnn
Normalisation = Literal["imagenet", "cifar10", "none"]  # core.models.normalisation
Method = Literal["none", "running", "batch", "prior", "tent"]  # core.shift.adaptation
Order = Literal["shuffled", "sorted", "dirichlet"]
Family = Literal["vae", "dcgan", "flow"]  # core.generation.families
SIZES = (8, 16, 32, 64, 128)  # pixels of generated images: halved until 4x4 are left
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as Naeem et al. take it
