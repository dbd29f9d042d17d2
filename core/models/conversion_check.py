"""How exactly a converted network repeats the original: differences layer by layer, on images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.data import decoding, folders
from core.data.augment import normalise
from core.data.synthetic import birds
from core.errors import UserError
from core.layers.convert import convert, setbyname2
from core.layers.pairing import evaluation, pairs
from core.layers.std_conv import WSConv2d
from core.models import pretrained
from core.models.classifier import (
    head_width,
    is_torchvisions,
    resnet_name,
    torchvision_name,
    torchvision_net,
)
from core.models.normalisation import NORMALISATIONS, OWN, Normalisation, of_file, settle
from core.models.resnet import is_resnet, own_names, resnet_of
from core.models.weights import fill, load_state

OUTPUT = "output"  # the row of the logits, after those of the norms
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_BATCH = 50
_NAMED = {  # image size and name
    "default": (224, "ResNet-18, torchvision's ImageNet weights"),
    "embedded": (48, "ResNet-18, learnt on labtune's synthetic birds"),
    "none": (64, "ResNet-18 with random weights"),
}


@dataclass(frozen=True)
class Agreement:
    """How far one tensor of the converted network is from the original's, over all images."""

    mode: str  # "A", "B", or "none": standardised weights and nothing that makes up for them
    precision: str  # "float32" or "float64"
    layer: str  # name of a norm whose output is compared, or "output" for the logits
    mae: float  # mean absolute difference
    largest: float  # largest absolute difference
    size: float  # largest absolute value of the original
    images: int  # how many
    # images whose largest logit belongs to another class; None for inner layers
    changed: int | None = None
    # share of images that the original gets right; None without labels
    accuracy: float | None = None
    accuracy_converted: float | None = None  # the same of the converted network


@dataclass(frozen=True, eq=False)
class Photos:
    """Images for a check."""

    images: np.ndarray  # (N, 3, S, S) uint8
    labels: np.ndarray | None = None  # (N,), or None
    classes: int = 0  # how many the labels tell apart; 0 without labels
    description: str = ""  # what the images are


def check(
    model: nn.Module,
    photos: Photos,
    modes: Sequence[str] = ("A", "B", "none"),
    precisions: Sequence[str] = tuple(PRECISIONS),
    normalisation: Normalisation = OWN,
) -> list[Agreement]:
    """Compare `model` with its conversions on every image, in evaluation mode.

    Returns for each precision and mode a row per norm that was paired, then one for the output.
    Raises ValueError: the model cannot be converted; see `core.layers.convert.convert`.
    """
    rows = []
    for precision in precisions:
        original = copy.deepcopy(model).to(PRECISIONS[precision])
        norms = [pair.norm for pair in pairs(original).pairs]
        for mode in modes:
            changed = _uncompensated(original)
            if mode != "none":
                changed = convert(original, "A" if mode == "A" else "B")
            found = _compare((original, changed), norms, photos, normalisation)
            rows += [Agreement(mode, precision, *row) for row in found]
    return rows


def run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the network and the images that settings name.

    These may hold `data_dir` (a folder of images, of class folders, or of splits; none: the
    embedded birds), `weights` (as of `core.models.pretrained`, or a file of a torchvision or CIFAR
    ResNet), `image_size`, `fit` ("squash" or "crop"), `val_images` (use so many). Returns
    `weights`, `images`, `normalisation` (words for each), `image_size`, and `rows`, `Agreement` as
    dicts. Raises UserError: images or weights that cannot be used.
    """
    folder = settings.get("data_dir")
    weights = str(settings.get("weights") or ("embedded" if folder is None else "default"))
    model, size, name = network(weights)
    size = int(settings.get("image_size") or size)
    fit = settings.get("fit") or ("crop" if size >= 224 else "squash")  # as ImageNet's are prepared
    photos = load_photos(folder, size, fit, settings.get("val_images"))
    labels = photos.labels if photos.classes == head_width(model) else None
    known = OWN if weights in pretrained.NAMES else of_file(weights)
    try:
        pixels = settle(model.eval(), photos.images, labels, "auto", known)
        rows = check(model, photos, normalisation=pixels.name)
    except UserError as e:
        raise UserError(f"--weights {weights}: {e}") from e
    except ValueError as e:
        raise UserError(f"--weights {weights}: this network cannot be converted: {e}") from e
    return {
        "weights": name,
        "images": photos.description,
        "normalisation": "" if weights == "none" else pixels.sentence(),
        "image_size": size,
        "rows": [asdict(row) for row in rows],
    }


def network(weights: str) -> tuple[nn.Module, int, str]:
    """Return a network with its own head, the image size it was made for, and its name.

    Raises UserError: weights that cannot be had or that fit no ResNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of random weights, and of a head that a file does not have
        if weights not in pretrained.NAMES:
            return _from_file(weights)
        classes = (
            1000 if weights != "embedded" else len(folders.scan(birds.default_birds()).classes)
        )
        return pretrained.resnet18(weights, classes), *_NAMED[weights]


def _from_file(weights: str) -> tuple[nn.Module, int, str]:
    state, told, file = load_state(weights), f"--weights {weights}", Path(weights).name
    if is_torchvisions(state):
        name = torchvision_name(state, told)
        model = torchvision_net(name, state)
        if "fc.weight" not in state:
            state |= {key: model.state_dict()[key] for key in ("fc.weight", "fc.bias")}
        fill(model, state, told, name, "give its own file")
        return model, 224, f"{resnet_name(model)}, {file}"
    state = own_names(state)
    if not is_resnet(state):
        raise UserError(
            f"{told}: neither a torchvision ResNet nor a CIFAR ResNet (6n + 2 layers):"
            " give the state dict of one"
        )
    model = resnet_of(state, "torch_bn")
    fill(model, state, weights, "the model", "give weights of this network")
    return model, 32, f"CIFAR {resnet_name(model)}, {file}"


def load_photos(
    folder: str | None, size: int, fit: decoding.Fit, limit: int | None = None
) -> Photos:
    """Return the images of a folder, or the embedded birds.

    A folder with splits gives its validation (or test) images, one with class folders its images
    with labels, any other all images in it and below. Raises UserError: no folder, no images, or
    images that cannot be read (all are named).
    """
    root = Path(birds.default_birds() if folder is None else folder)
    base = _scored(root.expanduser().resolve())
    found = sorted(
        Path(path)
        for path, entry in folders.files_below(base)
        if entry.name.lower().endswith(folders.EXTENSIONS) and entry.is_file()
    )
    if not found:
        raise UserError(f"--data-dir {folder}: no images in it: give a folder of photographs")
    classes = sorted({path.parts[0] for path in found if len(path.parts) > 1})
    if any(len(path.parts) != 2 for path in found) or len(classes) < 2:
        classes = []
    if limit is not None and limit < len(found):  # evenly over the folder, so over its classes
        found = [found[i * len(found) // limit] for i in range(limit)]
    files = [folders.file_of(base / path, path.as_posix()) for path in found]
    images, _ = decoding.decoded_splits(base, {"all": files}, size, fit)["all"]
    labels = np.array([classes.index(path.parts[0]) for path in found]) if classes else None
    kind = "synthetic bird pictures" if folder is None else f"images of the folder {root.name}"
    return Photos(images, labels, len(classes), f"{len(files):,} {kind}")


# ---- the parts ----


def _scored(root: Path) -> Path:
    """Return the folder of the split to score, if the root has splits."""
    if not root.is_dir():
        raise UserError(f"--data-dir {root} is not a folder: give a folder of photographs")
    splits = folders.STAND_INS["val"] if (root / "train").is_dir() else ()
    return next((root / name for name in splits if (root / name).is_dir()), root)


def _uncompensated(model: nn.Module) -> nn.Module:
    """Return a copy with standardised weights whose norms are left alone."""
    changed = copy.deepcopy(model)
    for pair in pairs(model).pairs:
        conv = changed.get_submodule(pair.conv)
        assert isinstance(conv, nn.Conv2d)
        setbyname2(changed, pair.conv, WSConv2d.of(conv))
    return changed


class _Sums:
    """Differences of one tensor, added up over batches."""

    def __init__(self) -> None:
        self.total, self.count, self.largest, self.size = 0.0, 0, 0.0, 0.0

    def add(self, old: Tensor, new: Tensor) -> None:
        gap = (new.double() - old.double()).abs()
        self.total += float(gap.sum())
        self.count += gap.numel()
        self.largest = max(self.largest, float(gap.max()))
        self.size = max(self.size, float(old.abs().max()))


def _compare(
    nets: Sequence[nn.Module], norms: Sequence[str], photos: Photos, normalisation: Normalisation
) -> list[tuple[Any, ...]]:
    """Return the fields of an `Agreement`, from `layer` on, of each norm and the output."""
    sums = {layer: _Sums() for layer in [*norms, OUTPUT]}
    like, count, guesses, classes = next(nets[0].parameters()), len(photos.images), [], 0
    for start in range(0, count, _BATCH):
        part = torch.from_numpy(np.array(photos.images[start : start + _BATCH]))
        x = normalise(part.to(like.device), *NORMALISATIONS[normalisation]).to(like.dtype)
        old, new = (_outputs(net, norms, x) for net in nets)
        for layer, one in sums.items():
            one.add(old[layer], new[layer])
        classes = old[OUTPUT].shape[1]
        guesses.append(torch.stack([old[OUTPUT].argmax(1), new[OUTPUT].argmax(1)]))
    guess, guess_new = torch.cat(guesses, 1).cpu().numpy()
    of_output: list[Any] = [int((guess != guess_new).sum())]
    if photos.labels is not None and photos.classes == classes:
        of_output += [int((told == photos.labels).sum()) / count for told in (guess, guess_new)]
    more = {OUTPUT: of_output}
    gaps = {layer: (one.total / one.count, one.largest, one.size) for layer, one in sums.items()}
    return [(layer, *gap, count, *more.get(layer, ())) for layer, gap in gaps.items()]


def _outputs(model: nn.Module, norms: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Return what the norms and the network give for a batch."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        # A copy: an in-place ReLU may follow.
        return lambda module, args, output: found.__setitem__(name, output.clone())

    with ExitStack() as hooks, evaluation(model):
        for name in norms:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(keep(name)))
        found[OUTPUT] = model(x)
    return found
