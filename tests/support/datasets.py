"""Small data sets in the layouts that labtune reads, and a server to fetch them from."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"


def thing(name: str, difficult: int | None = 0, box: str = BOX) -> str:
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}{box}</object>"


def write(root: Path, images: dict[str, list[str]], lists: dict[str, list[str]]) -> Path:
    """Write a devkit: image -> objects, list -> images; return the year's folder."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for shade, (name, objects) in enumerate(images.items()):
        Image.new("RGB", (12, 10), (shade, 50, 90)).save(root / "JPEGImages" / f"{name}.jpg")
        text = f"<annotation>{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    for split, names in lists.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    return root


def pack(folder: Path, archive: Path, more: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "VOCdevkit/VOC2012")
        if more is not None:
            tar.addfile(more, io.BytesIO(b"x" * more.size))
    return archive


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; yield its address, with a slash at the end."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def picture(seed: int, width: int = 9, height: int = 7) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def folder(
    root: Path, counts: dict[str, int], classes=("Hoopoe", "Indian Roller"), size=(9, 7)
) -> Path:
    """Make root/<split>/<class>/<k>.png with `counts` pictures of each class, all different."""
    for i, split in enumerate(counts):
        for j, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for k in range(counts[split]):
                picture(100 * i + 10 * j + k, *size).save(root / split / name / f"{k}.png")
    return root


def photographs(root: Path, places: slice) -> torch.Tensor:
    """Return the pictures at `places` of each class's folder, (N, 3, H, W) uint8."""
    files = [file for folder in sorted(root.iterdir()) for file in sorted(folder.iterdir())[places]]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def linked(photos: Path, folder: Path, names: str) -> Path:
    """Fill `folder` with links to the photographs that a pattern names, in the same layout."""
    for path in photos.glob(names):
        link = folder / path.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def takes_0_to_1(shared: Path, folder: Path) -> tuple[str, str]:
    """Write the public network's weights as they are for pixels in 0 to 1; return both files."""
    from core.models.normalisation import NORMALISATIONS
    from core.models.weights import load_state

    public, written = shared / "weights" / "cifar10-resnet20.th", folder / "takes-0-to-1.th"
    state = load_state(public)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALISATIONS["imagenet"])
    state["conv1.weight"] = state["conv1.weight"] / std
    moved = (state["conv1.weight"] * mean).sum((1, 2, 3))
    state["bn1.running_mean"] = state["bn1.running_mean"] + moved
    torch.save(state, written)
    return str(written), str(public)
