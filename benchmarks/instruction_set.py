"""What the pinned instruction set costs: training of the norms demo, pinned over native.

    python benchmarks/instruction_set.py                 a minute or two
    python benchmarks/instruction_set.py --json x.json

Each turn is a process of its own, as both are chosen once per process; pinned and native take
turns, each with the work of an epoch at 20x20 pixels, on one thread, in CPU seconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro
from rich.table import Table

from benchmarks.turns import show

NORMS = ("torch_bn", "bn", "bin")
STEPS, BATCH, SIZE = 63, 32, 20  # an epoch of the demo


def measure(norm: str) -> float:
    """Return the CPU seconds of an epoch's forward and backward passes and steps."""
    from core.models import resnet  # chooses the instruction set, before torch computes

    import torch  # isort: skip
    import torch.nn.functional as F  # isort: skip

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet.resnet(2, 25, norm)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % 25
    start = 0.0
    for step in range(STEPS + 3):
        if step == 3:  # what is loaded and compiled first is not counted
            start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return time.process_time() - start


def main(rounds: int = 5, json: Path | None = None) -> None:
    """Measure and print pinned over native.

    Args:
        rounds: turns of each.
        json: where the figures go too.
    """
    table = Table("norm", "pinned s/epoch", "native s/epoch", "pinned / native")
    found = {}
    for norm in NORMS:
        pairs = [(_turn(norm, "avx2"), _turn(norm, "native")) for _ in range(rounds)]
        ratio = statistics.median(pinned / native for pinned, native in pairs)
        pinned, native = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[norm] = {"pinned": pinned, "native": native, "ratio": ratio}
        table.add_row(norm, f"{pinned:.2f}", f"{native:.2f}", f"{ratio:.2f}")
    show(table, json, found)


def _turn(norm: str, choice: str) -> float:
    command = [sys.executable, __file__, "--measure", norm]
    environment = os.environ | {"LABTUNE_CPU": choice}
    return float(subprocess.check_output(command, env=environment, text=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(sys.argv[2]))
    else:
        tyro.cli(main)
