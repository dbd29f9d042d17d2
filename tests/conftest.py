"""What tests share: data beside the checkout, and studies run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real photos and weights, or skip with the reason."""
    folder = Path(os.environ.get("LABTUNE_TEST_DATA", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder.parent}: set LABTUNE_TEST_DATA to its folder")
    return folder


@pytest.fixture
def run_script():
    """Run a script of the checkout in a process of its own; return what it did."""

    def run(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 280, "cwd": ROOT} | options
        return subprocess.run(command, **options)

    return run
