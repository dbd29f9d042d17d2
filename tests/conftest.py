"""What tests share: data beside the checkout, and in which order and company they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import core  # noqa: F401 - pins the instruction set, whatever a test imports first
from tests.support.calls import ROOT


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: what is so small would wait for a second one, longer than it works."""
    import torch  # after core

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real photos and weights, or skip with the reason."""
    folder = Path(os.environ.get("LABTUNE_TEST_DATA", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder.parent}: set LABTUNE_TEST_DATA to its folder")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait, on Ray, and those that take long; a process gets whole files.

    pytest-xdist does so with `--dist loadfile`: each fixture is made once. Its `loadgroup` does
    nothing with pytest 9.2, where the name that it gives a test is no longer looked at.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def weight(file: list[pytest.Item]) -> tuple[int, int]:
        return tuple(
            -sum(item.get_closest_marker(mark) is not None for item in file)
            for mark in ("ray", "slow")
        )

    items[:] = [item for file in sorted(files.values(), key=weight) for item in file]
