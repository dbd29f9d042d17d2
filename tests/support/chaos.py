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
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.faults import STEPS  # noqa: E402

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
    alone = [sys.executable, "tests/support/toy.py", "--local", "--results-dir", f"{folder}/alone"]
    subprocess.run(
        [*alone, *settings, "pause=0"], cwd=ROOT, env=environment(folder), check=True, timeout=300
    )
    disturbed = [sys.executable, "tests/support/toy.py", "--results-dir", f"{folder}/chaos"]
    # As many retries as kills: here even the unluckiest trial is to finish.
    disturbed += ["--max-retries", str(opts.kills), *settings, f"pause={opts.pause}"]
    counts = disturb(opts, disturbed, folder)
    same = {
        name: table(folder / "alone", name) == table(folder / "chaos", name)
        for name in ("trials.csv", "history.csv")
    } | {"best.pt": digest(folder / "alone") == digest(folder / "chaos")}
    figures = {"kills": counts, "same": same, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(figures, indent=1))
    if opts.json is not None:
        opts.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(same.values()) and sum(counts.values()) == opts.kills else 1


def disturb(opts: Options, command: list[str], folder: Path) -> dict[str, int]:
    """Run the study to its end in spite of the kills; return how many of each kind there were."""
    choice = random.Random(opts.seed)
    counts = {"worker": 0, "driver": 0, "write": 0}
    driver = start(command, folder)
    progress = rows(folder)
    while sum(counts.values()) < opts.kills:
        target = progress + choice.randint(1, 4)
        wait(lambda d=driver, n=target: rows(folder) >= n or d.poll() is not None)
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
            kill(choice.choice(running))
        else:
            (folder / "fault").write_text(choice.choice(STEPS))
            wait(lambda d=driver: not (folder / "fault").exists() or d.poll() is not None)
        counts[kind] += 1
        print(f"{sum(counts.values()):3} {kind:6} at {rows(folder)} epochs", flush=True)
        progress = rows(folder)
    if driver.wait(600) != 0:
        print(f"the study ended with code {driver.returncode}")
    return counts


def start(command: list[str], folder: Path) -> subprocess.Popen:
    """Start the driver."""
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(folder), stdout=log, stderr=subprocess.STDOUT
        )


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of the study's processes."""
    return os.environ | {"PYTHONPATH": str(ROOT), "TOY_FAULT": f"{folder}/fault"}


def attempts(folder: Path) -> list[int]:
    """Return the processes that run a trial now."""
    found = []
    for path in folder.glob("chaos/toy/demo/trials/*/attempt.json"):
        try:
            pid = json.loads(path.read_text())["pid"]
            is_ours = "ray::" in " ".join(psutil.Process(pid).cmdline())
        except (OSError, psutil.NoSuchProcess):
            continue
        if is_ours and not (path.parent / "result.json").exists():
            found.append(pid)
    return found


def kill(pid: int) -> None:
    """Kill a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def rows(folder: Path) -> int:
    """Return how many epochs all trials have reported."""
    total = 0
    for path in folder.glob("chaos/toy/demo/trials/*/history.json"):
        try:
            total += len(json.loads(path.read_text())["rows"])
        except OSError:
            continue
    return total


def wait(condition, seconds: float = 120) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened for two minutes")
        time.sleep(0.05)


def table(results: Path, name: str) -> bytes:
    """Return a table of the study without its times."""
    frame = pd.read_csv(results / "toy" / "demo" / name, dtype=str, keep_default_na=False)
    kept = frame.drop(columns=[*TIMES, "pause"], errors="ignore")
    return kept.to_csv(index=False).encode()


def digest(results: Path) -> str:
    """Return the SHA-256 of the best model."""
    return hashlib.sha256((results / "toy/demo/checkpoints/best.pt").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
