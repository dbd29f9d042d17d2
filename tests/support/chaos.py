"""Twenty random kills of a twelve-trial study must change no byte of its tables, times apart.

    python tests/support/chaos.py                  about four minutes on two cores; 1 if they differ
    python tests/support/chaos.py --seed 7 --kills 40 --json chaos.json

Kills a worker, the driver (which is then started again with --resume), or a worker in the middle of
a write, in random order and at random times, and compares with the same study left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.trial.records import read_attempt, read_result, read_rows
from tests.support import calls
from tests.support.faults import STEPS

TIMES = ["seconds", "seconds_per_epoch", "peak_memory_mib", "peak_allocated_mib"]


@dataclass
class Options:
    """Options of the chaos run."""

    kills: int = 20
    """How many processes are killed."""
    trials: int = 12
    """Trials of the study."""
    epochs: int = 30
    """Epochs of each trial."""
    pause: float = 0.4
    """Seconds that each epoch waits."""
    seed: int = 0
    """Of the random choices."""
    json: Path | None = None
    """Where the figures go."""


def main(opts: Options) -> int:
    """Run the study undisturbed and disturbed; return 0 if the results are the same."""
    folder = Path(tempfile.mkdtemp(prefix="labtune-chaos-"))
    settings = ["--seeds", str(opts.trials), "--set", f"epochs={opts.epochs}"]
    began = time.monotonic()
    alone = [*calls.TOY, folder / "alone", "--local", *settings, "pause=0"]
    calls.python(*alone, check=True, capture_output=False)
    # As many retries as kills: here even the unluckiest trial is to finish.
    retries = ["--max-retries", opts.kills, *settings, f"pause={opts.pause}"]
    counts = disturb(opts, [*calls.TOY, folder / "chaos", *retries], folder)
    one, other = (folder / name / "toy" / "demo" for name in ("alone", "chaos"))
    same = {n: table(one / n) == table(other / n) for n in ("trials.csv", "history.csv")}
    same["best.pt"] = digest(one) == digest(other)
    figures = {"kills": counts, "same": same, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(figures, indent=1))
    if opts.json is not None:
        opts.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(same.values()) and sum(counts.values()) == opts.kills else 1


def disturb(opts: Options, command: list[object], folder: Path) -> dict[str, int]:
    """Run the study to its end in spite of the kills; return how many of each kind there were."""
    choice = random.Random(opts.seed)
    counts = {"worker": 0, "driver": 0, "write": 0}
    driver = start(command, folder)
    progress = rows(folder)
    while sum(counts.values()) < opts.kills:
        target = progress + choice.randint(1, 4)
        calls.until(lambda d=driver, n=target: rows(folder) >= n or d.poll() is not None)
        if driver.poll() is not None:
            print(f"the study ended (code {driver.returncode}) before all kills")
            break
        kind = choice.choices(list(counts), weights=[4, 2, 4])[0]
        if kind == "driver":
            driver.kill()
            driver.wait()
            driver = start([*command, "--resume"], folder)
        elif kind == "worker":
            running = attempts(folder)
            if not running:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(choice.choice(running)).kill()
        else:
            (folder / "fault").write_text(choice.choice(STEPS))
            there = (folder / "fault").exists
            calls.until(lambda d=driver, there=there: not there() or d.poll() is not None)
        counts[kind] += 1
        print(f"{sum(counts.values()):3} {kind:6} at {rows(folder)} epochs", flush=True)
        progress = rows(folder)
    if driver.wait(600) != 0:
        print(f"the study ended with code {driver.returncode}")
    return counts


def start(command: list[object], folder: Path) -> subprocess.Popen:
    """Start the driver."""
    with (folder / "log").open("a") as log:
        into = {"stdout": log, "stderr": subprocess.STDOUT, "TOY_FAULT": f"{folder}/fault"}
        return calls.start(*command, **into)


def trials(folder: Path) -> list[Path]:
    """Return the folders of the trials that have begun."""
    return list(folder.glob("chaos/toy/demo/trials/*"))


def attempts(folder: Path) -> list[int]:
    """Return the processes that run a trial now."""
    begun = [read_attempt(trial).get("pid") for trial in trials(folder) if not read_result(trial)]
    ours = {p.pid for p in psutil.process_iter(["cmdline"]) if "ray::" in str(p.info["cmdline"])}
    return [pid for pid in begun if pid in ours]


def rows(folder: Path) -> int:
    """Return how many epochs all trials have reported."""
    return sum(len(read_rows(trial)) for trial in trials(folder))


def table(path: Path) -> str:
    """Return a table of the study without its times."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return frame.drop(columns=[*TIMES, "pause"], errors="ignore").to_csv(index=False)


def digest(folder: Path) -> str:
    """Return the SHA-256 of the best model."""
    return hashlib.sha256((folder / "checkpoints" / "best.pt").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
