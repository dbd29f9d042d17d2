"""What a study's numbers came from: command, code, libraries, machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from core.slots import cores_here

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
        for path in sorted((ROOT / folder).rglob("*.py")):
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
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
