"""Features for judging generated images: a classifier trained on the same data, or Inception.

No download is needed for the classifier: labtune trains it once per data set and keeps its weights
in the cache. Distances in its features are no FID and must not be called so.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import numerics
from core.data.augment import augment
from core.errors import UserError
from core.generation.copies import CopyCheck, false_alarms, plant, threshold
from core.generation.quality import Nearest, balance, frechet, moments, nearest, prdc
from core.models.weights import kept, load_state
from core.storage.cache import cache_dir, cache_errors
from core.training.device import device_here

FEATURES = 64
_BATCH = 64
_LEAST_STEPS = 500  # enough for 98 % on the embedded digits
_PASSES = 12
_LR, _DECAY, _SMOOTHING, _DROPOUT = 2e-3, 1e-3, 0.1, 0.25
_AT_ONCE = 500
_CALIBRATED = 2000  # real images at most that set the threshold of the copy check
# Part of the cache key: raise the number when a change can move a weight.
_RULE = f"1: three stages, {FEATURES} features; torch {torch.__version__}"


class Classifier(nn.Module):
    """A small convolutional classifier whose last hidden layer serves as features.

    For images (B, channels, size, size), the size a multiple of 8.
    """

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((channels, 32, 64, 64)):
            conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        last = nn.Linear(64 * (size // 8) ** 2, FEATURES)
        self.body = nn.Sequential(*layers, nn.Flatten(), last)
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(FEATURES, classes))
        # Features are divided by it: the spread (total variance) of the training images is then 1.
        self.register_buffer("spread", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, S, S) in [-1, 1]."""
        return self.head(self.body(images))

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, classes) of uint8 images, on their device."""
        assert not self.training
        features, logits = [], []
        for part in images.split(_AT_ONCE):
            hidden = self.body(scaled(part))
            features.append(hidden / self.spread)
            logits.append(self.head(hidden))
        return torch.cat(features), torch.cat(logits)


def scaled(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def quantised(images: Tensor) -> Tensor:
    """Return images of [-1, 1] as uint8, as they are stored; measures are taken on these."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def train_classifier(images: Tensor, labels: Tensor, classes: int, flip: bool) -> Classifier:
    """Train the classifier, the same one each time on a CPU.

    Shifted (and, for photographs, mirrored) images, smoothed labels, dropout and weight decay keep
    the features of training images close to those of images never seen: the distances of generated
    images are taken to training images. `images` (N, C, S, S) uint8 and `labels` (N,) int64 are on
    the device to train on; `flip` mirrors at random.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    # Sums depend on the number of threads, and processes with others train it too.
    with numerics.alone(threads=1), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return _train(images, labels, classes, flip)


def _train(images: Tensor, labels: Tensor, classes: int, flip: bool) -> Classifier:
    channels, size = images.shape[1:3]
    model = Classifier(channels, size, classes).to(images.device)
    generator = torch.Generator().manual_seed(0)
    steps = max(_LEAST_STEPS, _PASSES * -(-len(images) // _BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), _LR, weight_decay=_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for index in itertools.islice(_batches(len(images), generator), steps):
        x, y = images[index.to(images.device)], labels[index.to(images.device)]
        x = scaled(augment(x, generator, flip=flip, padding=max(1, size // 16)))
        loss = F.cross_entropy(model(x), y, label_smoothing=_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    features, _ = model.look(images)  # not yet divided: the buffer is 1
    model.get_buffer("spread").copy_(features.double().var(0).sum().sqrt())
    return model


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=generator).split(_BATCH)


def classifier(
    images: Tensor, labels: Tensor, classes: int, flip: bool, fingerprint: str
) -> tuple[Classifier, str]:
    """Return the classifier of a data set and its digest, trained now or taken from the cache.

    Args as of `train_classifier`; `fingerprint` is the data set's. Raises UserError: the cache
    cannot be written, or its file is damaged.
    """
    steps = (_LEAST_STEPS, _PASSES, _BATCH, _LR, _DECAY, _SMOOTHING, _DROPOUT)
    made = (numerics.fingerprint(1).digest, images.device.type)
    told = f"{_RULE}\n{steps}\n{fingerprint}\n{tuple(images.shape)}\n{flip}\n{made}"
    name = hashlib.sha256(told.encode()).hexdigest()[:24]

    def learn() -> dict[str, Tensor]:
        trained = train_classifier(images, labels, classes, flip)
        return {k: v.cpu() for k, v in trained.state_dict().items()}

    path = kept(cache_dir() / "classifiers" / f"{name}.pt", learn)
    with cache_errors():
        content = path.read_bytes()
    model = Classifier(images.shape[1], images.shape[2], classes)
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    except Exception as e:  # a damaged file raises almost anything
        raise UserError(
            f"the cached classifier {path} is damaged: delete it and run the same command again"
        ) from e
    digest = hashlib.sha256(content).hexdigest()[:32]
    return model.to(images.device).eval().requires_grad_(False), digest


@dataclass(eq=False, repr=False)
class Reference:
    """Real images in the classifier's features, which generated ones are held against.

    Attributes:
        classifier: of the data set, see the function of that name.
        digest: SHA-256 of its weights.
        moments: of all training images.
        real: (count, F) features of training images drawn once, for precision and its kin.
        check: finds training images among others.
        unseen: ratios of held-out images by `check`; they set its threshold.
    """

    train: Tensor  # (N, C, S, S) uint8, the generators' training images
    labels: Tensor  # (N,) int64 of `train`
    held_out: Tensor  # (M, C, S, S) uint8, real images that no network has seen
    held_out_labels: Tensor  # (M,) int64
    classes: int  # number of labels
    _: KW_ONLY
    flip: bool  # mirror at random while the classifier trains
    count: int  # how many images are compared: this many generated ones each time
    neighbours: int  # k of precision and its kin
    fingerprint: str  # of the data set

    def __post_init__(self) -> None:
        how = self.classes, self.flip, self.fingerprint
        self.classifier, self.digest = classifier(self.train, self.labels, *how)
        features, _ = self.classifier.look(self.train)
        self.moments, self.real = moments(features), features[_some(len(features), self.count)]
        self.check = CopyCheck(self.train)
        calibrating = self.held_out[_some(len(self.held_out), _CALIBRATED)]
        self.unseen = self.check.ratios(calibrating)

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Return every measure of images (count, C, S, S) uint8.

        These are frechet (in units of the spread of the real images), precision, recall, density,
        coverage, class_balance and, with the labels (count,) that were asked for, class_agreement,
        the share that the classifier takes for what was asked.
        """
        features, logits = self.classifier.look(images.to(self.train.device))
        predicted = logits.argmax(1)
        found = {"frechet": frechet(moments(features), self.moments)}
        found |= prdc(self.real, features, self.neighbours)
        found["class_balance"] = balance(predicted, self.classes)
        if labels is not None:
            agreed = predicted == labels.to(predicted.device)
            found["class_agreement"] = agreed.double().mean().item()
        return found

    def nearest(self, images: Tensor) -> Nearest:
        """Return the nearest training images of uint8 images."""
        return Nearest(*(part.cpu() for part in nearest(images.to(self.train.device), self.train)))

    def copying(self, images: Tensor) -> dict[str, float]:
        """Return how near images (N, C, S, S) uint8 are to training images, and how many copy one.

        As nearest_distance (median, grey levels), nearest_ratio (median of `CopyCheck.ratios`) and
        copies, the share below the threshold.
        """
        return copying(self.nearest(images), self.check.ratios(images), threshold(self.unseen))

    def found(self) -> dict[str, float]:
        """Return the share found of each kind of planted copy, see `sample_copies.plant`."""
        return {name: self.copying(images)["copies"] for name, images in plant(self.train).items()}


def yardsticks(against: Reference) -> dict[str, dict[str, float]]:
    """Return the measures of images that are not generated, `count` of each if there are as many.

    held_out are real images that no generator saw: the floor of the distance. copies are training
    images once more, others than those that precision is taken among: what a generator would reach
    that had learnt them by heart. noise has uniform pixels: the ceiling.
    """
    few = _some(len(against.held_out), against.count)
    again = _some(len(against.train), against.count, start=against.count)
    generator = torch.Generator().manual_seed(0)
    shape = (against.count, *against.train.shape[1:])
    noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    rows = {
        "held_out": (against.held_out[few], against.held_out_labels[few]),
        "copies": (against.train[again], against.labels[again]),
        "noise": (noise, None),
    }
    found = {
        name: against.measure(images, asked) | against.copying(images)
        for name, (images, asked) in rows.items()
    }
    found["held_out"]["copies"] = false_alarms(against.unseen)
    return found


def copying(near: Nearest, ratios: Tensor, limit: float) -> dict[str, float]:
    """Return what `Reference.copying` does, from distances and ratios."""
    return {
        "nearest_distance": near.distance[:, 0].median().item(),
        "nearest_ratio": ratios.median().item(),
        "copies": (ratios < limit).double().mean().item(),
    }


def _some(total: int, count: int, start: int = 0) -> Tensor:
    """Return `count` of `total` indices (all, if there are fewer), the same ones each time.

    They are taken from place `start` of an order that goes round: with fewer than start + count
    images the choices for several `start` overlap.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[torch.arange(start, start + min(count, total)) % total]


# --- Inception ---


def inception(path: str | Path) -> Callable[[Tensor], Tensor]:
    """Return a function from uint8 images to Inception-v3's 2048 pooled features.

    The Frechet distance in them is not FID, whose weights are those of the original TensorFlow
    graph. Both were trained on pixels in [-1, 1], which is what the network gets here:
    torchvision's `transform_input` would make them from ImageNet-normalised ones, and is off.
    Raises UserError: no file at `path`, or another than a state dict of torchvision's
    `inception_v3`.
    """
    model = _inception_network(path)

    def features(images: Tensor) -> Tensor:
        parts = []
        for part in images.split(50):
            x = scaled(part.to(device_here())).expand(-1, 3, -1, -1)
            x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
            with torch.no_grad():
                parts.append(model(x).cpu())
        return torch.cat(parts)

    return features


def _inception_network(path: str | Path) -> nn.Module:
    from torchvision.models import inception_v3

    state = {k: v for k, v in load_state(path).items() if not k.startswith("AuxLogits.")}
    model = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=False)
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError as e:
        raise UserError(f"--set inception={path}: not the weights of inception_v3") from e
    if unknown or any(not k.startswith(("AuxLogits.", "fc.")) for k in lacking):
        raise UserError(
            f"--set inception={path}: not the state dict of torchvision's inception_v3 (it lacks or"
            f" adds {', '.join((lacking + unknown)[:3])})"
        )
    model.add_module("fc", nn.Identity())  # features in place of ImageNet's logits
    return model.to(device_here()).eval().requires_grad_(False)
