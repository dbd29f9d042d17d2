"""What the norm layers cost against torch's own, side by side on this machine.

    python benchmarks/norms.py --json results/bench-norms.json

Each layer of `core.layers.norms` runs in turn with torch's layer for the same formula, in one
process, at the three sizes of the 14-layer network (batch-instance norm, which torch has not, with
its composition from torch's two layers). A ratio below 1 means that ours is faster. The rows named
"net" add up the times over the network's 13 norm layers. Times are medians; on a CPU with one
thread they are processor time, so that other programs disturb them less.

On a CPU a third to two thirds of the time may go into page faults: 33 MB of results are 8192 pages.
Left alone, it is the state of the allocator that decides which of two layers pays. Every norm
therefore gets a process of its own, and results get fresh memory, as nearly all do in a training
step (`--memory recycled` shows the opposite, the bare arithmetic on warm memory).
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from benchmarks import turns
from core.layers.norms import NORMS

Size = tuple[int, int, int]  # channels, height, width

# size -> norm layers of that size in the network with n = 2, stem included
NET: dict[Size, int] = {(16, 256, 256): 5, (32, 128, 128): 4, (64, 64, 64): 4}
# Settings of the GNU C library, read when a process starts; others ignore them.
MEMORY = {
    "fresh": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    "recycled": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)},
    "default": {},
}
PASSES = ("forward", "forward+backward", "eval")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Measure the norm layers against torch's."""

    json: Path | None = None  # file for the rows, as a list of objects.
    batch: int = 8  # images per batch.
    threads: int = 1  # threads of torch on a CPU.
    rounds: int = 10  # repetitions of each measurement.
    device: Literal["cpu", "cuda"] = "cpu"  # where to run.
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the images; parameters stay float32.
    channels_last: bool = False  # memory format of the images.
    memory: Literal["fresh", "recycled", "default"] = "fresh"  # where results go, see above.
    # measure forward and backward under `torch.compile` too, which takes most of the time here.
    compiled: bool = True
    # small images, two rounds and no compilation, to see that everything runs.
    quick: bool = False


class Composition(nn.Module):
    """Batch-instance norm from torch's layers: both in full, then mixed by the gate."""

    def __init__(self, channels: int):
        super().__init__()
        self.batch = nn.BatchNorm2d(channels, affine=False)
        self.instance = nn.InstanceNorm2d(channels)
        self.gate = nn.Parameter(torch.ones(channels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        gate, weight, bias = (p[:, None, None] for p in (self.gate, self.weight, self.bias))
        return weight * (gate * self.batch(x) + (1 - gate) * self.instance(x)) + bias


TORCHS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "in": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "bin": Composition,
    "ln": lambda channels: nn.GroupNorm(1, channels),
    "gn": lambda channels: nn.GroupNorm(8, channels),
}


@dataclass(frozen=True)
class Row:
    """Times of one layer, ours and torch's, in milliseconds."""

    norm: str
    shape: str
    part: str
    compiled: bool
    ms: float
    torch_ms: float

    def to_json(self) -> dict[str, Any]:
        """Name the columns as the tables of this project do."""
        told: dict[str, Any] = {"norm": self.norm, "shape": self.shape, "pass": self.part}
        times = {"ratio": self.ms / self.torch_ms, "ms": self.ms, "torch_ms": self.torch_ms}
        return told | {"compiled": self.compiled} | times


def run_once(layer: Any, x: Tensor, dy: Tensor, part: str) -> None:
    """Do one pass of a layer: `forward` in training mode, `eval`, or `forward+backward`."""
    layer.train(part != "eval")
    if part == "forward+backward":
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
        return
    with torch.no_grad():
        layer(x)


def medians(
    layers: tuple[Any, Any], x: Tensor, dy: Tensor, part: str, options: Options
) -> tuple[float, float]:
    """Median milliseconds of two layers, ours and torch's, which take turns."""
    sides = [functools.partial(run_once, layer, x, dy, part) for layer in layers]
    read = functools.partial(turns.clock, options.device, options.threads)
    ours, torchs = turns.in_turns(sides, options.rounds, read)
    return 1e3 * statistics.median(ours), 1e3 * statistics.median(torchs)


def measure(norm: str, sizes: dict[Size, int], options: Options) -> list[Row]:
    """Measure one norm at all sizes: a row per pass."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return [row for size in sizes for row in measure_size(norm, size, options)]


def measure_size(norm: str, size: Size, options: Options) -> Iterator[Row]:
    """Yield a row per pass for one norm and size."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    x, dy = (
        torch.randn(options.batch, *size, device=device)
        .to(dtype=dtype, memory_format=memory_format)
        .requires_grad_(grad)
        for grad in (True, False)
    )
    ours, torchs = NORMS[norm](size[0]).to(device), TORCHS[norm](size[0]).to(device)
    name = "x".join(map(str, size))
    for part in PASSES:
        yield Row(norm, name, part, False, *medians((ours, torchs), x, dy, part, options))
    if options.compiled:
        torch.compiler.reset()
        compiled = torch.compile(ours, fullgraph=True, dynamic=False)
        part = "forward+backward"
        yield Row(norm, name, part, True, *medians((compiled, torchs), x, dy, part, options))


def net_rows(rows: list[Row], sizes: dict[Size, int]) -> list[Row]:
    """Add up the rows of each norm and pass over the layers of the network."""
    layers = {"x".join(map(str, shape)): count for shape, count in sizes.items()}
    sums: dict[tuple[str, str, bool], list[float]] = {}
    for row in rows:
        total = sums.setdefault((row.norm, row.part, row.compiled), [0.0, 0.0])
        total[0] += layers[row.shape] * row.ms
        total[1] += layers[row.shape] * row.torch_ms
    return [
        Row(norm, "net", part, compiled, *total) for (norm, part, compiled), total in sums.items()
    ]


def main(options: Options) -> None:
    """Measure everything, print the table and write the rows."""
    sizes, console = NET, Console()
    if options.quick:
        options = replace(options, rounds=2, compiled=False)
        sizes = {(c, h // 8, w // 8): count for (c, h, w), count in NET.items()}
    os.environ.update(MEMORY[options.memory])
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for norm in TORCHS:
        with console.status(f"measuring {norm}"), ProcessPoolExecutor(1, spawn) as process:
            rows += process.submit(measure, norm, sizes, options).result()
    rows += net_rows(rows, sizes)
    title = "norm layers against torch's (below 1: ours is faster)"
    words = ("norm", "shape", "pass", "compiled")
    view = turns.table(title, words, ("ours, ms", "torch, ms", "ratio"))
    for row in rows:
        shown = (f"{ms:.2f}" for ms in (row.ms, row.torch_ms, row.ms / row.torch_ms))
        compiled = "yes" if row.compiled else ""
        style = "bold" if row.shape == "net" else None
        view.add_row(row.norm, row.shape, row.part, compiled, *shown, style=style)
    turns.show(view, options.json, [row.to_json() for row in rows])


if __name__ == "__main__":
    main(tyro.cli(Options))
