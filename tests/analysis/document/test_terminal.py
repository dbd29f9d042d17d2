"""The view of a study: what it says, in any width and height, whatever its files hold."""

from __future__ import annotations

import os

import pytest

from analysis.document.terminal import shorten
from tests.support.running import HERE, begin, declare, drive, end, line_with, shown


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
    places = [ended.index(f"seed={i}") for i in (2, 3, 4)]
    assert places == sorted(places)


def test_slots_and_attempts_as_the_engine_records_them(tmp_path):
    """Until the driver's second sign of life slots stand in study.json alone."""
    node = {"node": "abcdef", "host": HERE, "count": 3, "gpus": 0}
    folder = declare(tmp_path, 2, slots={"memory": None, "cores": 1, "nodes": [node]})
    drive(folder, nodes=[])
    begin(folder, 0, [0.5], node="abcd")
    begin(folder, 1, [0.5], node="ffff")
    text = shown(folder)
    assert f"slots: 2 of 3 used: {HERE} 1 of 3, 1 on nodes that are not listed" in text
    assert "  attempt" not in text  # named only when there was more than one
    drive(folder, nodes=[node | {"count": 5}])
    begin(folder, 0, [0.5], node="abcd", attempt=3)
    text = shown(folder)
    assert f"slots: 2 of 5 used: {HERE} 1 of 5" in text
    assert "  attempt" in text and line_with(text, "norm=bn,seed=0  ").endswith(" 3")


def test_the_best_is_the_lowest_if_the_study_says_so_and_never_failed(tmp_path):
    folder = declare(tmp_path, 2, mode="min")
    begin(folder, 0, [0.5, None, 0.2, 0.4])
    end(folder, 1, [0.1], "failed", "KeyError: 'a bug'")
    assert "best val_accuracy 0.2 (norm=bn,seed=0, epoch 3)" in shown(folder)


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


def test_nothing_has_begun_yet(tmp_path):
    folder = declare(tmp_path, 2)
    (folder / "trials").mkdir()
    drive(folder)
    text = shown(folder)
    assert "2 trials: 2 waiting" in text
    assert "time left not known before the first epoch" in text
    assert "best" not in text.replace("Which norm is best?", "")


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


def test_a_name_keeps_its_ends_and_cannot_move_the_cursor(tmp_path):
    name = "norm=batch-instance,batch_size=8,seed=2"
    assert shorten(name, 20) == "norm=batc..=8,seed=2" and shorten("short", 5) == "short"
    assert [len(shorten("x" * 50, n)) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    folder = declare(tmp_path, 1, question="red \x1b[31m and\nnew")
    end(folder, 0, [], "failed", "a [bold]bracket[/] and \x1b[2J")
    text = shown(folder)
    assert "\x1b" not in text and "a [bold]bracket[/] and  [2J" in text
