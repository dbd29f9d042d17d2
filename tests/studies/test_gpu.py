"""What only a card can show; skipped without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.trial import records, run, running, worker
from tests.support.calls import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GIB = 2**30


def test_a_trial_over_its_cap_fails_alone_and_leaves_the_card_free(tmp_path):
    """Another capped process on the same card keeps working meanwhile."""
    beside = (
        "import torch; from core.trial import worker; worker.reset(0, 1, 2**30)\n"
        "x = torch.ones(2**27, device='cuda'); input(); print(float((x + x).sum()))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", beside],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def greedy(config, report):
        torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")

    spec = running.Spec("greedy", {"seed": 0}, {}, tmp_path, "val_accuracy", "max")
    run.run(greedy, spec, lambda row: None, running.Attempt(memory=2 * GIB))
    result = records.read_result(spec.folder)
    assert result is not None and result["state"] == "failed"
    assert result["error"].startswith("out of GPU memory: asked for 3.00 GiB more with 0.00 GiB")
    assert "over its slot of 2.00 GiB" in result["error"]
    assert torch.cuda.memory_reserved() < 2**26
    shown, _ = other.communicate("\n", timeout=120)
    assert float(shown) == 2.0 * 2**27


def test_peaks_are_of_one_trial_and_memory_is_given_back():
    spec = running.Spec("t", {}, {}, Path(), "val_accuracy", "max")
    peak_memory = running.Trial(spec, lambda row: None).peak_memory
    worker.reset(0, 1, 2 * GIB)
    held = torch.ones(2**28, device="cuda")  # 1 GiB
    first = peak_memory()
    assert 1024 <= (first["peak_allocated_mib"] or 0) <= (first["peak_memory_mib"] or 0) < 1200
    del held
    worker.release()
    worker.reset(0, 1, 2 * GIB)
    assert (peak_memory()["peak_memory_mib"] or 0) < 100
