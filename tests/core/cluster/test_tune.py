"""The study engine on a real local Ray cluster: packing, dead workers, a dead driver."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from core.trial import checkpoint, records
from tests.conftest import ROOT

pytestmark = pytest.mark.ray
METRICS = ["trial", "kind", "seed", "epoch", "val_accuracy", "train_loss"]


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "tests/support/toy.py", "--results-dir", str(folder), *arguments]


def run(
    folder: Path, *arguments: str, python: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python or sys.executable), *command(folder, *arguments)[1:]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def history(folder: Path, name: str = "demo") -> pd.DataFrame:
    return pd.read_csv(folder / "toy" / name / "history.csv")[METRICS]


def test_a_full_disk_fails_the_trial_and_keeps_everything_before_it(tmp_path):
    """A file system of 2 MiB, in a name space of its own, is filled in the middle of a trial."""
    tmp_path /= "a path with spaces"
    disk = tmp_path / "disk"
    disk.mkdir(parents=True)
    # One at a time, so that it is known who finds the disk full.
    one = ["--seeds", "2", "--max-concurrent", "1", "--set", "kind=train,fill"]
    toy = shlex.join(command(disk, *one))
    script = f"""
cd {shlex.quote(str(tmp_path))}
toy() {{ (cd {shlex.quote(str(ROOT))} && {toy} "$@"); }}
mount -t tmpfs -o size=2m tmpfs disk
toy > first 2>&1; echo $? > codes
cp -r disk/toy full
rm disk/filler
TOY_FILL=/nonexistent/filler toy --resume > second 2>&1; echo $? >> codes
cp -r disk/toy resumed
"""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no name spaces here: a small disk cannot be made")
    subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TOY_FILL": f"{disk}/filler"},
        check=True,
        timeout=240,
    )
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    # No room for the tables either: nothing is written, and the last line says so.
    assert (tmp_path / "codes").read_text().split() == ["2", "0"], first + second
    assert "Traceback" not in first + second
    assert first.splitlines()[-1].startswith("disk full writing ")
    trials = {path.name: path for path in (tmp_path / "full" / "demo" / "trials").iterdir()}
    results = {name: records.read_result(path) for name, path in trials.items()}
    assert results["kind=train,seed=0"]["state"] == "finished"
    failed = {name: result for name, result in results.items() if result["state"] == "failed"}
    assert "kind=fill,seed=0" in failed
    for name, result in failed.items():
        assert result["error"].startswith("disk full writing ")
        assert "free space and run the same command with --resume" in result["error"]
        assert f"{name} failed: {result['error']}" in first
        assert "retry" not in first
        content, damaged = checkpoint.load_newest(trials[name])
        assert not damaged and not list(trials[name].glob(".*.tmp"))
        assert (content or {"epoch": 0})["epoch"] == len(records.read_rows(trials[name]))
    assert f"resuming: {len(results) - len(failed)} done" in second
    whole = run(tmp_path, "--seeds", "2", "--set", "kind=train,fill", "--local", TOY_FILL="/no/x")
    assert whole.returncode == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "resumed" / "demo" / "history.csv")[METRICS], history(tmp_path)
    )


def test_a_worker_ended_for_want_of_main_memory_is_not_started_again(tmp_path):
    """Ray's own guard of main memory, set to what is used now and 2 GiB more."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 2 * 2**30) / memory.total
    guard = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    arguments = ["--seeds", "2", "--set", "kind=eat,train", "pause=1", "--max-concurrent", "2"]
    done = run(tmp_path, *arguments, **guard)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    trials = pd.read_csv(tmp_path / "toy" / "demo" / "trials.csv").set_index("trial")
    for seed in (0, 1):
        eaten = trials.loc[f"kind=eat,seed={seed}"]
        assert "ran out of main memory: lower batch_size" in eaten.error
        assert eaten.epochs_run == 1 and f"{eaten.name}: its worker died" not in done.stdout
        assert trials.state[f"kind=train,seed={seed}"] == "finished"


def test_a_local_study_listens_on_loopback_only(tmp_path):
    driver = subprocess.Popen(
        command(tmp_path, "--set", "epochs=100", "pause=0.3"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob("toy/demo/trials/*/history.json")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes = [psutil.Process(driver.pid)]
        processes += processes[0].children(recursive=True)
        listening = [
            (process.name(), connection.laddr.ip)
            for process in processes
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > 5
        loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        assert [found for found in listening if found[1] not in loopback] == []
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait(60)


def test_ray_and_local_agree_and_failures_are_told(tmp_path):
    """Dead workers start again from their last epoch; what raises is told and not retried."""
    kinds = "kind=train,raise,refuse,die,die-once,oom,hoard"
    marker = str(tmp_path / "died")
    spaced = tmp_path / "a path with spaces"
    spaced.symlink_to(Path(sys.executable).parents[1])
    python = spaced / "bin" / "python"
    done = run(tmp_path, "--set", kinds, "--seeds", "1", python=python, TOY_MARKER=marker)
    assert done.returncode == 1, done.stderr
    assert "5 of 7 trials failed" in done.stdout
    assert "kind=die-once,seed=0: its worker died, retry 1/2 from epoch 1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    trials = pd.read_csv(tmp_path / "toy" / "demo" / "trials.csv").set_index("kind")
    assert trials.state["die-once"] == "finished" and trials.state["train"] == "finished"
    assert trials.error["die"] == "its worker process died 3 times"
    assert trials.epochs_run["die"] == 1
    assert trials.error["oom"].startswith("out of GPU memory: asked for 4.00 GiB more, over ")
    assert "lower batch_size" in trials.error["oom"] and "--slot-memory" in trials.error["oom"]
    assert trials.error["hoard"].startswith("out of main memory: asked for ")
    assert "lower batch_size or image_size" in trials.error["hoard"]
    for kind in ("oom", "hoard"):
        attempt = tmp_path / "toy" / "demo" / "trials" / f"kind={kind},seed=0" / "attempt.json"
        assert json.loads(attempt.read_text())["attempt"] == 1
    local = run(tmp_path, "--set", "kind=train", "--seeds", "1", "--name", "local", "--local")
    assert local.returncode == 0
    rows = history(tmp_path)
    trained = rows[rows.kind == "train"].reset_index(drop=True)
    pd.testing.assert_frame_equal(trained, history(tmp_path, "local"))
    died = rows[rows.kind == "die-once"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        died[["epoch", "val_accuracy"]], trained[["epoch", "val_accuracy"]]
    )


def test_a_killed_driver_is_resumed_without_repeating_or_changing_anything(tmp_path):
    arguments = ["--seeds", "4", "--set", "epochs=5", "pause=0.6"]
    driver = subprocess.Popen(
        command(tmp_path, *arguments, "--name", "killed"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    folder = tmp_path / "toy" / "killed"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        ended = list(folder.glob("trials/*/result.json"))
        begun = list(folder.glob("trials/*/history.json"))
        if ended and len(begun) > len(ended):
            break
        time.sleep(0.05)
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in children if re.match("ray::(?!.*Agent)", " ".join(p.cmdline()))]
    driver.kill()
    driver.wait()
    assert ended and len(ended) < 4
    before = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert not (folder / "report.html").exists()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and alive == []
    done = run(tmp_path, *arguments, "--name", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resuming: {len(before)} done" in done.stdout
    for path, modified in before.items():
        assert path.stat().st_mtime_ns == modified
    whole = run(tmp_path, *arguments, "--name", "whole", "--local")
    assert whole.returncode == 0
    pd.testing.assert_frame_equal(history(tmp_path, "killed"), history(tmp_path, "whole"))


def test_an_interrupt_stops_the_workers_and_writes_no_report(tmp_path):
    driver = subprocess.Popen(
        command(tmp_path, "--set", "epochs=50", "pause=0.5"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "toy" / "demo"
    deadline = time.monotonic() + 180
    while not list(folder.glob("trials/*/history.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert len(children) > 2
    driver.send_signal(signal.SIGINT)
    _, shown = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "--resume" in shown and "Traceback" not in shown
    assert not (folder / "report.html").exists()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_trials_stopped_by_others_keep_their_epochs_and_say_why(tmp_path):
    """One slot, so that the decisions are those of `--local`, which sees the same order."""
    rules = ["--scheduler", "asha", "--grace", "1", "--reduction-factor", "2"]
    search = ["--search", "optuna", "--trials", "5"]
    arguments = [*search, "--set", "epochs=6", "--max-concurrent", "1", *rules]
    done = run(tmp_path, *arguments, "--name", "ray")
    assert done.returncode == 0, done.stderr
    local = run(tmp_path, *arguments, "--name", "local", "--local")
    assert local.returncode == 0, local.stderr
    ray_trials, local_trials = (
        pd.read_csv(tmp_path / "toy" / name / "trials.csv")[
            ["trial", "state", "stopped_by", "epochs_run"]
        ]
        for name in ("ray", "local")
    )
    pd.testing.assert_frame_equal(ray_trials, local_trials)
    stopped = ray_trials[ray_trials.state == "stopped"]
    assert len(stopped) and stopped.stopped_by.str.startswith("ASHA at epoch").all()
    ray_rows, local_rows = (
        pd.read_csv(tmp_path / "toy" / name / "history.csv") for name in ("ray", "local")
    )
    pd.testing.assert_frame_equal(ray_rows, local_rows)
    for name, why in zip(stopped.trial, stopped.stopped_by, strict=True):
        assert f"{name} stopped: {why}" in done.stdout
        assert not list((tmp_path / "toy" / "ray" / "trials" / name).glob("epoch-*.pt"))
