"""The process in which data are prepared: errors, output, its end; the driver stays light."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core import instruction_set
from core.errors import UserError
from core.study import Data
from core.study.apart import Apart
from core.study.command import command_line
from tests.support.calls import ROOT, copied_process, exit_code, python
from tests.support.toy import study


def refuse(settings):
    raise UserError(f"--data-dir {settings['data_dir']}: no images there")


def wait(settings):
    """Print who waits, once it does."""
    print(os.getpid())
    sys.stdout.flush()
    time.sleep(120)


def drive(results: Path, output: int) -> int:
    """Run a study that waits for its data, with `output` in place of both outputs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup, behind `&`
    for number in (1, 2):
        os.dup2(output, number)
    with open(2, "w") as sys.stderr:
        words = ["--results-dir", str(results)]
        return command_line(replace(study, data=Data(wait)), words)


@pytest.fixture(scope="module")
def apart():
    process = Apart()
    try:
        yield process
    finally:
        process.close()


def test_it_answers_with_values_of_a_process_that_computes_as_ours(apart):
    pid, pinned, missing = apart(
        lambda names: (os.getpid(), {n: os.environ.get(n) for n in names}, "torch" in sys.modules),
        tuple(instruction_set.PIN),
    )
    assert pid != os.getpid() and not missing
    assert pinned == {name: os.environ.get(name) for name in instruction_set.PIN}
    assert apart(os.getpid) == pid  # one process for all: what it has read is still there


def test_what_it_raises_is_raised_here_and_it_goes_on_until_it_dies(apart):
    with pytest.raises(UserError, match=r"^--data-dir x: no images there$"):
        apart(refuse, {"data_dir": "x"})
    with pytest.raises(ZeroDivisionError) as told:
        apart(lambda: 1 / 0)
    assert "in <lambda>" in told.value.__notes__[0]  # where, in the other process
    assert apart(int, "7") == 7
    with pytest.raises(UserError, match=r"died \(exit code -9\)"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_it_is_ended_in_mid_work():
    process = Apart()
    child = psutil.Process(process._process.pid)
    apart_id = process(os.getpid)
    process._link.send_bytes(pickle.dumps((time.sleep, (120,))))
    process.close()
    process.close()
    assert apart_id == child.pid and not child.is_running()


@pytest.mark.parametrize("where", [[], ["--local"]])
def test_a_refusal_is_one_sentence_and_leaves_nothing_behind(tmp_path, capfd, where):
    other = replace(study, data=Data(refuse))
    words = ["--results-dir", str(tmp_path / "results"), "--data-dir", str(tmp_path), *where]
    assert command_line(other, words) == 2
    assert capfd.readouterr().err == f"--data-dir {tmp_path}: no images there\n"
    assert not list(tmp_path.rglob("demo"))


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGKILL", -9)])
def test_it_ends_with_its_driver(tmp_path, sent, code):
    """From a terminal, a batch system, or the system itself when memory is short."""
    reader, writer = os.pipe()
    driver = copied_process(drive, tmp_path, writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        child = psutil.Process(int(output.readline()))
        os.kill(driver, getattr(signal, sent))
        _, gone = psutil.wait_procs([child], timeout=20)
        assert not gone and exit_code(driver) == code
        shown = output.read()
    assert "Traceback" not in shown and ("nothing finished is lost" in shown) == (code > 0)
    assert not list(tmp_path.rglob("study.json"))


def test_paths_and_output_are_the_drivers_whatever_lies_around_them(tmp_path):
    """A folder with a `core` of its own, an interpreter in one with spaces, an output in ASCII."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('not ours')")
    spaced = tmp_path / "a path with spaces"
    spaced.symlink_to(Path(sys.executable).parents[1])
    script = f"import sys; sys.path[:] = [{str(ROOT)!r}, *sys.path[1:]]\n"
    script += "from core.study.apart import Apart; a = Apart(); print('one')\n"
    script += "a(print, 'two'); print('three'); a(print, 'four\\u2026', a(abs, -3)); a.close()\n"
    around = {"cwd": tmp_path, "interpreter": spaced / "bin" / "python", "PYTHONPATH": ""}
    shown = python("-c", script, PYTHONIOENCODING="ascii", **around)
    assert (shown.stdout, shown.stderr) == ("one\ntwo\nthree\nfour... 3\n", "")
