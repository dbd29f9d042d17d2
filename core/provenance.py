"""What a study's numbers came from: command, code, libraries, machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("ray", "torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "optuna")


def versions() -> dict[str, str]:
    """Return the versions of labtune, Python and the libraries that numbers depend on."""
    found = {"labtune": _version("labtune"), "python": platform.python_version()}
    return found | {name: _version(name) for name in LIBRARIES}


def git() -> dict[str, Any]:
    """Return the commit of this checkout and whether files differ from it; nulls outside git."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


@functools.cache
def code() -> str:
    """Return a SHA-256 over labtune's own modules that trials run: equal files, equal code."""
    digest = hashlib.sha256()
    for folder in ("core", "trainables"):
        for path in sorted(p for kind in ("*.py", "*.toml") for p in (ROOT / folder).rglob(kind)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hardware() -> dict[str, Any]:
    """Return what this machine computes with."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores_here(),
        "gpus": gpus,
    }


def _version(name: str) -> str:
    import importlib.metadata  # here: it takes longer than all of --help's own

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def cores_here() -> int:
    """Return how many cores this process may use: of its affinity, and of its control group."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas(Path("/")))]))


def _quotas(root: Path) -> list[float]:
    """Return the cores that each control group of this process may use, where they are limited."""
    found, lines = [], []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, kinds, name = [*line.split(":", 2), "", ""][:3]
        if kinds and "cpu" not in kinds.split(","):
            continue
        groups = root / "sys/fs/cgroup" / (kinds and "cpu")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if kinds else ("cpu.max",)  # version 1, 2
        # In a container the group's own files often lie at the top, whatever its name is.
        path = Path(os.path.normpath(f"/{name}").lstrip("/"))
        for group in dict.fromkeys([path, *path.parents]):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                text = " ".join((groups / group / file).read_text() for file in files)
                quota, period = map(float, text.split())
                if quota > 0:  # "max" is no number, -1 is no limit
                    found.append(quota / period)
    return found
