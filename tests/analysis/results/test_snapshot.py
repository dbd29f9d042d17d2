"""A look at a running study: which studies there are, who is alive, what each trial does."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from analysis import watch
from analysis.document import terminal as watch_terminal
from analysis.results import snapshot as watch_snapshot
from tests.support.running import NOW, begin, declare, drive, end, iso, shown


@pytest.mark.parametrize(
    ("driver", "state"),
    [
        ({}, "running"),
        ({"beat": iso(NOW - 119)}, "running"),
        ({"beat": iso(NOW - 121)}, "interrupted"),
        ({"beat": "yesterday"}, "interrupted"),
        ({"beat": None}, "interrupted"),
        ({"host": "far", "pid": 2**22 + 1}, "running"),  # no pid of this host can say otherwise
        ({"nodes": None}, "running"),
        ({"nodes": [3, {}]}, "running"),
    ],
)
def test_a_driver_is_alive_while_it_beats(tmp_path, driver, state):
    folder = declare(tmp_path, 2)
    drive(folder, **driver)
    begin(folder, 0, [0.5])
    snapshot = watch_snapshot.look(folder, watch_snapshot.Files(), NOW)
    assert snapshot.state == state
    assert [t.state for t in snapshot.trials] == [state, "waiting"]
    shown(folder)


def test_a_driver_of_this_host_that_was_killed_is_not_waited_for(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = declare(tmp_path, 2)
    drive(folder, pid=gone.pid)
    assert watch_snapshot.look(folder, watch_snapshot.Files(), NOW).state == "interrupted"


def test_a_trial_of_the_run_before_waits_until_its_turn(tmp_path):
    folder = declare(tmp_path, 2)
    drive(folder, started=iso(NOW - 30))
    begin(folder, 0, [0.5])  # began 500 s ago
    begin(folder, 1, [0.5], started=iso(NOW - 20))
    states = [t.state for t in watch_snapshot.look(folder, watch_snapshot.Files(), NOW).trials]
    assert states == ["waiting", "running"]


def test_the_report_is_being_written(tmp_path):
    folder = declare(tmp_path, 1)
    drive(folder)
    end(folder, 0, [0.5], "finished")
    assert "the report is being written" in shown(folder)
    (folder / "driver.json").unlink()
    assert watch_snapshot.look(folder, watch_snapshot.Files(), NOW).state == "done"


def trial(state: str, epoch: int, seconds: float, epochs: int | None = 10) -> watch_snapshot.Trial:
    nothing = ("",) * 5
    return watch_snapshot.Trial(
        "t", state, epoch, epochs, None, None, None, seconds, None, 0, *nothing, 1
    )


@pytest.mark.parametrize(
    ("trials", "slots", "left"),
    [
        ([trial("running", 4, 40), trial("waiting", 0, 0)], 1, 6 * 10 + 10 * 10),
        ([trial("running", 4, 40), trial("waiting", 0, 0)], 2, 100),  # the waiting one alone
        ([trial("running", 4, 40)] + 3 * [trial("waiting", 0, 0)], 2, 360 / 2),
        ([trial("running", 2, 80), trial("finished", 10, 20)], 4, 8 * 40),  # at its own speed
        ([trial("stopped", 5, 50), trial("waiting", 0, 0)], 1, 5 * 10),  # half the epochs, as usual
        ([trial("finished", 7, 70, None), trial("waiting", 0, 0, None)], 1, 70),
        ([trial("running", 3, 30, None)], 1, None),
        ([trial("running", 0, 0), trial("waiting", 0, 0)], 1, None),
        ([trial("finished", 10, 100)], 1, 0),
    ],
)
def test_time_left(trials, slots, left):
    assert watch_snapshot.time_left(trials, slots) == (
        None if left is None else pytest.approx(left)
    )


def test_files_come_and_go_while_they_are_read(tmp_path):
    folder = declare(tmp_path / "s", 4)
    stop = threading.Event()

    def shuffle() -> None:
        while not stop.is_set():
            for seed in range(4):
                drive(folder)
                begin(folder, seed, [0.5] * (seed + 1))
                (folder / "driver.json").unlink()
                end(folder, seed, [0.5], "finished")
                shutil.rmtree(folder / "trials" / f"norm=bn,seed={seed}")

    writer = threading.Thread(target=shuffle)
    writer.start()
    try:
        files, seen, until = watch_snapshot.Files(), set(), time.monotonic() + 1.5
        while time.monotonic() < until:
            snapshot = watch_snapshot.look(folder, files, NOW)
            assert snapshot.damaged == []
            seen |= {t.state for t in snapshot.trials}
            console = Console(file=io.StringIO(), width=80)
            console.print(watch_terminal.view(snapshot, console, NOW, 24))
    finally:
        stop.set()
        writer.join()
    assert {"waiting", "finished"} <= seen  # it did change meanwhile


def test_a_file_is_parsed_again_only_when_it_was_replaced(tmp_path):
    folder, files = declare(tmp_path, 1), watch_snapshot.Files()
    at = begin(folder, 0, [0.5])
    first = files.read(at / "history.json")
    assert files.read(at / "history.json") is first
    begin(folder, 0, [0.7])  # as long, and as old
    assert files.read(at / "history.json")["rows"][0]["val_accuracy"] == 0.7
    (at / "history.json").unlink()
    assert files.read(at / "history.json") == {}


def test_a_study_that_was_read_once_survives_a_damaged_declaration(tmp_path):
    folder, files = declare(tmp_path / "s", 1), watch_snapshot.Files()
    known = watch_snapshot.look(folder, files, NOW).declared
    (folder / "study.json").write_text("{")
    assert watch_snapshot.look(folder, files, NOW, known).declared == known
    shutil.rmtree(folder)
    with pytest.raises(watch.UserError, match=r"study\.json"):
        watch_snapshot.look(folder, files, NOW, known)


def test_the_study_that_changed_last_comes_first(tmp_path):
    for i, name in enumerate(("norms/demo", "norms/full", "aug/demo")):
        folder = declare(tmp_path / name, 1)
        begin(folder, 0, [0.5])
        for path in (folder, folder / "study.json", *(folder / "trials").iterdir()):
            os.utime(path, (NOW + i, NOW + i))
        os.utime(folder / "trials", (NOW, NOW))
    declare(tmp_path / "norms" / "full" / "ray" / "copy", 1)  # what a study holds is not a study
    os.utime(tmp_path / "norms" / "full", (NOW + 1, NOW + 1))
    (tmp_path / "loop").symlink_to(tmp_path)
    names = [str(f.relative_to(tmp_path)) for f in watch_snapshot.find_studies(tmp_path)]
    assert names == ["aug/demo", "norms/full", "norms/demo"]
    os.utime(tmp_path / "norms/demo/trials/norm=bn,seed=0", (NOW + 9, NOW + 9))
    assert watch_snapshot.find_studies(tmp_path)[0] == tmp_path / "norms" / "demo"
    assert watch_snapshot.find_studies(tmp_path / "aug" / "demo" / "study.json") == [
        tmp_path / "aug/demo"
    ]
