"""ResNet-18 with weights from elsewhere: torchvision's, labtune's embedded ones, or a file's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core import numerics
from core.data.batches import Batches
from core.data.images import ImageSet, load
from core.data.synthetic import birds as synthetic_birds
from core.layers.freezing import state_digest
from core.models.weights import fill, kept, load_state, published
from core.storage.cache import cache_dir
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES

NAMES = ("default", "embedded", "none")
_SIZE = 32  # pixels of the birds that the embedded weights are learnt from
_EPOCHS = 4
_IMAGES = 2500  # of the birds, a hundred of each species
_THREADS = 2  # whatever the machine has: sums depend on it
_RULE = "3"  # part of the embedded weights' name: raise it when a change can move a weight


def resnet18(weights: str, num_classes: int) -> nn.Module:
    """Build torchvision's ResNet-18 (He et al. 2016) with a fresh head.

    Args:
        weights: "default": torchvision's ImageNet weights, from torch's hub cache or downloaded
            (input normalised as in `core.data.augment`); "embedded": learnt once from the embedded
            synthetic birds, for demonstrations without a network; "none": random, from torch's
            current generator; or the path of a state dict, whose head may be missing, and is left
            out if it has another size.
        num_classes: width of the head.

    Raises UserError: weights that cannot be had, read, or fitted.
    """
    from torchvision.models import resnet18 as build  # takes seconds to import

    model = build(num_classes=num_classes)
    if weights != "none":
        _fit(model, dict(_state(weights)), "torchvision" if weights == "default" else weights)
    return model


def digest(weights: str) -> str:
    """Return what tells these weights from others; makes or fetches them, see `resnet18`."""
    return "none" if weights == "none" else state_digest(_state(weights), "{}")


def _fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all but a head that is not there or has another size."""
    own = model.state_dict()
    if "fc.weight" not in state or state["fc.weight"].shape != own["fc.weight"].shape:
        state |= {name: own[name] for name in ("fc.weight", "fc.bias")}
    fill(model, state, source, "ResNet-18", "give a file of its weights")


@functools.lru_cache(maxsize=2)
def _state(weights: str) -> dict[str, Tensor]:
    if weights == "default":
        told = f"--weights {weights}"
        return published("resnet18", told, "--weights PATH, embedded or none")
    if weights == "embedded":
        return _embedded()
    return load_state(weights)


def _embedded() -> dict[str, Tensor]:
    """Return the weights learnt from the embedded birds, learning them if need be."""
    learnt = numerics.fingerprint(_THREADS).digest  # elsewhere the same steps give other weights
    path = cache_dir() / "weights" / f"resnet18-birds-{_RULE}-{learnt}.pt"
    return load_state(kept(path, _learn))


def _learn() -> dict[str, Tensor]:
    """Train a ResNet-18 on the embedded birds; the same weights each time on the same machine."""
    from torchvision.models import resnet18 as build

    print("learning the embedded ResNet-18 from synthetic birds, once: a minute or two", flush=True)
    birds = load(synthetic_birds.default_birds(), _SIZE, ("train",), limit={"train": _IMAGES})

    def fast() -> nn.Module:  # in this memory format by a sixth here
        model = build(num_classes=len(birds["train"].classes))
        return model.to(memory_format=torch.channels_last)  # pyrefly: ignore

    # Large batches: for images this small the gradients of the weights cost the most.
    norm = RECIPES["good"].max_norm
    model = learnt(fast, birds["train"], 125, _EPOCHS, threads=_THREADS, max_norm=norm)
    return model.to(memory_format=torch.contiguous_format).state_dict()  # pyrefly: ignore


def learnt(
    build: Callable[[], nn.Module],
    images: ImageSet,
    batch_size: int,
    epochs: int,
    *,
    threads: int,
    max_norm: float = 0.0,
) -> nn.Module:
    """Train a network on the CPU by the good recipe, the same each time on the same machine.

    Its generator, its thread count (on which sums depend) and torch's flags are its own, whoever
    calls. `build` makes the network from torch's generator; `max_norm` is as of
    `core.training.epoch.Learner`.
    """
    with numerics.alone(threads):
        torch.manual_seed(0)
        model = build()
        batches = Batches(images, batch_size, torch.device("cpu"), train=True)
        steps = epochs * len(batches)
        optimizer, schedule = optimizer_and_schedule(model, RECIPES["good"], steps)
        task = cross_entropy(len(images.classes))
        learner = Learner(model, optimizer, schedule, task, max_norm=max_norm)
        for epoch in range(1, epochs + 1):
            learner.train_epoch(batches.epoch(epoch), epoch)
    return model
