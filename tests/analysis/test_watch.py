"""The view of a study from its files: what it says, and that no file can bring it down."""

from __future__ import annotations

import datetime
import io
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from analysis import watch
from analysis.document import terminal as watch_terminal
from analysis.results import snapshot as watch_snapshot
from core.storage.files import write_json
from core.study.command import command_line
from tests.support.calls import ROOT
from tests.support.toy import study as toy_study

NOW = 1_800_000_000.0
HERE = socket.gethostname()


def iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()


def declare(folder: Path, count: int, epochs: int = 10, **changes) -> Path:
    """Write a study of `count` trials `norm=bn,seed=0`, ... in which nothing has run."""
    trials = [
        {"trial": f"norm=bn,seed={i}", "part": "main", "config": {"epochs": epochs, "seed": i}}
        for i in range(count)
    ]
    content = {
        "study": "norms", "question": "Which norm is best?", "metric": "val_accuracy",
        "mode": "max", "trials": trials,
        "command": ["python", "studies/norms.py", "--data-dir", "my birds"],
        "started": iso(NOW - 1000),
    }  # fmt: skip
    write_json(folder / "study.json", content | changes)
    return folder


def drive(folder: Path, now: float = NOW, **changes) -> None:
    """Write a driver that is alive at `now`: this process, or another host's."""
    node = {"id": "aaaa", "host": HERE, "gpus": 1, "slots": 2}
    content = {
        "host": HERE, "pid": os.getpid(), "started": iso(now - 600), "beat": iso(now - 20),
        "nodes": [node, {"id": "bbbb", "host": "far", "gpus": 2, "slots": 4}],
    }  # fmt: skip
    write_json(folder / "driver.json", content | changes)


def begin(folder: Path, seed: int, values: list[float | None], now: float = NOW, **changes) -> Path:
    """Write a trial that runs on this host since 500 s, an epoch every 50 s, the last 7 s ago."""
    at = folder / "trials" / f"norm=bn,seed={seed}"
    attempt = {
        "host": HERE, "pid": 4321, "gpus": ["0"], "node": "aaaa", "attempt": 1,
        "started": iso(now - 500),
    }  # fmt: skip
    write_json(at / "attempt.json", attempt | changes)
    if values:
        rows = [{"epoch": i, "val_accuracy": v, "seconds": 50} for i, v in enumerate(values, 1)]
        write_json(at / "history.json", {"rows": rows, "seconds": 50.0 * len(values)})
        os.utime(at / "history.json", (now - 7, now - 7))
    return at


def end(folder: Path, seed: int, values: list[float | None], state: str, error: str = "") -> None:
    """Write a trial that ended `10 * seed + 10` seconds ago."""
    at = begin(folder, seed, values)
    result = {"state": state, "error": error, "seconds": 51.0 * len(values)}
    write_json(at / "result.json", result | {"peak_memory_mib": 1.0})
    os.utime(at / "result.json", (NOW - 10 - 10 * seed,) * 2)


def shown(folder: Path, width: int = 160, height: int | None = None, now: float = NOW) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(
        watch_terminal.view(
            watch_snapshot.look(folder, watch_snapshot.Files(), now), console, now, height
        ),
        crop=False,
    )
    return console.file.getvalue()


def line_with(text: str, word: str) -> str:
    lines = [line for line in text.splitlines() if word in line]
    assert len(lines) == 1, f"{word!r} stands in {len(lines)} lines of:\n{text}"
    return " ".join(lines[0].split())


def test_a_running_study(tmp_path):
    folder = declare(tmp_path / "norms" / "demo", 8)
    drive(folder)
    begin(folder, 0, [0.5, 0.75, 0.7])
    begin(folder, 1, [], node="bb", host="far", gpus=["0", "1"], attempt=2, pid=77)
    end(folder, 2, [0.6] * 10, "finished")
    end(folder, 3, [0.1, None], "diverged", "the loss is nan")
    end(folder, 4, [0.3] * 4, "stopped")
    text = shown(folder)
    assert "Which norm is best?" in text
    assert f"running on {HERE} pid {os.getpid()}" in text
    assert "8 trials: 1 finished, 1 stopped, 2 running, 3 waiting, 1 diverged" in text
    assert "best val_accuracy 0.75 (norm=bn,seed=0, epoch 2)" in text
    assert f"slots: 2 of 6 used: {HERE} 1 of 2 (1 GPU), far 1 of 4 (2 GPUs)" in text
    assert "10:00 elapsed" in text
    running = text[text.index("Running (2)") : text.index("Failed (1)")]
    assert line_with(running, "seed=0") == f"norm=bn,seed=0 {HERE} 4321 0 3 of 10 0.7 0.75 0:07"
    assert line_with(running, "seed=1") == "norm=bn,seed=1 far 77 0,1 0 of 10 8:20 2"
    assert "norm=bn,seed=3 diverged: the loss is nan" in text
    ended = text[text.index("Last ended") :]
    assert line_with(ended, "seed=2") == "norm=bn,seed=2 finished 10 of 10 0.6 0.6 8:30 0:30 ago"
    assert line_with(ended, "seed=3") == "norm=bn,seed=3 diverged 2 of 10 0.1 1:42 0:40 ago"
    assert [ended.index(f"seed={i}") for i in (2, 3, 4)] == sorted(
        ended.index(f"seed={i}") for i in (2, 3, 4)
    )


def test_slots_as_the_engine_records_them(tmp_path):
    """Until the driver's second sign of life they stand in study.json alone."""
    node = {"node": "abcdef", "host": HERE, "count": 3, "gpus": 0}
    folder = declare(tmp_path, 2, slots={"memory": None, "cores": 1, "nodes": [node]})
    drive(folder, nodes=[])
    begin(folder, 0, [0.5], node="abcd")
    begin(folder, 1, [0.5], node="ffff")
    assert f"slots: 2 of 3 used: {HERE} 1 of 3, 1 on nodes that are not listed" in shown(folder)
    drive(folder, nodes=[node | {"count": 5}])
    assert f"slots: 2 of 5 used: {HERE} 1 of 5" in shown(folder)


def test_attempts_are_named_only_when_there_was_more_than_one(tmp_path):
    folder = declare(tmp_path, 1)
    drive(folder)
    begin(folder, 0, [0.5])
    assert "  attempt" not in shown(folder)
    begin(folder, 0, [0.5], attempt=3)
    assert "  attempt" in shown(folder)
    assert line_with(shown(folder), "norm=bn,seed=0  ").endswith(" 3")


def test_a_lower_metric_is_better_when_the_study_says_so(tmp_path):
    folder = declare(tmp_path, 1, mode="min")
    begin(folder, 0, [0.5, None, 0.2, 0.4])
    assert "best val_accuracy 0.2 (norm=bn,seed=0, epoch 3)" in shown(folder)


def test_a_failed_trial_is_never_the_best(tmp_path):
    folder = declare(tmp_path, 2)
    end(folder, 0, [0.9], "failed", "KeyError: 'a bug'")
    end(folder, 1, [0.4], "finished")
    assert "best val_accuracy 0.4 (norm=bn,seed=1, epoch 1)" in shown(folder)


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


def test_an_interrupted_study_says_how_to_go_on(tmp_path):
    folder = declare(tmp_path, 3)
    begin(folder, 0, [0.5, 0.6])
    end(folder, 1, [0.5] * 10, "finished")
    text = shown(folder)
    assert "not running: interrupted, go on with --resume" in text
    assert "python studies/norms.py --data-dir 'my birds' --resume" in text
    assert "3 trials: 1 finished, 1 interrupted, 1 waiting" in text
    assert "Interrupted (1)" in text and "2 of 10" in text
    assert " left" not in text


def test_a_trial_of_the_run_before_waits_until_its_turn(tmp_path):
    folder = declare(tmp_path, 2)
    drive(folder, started=iso(NOW - 30))
    begin(folder, 0, [0.5])  # began 500 s ago
    begin(folder, 1, [0.5], started=iso(NOW - 20))
    states = [t.state for t in watch_snapshot.look(folder, watch_snapshot.Files(), NOW).trials]
    assert states == ["waiting", "running"]


def test_nothing_has_begun_yet(tmp_path):
    folder = declare(tmp_path, 2)
    (folder / "trials").mkdir()
    drive(folder)
    text = shown(folder)
    assert "2 trials: 2 waiting" in text
    assert "time left not known before the first epoch" in text
    assert "best" not in text.replace("Which norm is best?", "")


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


@pytest.mark.parametrize("height", [20, 24, 40])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_is_never_outgrown(tmp_path, width, height):
    folder = declare(tmp_path, 60)
    drive(folder)
    for i in range(20):
        begin(folder, i, [0.5])
    for i in range(20, 40):
        end(folder, i, [0.5], "failed", "needs more than it may take: lower batch_size " * 3)
    lines = shown(folder, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    if width == 40 and height == 20:
        assert "Last ended" not in text  # the head alone takes half of it
        return
    active = text[text.index("Running (20)") : text.index("and ")]
    rows = active.count("seed=")
    assert rows >= 1 and text.count(f"and {20 - rows} more") >= 1
    assert "1 of 10" in active  # however narrow, how far a trial is has room
    assert "Failed (20)" in text
    assert ("Last ended" in text) == ((width > 40 and height > 20) or height == 40)
    everything = shown(folder, width)
    assert "and " not in everything and everything.count("seed=") == 20 + 20 + 5 + 1


def test_a_roomy_terminal_is_filled(tmp_path):
    folder = declare(tmp_path, 30)
    drive(folder)
    for i in range(30):
        begin(folder, i, [0.5])
    head = shown(folder).splitlines().index("Running (30)")
    everything = head + 2 + 30
    assert "more" not in shown(folder, height=everything)
    text = shown(folder, height=everything - 1)
    assert "and 2 more" in text and len(text.splitlines()) == everything - 1


def test_long_names_keep_their_ends():
    assert (
        watch_terminal.shorten("norm=batch-instance,batch_size=8,seed=2", 20)
        == "norm=batc..=8,seed=2"
    )
    assert watch_terminal.shorten("short", 5) == "short"
    assert [len(watch_terminal.shorten("x" * 50, n)) for n in range(6)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["driver.json", "attempt.json", "history.json", "result.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"rows": [{"epo', b"\xff\xfe", b"[]", b"null", b"[" * 100_000,
        b'{"rows": 3, "state": [], "error": {}, "seconds": "x", "gpus": 7, "attempt": "a"}',
        b'{"rows": [1, {"epoch": "x"}, {"epoch": 2, "val_accuracy": "high"}], "beat": 5}',
        b'{"host": null, "pid": {}, "started": 7, "seconds": 1' + b"0" * 400 + b"}",
    ],
)  # fmt: skip
def test_no_file_of_a_trial_brings_the_view_down(tmp_path, name, content):
    folder = declare(tmp_path, 3)
    drive(folder)
    at = begin(folder, 0, [0.5])
    end(folder, 1, [0.25], "finished")
    target = folder if name == "driver.json" else at
    (target / name).write_bytes(content)
    text = shown(folder)
    assert "3 trials: 1 finished" in text
    damaged = not content.startswith(b"{") or content.endswith(b"epo")
    assert ("cannot be read: " in text and name in text) == damaged


def test_a_name_cannot_move_the_cursor(tmp_path):
    folder = declare(tmp_path, 1, question="red \x1b[31m and\nnew")
    end(folder, 0, [], "failed", "a [bold]bracket[/] and \x1b[2J")
    text = shown(folder)
    assert "\x1b" not in text and "a [bold]bracket[/] and  [2J" in text


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


def test_several_studies(tmp_path, capsys):
    now = time.time()
    drive(declare(tmp_path / "norms" / "demo", 2), now)
    begin(tmp_path / "norms" / "demo", 0, [0.5], now)
    end(declare(tmp_path / "aug" / "demo", 1), 0, [0.25], "failed", "KeyError: 1")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.json").write_text("{")
    os.utime(tmp_path / "bad", (NOW - 10**8,) * 2)
    os.utime(tmp_path / "bad" / "study.json", (NOW - 10**8,) * 2)
    assert watch.main([str(tmp_path), "--all"]) == 0
    text = capsys.readouterr().out
    first = line_with(text, "norms/demo")
    assert " running 0 of 2 1 val_accuracy 0.5 0:0" in first
    assert " done 1 of 1 1 " in line_with(text, "aug/demo")
    assert "study.json is missing or damaged" in line_with(text, str(tmp_path / "bad"))
    os.utime(tmp_path / "norms" / "demo", (now + 60, now + 60))
    assert watch.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "2 trials: 1 running, 1 waiting" in text
    assert f"3 studies below {tmp_path}: --all lists them" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no study at or below"),
        ("{", "study.json is damaged"),
        ("[]", "study.json is damaged"),
        ('{"study": "s", "metric": "m", "mode": "max", "trials": [{}]}', "study.json is damaged"),
        ('{"study": "s", "metric": "m", "trials": []}', "study.json is damaged"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    assert watch.main([str(tmp_path), "--once"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert words in err and str(tmp_path) in err


def test_bad_options_are_one_sentence(tmp_path, capsys):
    declare(tmp_path, 1)
    for seconds in ("0", "-1", "nan", "inf"):
        assert watch.main([str(tmp_path), f"--every={seconds}"]) == 2
        assert "give seconds from 0.1 to 3600" in capsys.readouterr().err
    assert watch.main([str(tmp_path / "absent")]) == 2
    assert f"{tmp_path / 'absent'} is not a folder" in capsys.readouterr().err


def test_a_study_of_the_engine(tmp_path, capsys):
    kinds = "kind=train,raise,diverge"
    command = ["--local", "--results-dir", str(tmp_path), "--seeds", "1", "--set", kinds]
    assert command_line(toy_study, command) == 1
    capsys.readouterr()
    folder = tmp_path / "toy" / "demo"
    assert watch.main([str(tmp_path), "--once"]) == 0
    text = capsys.readouterr().out
    assert "Does the engine keep its promises?" in text
    assert "done, 1 failed: --resume tries them again" in text
    assert "3 trials: 1 finished, 1 failed, 1 diverged" in text
    assert "kind=raise,seed=0 failed: KeyError: 'a bug'" in text
    assert "kind=diverge,seed=0 diverged: the loss is nan at epoch 2" in text
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    value = f"{best['val_accuracy']:.4g}"
    assert f"best val_accuracy {value} (kind=train,seed=0, epoch {best['epoch']})" in text
    assert "4 of 4" in line_with(text[text.index("Last ended") :], "kind=train")


@pytest.mark.slow
def test_a_study_of_the_engine_while_it_runs(tmp_path):
    settings = ["--local", "--results-dir", tmp_path, "--seeds", "2", "--set", "pause=0.4"]
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/support/toy.py", *settings]
    run = subprocess.Popen(command, cwd=ROOT, env=path, stdout=subprocess.DEVNULL)
    folder, files, seen = tmp_path / "toy" / "demo", watch_snapshot.Files(), set()
    try:
        while run.poll() is None:
            if (folder / "study.json").is_file():
                snapshot = watch_snapshot.look(folder, files, time.time())
                assert snapshot.damaged == []
                console = Console(file=io.StringIO(), width=120)
                console.print(watch_terminal.view(snapshot, console, time.time(), None))
                states = ",".join(t.state for t in snapshot.trials)
                seen.add((snapshot.state, states, sum(n.slots for n in snapshot.nodes)))
                if states == "running,waiting":
                    assert f"running on {HERE} pid {run.pid}" in console.file.getvalue()
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    assert {("running", "running,waiting", 1), ("running", "finished,running", 1)} <= seen
    assert watch_snapshot.look(folder, files, time.time()).state == "done"


def test_a_script_that_needs_little(tmp_path):
    """Started by its path, in a terminal that knows ASCII alone, without torch or Ray."""
    declare(tmp_path, 1, question="Größe?")
    command = [sys.executable, "-X", "importtime", ROOT / "analysis" / "watch.py", tmp_path]
    plain = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=plain, cwd=tmp_path)
    assert done.returncode == 0 and "Gr??e?" in done.stdout and "1 trial: 1 waiting" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "core.storage.files" in loaded and not loaded & {"torch", "ray", "pandas", "numpy"}


class Terminal:
    """A terminal of 100 x 30 in which a study is watched."""

    def __init__(self, folder: Path):
        self.at, end = pty.openpty()
        size = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        command = [sys.executable, ROOT / "analysis" / "watch.py", folder, "--every", "0.1"]
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=size)
        os.close(end)
        self.text = ""

    def wait_for(self, words: str) -> None:
        until = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < until, f"{words!r} never came: {self.text[-3000:]}"
            if select.select([self.at], [], [], 0.5)[0]:
                self.text += os.read(self.at, 65536).decode()

    def close(self) -> int:
        """Read to the end; return the exit code."""
        while True:
            try:
                data = os.read(self.at, 65536)
            except OSError:  # how Linux says that nobody holds the other end any more
                data = b""
            if not data:
                break
            self.text += data.decode()
        os.close(self.at)
        return self.process.wait(timeout=60)


def test_on_a_terminal_it_follows_the_study_to_its_end(tmp_path):
    folder, now = declare(tmp_path, 2), time.time()
    drive(folder, now)
    begin(folder, 0, [0.5], now)
    terminal = Terminal(folder)
    terminal.wait_for("2 trials: \x1b[36m1 running")
    begin(folder, 1, [0.5], now)
    terminal.wait_for("2 trials: \x1b[36m2 running")
    end(folder, 0, [0.5], "finished")
    end(folder, 1, [0.5], "finished")
    terminal.wait_for("the report is being written")
    (folder / "driver.json").unlink()
    assert terminal.close() == 0
    last = terminal.text[terminal.text.rindex("\x1b[?1049l") :]  # after the screen of its own
    assert "2 finished" in last and "done" in last and "\x1b[?25h" in terminal.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_is_left_quietly(tmp_path, number):
    folder = declare(tmp_path, 2)
    terminal = Terminal(folder)
    terminal.wait_for("interrupted")
    terminal.process.send_signal(number)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.text
    assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
