"""Folders of studies that are said to run, as driver and trials leave them, and their view."""

from __future__ import annotations

import datetime
import io
import json
import os
import socket
from pathlib import Path

from rich.console import Console

from analysis.document import terminal as watch_terminal
from analysis.results import snapshot as watch_snapshot

NOW = 1_800_000_000.0
HERE = socket.gethostname()


def write_json(path: Path, content: dict) -> None:
    """Write as `core.storage.files` does, without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").replace(path)


def iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()


def declare(folder: Path, count: int, epochs: int = 10, **changes) -> Path:
    """Write a study of `count` trials `norm=bn,seed=0`, ... in which nothing has run."""
    trials = [
        {"trial": f"norm=bn,seed={i}", "part": "main", "config": {"epochs": epochs, "seed": i}}
        for i in range(count)
    ]
    content = {
        "study": "norms", "question": "Which norm is best?", "metric": "val_accuracy",
        "mode": "max", "trials": trials,
        "command": ["python", "studies/norms.py", "--data-dir", "my birds"],
        "started": iso(NOW - 1000),
    }  # fmt: skip
    write_json(folder / "study.json", content | changes)
    return folder


def drive(folder: Path, now: float = NOW, **changes) -> None:
    """Write a driver that is alive at `now`: this process, or another host's."""
    node = {"id": "aaaa", "host": HERE, "gpus": 1, "slots": 2}
    content = {
        "host": HERE, "pid": os.getpid(), "started": iso(now - 600), "beat": iso(now - 20),
        "nodes": [node, {"id": "bbbb", "host": "far", "gpus": 2, "slots": 4}],
    }  # fmt: skip
    write_json(folder / "driver.json", content | changes)


def begin(folder: Path, seed: int, values: list[float | None], now: float = NOW, **changes) -> Path:
    """Write a trial that runs on this host since 500 s, an epoch every 50 s, the last 7 s ago."""
    at = folder / "trials" / f"norm=bn,seed={seed}"
    attempt = {
        "host": HERE, "pid": 4321, "gpus": ["0"], "node": "aaaa", "attempt": 1,
        "started": iso(now - 500),
    }  # fmt: skip
    write_json(at / "attempt.json", attempt | changes)
    if values:
        rows = [{"epoch": i, "val_accuracy": v, "seconds": 50} for i, v in enumerate(values, 1)]
        write_json(at / "history.json", {"rows": rows, "seconds": 50.0 * len(values)})
        os.utime(at / "history.json", (now - 7, now - 7))
    return at


def end(folder: Path, seed: int, values: list[float | None], state: str, error: str = "") -> None:
    """Write a trial that ended `10 * seed + 10` seconds ago."""
    at = begin(folder, seed, values)
    result = {"state": state, "error": error, "seconds": 51.0 * len(values)}
    write_json(at / "result.json", result | {"peak_memory_mib": 1.0})
    os.utime(at / "result.json", (NOW - 10 - 10 * seed,) * 2)


def shown(folder: Path, width: int = 160, height: int | None = None, now: float = NOW) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    snapshot = watch_snapshot.look(folder, watch_snapshot.Files(), now)
    console.print(watch_terminal.view(snapshot, console, now, height), crop=False)
    return console.file.getvalue()


def line_with(text: str, word: str) -> str:
    lines = [line for line in text.splitlines() if word in line]
    assert len(lines) == 1, f"{word!r} stands in {len(lines)} lines of:\n{text}"
    return " ".join(lines[0].split())
