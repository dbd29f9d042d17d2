"""Trained classifiers from files: labtune's own checkpoints, torchvision's and CIFAR's ResNets.

The architecture is read from the names and shapes in the file, so that a path is all one gives.
Only tensors are read: a file that holds code is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from filelock import FileLock
from torch import Tensor, nn

from core import numerics
from core.data import images as data_images
from core.data.batches import Batches
from core.data.synthetic import birds
from core.errors import UserError
from core.models.normalisation import OWN, Normalisation, of_file
from core.models.pretrained import load_state, mismatch
from core.models.resnet import resnet
from core.storage import cache
from core.storage.files import write_bytes
from core.training.epoch import Learner, cross_entropy
from core.training.optimizer import optimizer_and_schedule
from core.training.recipe import RECIPES

EMBEDDED = "ResNet-8 trained by labtune on its synthetic birds"
# Part of the embedded model's name in the cache: raise it when a change below can move a weight.
_RULE = 1
_EMBEDDED_CLASSES = 10  # of the 25 species
_EMBEDDED_SIZE = 32  # pixels
_EMBEDDED_N = 1  # blocks per stage
_EMBEDDED_EPOCHS = 12
_STAGES: dict[
    tuple[tuple[int, ...], bool], str
] = {  # blocks per stage, with or without bottlenecks -> torchvision's name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """A trained network and how to feed it.

    Attributes:
        model: in evaluation mode, on the CPU.
        name: what it is, for reports; no path.
        digest: SHA-256 of names, shapes and values of its state.
        num_classes: width of its head.
        normalisation: of the pixels it was trained on, see `core.models.normalisation`; None: not
            known.
        image_size: pixels of the images it was trained on, where that is known.
        fit: how its training images were made square: "squash" or "crop".
    """

    model: nn.Module
    name: str
    digest: str
    num_classes: int
    normalisation: Normalisation | None = None
    image_size: int | None = None
    fit: str = "crop"


def load_classifier(checkpoint: str | None, classes: int) -> Classifier:
    """Return the classifier that `checkpoint` means.

    Args:
        checkpoint: a file of weights (labtune's `best.pt`, a torchvision ResNet, a public CIFAR
            ResNet of akamaster/pytorch_resnet_cifar10), a result folder of labtune, the name of a
            torchvision ResNet (its default ImageNet weights), or NAME:PATH for that architecture
            with weights from a file; None for the embedded model.
        classes: classes of the data; the head must have as many.

    Raises:
        UserError: no such file or name, weights that do not fit the architecture, or a head of
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
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}\0".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def load_fitting(model: nn.Module, state: State, source: str) -> None:
    """Load `state` into `model`; counters of batches may be missing, nothing else.

    Raises:
        UserError: names or shapes differ; the first of each kind are named.
    """
    wrong = mismatch(model, dict(state))
    if wrong:
        raise UserError(
            f"--set checkpoint={source} does not fit a {_kind(model)} ({wrong}): give the weights"
            " of such a network, or another architecture as NAME:PATH"
        )
    model.load_state_dict(dict(state), strict=False)


def _kind(model: nn.Module) -> str:
    blocks = [m for m in model.modules() if type(m).__name__ in ("Block", "BasicBlock")]
    bottlenecks = [m for m in model.modules() if type(m).__name__ == "Bottleneck"]
    return f"ResNet-{2 + 2 * len(blocks) + 3 * len(bottlenecks)}"


# --- what a user names ---


def _from_user(checkpoint: str) -> Classifier:
    name, colon, path = checkpoint.partition(":")
    if name in torchvision_names():
        if colon:
            state = _read(path, checkpoint)
            return _torchvision(name, state, checkpoint, normalisation=of_file(path))
        return _torchvision(name, _default_state(name), checkpoint, normalisation=OWN)
    file = Path(checkpoint).expanduser()
    if file.is_dir():
        inside = [file / "checkpoints" / "best.pt", file / "best.pt"]
        found = [p for p in inside if p.is_file()]
        if not found:
            raise UserError(
                f"--set checkpoint={checkpoint}: the folder holds no checkpoints/best.pt: give a"
                " finished study's result folder, or a file of weights"
            )
        file = found[0]
    elif not file.is_file():
        raise UserError(
            f"--set checkpoint={checkpoint}: no such file: give a file of weights, a result folder,"
            f" or one of {', '.join(torchvision_names())}"
        )
    return _from_state(_read(file, checkpoint), file, checkpoint)


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
    public = {_our_name(name): value for name, value in state.items()}
    if any(name.startswith("layer4.") for name in state):
        name = _torchvision_name(state, source)
        return _torchvision(name, state, source, normalisation, config)
    if "head.weight" in public and any(name.startswith("stage1.") for name in public):
        return _small(public, config, source, normalisation)
    raise UserError(
        f"--set checkpoint={source}: its tensors ({', '.join(list(state)[:3])}, ...) are those of"
        " no residual network that labtune knows: give NAME:PATH, NAME a torchvision ResNet"
    )


def _our_name(name: str) -> str:
    """Translate a name of the public CIFAR ResNets into that of `core.models.resnet`."""
    first, dot, rest = name.partition(".")
    if first in ("conv1", "bn1", "linear"):
        return {"conv1": "conv", "bn1": "norm", "linear": "head"}[first] + dot + rest
    return name.replace("layer", "stage", 1).replace(".bn", ".norm")


def _small(
    state: State, config: Mapping[str, Any], source: str, normalisation: Normalisation | None
) -> Classifier:
    """Build a 6n+2 ResNet; what its file does not say is in the `config` beside it."""
    blocks = {name.split(".")[1] for name in state if name.startswith("stage1.")}
    norm = str(config.get("norm") or _norm_in(state))
    num_classes = len(state["head.weight"])
    model = resnet(len(blocks), num_classes, norm)
    load_fitting(model, state, source)
    size = config.get("image_size")
    what = f"{_kind(model)} with norm {norm}" if config else _kind(model)
    known = {"image_size": size, "fit": "squash", "normalisation": normalisation}
    return _classifier(model, what, num_classes, **known)


def _norm_in(state: State) -> str:
    """Return the norm that fits the tensors beside the stem's convolution."""
    if "norm.gate" in state:
        return "bin"
    if "norm.running_mean" in state:
        return "torch_bn"
    return "gn" if "norm.weight" in state else "none"


def _config_beside(file: Path) -> Mapping[str, Any]:
    """Return the settings that labtune keeps beside its checkpoints; empty for other files."""
    beside = file.with_suffix(".json")
    try:
        content = json.loads(beside.read_text()) if beside.is_file() else {}
    except (OSError, ValueError) as e:
        raise UserError(f"{beside} cannot be read ({e}): restore it, or move it away") from e
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) else {}


def _torchvision_name(state: State, source: str) -> str:
    found = {re.match(r"layer([1-4])\.(\d+)\.", name) for name in state}
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    counts = tuple(sum(stage == s for stage, _ in blocks) for s in range(1, 5))
    name = _STAGES.get((counts, "layer1.0.conv3.weight" in state))
    if name is None:
        raise UserError(
            f"--set checkpoint={source}: no ResNet of torchvision has {counts} blocks in its"
            " stages: give NAME:PATH"
        )
    return name


def _torchvision(
    name: str,
    state: State,
    source: str,
    normalisation: Normalisation | None,
    config: Mapping[str, Any] = {},
) -> Classifier:
    head = state.get("fc.weight")
    num_classes = 1000 if head is None else len(head)
    # no weights drawn: they are all replaced, and the caller's generator is left alone
    with torch.random.fork_rng(devices=[]):
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    stem = state.get("conv1.weight")
    small = stem is not None and stem.shape[-1] == 3
    if small:  # the form for 32x32 images: no stride in the first convolution, mostly no pooling
        model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        if not config.get("maxpool"):
            model.maxpool = nn.Identity()
    load_fitting(model, state, source)
    own = f"{name} (torchvision)" + (", stem for small images" if small else "")
    fit, size = ("squash", 32) if small else ("crop", None)
    if config:
        fit, size = config.get("fit", "squash"), config.get("image_size", size)
    known = {"image_size": size, "fit": fit, "normalisation": normalisation}
    return _classifier(model, own, num_classes, **known)


def _classifier(model: nn.Module, name: str, num_classes: int, **options: Any) -> Classifier:
    return Classifier(model.eval(), name, digest_of(model), num_classes, **options)


def _default_state(name: str) -> State:
    """Return torchvision's default ImageNet weights, downloaded once and checked by their hash."""
    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "labtune.lock"):
            return torch.hub.load_state_dict_from_url(
                url, str(folder), "cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as e:  # no network, or a damaged download
        file = url.rpartition("/")[2]
        raise UserError(
            f"--set checkpoint={name}: {file} cannot be fetched ({e}): put that file of"
            f" torchvision's into {folder}, or give checkpoint={name}:PATH"
        ) from e


# --- the embedded model ---


def embedded_images() -> dict[str, data_images.ImageSet]:
    """Return the synthetic birds of the embedded model: training set, and images unseen by it."""
    sets = data_images.load(birds.default_birds(), _EMBEDDED_SIZE)
    return {split: _first_classes(images) for split, images in sets.items()}


def _first_classes(images: data_images.ImageSet) -> data_images.ImageSet:
    """Keep some of the species, so that a demonstration takes minutes."""
    kept = subset(images, np.flatnonzero(images.labels < _EMBEDDED_CLASSES))
    return dataclasses.replace(kept, classes=images.classes[:_EMBEDDED_CLASSES])


def subset(images: data_images.ImageSet, order: np.ndarray) -> data_images.ImageSet:
    """Return the images with these places in the set, in this order."""
    return dataclasses.replace(
        images,
        images=images.images[order],
        labels=images.labels[order],
        files=tuple(images.files[k] for k in order),
        sources=tuple(images.sources[k] for k in order),
        digests=tuple(images.digests[k] for k in order),
    )


def _embedded() -> Classifier:
    """Return the embedded model, trained on first use and kept in the cache."""
    sets = embedded_images()
    classes = len(sets["train"].classes)
    model = resnet(_EMBEDDED_N, classes, "torch_bn")
    made = [torch.__version__, numerics.fingerprint(1).digest]
    told = json.dumps([_RULE, *made, data_images.fingerprint(sets)])
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    file = cache.cache_dir() / "models" / f"resnet8-birds-{key}.pt"
    if not file.is_file():
        with cache.cache_errors():
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                if not file.is_file():
                    print("training the embedded ResNet-8, once: a minute or two", flush=True)
                    write_bytes(file, _trained(model, sets["train"], classes))
    load_fitting(model, _read(file, "none"), "none")
    known = {"image_size": _EMBEDDED_SIZE, "fit": "squash", "normalisation": OWN}
    return _classifier(model, EMBEDDED, classes, **known)


def _trained(model: nn.Module, images: data_images.ImageSet, classes: int) -> bytes:
    """Train the embedded model and return its state as a file; a minute on two cores.

    Its generator, its thread count and torch's flags are its own, whoever calls.
    """
    with torch.random.fork_rng(devices=[]), _threads(1), torch.enable_grad():
        torch.manual_seed(0)
        model.load_state_dict(resnet(_EMBEDDED_N, classes, "torch_bn").state_dict())
        batches = Batches(images, 32, torch.device("cpu"), train=True)
        steps = _EMBEDDED_EPOCHS * len(batches)
        optimizer, schedule = optimizer_and_schedule(model, RECIPES["good"], steps)
        learner = Learner(model, optimizer, schedule, cross_entropy(classes))
        for epoch in range(1, _EMBEDDED_EPOCHS + 1):
            learner.train_epoch(batches.epoch(epoch), epoch)
    buffer = io.BytesIO()
    torch.save(cast(dict, model.eval().state_dict()), buffer)
    return buffer.getvalue()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Fix the number of threads, on which sums depend: every worker would train the same model."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
