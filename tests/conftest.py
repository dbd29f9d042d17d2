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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, so that each fixture is made once; begin with what waits."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
        name = item.get_closest_marker("xdist_group").args[0]
        groups.setdefault(name, []).append(item)

    def weight(group: list[pytest.Item]) -> tuple[int, int]:
        return tuple(
            -sum(item.get_closest_marker(mark) is not None for item in group)
            for mark in ("ray", "slow")
        )

    items[:] = [item for group in sorted(groups.values(), key=weight) for item in group]
