"""Corrupted data on disk, in the two forms in which it is published.

CIFAR-10-C: a folder with `<corruption>.npy`, uint8 (50,000, 32, 32, 3), the severities 1 to 5 one
after the other, and `labels.npy` with as many numbers. ImageNet-C: photos in
`<corruption>/<severity>/<class>/`, JPEG of quality 85.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.errors import UserError
from core.shift.corruptions import SEVERITIES, check
from core.storage import files as storage

QUALITY = 85  # of JPEG files, as ImageNet-C has them


def read_cifar_c(folder: str | Path, name: str, severity: int) -> tuple[Tensor, Tensor]:
    """Read one severity of a CIFAR-10-C style array: images (N, 3, H, W) uint8, labels (N,) int64.

    Raises UserError: no such corruption, severity or file, or arrays that do not fit the form.
    """
    check(name, severity)
    images = _array(Path(folder) / f"{name}.npy")
    labels = _array(Path(folder) / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"{Path(folder) / name}.npy holds {images.dtype} of shape {images.shape}: uint8 of"
            " shape (5 N, H, W, 3) is needed"
        )
    if labels.ndim != 1 or len(images) != len(labels) or len(images) % len(SEVERITIES):
        raise UserError(
            f"{folder}: {name}.npy has {len(images)} rows and labels.npy shape {labels.shape}: both"
            f" need the same number of rows, a multiple of {len(SEVERITIES)}"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{folder}: labels.npy holds {labels.dtype}: whole numbers are needed")
    count = len(images) // len(SEVERITIES)
    part = slice((severity - 1) * count, severity * count)
    pixels = torch.from_numpy(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)))
    return pixels, torch.from_numpy(labels[part].astype(np.int64))


def write_cifar_c(
    folder: str | Path, name: str, images: Sequence[Tensor], labels: Tensor | np.ndarray
) -> None:
    """Write `<name>.npy` and `labels.npy` into a folder, which is made if need be.

    `images` are (N, 3, H, W) uint8 for each severity, `labels` (N,) whole numbers; `name` is one of
    `core.shift.corruptions.CORRUPTIONS`. Raises UserError: other shapes, other labels in a
    labels.npy that is there, or a folder that cannot be written.
    """
    shapes = {tuple(severity.shape) for severity in images}
    if len(images) != len(SEVERITIES) or len(shapes) != 1 or len(images[0]) != len(labels):
        raise UserError(
            f"write_cifar_c needs {len(SEVERITIES)} severities of the same images and a label for"
            f" each image, got shapes {sorted(shapes)} and {len(labels)} labels"
        )
    check(name, 1)
    rows = np.concatenate([s.cpu().numpy().transpose(0, 2, 3, 1) for s in images])
    numbers = np.tile(np.asarray(labels), len(SEVERITIES)).astype(np.uint8)
    known = Path(folder) / "labels.npy"
    if known.exists() and not np.array_equal(_array(known), numbers):
        raise UserError(f"{known} has other labels: write these images into a folder of their own")
    for file, array in ((Path(folder) / f"{name}.npy", rows), (known, numbers)):
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        storage.write_bytes(file, stream.getvalue())


def _array(path: Path) -> np.ndarray:
    """Map an .npy file into memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: give a folder in the form of CIFAR-10-C") from e
    except (OSError, ValueError, EOFError) as e:
        raise UserError(
            f"{path} cannot be read as an .npy array: download or write it again"
        ) from e


def imagenet_c_root(folder: str | Path, name: str, severity: int) -> Path:
    """Return the folder of classes of one corruption and severity.

    Raises UserError: no such corruption or severity, or the folder is missing or has no classes.
    """
    check(name, severity)
    root = Path(folder) / name / str(severity)
    if not root.is_dir() or not any(entry.is_dir() for entry in root.iterdir()):
        raise UserError(
            f"{root} is not a folder with classes: give a folder in the form of ImageNet-C,"
            " <corruption>/<severity>/<class>/"
        )
    return root


def write_imagenet_c(
    folder: str | Path, name: str, severity: int, images: Tensor, files: Sequence[str]
) -> None:
    """Write images (N, 3, H, W) uint8 as `<name>/<severity>/<class>/<file>.jpg`.

    `name` is one of `core.shift.corruptions.CORRUPTIONS`, `files` are N times `<class>/<file>`, as
    the source has them; the last two parts of the path are used and the ending becomes `.jpg`.
    Raises UserError: as many images as files are needed, two files would have one name, or the
    folder cannot be written.
    """
    check(name, severity)
    names = [PurePosixPath(*PurePosixPath(file).with_suffix(".jpg").parts[-2:]) for file in files]
    if len(images) != len(names) or len(set(names)) != len(names):
        raise UserError(
            f"write_imagenet_c needs a name <class>/<file> of its own for each image, got"
            f" {len(images)} images and {len(set(names))} names"
        )
    if any(len(name.parts) != 2 or ".." in name.parts for name in names):
        raise UserError("write_imagenet_c needs names like <class>/<file> for its images")
    root = Path(folder) / name / str(severity)
    for image, file in zip(images.cpu().numpy(), names, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, "JPEG", quality=QUALITY)
        storage.write_bytes(root / file, stream.getvalue())
