"""The study engine on a real local Ray cluster: packing, dead workers, a dead driver."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import pytest
from filelock import FileLock

from core.trial import checkpoint, records
from tests.support.calls import PATIENCE, ROOT, TOY, history, python, start, toy, until

pytestmark = pytest.mark.ray


def test_a_full_disk_fails_the_trial_and_keeps_everything_before_it(tmp_path, monkeypatch):
    """A file system of 2 MiB, in a name space of its own, is filled in the middle of a trial."""
    tmp_path /= "a path with spaces"
    disk = tmp_path / "disk"
    disk.mkdir(parents=True)
    settings = ["--seeds", "2", "--set", "kind=train,fill"]
    # One at a time, so that it is known who finds the disk full.
    command = shlex.join([sys.executable, *TOY, str(disk), *settings, "--max-concurrent", "1"])
    script = f"""
mount -t tmpfs -o size=2m tmpfs "$0/disk"
{command} > "$0/first" 2>&1; echo $? > "$0/codes"
cp -r "$0/disk/toy" "$0/full"
rm "$0/disk/filler"
TOY_FILL=/no/filler {command} --resume --local > "$0/second" 2>&1; echo $? >> "$0/codes"
cp -r "$0/disk/toy" "$0/resumed"
"""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no name spaces here: a small disk cannot be made")
    subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TOY_FILL": f"{disk}/filler"},
        check=True,
        timeout=PATIENCE,
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
    monkeypatch.setenv("TOY_FILL", "/no/filler")
    assert toy(tmp_path / "whole", *settings) == 0
    whole = history(tmp_path / "whole" / "toy" / "demo")
    pd.testing.assert_frame_equal(history(tmp_path / "resumed" / "demo"), whole)


def test_a_killed_driver_is_resumed_and_an_interrupted_one_leaves_nothing(tmp_path, monkeypatch):
    """Neither repeats or changes anything; a study of this machine listens on loopback only."""
    arguments = ["--seeds", "3", "--max-concurrent", "1", "--set", "epochs=5", "hold=3"]
    go = tmp_path / "go"
    (go / "0").mkdir(parents=True)  # this one ends
    folder = tmp_path / "toy" / "demo"

    def begun(ended: int) -> bool:
        results, kept = (list(folder.glob(f"trials/*/{n}.json")) for n in ("result", "history"))
        return len(results) == ended < len(kept)

    driver = start(*TOY, tmp_path, *arguments, TOY_GO=str(go))
    until(lambda: begun(1))
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in children if re.match("ray::(?!.*Agent)", " ".join(p.cmdline()))]
    driver.kill()
    driver.communicate()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert len(before) == 1 and not (folder / "report.html").exists()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert workers and alive == []

    (go / "1").touch()
    driver = start(*TOY, tmp_path, *arguments, "--resume", TOY_GO=str(go))
    until(lambda: begun(2))
    children = psutil.Process(driver.pid).children(recursive=True)
    listening = [
        (process.name(), connection.laddr.ip)
        for process in [psutil.Process(driver.pid), *children]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(children) > 2 and len(listening) > 5
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert [found for found in listening if found[1] not in loopback] == []
    driver.send_signal(signal.SIGINT)
    shown, told = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130 and "resuming: 1 done" in shown
    assert "--resume" in told and "Traceback" not in told
    assert not (folder / "report.html").exists()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []

    (go / "all").touch()
    monkeypatch.setenv("TOY_GO", str(go))
    assert toy(tmp_path, *arguments, "--resume") == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert toy(tmp_path, *arguments[:-1], "--name", "whole") == 0
    pd.testing.assert_frame_equal(history(folder), history(tmp_path / "toy" / "whole"))


def test_ray_and_local_agree_and_failures_are_told(tmp_path):
    """Dead workers start again from their last epoch; what raises is told and not retried.

    Ray's own guard of main memory is set so far above what is used that only `eat` meets it. One
    trial at a time: the guard may end any worker.
    """
    kinds = "kind=train,raise,refuse,die,die-once,oom,hoard,eat"
    once, spaced = ["--max-retries", "1", "--max-concurrent", "1"], tmp_path / "a path with spaces"
    spaced.symlink_to(Path(sys.executable).parents[1])
    command = [spaced / "bin" / "python", *TOY, tmp_path, "--set", kinds, "--seeds", "1", *once]
    # Of two runs of the tests at once each guard would see what the other one's trial eats.
    with FileLock(f"{tempfile.gettempdir()}/labtune-tests-{os.getuid()}.lock"):
        memory = psutil.virtual_memory()
        room = min(4 * 2**30, memory.available / 2)
        limit = (memory.total - memory.available + room) / memory.total
        guard = {"RAY_memory_usage_threshold": f"{limit:.3f}"}
        guard |= {"RAY_memory_monitor_refresh_ms": "100", "PYTHONPATH": str(ROOT)}
        environment = os.environ | guard | {"TOY_MARKER": str(tmp_path / "died")}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 1, done.stderr
    assert "6 of 8 trials failed" in done.stdout
    assert "kind=die-once,seed=0: its worker died, retry 1/1 from epoch 1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    trials = pd.read_csv(tmp_path / "toy" / "demo" / "trials.csv").set_index("kind")
    assert trials.state["die-once"] == "finished" and trials.state["train"] == "finished"
    assert trials.error["die"] == "its worker process died 2 times"
    assert trials.epochs_run["die"] == 1
    assert trials.error["oom"].startswith("out of GPU memory: asked for 4.00 GiB more, over ")
    assert "lower batch_size" in trials.error["oom"] and "--slot-memory" in trials.error["oom"]
    assert trials.error["hoard"].startswith("out of main memory: asked for ")
    assert "lower batch_size or image_size" in trials.error["hoard"]
    assert "ran out of main memory: lower batch_size" in trials.error["eat"]
    assert trials.epochs_run["eat"] == 1 and "kind=eat,seed=0: its worker died" not in done.stdout
    for kind in ("oom", "hoard"):
        attempt = tmp_path / "toy" / "demo" / "trials" / f"kind={kind},seed=0" / "attempt.json"
        assert json.loads(attempt.read_text())["attempt"] == 1
    assert toy(tmp_path, "--set", "kind=train", "--seeds", "1", "--name", "local") == 0
    rows = history(tmp_path / "toy" / "demo")
    trained = rows[rows.kind == "train"].reset_index(drop=True)
    pd.testing.assert_frame_equal(trained, history(tmp_path / "toy" / "local"))
    died = rows[rows.kind == "die-once"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        died[["epoch", "val_accuracy"]], trained[["epoch", "val_accuracy"]]
    )


def test_trials_stopped_by_others_keep_their_epochs_and_say_why(tmp_path):
    """One slot, so that the decisions are those of `--local`, which sees the same order."""
    rules = ["--scheduler", "asha", "--grace", "1", "--reduction-factor", "2"]
    search = ["--search", "optuna", "--trials", "5"]
    arguments = [*search, "--set", "epochs=6", "--max-concurrent", "1", *rules]
    done = python(*TOY, tmp_path, *arguments, "--name", "ray")
    assert done.returncode == 0, done.stderr
    assert toy(tmp_path, *arguments, "--name", "local") == 0
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
