"""How many images a second the corruptions make, against the public package imagecorruptions.

    python benchmarks/corruptions.py --json results/bench-corruptions.json
    python benchmarks/corruptions.py --task         the severity task against its forward passes

Severity 3, one thread, images of 32 and 224 pixels, the same for both. The package (1.1.2) needs
libraries of its time: it gets an environment of its own in labtune's cache, made with pip at the
first run, which needs a package index; without one only our rates are shown. Both sides take turns
in one run and are timed by the processor time of their thread, since what else runs on the machine
moves the figures more than the ratios. The package has the constants for 224 pixels only and uses
them at 32 too; ours at 32 are CIFAR's.

`--task` times all 40 cells on 2,000 images of 32 pixels with a 20-layer ResNet: corruption,
accuracy without adaptation, 50 updates of 64 images, accuracy after; and the forward passes that
this takes, alone and in the same batches. Photos are made up, as speed does not depend on them.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import turns
from core.models.resnet import resnet
from core.shift.adaptation import adapt, stream
from core.shift.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from core.storage.cache import cache_dir

PINS = (
    "imagecorruptions==1.1.2",
    "numpy==1.23.5",  # has np.float_, and builds for Python up to 3.11
    "scikit-image==0.20.0",
    "scipy==1.11.4",  # has scipy.ndimage.interpolation
    "opencv-python-headless==4.8.1.78",
    "opencv-python==4.8.1.78",
    "pillow<10",
    "setuptools<81",  # has pkg_resources
)
SIZES = {32: 256, 224: 16}  # side of the images: how many at once
WORKER = Path(__file__).with_name("reference_corruptions.py")


@dataclass(frozen=True)
class Options:
    """Measure the corruptions."""

    json: Path | None = None  # file for the rows.
    rounds: int = 5  # turns of each side.
    seconds: float = 0.3  # least time of one of the package's turns.
    frost_dir: Path | None = None  # pictures for frost; labtune's own without it.
    package: bool = True  # compare with imagecorruptions.
    task: bool = False  # time the whole severity task instead.
    # one short round, or two cells of the task, to see that everything runs.
    quick: bool = False


@dataclass(frozen=True)
class Row:
    """Images per second of one corruption; the package's and the ratio are None without it."""

    corruption: str
    size: int
    images_per_second: float
    package_images_per_second: float | None
    ratio: float | None


def made_up(count: int, size: int) -> Tensor:
    """Return smooth images (count, 3, size, size) uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    images = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return images.clamp(0, 255).to(torch.uint8)


# --- the package ---


def package_python() -> Path:
    """Return the interpreter of the package's environment, which is made if need be.

    Raises RuntimeError: it cannot be made; the last line of pip's output.
    """
    folder = cache_dir() / "imagecorruptions-1.1.2"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "pins.txt"
    if done.is_file() and done.read_text() == "\n".join(PINS):
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PINS],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            lines = [line for line in made.stderr.splitlines() if "ERROR" in line]
            raise RuntimeError(lines[-1] if lines else made.stderr[-300:])
    done.write_text("\n".join(PINS))
    return python


Ask = Callable[[str, float], float]


@contextmanager
def package(images: Tensor) -> Iterator[Ask]:
    """Run the package in a process; yield a function (corruption, seconds) -> images per second."""
    python, pipe = package_python(), subprocess.PIPE
    ones = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images.permute(0, 2, 3, 1).numpy(), allow_pickle=False)
        command = [str(python), str(WORKER), str(file)]
        with subprocess.Popen(
            command, env=os.environ | ones, stdin=pipe, stdout=pipe, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("imagecorruptions does not start in its environment")
            yield functools.partial(_ask, process.stdin, process.stdout)
            process.stdin.close()


def _ask(stdin: IO[str], stdout: IO[str], name: str, seconds: float) -> float:
    stdin.write(f"{name} {seconds}\n")
    stdin.flush()
    for line in stdout:
        words = line.split()
        if len(words) == 2 and words[0].isdigit():  # the package itself prints too
            return int(words[0]) / float(words[1])
    raise RuntimeError(f"imagecorruptions stopped at {name}")


# --- rates ---


def measure(size: int, options: Options, ask: Ask | None) -> Iterator[Row]:
    """Yield a row per corruption at one size."""
    images = made_up(4 if options.quick else SIZES[size], size)
    rounds = 1 if options.quick else options.rounds
    for name in CORRUPTIONS:
        corrupt(images, name, 3, frost_dir=options.frost_dir)  # tables and textures are made here
        ours, theirs = [], []
        for turn in range(rounds):
            start = time.thread_time()
            corrupt(images, name, 3, seed=turn, frost_dir=options.frost_dir)
            ours.append(len(images) / (time.thread_time() - start))
            if ask is not None:
                theirs.append(ask(name, options.seconds))
        both = (None, None)
        if theirs:
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            both = (statistics.median(theirs), ratio)
        yield Row(name, size, statistics.median(ours), *both)


def mean_row(rows: list[Row]) -> Row:
    """Return the geometric means over the corruptions of one size."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return statistics.geometric_mean(known) if known else None

    rate = mean([r.images_per_second for r in rows])
    assert rate is not None
    theirs = mean([r.package_images_per_second for r in rows])
    return Row("geometric mean", rows[0].size, rate, theirs, mean([r.ratio for r in rows]))


def rates(options: Options, console: Console) -> list[Row]:
    """Measure both sizes."""
    rows: list[Row] = []
    for size, count in SIZES.items():
        with console.status(f"measuring at {size} x {size}"):
            own = _at_size(size, count, options, console)
        rows += [*own, mean_row(own)]
    return rows


def _at_size(size: int, count: int, options: Options, console: Console) -> list[Row]:
    if options.package:
        try:
            with package(made_up(count, size)) as ask:
                return list(measure(size, options, ask))
        except (RuntimeError, OSError) as e:
            console.print(f"without imagecorruptions: {e}", markup=False)
    return list(measure(size, options, None))


def table(rows: list[Row]) -> Table:
    """Lay the rows out for reading."""
    title, numbers = "images per second, severity 3, one thread", ("size", "labtune")
    view = turns.table(title, ["corruption"], (*numbers, "imagecorruptions", "ratio"))
    for row in rows:
        theirs, ratio = row.package_images_per_second, row.ratio
        view.add_row(
            row.corruption,
            str(row.size),
            f"{row.images_per_second:,.0f}",
            "" if theirs is None else f"{theirs:,.1f}",
            "" if ratio is None else f"{ratio:.1f}",
            style="bold" if " " in row.corruption else None,
        )
    return view


# --- the task ---


def task(options: Options) -> dict[str, float]:
    """Time all cells of the severity task and their forward passes alone, in turns.

    Returns seconds of the whole, of corrupting and of the forward passes alone, and the ratio of
    the first and the last.
    """
    images = made_up(2000, 32)
    labels = np.arange(2000) % 10
    torch.manual_seed(0)
    model = resnet(3, 10).eval()
    cells = list(itertools.product(CORRUPTIONS, SEVERITIES))[: 2 if options.quick else None]
    corrupt(images[:64], "frost", 1, frost_dir=options.frost_dir)
    whole = alone = corrupting = 0.0
    for name, severity in cells:
        start = time.thread_time()
        shifted = corrupt(images, name, severity, frost_dir=options.frost_dir)
        corrupting += time.thread_time() - start
        predict(model, shifted)
        order = stream(labels, "shuffled", 0, 64, 50, wrap=True)
        batches = (shifted[torch.from_numpy(index)].float() / 255 for index in order)
        predict(adapt(model, batches, "running", num_bn_updates=50).model, shifted)
        whole += time.thread_time() - start
        alone += forward_passes(model, shifted)
    return {
        "cells": len(cells),
        "seconds": whole,
        "corrupting_seconds": corrupting,
        "forward_seconds": alone,
        "ratio": whole / alone,
    }


def predict(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Return the class of each image, in batches of 200."""
    with torch.inference_mode():
        return torch.cat([model(part.float() / 255).argmax(1) for part in images.split(200)])


def forward_passes(model: torch.nn.Module, images: Tensor) -> float:
    """Return the seconds of a cell's forward passes: 2 x 2,000 images, 50 x 64 in training mode."""
    scored = [part.float() / 255 for part in images.split(200)]
    updates = [images[:64].float() / 255] * 50
    start = time.thread_time()
    with torch.inference_mode():
        for batch in (*scored, *scored):
            model(batch)
    with torch.no_grad():
        model.train()
        for batch in updates:
            model(batch)
        model.eval()
    return time.thread_time() - start


def main(options: Options) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    if options.task:
        found = task(options)
        text = (
            f"{found['cells']} cells: {found['seconds']:.1f} s, of which corrupting"
            f" {found['corrupting_seconds']:.1f} s; forward passes alone"
            f" {found['forward_seconds']:.1f} s; ratio {found['ratio']:.2f}"
        )
        turns.show(text, options.json, [found])
    else:
        rows = rates(options, Console())
        turns.show(table(rows), options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main(tyro.cli(Options))
