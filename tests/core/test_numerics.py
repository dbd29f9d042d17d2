"""The pinned instruction set and the fingerprint of numerics: the same, and knowing when not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from analysis.document.provenance import banners
from analysis.results.folder import load
from core import instruction_set, numerics
from core.cluster import fleet
from core.trial import api
from tests.support import results
from tests.support.calls import ROOT, refusal, start, table, toy
from tests.support.toy import study

PRINT = (
    "from core import numerics; import json; print(json.dumps(numerics.fingerprint(1).record()))"
)


@pytest.mark.slow
def test_it_is_the_same_under_load_and_changes_when_the_pin_is_lifted():
    """Three processes at once, one this; torch says whether this CPU has more than AVX2."""
    given = ({"OMP_NUM_THREADS": "1"}, {"LABTUNE_CPU": "native"})
    started = [start("-c", PRINT, **variables) for variables in given]
    here = numerics.fingerprint.__wrapped__(1).record()  # meanwhile, whatever has been kept
    same, native = (json.loads(process.communicate()[0]) for process in started)
    assert same["groups"] == here["groups"]
    assert here["cpu"] == "AVX2" and native["cpu"] == "native (LABTUNE_CPU)"
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    if instruction_set.cpu_flags() >= {"avx512f", "avx512vl", "avx512bw", "avx512dq"}:
        other = numerics.difference(native["groups"], here["groups"])
        assert {"convolutions", "losses"} <= set(other) and native["digest"] != here["digest"]


def test_it_leaves_no_trace_and_minds_none():
    expected = numerics.fingerprint(1).groups
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            found = numerics.fingerprint.__wrapped__(1).groups
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    with numerics.alone(1):  # in another order
        turned = {name: numerics._digest(run()) for name, run in reversed(numerics._GROUPS.items())}
    assert turned == expected


def test_a_user_s_own_setting_stays_and_ours_is_taken_back(monkeypatch):
    for name, value in instruction_set.PIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert instruction_set.pin() == "AVX2 but for MKL_CBWR=COMPATIBLE"
    monkeypatch.setenv("LABTUNE_CPU", "native")
    assert instruction_set.pin() == "native (LABTUNE_CPU)"
    assert instruction_set.passed_on() == {"MKL_CBWR": "COMPATIBLE", "LABTUNE_CPU": "native"}


@pytest.mark.slow
def test_where_torch_has_computed_before_it_is_said():
    script = (
        "import torch; torch.ones(3).exp(); from core import instruction_set as i;"
        "print(i.state, torch.backends.cpu.get_cpu_capability(), sep=';')"
    )
    own = {name: value for name, value in os.environ.items() if name not in instruction_set.PIN}
    shown = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=own, text=True)
    state, capability = shown.strip().split(";")
    assert state == "AVX2" or "torch had computed before" in state
    assert (state == "AVX2") == (capability in ("AVX2", "DEFAULT"))


def test_study_trials_and_output_say_how_it_was_computed(tmp_path, capsys, monkeypatch):
    assert toy(tmp_path, "--seeds", "2") == 0
    declared = json.loads((tmp_path / "toy" / "demo" / "study.json").read_text())
    here = numerics.fingerprint(1)
    assert declared["numerics"] == here.record()
    assert set(table(tmp_path / "toy" / "demo")["numerics"]) == {numerics.label(1)}
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("digits:")]
    assert line == here.sentence()
    monkeypatch.setenv("LABTUNE_CPU", "avx3")
    told = refusal(study, tmp_path, "--name", "x")
    assert told == "LABTUNE_CPU=avx3: give avx2 or native, or leave it out"


def test_the_sentence_names_the_groups_that_differ():
    found = numerics.Fingerprint(1, dict(numerics.README))
    assert found.sentence().startswith("digits: README's (CPU ")
    other = numerics.Fingerprint(2, numerics.README | {"norms": "0", "sums": "1"})
    assert other.sentence().startswith("digits: not README's: norms, sums differ (CPU ")
    assert "2 threads" in other.sentence() and other.digest != found.digest
    assert "on a CPU" in other.sentence(on_gpus=True)


def test_a_trial_keeps_the_digests_of_all_its_processes():
    assert api._both("", "a") == api._both("a", "a") == "a"
    assert api._both("a", "b") == api._both("a, b", "b") == "a, b"


def test_a_node_of_a_cluster_tells_its_digits(tmp_path):
    (tmp_path / ".driver-check").write_text("x")
    here = numerics.fingerprint(1).groups
    told = fleet.look("0" * 8, fleet.Errand(tmp_path, None, "x", here))
    assert told["trouble"] == "" and told["digits"] == ""
    told = fleet.look("0" * 8, fleet.Errand(tmp_path, None, "x", {**here, "norms": "0"}))
    assert told["digits"] == "its CPU has other digits than the driver's: norms"


def test_readmes_digests_stand_in_the_docs():
    words = (ROOT / "docs" / "numerics.md").read_text()
    assert list(numerics.README) == list(numerics._GROUPS)
    for name, digest in numerics.README.items():
        assert f"| {name} | `{digest}` |" in words, name
    assert numerics.Fingerprint(1, numerics.README).digest in words


@pytest.mark.parametrize("kinds", [1, 2])
def test_a_report_names_trials_that_ran_under_other_numerics(tmp_path, kinds):
    folder = results.norms(tmp_path / "x", norms=("bn", "in"), seeds=2, diverged=())
    trials = pd.read_csv(folder / "trials.csv", keep_default_na=False)
    trials["numerics"] = ["aaa", "aaa", "bbb" if kinds == 2 else "aaa", "aaa"]
    trials.to_csv(folder / "trials.csv", index=False)
    said = [b for b in banners(load(folder)) if "add up differently" in b]
    assert len(said) == kinds - 1
    for words in said:
        assert f"bbb: {trials['trial'][2]}" in words and f"aaa: {trials['trial'][0]}" in words
