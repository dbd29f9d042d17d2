"""Trained classifiers from files: labtune's own checkpoints, torchvision's and CIFAR's ResNets.

The architecture is read from the names and shapes in the file, so that a path is all one gives.
Only tensors are read: a file that holds code is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from core import numerics
from core.data import images
from core.data.synthetic import birds
from core.errors import UserError
from core.layers.freezing import small_stem, state_digest
from core.models.normalisation import OWN, Normalisation, of_file
from core.models.pretrained import learnt
from core.models.resnet import is_resnet, own_names, resnet, resnet_of
from core.models.weights import fill, kept, load_state, published
from core.storage.cache import cache_dir

EMBEDDED = "ResNet-8 trained by labtune on its synthetic birds"
# Part of the embedded model's name in the cache: raise it when a change below can move a weight.
_RULE = 1
_EMBEDDED_CLASSES = 10  # of the 25 species
_EMBEDDED_SIZE = 32  # pixels
_EMBEDDED_N = 1  # blocks per stage
_EMBEDDED_EPOCHS = 12
# Blocks per stage, with or without bottlenecks -> torchvision's name.
_STAGES: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """A trained network and how to feed it."""

    model: nn.Module  # in evaluation mode, on the CPU
    name: str  # what it is, for reports; no path
    digest: str  # SHA-256 of names, shapes and values of its state
    num_classes: int  # width of its head
    # of the pixels it was trained on, see `core.models.normalisation`; None: not known
    normalisation: Normalisation | None = None
    image_size: int | None = None  # pixels of the images it was trained on, where that is known
    fit: str = "crop"  # how its training images were made square: "squash" or "crop"


def load_classifier(checkpoint: str | None, classes: int) -> Classifier:
    """Return the classifier that `checkpoint` means.

    Args:
        checkpoint: a file of weights (labtune's `best.pt`, a torchvision ResNet, a public CIFAR
            ResNet of akamaster/pytorch_resnet_cifar10), a result folder of labtune, the name of a
            torchvision ResNet (its default ImageNet weights), or NAME:PATH for that architecture
            with weights from a file; None for the embedded model.
        classes: classes of the data; the head must have as many.

    Raises UserError: no such file or name, weights that do not fit the architecture, or a head of
    another size than the data.
    """
    found = _embedded() if checkpoint is None else _from_user(checkpoint)
    if found.num_classes != classes:
        raise UserError(
            f"--set checkpoint={checkpoint or 'none'}: it tells {found.num_classes:,} classes apart"
            f" and the data have {classes:,}: give weights that were trained on these classes"
        )
    return found


def digest_of(model: nn.Module) -> str:
    """Return a SHA-256 of the state of `model`, equal for equal weights wherever they are."""
    return state_digest(model.state_dict(), "{}{}{}\0")


def load_fitting(model: nn.Module, state: State, source: str) -> None:
    """Load `state` into `model`, see `core.models.weights.fill`."""
    say = "give the weights of such a network, or another architecture as NAME:PATH"
    fill(model, state, f"--set checkpoint={source}", f"a {resnet_name(model)}", say)


def resnet_name(model: nn.Module) -> str:
    """Return what residual network a model is, by its number of layers: "ResNet-18"."""
    layers = {"Block": 2, "BasicBlock": 2, "Bottleneck": 3}
    return f"ResNet-{2 + sum(layers.get(type(m).__name__, 0) for m in model.modules())}"


# --- what a user names ---


def _from_user(checkpoint: str) -> Classifier:
    name, colon, path = checkpoint.partition(":")
    if name in torchvision_names() and colon:
        return _torchvision(name, _read(path, checkpoint), checkpoint, of_file(path))
    if name in torchvision_names():
        state = published(name, f"--set checkpoint={name}", f"checkpoint={name}:PATH")
        return _torchvision(name, state, checkpoint, OWN)
    file = _file(checkpoint)
    return _from_state(_read(file, checkpoint), file, checkpoint)


def _file(checkpoint: str) -> Path:
    """Return the file of weights of that name, or in the result folder of that name."""
    path = Path(checkpoint).expanduser()
    for file in (path, path / "checkpoints" / "best.pt", path / "best.pt"):
        if file.is_file():
            return file
    if path.is_dir():
        raise UserError(
            f"--set checkpoint={checkpoint}: the folder holds no checkpoints/best.pt: give a"
            " finished study's result folder, or a file of weights"
        )
    raise UserError(
        f"--set checkpoint={checkpoint}: no such file: give a file of weights, a result folder,"
        f" or one of {', '.join(torchvision_names())}"
    )


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's residual networks."""
    named = torchvision.models.list_models(module=torchvision.models)
    return tuple(n for n in named if re.match(r"(wide_)?resne(t|xt)\d", n))


def _read(path: str | Path, source: str) -> State:
    try:
        return load_state(Path(path).expanduser())
    except UserError as e:
        raise UserError(f"--set checkpoint={source}: {e}") from e


def _from_state(state: State, file: Path, source: str) -> Classifier:
    """Build the network that a state dict belongs to, by its names.

    What labtune trained has a note beside it, which says what the names do not.
    """
    config = _config_beside(file)
    normalisation = OWN if config else of_file(file)
    if is_torchvisions(state):
        name = torchvision_name(state, f"--set checkpoint={source}", ": give NAME:PATH")
        return _torchvision(name, state, source, normalisation, config)
    if is_resnet(public := own_names(state)):
        return _small(public, config, source, normalisation)
    raise UserError(
        f"--set checkpoint={source}: its tensors ({', '.join(list(state)[:3])}, ...) are those of"
        " no residual network that labtune knows: give NAME:PATH, NAME a torchvision ResNet"
    )


def _small(
    state: State, config: Mapping[str, Any], source: str, normalisation: Normalisation | None
) -> Classifier:
    """Build a 6n+2 ResNet; what its file does not say is in the `config` beside it."""
    norm = str(config.get("norm") or _norm_in(state))
    model = resnet_of(state, norm)
    load_fitting(model, state, source)
    size = config.get("image_size")
    what = f"{resnet_name(model)} with norm {norm}" if config else resnet_name(model)
    return _classifier(model, what, normalisation, size, "squash")


def _norm_in(state: State) -> str:
    """Return the norm that fits the tensors beside the stem's convolution."""
    norms = {"norm.gate": "bin", "norm.running_mean": "torch_bn", "norm.weight": "gn"}
    return next((norm for name, norm in norms.items() if name in state), "none")


def _config_beside(file: Path) -> Mapping[str, Any]:
    """Return the settings that labtune keeps beside its checkpoints; empty for other files."""
    beside = file.with_suffix(".json")
    try:
        content = json.loads(beside.read_text()) if beside.is_file() else {}
    except (OSError, ValueError) as e:
        raise UserError(f"{beside} cannot be read ({e}): restore it, or move it away") from e
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) else {}


def is_torchvisions(state: State) -> bool:
    """Tell whether a state has the names of torchvision's ResNets."""
    return any(name.startswith("layer4.") for name in state)


def torchvision_name(state: State, told: str, say: str = "") -> str:
    """Return the name of torchvision's ResNet that a state belongs to.

    Raises UserError: there is none; the message names the option `told` and what to do: `say`.
    """
    found = {re.match(r"layer([1-4])\.(\d+)\.", name) for name in state}
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    counts = tuple(sum(stage == s for stage, _ in blocks) for s in range(1, 5))
    name = _STAGES.get((counts, "layer1.0.conv3.weight" in state))
    if name is None:
        raise UserError(f"{told}: no ResNet of torchvision has {counts} blocks in its stages{say}")
    return name


def torchvision_net(name: str, state: State) -> nn.Module:
    """Build torchvision's ResNet of that name with weights of its own, its head as in a state.

    The caller's generator is left alone.
    """
    head = state.get("fc.weight")
    with torch.random.fork_rng(devices=[]):
        classes = 1000 if head is None else len(head)
        return torchvision.models.get_model(name, weights=None, num_classes=classes)


def _torchvision(
    name: str,
    state: State,
    source: str,
    normalisation: Normalisation | None,
    config: Mapping[str, Any] = {},
) -> Classifier:
    model = torchvision_net(name, state)
    stem = state.get("conv1.weight")
    small = stem is not None and stem.shape[-1] == 3
    if small:  # the form for 32x32 images: no stride in the first convolution, mostly no pooling
        small_stem(model, "trained", maxpool=bool(config.get("maxpool")))
    load_fitting(model, state, source)
    own = f"{name} (torchvision)" + (", stem for small images" if small else "")
    fit, size = ("squash", 32) if small else ("crop", None)
    if config:
        fit, size = config.get("fit", "squash"), config.get("image_size", size)
    return _classifier(model, own, normalisation, size, fit)


def _classifier(model: nn.Module, name: str, *how: Any) -> Classifier:
    return Classifier(model.eval(), name, digest_of(model), head_width(model), *how)


def head_width(model: nn.Module) -> int:
    """Return how many classes a network tells apart: its head comes last."""
    return len(next(reversed(model.state_dict().values())))


# --- the embedded model ---


def embedded_images() -> dict[str, images.ImageSet]:
    """Return the synthetic birds of the embedded model: training set, and images unseen by it.

    They are of some of the species, so that a demonstration takes minutes.
    """
    sets = {}
    for split, whole in images.load(birds.default_birds(), _EMBEDDED_SIZE).items():
        few = images.part(whole, np.flatnonzero(whole.labels < _EMBEDDED_CLASSES))
        sets[split] = dataclasses.replace(few, classes=whole.classes[:_EMBEDDED_CLASSES])
    return sets


def _embedded() -> Classifier:
    """Return the embedded model, trained on first use (a minute) and kept in the cache."""
    sets = embedded_images()
    classes = len(sets["train"].classes)
    build = functools.partial(resnet, _EMBEDDED_N, classes, "torch_bn")
    made = [torch.__version__, numerics.fingerprint(1).digest]
    told = json.dumps([_RULE, *made, images.fingerprint(sets)])
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    file = cache_dir() / "models" / f"resnet8-birds-{key}.pt"

    def train() -> dict[str, Tensor]:
        print("training the embedded ResNet-8, once: a minute or two", flush=True)
        return learnt(build, sets["train"], 32, _EMBEDDED_EPOCHS, threads=1).eval().state_dict()

    model = build()
    load_fitting(model, _read(kept(file, train), "none"), "none")
    return _classifier(model, EMBEDDED, OWN, _EMBEDDED_SIZE, "squash")
