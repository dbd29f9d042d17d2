"""Small pictures of ten or so classes, all as uint8 arrays: digits, MNIST, CIFAR-10, image folders.

`load` is the one way to them. What comes from a library is turned into arrays in the cache once
(under a lock, published as a whole) and memory-mapped; image folders go through `core.data.images`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from core.data import images
from core.data.images import ImageSet
from core.errors import UserError
from core.storage.cache import cache_dir, filled

# A mirrored digit is no digit; a mirrored photograph is another photograph of the same thing.
MIRRORED = {"digits": False, "mnist": False, "cifar10": True, "folder": True}
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_DIGIT_CLASSES = tuple("0123456789")
_CIFAR_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes of an image in the binary version: its label, its planes
_HELD_OUT = 5  # of the embedded digits each class gives its last fifth to validation
# Part of every cache key: raise the number when a change below can move a pixel.
_RULE = f"1: 3 planes, digits cubic in a black frame of a sixteenth; Pillow {PIL.__version__}"


class Arrays(NamedTuple):
    """One split as a library gives it: images (N, H, W, 3) or (N, H, W) uint8, labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """A data set: its classes, what it depends on, and how to read it."""

    classes: tuple[str, ...]  # names, in the order of the labels
    key: str  # text that changes whenever `read` would give something else
    read: Callable[[], dict[str, Arrays]]  # returns the splits "train" and "val"


def resolve(dataset: str, root: str | None) -> str:
    """Return the data set that is meant: "auto" is what `root` holds, or without it the digits.

    Raises UserError: no such data set, or `root`, the user's folder, given for the embedded one.
    """
    if dataset not in ("auto", *MIRRORED):
        raise UserError(f"--set dataset={dataset}: give one of auto, {', '.join(MIRRORED)}")
    if dataset == "digits" and root is not None:
        raise UserError(f"--data-dir {root}: dataset=digits is built in: leave one of the two out")
    if dataset != "auto":
        return dataset
    if root is None:
        return "digits"
    base = Path(root).expanduser()
    if any((base / folder).is_dir() for folder in _CIFAR_FOLDERS):
        return "cifar10"
    return "mnist" if (base / "MNIST" / "raw").is_dir() else "folder"


def load(
    dataset: str,
    root: str | None,
    image_size: int,
    limit: Mapping[str, int | None] | None = None,
    *,
    download: bool = False,
    skip_broken: bool = False,
) -> dict[str, ImageSet]:
    """Return the splits "train" and "val" of a data set, always with three channels.

    CIFAR-10's and MNIST's test halves serve as "val". Grey images have three equal channels. Images
    of another size than `image_size` are resized with Pillow's filters; digits keep a black frame:
    MNIST's 28x28 get two pixels on each side as in LeCun et al. 1998 (section II.B), unless
    `image_size` is 28. Raises UserError: the data set is unknown, missing, damaged or smaller than
    one image per class, or the cache cannot be written; one sentence that says what to do.

    Args:
        dataset: "digits" (scikit-learn's 1,797 handwritten digits, needs no file), "mnist",
            "cifar10", "folder" (train/<class>/*, val/<class>/*), or "auto", see `resolve`.
        root: where the data set is; None looks in the cache for cifar10 and mnist.
        image_size: S of the (N, 3, S, S) arrays, in pixels.
        limit: per split, use this many images only, balanced over classes; the same ones each time.
        download: fetch cifar10 or mnist with torchvision where they are missing.
        skip_broken: leave unreadable files of a folder out, instead of refusing the data.
    """
    if image_size < 1:
        raise UserError(f"--set image_size={image_size}: image_size must be at least 1")
    name = resolve(dataset, root)
    if name == "folder":
        if root is None:
            raise UserError("--set dataset=folder: say which folder with --data-dir PATH")
        sets = images.load(root, image_size, skip_broken=skip_broken)
    else:
        source = _source(name, root, download)
        sets = _opened(name, source.classes, _cached(name, source, image_size))
    return {split: _limited(s, (limit or {}).get(split), split) for split, s in sets.items()}


def describe(dataset: str, root: str | None, sets: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return what a report says about the data; see `core.data.images.describe`."""
    name = resolve(dataset, root)
    described = images.describe(sets)
    words = {
        "digits": "real handwritten digits, 8x8 grey, enlarged: scikit-learn's load_digits (the "
        "test half of UCI's optdigits); the last fifth of each class is val",
        "mnist": "MNIST's handwritten digits, 28x28 grey; its test half serves as val",
        "cifar10": "CIFAR-10's photographs, 32x32; its test half serves as val",
    }
    described |= {"dataset": name, "description": words.get(name, described["description"])}
    if name != "folder":
        described["kind"] = "embedded" if name == "digits" else "torchvision"
    return described


# --- one image at a time, as in a loader of one's own ---


class SmallImages(Dataset[tuple[Tensor, int]]):
    """An `ImageSet` as a map-style data set: the way of a loader written by hand.

    Studies use `core.data.batches.Batches`, which converts whole batches on the device; this gives
    the same numbers one by one. A `transform` gets each image as (S, S, 3) uint8, as torchvision's
    `ToTensor()` wants it; without one `__getitem__` converts by `to_tensor`: to the same bits.
    """

    def __init__(self, images: ImageSet, transform: Callable[[np.ndarray], Tensor] | None = None):
        self.images = images
        self.transform = transform or to_tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = for_display(self.images.images[index])
        return self.transform(image), int(self.images.labels[index])


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn (H, W, C) uint8, as displayed, into (C, H, W) float32, 0 to 1, as a network takes it.

    torchvision's `ToTensor()` does the same for uint8, but leaves the range of floating-point
    arrays alone; here they are refused (ValueError), so that 0..255 never reaches a network
    unnoticed.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"to_tensor: (H, W, C) uint8 needed, got {image.shape} {image.dtype}")
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return planes.to(torch.float32).div(255)


def for_display(image: np.ndarray) -> np.ndarray:
    """Turn (C, H, W) into (H, W, C), as viewers and Pillow want it."""
    return np.ascontiguousarray(image.transpose(1, 2, 0))


# --- sources ---


def _source(name: str, root: str | None, download: bool) -> Source:
    if name == "digits":
        import sklearn

        return Source(_DIGIT_CLASSES, f"digits, scikit-learn {sklearn.__version__}", _digits)
    base = cache_dir() / "datasets" if root is None else Path(root).expanduser()
    if root is not None and not base.is_dir() and not download:
        raise UserError(f"--data-dir {root} does not exist: give the folder that holds {name}")
    if download:
        _fetch(name, base)
    if name == "mnist":
        raw = base / "MNIST" / "raw"
        files = sorted(raw.glob("*-ubyte*"))
        if len({file.name.removesuffix(".gz") for file in files}) < 4:
            raise _missing("mnist", base, "the four files of MNIST/raw/", root)
        return Source(_DIGIT_CLASSES, _state(files), lambda: _torchvisions(name, base, raw))
    binary, python = (base / folder for folder in _CIFAR_FOLDERS)
    if files := sorted(binary.glob("*_batch*.bin")):
        return Source(_CIFAR_CLASSES, _state(files), lambda: _cifar_binary(binary))
    if files := sorted(python.glob("*_batch*")):
        return Source(_CIFAR_CLASSES, _state(files), lambda: _torchvisions(name, base, python))
    raise _missing("cifar10", base, " or ".join(f"{folder}/" for folder in _CIFAR_FOLDERS), root)


def _missing(name: str, base: Path, wanted: str, root: str | None) -> UserError:
    where = f"--data-dir {root}" if root is not None else f"--set dataset={name}"
    return UserError(
        f"{where}: {wanted} not found in {base}: put the files there, or add --set download=true"
    )


def _state(files: list[Path]) -> str:
    """Return a text that changes with the files."""
    stats = [(file, file.stat()) for file in files]
    return str([(str(file.resolve()), s.st_size, s.st_mtime_ns) for file, s in stats])


def _fetch(name: str, base: Path) -> None:
    """Have torchvision fetch a data set into `base` unless it is there."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / f".{name}.lock"):
            for train in (True, False):
                _half(name, base, train, download=True)
    except (OSError, RuntimeError) as e:  # no network, no rights, damaged download
        raise UserError(
            f"--set download=true: cannot fetch {name} into {base} ({_first_line(e)}): download it"
            " elsewhere and name its folder with --data-dir"
        ) from e


def _digits() -> dict[str, Arrays]:
    """Read scikit-learn's digits; the last of each class, by other writers, are "val"."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        held_out[of_class[-(len(of_class) // _HELD_OUT) :]] = True
    chosen = {"train": ~held_out, "val": held_out}
    return {split: Arrays(images[of], labels[of]) for split, of in chosen.items()}


def _torchvisions(name: str, base: Path, folder: Path) -> dict[str, Arrays]:
    """Read both halves of what torchvision downloads, which lies in `folder`."""
    try:
        return {split: _half(name, base, train=split == "train") for split in ("train", "val")}
    except Exception as e:  # a damaged file raises almost anything
        raise _damaged(folder, e) from e


def _half(name: str, base: Path, train: bool, download: bool = False) -> Arrays:
    """Have torchvision read a half of a data set, and fetch what is not there, if wanted.

    CIFAR-10's files are pickles. torchvision opens them only if their MD5 is that of the published
    files (else RuntimeError), so nothing else is ever unpickled.
    """
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    half = kind(str(base), train=train, download=download)
    return Arrays(np.asarray(half.data), np.asarray(half.targets, dtype=np.int64))


def cifar10_test(root: str | Path) -> ImageSet | None:
    """Return CIFAR-10's test half, if `root` holds its python batches or is their folder.

    Raises UserError: a batch is missing or not the published one.
    """
    base, folder = Path(root), _CIFAR_FOLDERS[1]
    if base.name == folder:
        base = base.parent
    if not (base / folder).is_dir():
        return None
    try:
        pixels, labels = _half("cifar10", base, train=False)
    except (RuntimeError, OSError) as e:
        raise UserError(
            f"--data-dir {base}: {folder} is not whole ({_first_line(e)}): unpack"
            " cifar-10-python.tar.gz there again"
        ) from e
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    digests = _digests(planes)
    files = tuple(f"test_batch/{k:05}" for k in range(len(labels)))
    return ImageSet(planes, labels, files, _CIFAR_CLASSES, "test", digests, digests)


def _cifar_binary(folder: Path) -> dict[str, Arrays]:
    """Read the binary version: records of a label and three planes of 32x32 bytes."""
    names = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "val": ["test_batch.bin"]}
    found = {}
    for split, files in names.items():
        try:
            records = np.concatenate(
                [np.fromfile(folder / f, np.uint8).reshape(-1, _CIFAR_RECORD) for f in files]
            )
        except (OSError, ValueError) as e:
            raise _damaged(folder, e) from e
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if len(images) == 0 or records[:, 0].max() >= len(_CIFAR_CLASSES):
            raise _damaged(folder, ValueError("no records, or labels over 9"))
        found[split] = Arrays(images, records[:, 0].astype(np.int64))
    return found


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} is damaged or not the published data set ({_first_line(error)}): delete it and"
        " fetch it again with --set download=true"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- from arrays to the cache ---


def _cached(name: str, source: Source, image_size: int) -> Path:
    """Return the folder that holds the arrays of both splits, building it if need be."""
    told = "\n".join((_RULE, name, str(image_size), source.key))
    key = hashlib.sha256(told.encode()).hexdigest()[:24]

    def fill(folder: Path) -> None:
        splits = source.read()
        folder.mkdir()
        for split, arrays in splits.items():
            images = np.stack([_planes(image, name, image_size) for image in arrays.images])
            np.save(folder / f"{split}.npy", images)
            digests = np.array(_digests(images))
            np.savez(folder / f"{split}.npz", labels=arrays.labels, digests=digests)

    return filled(cache_dir() / "small" / f"{name}-{image_size}-{key}", fill)


def _digests(images: np.ndarray) -> tuple[str, ...]:
    return tuple(hashlib.sha256(image.tobytes()).hexdigest()[:32] for image in images)


def _planes(image: np.ndarray, name: str, size: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, 3) as (3, size, size) uint8."""
    if name == "digits" and size != image.shape[0]:
        frame = size // 16
        inner = Image.fromarray(image).resize((size - 2 * frame,) * 2, Image.Resampling.BICUBIC)
        image = np.pad(np.asarray(inner), frame)
    elif name == "mnist" and size != image.shape[0]:
        image = np.pad(image, 2)
    if image.shape[0] != size:
        small = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return image.transpose(2, 0, 1)


@functools.lru_cache(maxsize=8)  # a warm worker opens a data set once
def _opened(name: str, classes: tuple[str, ...], folder: Path) -> dict[str, ImageSet]:
    sets = {}
    for split in ("train", "val"):
        try:
            images = np.load(folder / f"{split}.npy", mmap_mode="r")
            with np.load(folder / f"{split}.npz") as rest:
                labels, digests = rest["labels"], tuple(rest["digests"].tolist())
        except (OSError, ValueError, KeyError) as e:
            raise UserError(
                f"the cache {folder} is damaged ({_first_line(e)}): delete it and run the same"
                " command again"
            ) from e
        files = tuple(f"{name}/{split}/{number:05d}" for number in range(len(labels)))
        sets[split] = ImageSet(images, labels, files, classes, split, digests, digests)
    return sets


def _limited(whole: ImageSet, limit: int | None, split: str) -> ImageSet:
    """Choose `limit` images by a hash of their pixels, see `images.choose`."""
    if limit is None or limit >= len(whole):
        return whole
    key = whole.digests.__getitem__
    return images.part(whole, images.choose(whole.labels, limit, split, len(whole.classes), key))
