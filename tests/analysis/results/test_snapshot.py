"""A look at a running study: which studies there are, who is alive, what each trial does."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
import time

import pytest
from rich.console import Console

from analysis.document import terminal as watch_terminal
from analysis.results import snapshot as watch_snapshot
from core.errors import UserError
from tests.support.running import NOW, begin, declare, drive, end, iso, shown


def look(folder, files=None, known=None) -> watch_snapshot.Snapshot:
    return watch_snapshot.look(folder, files or watch_snapshot.Files(), NOW, known)


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
    snapshot = look(folder)
    assert snapshot.state == state
    assert [t.state for t in snapshot.trials] == [state, "waiting"]
    shown(folder)


def test_a_killed_driver_is_not_waited_for_and_a_trial_waits_until_its_turn(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = declare(tmp_path, 2)
    drive(folder, pid=gone.pid)
    assert look(folder).state == "interrupted"
    drive(folder, started=iso(NOW - 30))
    begin(folder, 0, [0.5])  # began 500 s ago, in the run before
    begin(folder, 1, [0.5], started=iso(NOW - 20))
    assert [t.state for t in look(folder).trials] == ["waiting", "running"]


def trial(state: str, epoch: int, seconds: float, epochs: int | None = 10) -> watch_snapshot.Trial:
    rest = (None, None, None, seconds, None, 0, *("",) * 5, 1)
    return watch_snapshot.Trial("t", state, epoch, epochs, *rest)


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
    found = watch_snapshot.time_left(trials, slots)
    assert found is None if left is None else found == pytest.approx(left)


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
            snapshot = look(folder, files)
            assert snapshot.damaged == []
            seen |= {t.state for t in snapshot.trials}
            console = Console(file=io.StringIO(), width=80)
            console.print(watch_terminal.view(snapshot, console, NOW, 24))
    finally:
        stop.set()
        writer.join()
    assert {"waiting", "finished"} <= seen  # it did change meanwhile


def test_a_file_is_parsed_again_when_replaced_and_a_known_study_survives_its_damage(tmp_path):
    folder, files = declare(tmp_path / "s", 1), watch_snapshot.Files()
    at = begin(folder, 0, [0.5])
    first = files.read(at / "history.json")
    assert files.read(at / "history.json") is first
    begin(folder, 0, [0.7])  # as long, and as old
    assert files.read(at / "history.json")["rows"][0]["val_accuracy"] == 0.7
    (at / "history.json").unlink()
    assert files.read(at / "history.json") == {}
    known = look(folder, files).declared
    (folder / "study.json").write_text("{")
    assert look(folder, files, known).declared == known
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"study\.json"):
        look(folder, files, known)


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
    found = watch_snapshot.find_studies(tmp_path / "aug" / "demo" / "study.json")
    assert found == [tmp_path / "aug" / "demo"]
