"""What a trial costs beside its own work: seconds per trivial trial, and where they go.

    python benchmarks/engine.py --json results/bench-engine.json

Studies of trials that report one row and end, on this machine's slots under Ray; each size in a
process of its own. The cost of one more trial must not grow with their number.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from benchmarks.turns import show, study
from core import trial
from core.storage.files import read_json
from core.study import collect, tensorboard
from core.study.driver import run
from core.study.options import Options


@dataclass(frozen=True)
class Config:
    """Settings of a trial that does nothing.

    Attributes:
        number: tells trials apart.
        seed: not used.
    """

    number: int = 0
    seed: int = 0


def train_nothing(config: Mapping[str, Any], report: trial.Report = trial.report) -> None:
    """Report one row."""
    report({"epoch": 1, "val_accuracy": 1.0})


def measure(trials: int) -> dict[str, float]:
    """Run a study of so many trials in this process; return its costs in seconds and MiB."""
    spent: dict[str, float] = defaultdict(float)
    _time(tensorboard.Live, "row", spent, "curves")
    _time(tensorboard.Live, "ended", spent, "curves")
    _time(collect, "collect", spent, "tables")
    grid = {"number": list(range(trials))}
    trivial = study(train_nothing, Config, grid, lambda settings: {"fingerprint": ""})
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.time(), time.process_time()
        run(trivial, Options(results_dir=folder))
        wall, cpu = time.time() - began, time.process_time() - cpu
        paths = list(Path(folder).glob("benchmark/demo/trials/*/result.json"))
        ended = [path.stat().st_mtime for path in paths]
        own = [read_json(path)["seconds"] for path in paths]
    assert len(ended) == trials
    first = min(end - seconds for end, seconds in zip(ended, own, strict=True))
    return {
        "trials": trials,
        "seconds_in_all": wall,
        "seconds_to_first_trial": first - began,
        # From the first end on: the workers are there.
        "seconds_per_trial": (max(ended) - min(ended)) / (trials - 1),
        "seconds_per_trial_in_the_trial": sum(own) / trials,
        "seconds_per_trial_of_driver_cpu": cpu / trials,
        "seconds_per_trial_on_curves": spent["curves"] / trials,
        "seconds_on_tables": spent["tables"],
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _time(owner: Any, name: str, spent: dict[str, float], key: str) -> None:
    """Add the seconds of every call of a function to `spent[key]`."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[key] += time.perf_counter() - start

    setattr(owner, name, timed)


def main(
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    sizes: tuple[int, ...] = (50, 200, 500, 1000),
    only: int | None = None,
) -> None:
    """Measure every size and print a table.

    Args:
        json_file: where the figures go.
        sizes: numbers of trials.
        only: measure this size in this process and print JSON.
    """
    if only is not None:
        print(json.dumps(measure(only)))
        return
    results = []
    for size in sizes:
        command = [sys.executable, __file__, "--only", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    table = Table("measure", *(str(size) for size in sizes))
    for key in results[0]:
        table.add_row(key.replace("_", " "), *(f"{result[key]:.3g}" for result in results))
    show(table, json_file, {"sizes": results})


if __name__ == "__main__":
    tyro.cli(main)
