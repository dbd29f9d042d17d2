"""What the benchmarks share: sides that take turns, a study to time, tables and files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from core.storage.files import write_json
from core.study import Data, Part, Scale, Study


def clock(device: str, threads: int) -> float:
    """Read the clock in seconds, after the device has finished."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    elif threads == 1:
        return time.thread_time()
    return time.perf_counter()


def in_turns(
    sides: Sequence[Callable[[], Any]], rounds: int, read: Callable[[], float]
) -> list[list[float]]:
    """Return the times of each side by the clock `read`, a number per round."""
    times: list[list[float]] = [[] for _ in sides]
    pairs = list(zip(sides, times, strict=True))
    for turn in range(rounds + 1):
        # A B B A: memory that one side gives back makes the next allocation dearer
        for side, seconds in pairs if turn % 2 else reversed(pairs):
            start = read()
            side()
            if turn:  # the first one warms up
                seconds.append(read() - start)
    return times


def study(
    trainable: Callable[..., Any], config: type, grid: dict[str, list], prepare: Any
) -> Study:
    """Declare a study of one part and one seed that writes no report."""
    return Study(
        name="benchmark",
        question="What does the engine cost?",
        trainable=trainable,
        config=config,
        parts={"main": Part(grid=grid)},
        scales={name: Scale(seeds=1) for name in ("demo", "full", "smoke")},
        metric="val_accuracy",
        mode="max",
        data=Data(prepare=prepare),
        report=lambda folder: None,
    )


def table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table with columns of words on the left and of numbers behind them."""
    view = Table(*words, title=title)
    for header in numbers:
        view.add_column(header, justify="right")
    return view


def show(view: Table | str, path: Path | None, figures: Any) -> None:
    """Print a table or sentence, and write the figures as JSON where a file is named."""
    Console().print(view, soft_wrap=isinstance(view, str))
    if path is not None:
        write_json(path, figures)
