"""What a study meets around it: terminals, logs, folders, homes, cores, encodings, screens."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.document import figures, tables
from core import provenance
from core.cluster import address as engine
from core.errors import UserError
from core.output import patient_output
from core.storage import cache, scratch
from core.study import Data
from core.study.command import command_line
from core.study.progress import Progress
from tests.support.calls import ROOT, command, history, python, start, toy, until
from tests.support.toy import study


@pytest.mark.ray
def test_a_study_outlives_terminal_log_and_home_and_finds_its_own_modules(tmp_path):
    """Under nohup in a terminal that closes, its log disk full, beside another package `core`."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (here / "core").mkdir(parents=True)
    for name in ("__init__", "data", "trial"):
        (here / "core" / f"{name}.py").write_text("raise ImportError('not this core')")
    script = [sys.executable, f"{ROOT}/tests/support/toy.py", "--results-dir", f"{tmp_path}/there"]
    words = shlex.join([*script, "--seeds", "2", "--set", "pause=0.2"])
    started = f"nohup taskset -c {min(os.sched_getaffinity(0))} {words}"
    # Not the terminal as input: nohup would say so, fail to, and start nothing.
    started += " </dev/null >/dev/full 2>/dev/full"
    leader, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["setsid", "-c", "bash", "-ic", f"{started} & echo $! >../pid; cat"], cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)},
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    there = tmp_path / "there" / "toy" / "demo"
    until(lambda: list(there.glob("trials/*/history.json")))
    os.close(leader)  # the kernel signals the terminal's processes, the shell its jobs
    shell.wait(60)
    until(lambda: (there / "report.html").exists())
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert toy(tmp_path, "--seeds", "2") == 0
    pd.testing.assert_frame_equal(history(there), history(tmp_path / "toy" / "demo"))
    planned = json.loads((there / "study.json").read_text())["slots"]["nodes"]
    assert [node["count"] for node in planned] == [1]
    assert not (home / ".ray").exists()  # a token there would bind every later `ray start`


@pytest.mark.slow
@pytest.mark.parametrize("script", ["studies/norms.py", "analysis/watch.py", "analysis/gradcam.py"])
def test_a_core_of_someone_else_in_the_path_is_passed_over(tmp_path, script):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise ImportError('not this core')")
    assert python(script, "--help", PYTHONPATH=str(tmp_path)).returncode == 0


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal():
    leader, terminal = pty.openpty()
    os.close(leader)
    return terminal


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("lost", [broken_pipe, closed_terminal, full_disk])
def test_output_that_nobody_takes_ends_nothing(tmp_path, monkeypatch, lost, name):
    with os.fdopen(lost(), "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        written = 0
        with patient_output():
            for _ in range(3):
                print("x" * 10_000, file=getattr(sys, name), flush=True)
                Console(stderr=name == "stderr").print("a line")
                written += getattr(sys, name).write("what is left at the end\n")
        assert toy(tmp_path, "--seeds", "1") == 0
    assert written == 3 * 24  # as if it had all been taken
    assert (tmp_path / "toy" / "demo" / "report.html").is_file()


def test_a_log_goes_on_when_there_is_room_again(monkeypatch):
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stdout", disk)
    with patient_output():
        print("lost")
        disk.full = False
        print("kept")
    assert disk.getvalue().strip() == "kept"


def test_signs_that_an_encoding_lacks_are_spelled(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    numbers = pd.DataFrame({"norm": ["gn"], "gain": ["−16.9 ± 2"], "bird": ["Weißstorch"]})
    columns = [tables.text(key, key) for key in numbers]
    with patient_output():
        tables.print_table(tables.Table("x", numbers, tuple(columns), "Norms…"))
    shown = raw.getvalue().decode("ascii")
    assert "-16.9 +- 2" in shown and "Wei?storch" in shown and "Norms..." in shown


def test_closed_outputs_are_none_of_the_files_opened_later(tmp_path):
    """As with `>&- 2>&-`: the first file opened would get the number of standard output."""
    script = "from core.output import patient_output\nimport os, sys\n"
    script += "with patient_output():\n    print('x'); print('y', file=sys.stderr)\n"
    script += f"    number = os.open({str(tmp_path / 'file')!r}, os.O_CREAT)\n"
    script += "    sys.exit(number > 2 and all(os.path.exists(f'/dev/fd/{n}') for n in range(3)))\n"
    words = f'{shlex.quote(sys.executable)} -c "$0" >&- 2>&- <&-'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", words, script], env=environment).returncode == 1


@pytest.mark.parametrize("ignored", [True, False])
def test_an_ignored_hangup_stays_ignored(tmp_path, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    prepare = study.data.prepare

    def hang_up(settings):
        os.kill(os.getpid(), signal.SIGHUP)
        return prepare(settings)

    try:
        other = replace(study, data=Data(hang_up))
        assert command(other, tmp_path, "--seeds", "1") == (0 if ignored else 75)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forced_colour_makes_no_file_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Progress(2, 0, "val_accuracy", "max", Console(file=file, soft_wrap=True)) as progress:
        progress.row("a", {"epoch": 1, "val_accuracy": 0.5})
        time.sleep(0.6)  # a live line would have been drawn twice
    assert file.getvalue().count("trials") == 1


def test_a_narrow_terminal_cuts_no_name_and_no_number():
    names = ["torch_bn", "batch_instance"]
    numbers = pd.DataFrame({"norm": names, "value": ["93.1 [89.4, 96.7]"] * 2})
    columns = (tables.text("norm", "norm"), tables.text("value", "val accuracy (%)"))
    file = io.StringIO()
    tables.print_table(tables.Table("x", numbers, columns, "Norms."), Console(file=file, width=30))
    words = " ".join(file.getvalue().split())
    for name in names:
        assert f"{name} val accuracy (%): 93.1 [89.4, 96.7]" in words


@pytest.mark.slow
def test_figures_need_nothing_of_the_users_matplotlib(tmp_path):
    """Neither a notebook's backend nor an own style, which may even ask for LaTeX, nor a home."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\n")
    script = "import os; del os.environ['HOME']; os.getuid = lambda: 2**31 - 7\n"
    script += "import sys; from pathlib import Path; from analysis.document import figures as f\n"
    script += "figure, axes = f.panels(); axes[0].plot([1, 2]); axes[0].set_title('a')\n"
    script += "f.save(figure, Path(sys.argv[1]), 'theirs'); print(f.equation('y = x'))\n"
    theirs = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    theirs["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    shown = python("-c", script, tmp_path, check=True, **theirs).stdout
    figure, axes = figures.panels()
    axes[0].plot([1, 2])
    axes[0].set_title("a")
    figures.save(figure, tmp_path, "ours")
    assert shown == f"{figures.equation('y = x')}\n"
    for form in ("svg", "png"):
        theirs, ours = (tmp_path / f"{name}.{form}" for name in ("theirs", "ours"))
        assert theirs.read_bytes() == ours.read_bytes()


def test_a_folder_of_a_living_driver_is_left_alone_whatever_its_number(monkeypatch):
    """A lock tells it from those that were killed: containers that share /tmp share no numbers."""
    with tempfile.TemporaryDirectory(prefix="lt", dir="/tmp") as base:
        monkeypatch.setenv("RAY_TMPDIR", base)
        hold = "import time; from core.storage import scratch\nwith scratch.folder() as f:\n"
        hold += "    print(f, flush=True); time.sleep(60)\n"
        other = start("-c", hold)
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        old = Path(base) / "labtune-1-abc"  # as they were called before they had a lock
        old.mkdir()
        assert theirs.parent == Path(base)
        with scratch.folder() as ours:
            assert theirs.is_dir() and ours.parent == Path(base)
            assert ours.stat().st_mode & 0o777 == 0o700
        other.kill()
        other.communicate()
        with scratch.folder():
            assert not theirs.exists() and old.is_dir()
        assert not ours.exists()


def test_temporary_folders_go_where_they_can_or_it_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with scratch.folder() as made:
        assert made.parent == Path("/tmp")
    monkeypatch.setattr(scratch, "_places", lambda: [tmp_path / "file", tmp_path])
    message = r"Not a directory; .* too long for sockets\): set RAY_TMPDIR"
    with pytest.raises(UserError, match=message), scratch.folder():
        pass
    assert not list(tmp_path.glob("labtune-*"))


def test_the_cache_needs_no_home(monkeypatch):
    monkeypatch.delenv("LABTUNE_CACHE", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of whom the system knows nothing
    with pytest.raises(UserError, match="set LABTUNE_CACHE"):
        cache.cache_dir()


def test_cores_are_those_that_this_process_may_use(tmp_path):
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert provenance.cores_here() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    for group, files, cores in (
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, [4]),
        ("0::/../outside", {"cpu.max": "150000 100000"}, [1.5]),
        ("3:cpu,cpuacct:/job\n2:memory:/job", {"cpu/job/cpu.cfs_quota_us": "250000"}, [2.5]),
        ("3:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1"}, []),
        ("nonsense", {}, []),
    ):
        root = tmp_path / str(abs(hash(group)))
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"{group}\n")
        for name, content in files.items():
            file = root / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
            if "quota" in name:
                file.with_name("cpu.cfs_period_us").write_text("100000\n")
        assert provenance._quotas(root) == cores


@pytest.mark.parametrize(
    ("address", "named", "message"),
    [
        ("auto", "127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there"),
        ("auto", "http://127.0.0.1:8265", "give auto or HOST:PORT"),
        ("ray://127.0.0.1:10001", "", "give auto or HOST:PORT"),
        ("local", "", "give auto or HOST:PORT"),
        ("nonsense", "", "give auto or HOST:PORT"),
        ("127.0.0.1:1", "", "no Ray cluster answers there"),
    ],
)
def test_addresses_that_no_study_can_join(tmp_path, capsys, monkeypatch, address, named, message):
    monkeypatch.setenv("RAY_ADDRESS", named)
    arguments = ["--address", address, "--results-dir", str(tmp_path)]
    assert command_line(study, arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.strip().splitlines()) == 1 and shown.out == ""


def test_a_port_that_is_not_rays_is_refused_soon(monkeypatch):
    monkeypatch.setattr(engine, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address {address}: no Ray cluster answers"):
            engine.check_address(address)
