"""What a standardised convolution costs against `nn.Conv2d`, at the shapes of ResNet-18.

    python benchmarks/weight_standardization.py --json results/bench-weight-standardization.json

Both layers have the same weights and run in turn, forward and backward, in one process; a round's
ratio is that of its two times, and the median over rounds is what is shown, so that what disturbs a
round disturbs both. On a CPU with one thread times are processor time. The row "net" weighs the
shapes by how often ResNet-18 has them. The extra work does not depend on the batch: a batch of 16,
the lab's, is the default, and `--batch 1` shows the worst case.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn

from benchmarks.turns import clock, in_turns, show, table
from core.layers.std_conv import WSConv2d

# channels in and out, kernel, stride, input pixels at 224 -> how many ResNet-18 has
SHAPES = {
    (3, 64, 7, 2, 224): 1,
    (64, 64, 3, 1, 56): 4,
    (64, 128, 3, 2, 56): 1,
    (64, 128, 1, 2, 56): 1,
    (128, 128, 3, 1, 28): 3,
    (128, 256, 3, 2, 28): 1,
    (128, 256, 1, 2, 28): 1,
    (256, 256, 3, 1, 14): 3,
    (256, 512, 3, 2, 14): 1,
    (256, 512, 1, 2, 14): 1,
    (512, 512, 3, 1, 7): 3,
}


@dataclass(frozen=True)
class Options:
    """Measure standardised convolutions against torch's."""

    json: Path | None = None  # file for the rows, as a list of objects.
    batch: int = 16  # images per batch.
    threads: int = 1  # threads of torch on a CPU.
    rounds: int = 9  # repetitions of each measurement.
    device: Literal["cpu", "cuda"] = "cpu"  # where to run.
    channels_last: bool = False  # memory format of images and weights.
    # an eighth of the pixels and three rounds, to see that everything runs.
    quick: bool = False


def measure(shape: tuple[int, int, int, int, int], options: Options) -> dict[str, object]:
    """Time one shape; milliseconds of both layers and the median ratio of a round."""
    c_in, c_out, kernel, stride, size = shape
    size = max(7, size // 8) if options.quick else size
    form = torch.channels_last if options.channels_last else torch.contiguous_format
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    conv = conv.to(options.device).to(memory_format=form)
    layers = (WSConv2d.of(conv), conv)
    x = torch.randn(options.batch, c_in, size, size, device=options.device)
    x = x.to(memory_format=form).requires_grad_()
    dy = torch.randn_like(conv(x))
    ours, torchs = in_turns(
        [
            lambda layer=layer: torch.autograd.grad(layer(x), [x, conv.weight], dy)
            for layer in layers
        ],
        3 if options.quick else options.rounds,
        functools.partial(clock, options.device, options.threads),
    )
    return {
        "shape": f"{c_in}->{c_out}, {kernel}x{kernel}/{stride}, {size} px",
        "ratio": statistics.median(a / b for a, b in zip(ours, torchs, strict=True)),
        "ms": 1000 * statistics.median(ours),
        "torch_ms": 1000 * statistics.median(torchs),
    }


def main(options: Options) -> None:
    """Measure all shapes, print a table, write the rows."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [measure(shape, options) for shape in SHAPES]
    whole = {
        name: sum(float(str(r[name])) * n for r, n in zip(rows, SHAPES.values(), strict=True))
        for name in ("ms", "torch_ms")
    }
    rows.append({"shape": "net", "ratio": whole["ms"] / whole["torch_ms"], **whole})
    title = f"Forward and backward, batch {options.batch}, {options.device}"
    view = table(title, ["shape"], ["ratio", "WSConv2d (ms)", "Conv2d (ms)"])
    for row in rows:
        shown = (f"{row['ratio']:.3f}", f"{row['ms']:.1f}", f"{row['torch_ms']:.1f}")
        view.add_row(str(row["shape"]), *shown)
    show(view, options.json, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
