"""The view of a study from its files: what it says, and that no file can bring it down."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis import watch
from analysis.results import snapshot as watch_snapshot
from tests.support.calls import ROOT, TOY, start, toy, until
from tests.support.running import HERE, NOW, begin, declare, drive, end, line_with, shown


def test_several_studies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # however long the path to it is
    monkeypatch.setenv("COLUMNS", "100")
    now, here = time.time(), Path()
    drive(declare(here / "norms" / "demo", 2), now)
    begin(here / "norms" / "demo", 0, [0.5], now)
    end(declare(here / "aug" / "demo", 1), 0, [0.25], "failed", "KeyError: 1")
    (here / "bad").mkdir()
    (here / "bad" / "study.json").write_text("{")
    for path in ("bad", "bad/study.json"):
        os.utime(path, (NOW - 10**8,) * 2)
    assert watch.main([".", "--all"]) == 0
    text = capsys.readouterr().out
    first = line_with(text, "norms/demo")
    assert " running 0 of 2 1 val_accuracy 0.5 0:0" in first
    assert " done 1 of 1 1 " in line_with(text, "aug/demo")
    assert "study.json is missing or damaged" in line_with(text, "bad")
    os.utime(here / "norms" / "demo", (now + 60, now + 60))
    assert watch.main(["."]) == 0
    text = capsys.readouterr().out
    assert "2 trials: 1 running, 1 waiting" in text
    assert "3 studies below .: --all lists them" in text


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
    assert toy(tmp_path, "--seeds", "1", "--set", "kind=train,raise,diverge") == 1
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
    settings = ["--local", "--seeds", "2", "--set", "hold=2"]
    run = start(*TOY, tmp_path, *settings, TOY_GO=str(tmp_path))
    folder, files = tmp_path / "toy" / "demo", watch_snapshot.Files()

    def seen() -> tuple[str, str, int]:
        if not (folder / "study.json").is_file():
            return "", "", 0
        snapshot = watch_snapshot.look(folder, files, time.time())
        assert snapshot.damaged == []
        states = ",".join(t.state for t in snapshot.trials)
        return snapshot.state, states, sum(n.slots for n in snapshot.nodes)

    try:
        until(lambda: seen() == ("running", "running,waiting", 1))
        assert f"running on {HERE} pid {run.pid}" in shown(folder, now=time.time())
        (tmp_path / "0").touch()
        until(lambda: seen() == ("running", "finished,running", 1))
        (tmp_path / "all").touch()
        until(lambda: seen()[0] == "done")
    finally:
        run.kill()
        run.communicate()


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
        heard = ["env", "--default-signal=INT,HUP", *command]  # also where they are ignored
        self.process = subprocess.Popen(heard, stdin=end, stdout=end, stderr=end, env=size)
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
