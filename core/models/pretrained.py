"""ResNet-18 with weights from elsewhere: torchvision's, labtune's embedded ones, or a file's."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from core import numerics
from core.data import batches as training_batches
from core.data.images import load
from core.data.synthetic import birds as synthetic_birds
from core.errors import UserError
from core.models.weights import load_state, mismatch
from core.storage.cache import cache_dir, cache_errors
from core.storage.files import write_bytes
from core.training import epoch as training_epoch
from core.training import optimizer as training_optimizer
from core.training import recipe as training_recipe

NAMES = ("default", "embedded", "none")
_SIZE = 32  # pixels of the birds that the embedded weights are learnt from
_EPOCHS = 4
_IMAGES = 2500  # of the birds, a hundred of each species
_THREADS = 2  # whatever the machine has: sums depend on it
_RULE = "3"  # part of the embedded weights' name: raise it when a change can move a weight


def resnet18(weights: str, num_classes: int, small_stem: bool = False) -> nn.Module:
    """Build torchvision's ResNet-18 (He et al. 2016) with a fresh head.

    Args:
        weights: "default": torchvision's ImageNet weights, from torch's hub cache or downloaded
            (input normalised as in `core.data.augment`); "embedded": learnt once from the embedded
            synthetic birds, for demonstrations without a network; "none": random, from torch's
            current generator; or the path of a state dict, whose head may be missing, and is left
            out if it has another size.
        num_classes: width of the head.
        small_stem: replace the first convolution by a random 3x3 one with stride 1, as the CIFAR
            lab's listing does; the max-pool stays, as it does there.

    Raises:
        UserError: weights that cannot be had, read, or fitted.
    """
    from torchvision.models import resnet18 as build  # takes seconds to import

    model = build(num_classes=num_classes)
    if weights != "none":
        _fit(model, dict(_state(weights)), "torchvision" if weights == "default" else weights)
    if small_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    return model


def digest(weights: str) -> str:
    """Return what tells these weights from others, for fingerprints; makes or fetches them.

    Raises:
        UserError: see `resnet18`.
    """
    if weights == "none":
        return "none"
    sums = hashlib.sha256()
    for name, value in sorted(_state(weights).items()):
        sums.update(name.encode() + value.contiguous().numpy().tobytes())
    return f"sha256:{sums.hexdigest()[:32]}"


def _fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all but a head that is not there or has another size."""
    own = model.state_dict()
    if "fc.weight" not in state or state["fc.weight"].shape != own["fc.weight"].shape:
        state |= {name: own[name] for name in ("fc.weight", "fc.bias")}
    wrong = mismatch(model, state)
    if wrong:
        raise UserError(f"{source} does not fit ResNet-18 ({wrong}): give a file of its weights")
    model.load_state_dict(state, strict=False)


@functools.lru_cache(maxsize=2)
def _state(weights: str) -> dict[str, Tensor]:
    if weights == "default":
        return _torchvision()
    if weights == "embedded":
        return _embedded()
    return load_state(weights)


def _torchvision() -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights, which are fetched once for every program here."""
    from torchvision.models import ResNet18_Weights

    url = ResNet18_Weights.DEFAULT.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "labtune.lock"):
            return torch.hub.load_state_dict_from_url(
                url, str(folder), "cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as e:  # no network, or a damaged download
        raise UserError(
            f"--weights default: {Path(url).name} cannot be fetched ({e}): put that file of"
            f" torchvision's into {folder}, or give --weights PATH, embedded or none"
        ) from e


def _embedded() -> dict[str, Tensor]:
    """Return the weights learnt from the embedded birds, learning them if need be."""
    learnt = numerics.fingerprint(_THREADS).digest  # elsewhere the same steps give other weights
    path = cache_dir() / "weights" / f"resnet18-birds-{_RULE}-{learnt}.pt"
    with cache_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                buffer = io.BytesIO()
                torch.save(_learn(), buffer)
                write_bytes(path, buffer.getvalue())
    return load_state(path)


def _learn() -> dict[str, Tensor]:
    """Train a ResNet-18 on the embedded birds; the same weights each time on the same machine."""
    from torchvision.models import resnet18 as build

    print("learning the embedded ResNet-18 from synthetic birds, once: a minute or two", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            birds = synthetic_birds.default_birds()
            images = load(birds, _SIZE, ("train",), limit={"train": _IMAGES})["train"]
            model = build(num_classes=len(images.classes))
            model = model.to(memory_format=torch.channels_last)  # a sixth faster here
            # Large batches: for images this small the gradients of the weights cost the most.
            batches = training_batches.Batches(images, 125, torch.device("cpu"), train=True)
            recipe = training_recipe.RECIPES["good"]
            optimizer, schedule = training_optimizer.optimizer_and_schedule(
                model, recipe, _EPOCHS * len(batches)
            )
            task = training_epoch.cross_entropy(len(images.classes))
            learner = training_epoch.Learner(
                model, optimizer, schedule, task, max_norm=recipe.max_norm
            )
            for epoch in range(1, _EPOCHS + 1):
                learner.train_epoch(batches.epoch(epoch), epoch)
    finally:
        torch.set_num_threads(threads)
    return model.to(memory_format=torch.contiguous_format).state_dict()
