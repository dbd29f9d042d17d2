"""The study engine without Ray: records, resume, failures, what the user reads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from rich.console import Console

from core import trial
from core.data.batches import Batches
from core.data.images import ImageSet
from core.errors import TrialError, UserError
from core.generation.family import stream
from core.storage import files
from core.study import Data, collect
from core.study.progress import Progress
from core.training.multilabel import LabelledImages
from core.trial import checkpoint, records
from tests.support.calls import (
    command,
    copied,
    copied_process,
    exit_code,
    history,
    refusal,
    table,
    toy,
)  # fmt: skip
from tests.support.faults import Lost, fail_reads, losing, watched_writes
from tests.support.results import edited
from tests.support.toy import study


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a study that nothing disturbed."""
    results = tmp_path_factory.mktemp("whole")
    assert toy(results) == 0
    return results / "toy" / "demo"


def test_a_study_ends_with_its_tables_weights_curves_and_report(whole, tmp_path):
    trials = table(whole)
    assert list(trials.state) == ["finished"] * 3
    assert list(trials.seed) == [0, 1, 2]
    assert list(trials.epochs_run) == [4] * 3
    rows = history(whole)
    assert list(rows.epoch) == [1, 2, 3, 4] * 3
    best = trials.loc[trials.best_val_accuracy.idxmax()]
    kept = json.loads((whole / "checkpoints" / "best.json").read_text())
    assert kept["trial"] == best.trial and kept["epoch"] == best.best_epoch
    weights = whole / "checkpoints" / "best.pt"
    tensors = torch.load(weights, weights_only=True)
    assert set(tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert weights.read_bytes() == (whole / "trials" / best.trial / "best.pt").read_bytes()
    declared = json.loads((whole / "study.json").read_text())
    assert declared["grid"] == {"kind": ["train"], "seed": [0, 1, 2]}
    assert torch.__version__.startswith(declared["versions"]["torch"])
    assert len(declared["git"]["commit"] or "-" * 40) == 40
    copy = copied(whole, tmp_path)
    assert toy(tmp_path, "--report-only") == 0  # which needs no trials
    assert (copy / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_a_lost_driver_costs_no_finished_trial_and_changes_no_number(whole, tmp_path):
    """It is lost in the second trial, resumed by a process, and that one killed in the third."""
    folder, ended = tmp_path / "toy" / "demo", []

    def results() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}

    with losing(lambda seen: seen[4:] == [1]), pytest.raises(Lost):
        toy(tmp_path)
    ended.append(results())
    killed = copied_process(toy, tmp_path, "--resume", TOY_KILL="kind=train,seed=2:3")
    assert exit_code(killed) == -signal.SIGKILL
    ended.append(results())
    assert toy(tmp_path, "--resume") == 0
    ended.append(results())
    assert [len(found) for found in ended] == [1, 2, 3]
    assert all(one.items() <= more.items() for one, more in itertools.pairwise(ended))
    pd.testing.assert_frame_equal(history(folder), history(whole))


def test_a_resumed_trial_goes_on_from_its_last_epoch(tmp_path):
    with losing(lambda seen: seen == [1, 2, 3]) as seen:
        with pytest.raises(Lost):
            toy(tmp_path, "--seeds", "1")
        for _ in range(2):  # the second time nothing is left to do
            assert toy(tmp_path, "--seeds", "1", "--resume") == 0
            assert seen == [1, 2, 3, 4]


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """The folder of a trial whose process ended after epoch 3 of 4."""
    with losing(lambda seen: seen[-1] == 3), pytest.raises(Lost):
        toy(tmp_path, "--seeds", "1")
    return tmp_path / "toy" / "demo" / "trials" / "kind=train,seed=0"


def resumes_to_the_same(tmp_path: Path, whole: Path) -> bool:
    """Go on with the study of `interrupted`; return whether it ends as an undisturbed one."""
    assert toy(tmp_path, "--seeds", "1", "--resume") == 0
    return history(tmp_path / "toy" / "demo").equals(history(whole).query("seed == 0"))


@pytest.mark.parametrize("what", ["checkpoint", "history"])
def test_what_is_damaged_is_mended_and_a_checkpoint_costs_one_epoch(
    interrupted, whole, tmp_path, capsys, what
):
    if what == "history":
        (interrupted / "history.json").write_bytes(b"\xff\x00")
    else:
        newest = sorted(interrupted.glob("epoch-*.pt"))[-1]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    assert resumes_to_the_same(tmp_path, whole)
    told = "is damaged, going back one epoch" in capsys.readouterr().out
    assert told == (what == "checkpoint")


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(interrupted, whole, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in interrupted.glob("epoch-*.pt")}
    assert len(before) == 2
    with fail_reads("epoch-", errno.ESTALE) as asked:
        assert toy(tmp_path, "--seeds", "1", "--resume") == 1
    assert len(asked) == 3  # it was tried again
    assert {path.name: path.read_bytes() for path in interrupted.glob("epoch-*.pt")} == before
    result = records.read_result(interrupted)
    assert result is not None and result["state"] == "failed"
    assert f"cannot read {interrupted / max(before)} (Stale file handle)" in result["error"]
    assert "with --resume" in capsys.readouterr().out
    with fail_reads("epoch-", errno.EIO, times=1) as asked:  # for a moment: it costs nothing
        assert resumes_to_the_same(tmp_path, whole)
    assert len(asked) == 2 and "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["result.json", "history.json"])
@pytest.mark.parametrize("again", ["--resume", "--report-only"])
def test_a_record_that_cannot_be_read_now_is_no_trial_that_never_ran(
    whole, tmp_path, monkeypatch, name, again
):
    folder = copied(whole, tmp_path, "trials")
    written = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(files, "READ_AGAIN_AFTER", ())
    with fail_reads(name, errno.EACCES):
        told = refusal(study, tmp_path, again)
    assert f"{name} (Permission denied)" in told
    del written[folder / "study.json"]
    assert {p: p.read_bytes() for p in written if p.is_file()} == written
    assert toy(tmp_path, again) == 0


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state": Attack()}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
    (tmp_path / f"epoch-00001-{digest}.pt").write_bytes(buffer.getvalue())
    with pytest.raises(TrialError, match="holds more than tensors"):
        checkpoint.load_newest(tmp_path)
    assert not marker.exists()


def test_failed_trials_are_told_and_the_others_go_on(tmp_path, capsys):
    kinds = "kind=train,raise,diverge,refuse,oom,hoard"
    assert toy(tmp_path, "--seeds", "1", "--set", kinds) == 1
    shown = capsys.readouterr().out
    assert "5 of 6 trials failed" in shown
    trials = table(tmp_path / "toy" / "demo", index="kind")
    assert dict(trials.state) == {
        "train": "finished", "raise": "failed", "diverge": "diverged", "refuse": "failed",
        "oom": "failed", "hoard": "failed",
    }  # fmt: skip
    assert trials.error["raise"] == "KeyError: 'a bug'"
    assert trials.error["refuse"] == "needs more than it may take: lower batch_size"
    assert trials.error["oom"].startswith("out of GPU memory: asked for 4.00 GiB more, over ")
    assert trials.error["hoard"].startswith("out of main memory: asked for 1048576.00 GiB more")
    best = json.loads((tmp_path / "toy" / "demo" / "checkpoints" / "best.json").read_text())
    assert best["trial"] == "kind=train,seed=0"


def test_what_a_trial_says_is_shown_as_it_is(tmp_path, monkeypatch, capsys):
    said = "cannot read [/data/images]: gone; needs [batch, classes] :smile: \x1b[31mred\x07"

    def refuse(cfg):
        raise TrialError(said)

    monkeypatch.setattr("tests.support.toy.misbehave", refuse)
    assert toy(tmp_path, "--seeds", "1") == 1
    told = "cannot read [/data/images]: gone; needs [batch, classes] :smile: \\x1b[31mred\\x07"
    assert f"kind=train,seed=0 failed: {told}\n" in capsys.readouterr().out
    assert list(table(tmp_path / "toy" / "demo").error) == [told]
    assert toy(tmp_path, "--seeds", "1", "--resume") == 1
    console = Console(force_terminal=True, width=40, file=io.StringIO())
    with Progress(1, 0, "val_accuracy", "max", console) as progress:
        progress.row("[/bold] \x1b[2J", {"epoch": 1, "val_accuracy": 0.5})
        progress.announce(said)
    assert "\x1b[31m" not in console.file.getvalue() and "\x1b[2J" not in console.file.getvalue()
    assert str(UserError("no \x1b[2Jx\udcff\n- [/y]")) == "no \\x1b[2Jx\\udcff\n- [/y]"


def test_a_setting_and_a_metric_of_one_name_have_a_column_each(tmp_path):
    def train(config, report):
        trial.note(pause=7.0, chosen=2)
        for epoch in (1, 2):
            row = {"epoch": epoch, "lr": 0.1 / epoch, "kind": epoch, "state": 5, "chosen": 9}
            report(row | {"val_accuracy": 0.5})

    other = replace(study, trainable=train)
    assert command(other, tmp_path, "--seeds", "1", "--set", "lr=0.3") == 0
    (row,) = table(tmp_path / "toy" / "demo").to_dict("records")
    expected = {
        "lr": 0.3, "last_lr": 0.05, "kind": "train", "last_kind": 2, "state": "finished",
        "last_state": 5, "pause": 0.0, "noted_pause": 7.0, "chosen": 2, "last_chosen": 9,
    }  # fmt: skip
    assert row.items() >= expected.items()
    epochs = table(tmp_path / "toy" / "demo", "history")
    assert list(epochs.lr) == [0.1, 0.05]
    assert list(epochs.kind) == [1, 2] and list(epochs.set_kind) == ["train"] * 2


def test_a_trial_whose_name_leads_elsewhere_is_refused(whole, tmp_path):
    with edited(copied(whole, tmp_path, "trials") / "study.json") as declared:
        declared["trials"][0]["trial"] = "../../../../secret"
    told = refusal(study, tmp_path, "--report-only")
    assert "names a trial '../../../../secret'" in told


def test_a_diverged_trial_is_never_best_and_never_repeated(tmp_path):
    arguments = ("--seeds", "1", "--set", "kind=diverge")
    assert toy(tmp_path, *arguments) == 1
    folder = tmp_path / "toy" / "demo"
    assert not (folder / "checkpoints").exists()
    result = folder / "trials" / "kind=diverge,seed=0" / "result.json"
    before = result.stat().st_mtime_ns
    assert toy(tmp_path, *arguments, "--resume") == 1
    assert result.stat().st_mtime_ns == before


def test_every_seed_that_torch_takes_can_be_run(tmp_path):
    seeds = [20241130221455, 2**63 - 1]
    assert toy(tmp_path, "--set", f"seed={seeds[0]},{seeds[1]}") == 0
    assert list(table(tmp_path / "toy" / "demo").seed) == seeds
    images, cpu = np.zeros((4, 3, 8, 8), np.uint8), torch.device("cpu")
    for seed in (*seeds, 5):
        birds = Batches(ImageSet(images, np.arange(4), (), ()), 2, cpu, seed, train=True)
        voc = LabelledImages(images, np.eye(4, dtype=np.int8), np.arange(4), 2, cpu, seed, 1.0)
        assert all(len(list(batches.epoch(3))) == 2 for batches in (birds, voc))
        torch.Generator().manual_seed(stream(seed, 999))
    assert stream(5, 999) == 5_999  # small ones draw what they always drew


def test_an_existing_study_that_is_another_or_in_use_is_refused_and_left_alone(whole, tmp_path):
    folder = copied(whole, tmp_path, "trials")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert "already holds a study" in refusal(study, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    told = refusal(study, tmp_path, "--seeds", "2", "--set", "lr=0.2", "--resume")
    assert "seed: [0, 1, 2] -> [0, 1]" in told and "lr: 0.1 -> 0.2" in told
    other = replace(study, data=Data(lambda settings: {"fingerprint": "others"}))
    assert "data: toy -> others" in refusal(other, tmp_path, "--resume")
    with FileLock(folder / "study.lock"):
        assert "in use" in refusal(study, tmp_path, "--resume")


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGHUP", 75)])
def test_an_interrupt_stops_without_a_report(tmp_path, capsys, sent, code):
    """Here in mid trial; tests/core/study/test_apart.py sends signals to a process of its own."""
    number, folder = getattr(signal, sent), tmp_path / "toy" / "demo"
    before = signal.signal(number, signal.default_int_handler)  # ignored under nohup, behind `&`
    try:
        with losing(lambda seen: signal.raise_signal(number)) as seen:
            assert toy(tmp_path, "--set", "epochs=3") == code
    finally:
        signal.signal(number, before)
    shown = capsys.readouterr().err
    assert "nothing finished is lost" in shown and "--resume" in shown and "Traceback" not in shown
    assert seen == [1] and not (folder / "report.html").exists()
    assert toy(tmp_path, "--set", "epochs=3", "--resume") == 0
    assert list(history(folder).epoch) == [1, 2, 3] * 3


def test_a_process_that_dies_at_any_step_of_any_write_loses_nothing(tmp_path):
    """Ended at each fsync and rename in turn (F4): what is there is whole, and resume is exact."""
    arguments = ["--seeds", "1", "--set", "epochs=2"]
    toy(tmp_path, *arguments, "--name", "whole")
    expected = history(tmp_path / "toy" / "whole")
    died = 0
    for point in range(0, 600, 11):  # each write has six steps, so all kinds have their turn
        steps = itertools.count()

        def reached(step: str, last: int = point, steps=steps) -> None:
            if next(steps) == last:
                raise Lost

        folder = tmp_path / "toy" / f"at-{point}"
        with watched_writes(reached), contextlib.suppress(Lost):
            toy(tmp_path, *arguments, "--name", folder.name)
            break
        died += 1
        if not (folder / "study.json").exists():
            continue  # it had not begun: the same command starts it
        _, damaged = checkpoint.load_newest(folder / "trials" / "kind=train,seed=0")
        assert not damaged
        assert toy(tmp_path, *arguments, "--name", folder.name, "--resume") == 0
        pd.testing.assert_frame_equal(history(folder), expected)
    assert 7 < died < 54  # the last run had fewer steps than that and was left alone


def test_damaged_records_are_mended_by_a_run_and_the_best_is_the_whole_studys(
    whole, tmp_path, capsys
):
    folder = copied(whole, tmp_path, "trials")
    ranked = table(folder).sort_values("best_val_accuracy")
    assert ranked.best_val_accuracy.is_monotonic_increasing and ranked.best_val_accuracy.is_unique
    worst, middle, best = (folder / "trials" / name for name in ranked.trial)
    (worst / "result.json").write_text('{"state": "fini')
    (middle / "history.json").write_bytes(b"\xff\x00")
    (middle / "result.json").write_text("[]")
    assert toy(tmp_path, "--resume") == 0
    pd.testing.assert_frame_equal(history(folder), history(whole))
    told = [s for s in capsys.readouterr().out.splitlines() if "best val_accuracy" in s][-1]
    assert told.startswith("3 of 3 trials") and told.endswith(f"({best.name})")


def test_a_value_that_is_not_finite_is_never_the_best():
    rows = [{"epoch": 1, "val_accuracy": None}, {"epoch": 2, "val_accuracy": 0.5}]
    assert collect.best_row(rows, "val_accuracy", "max") == rows[1]
    assert collect.best_row(rows[:1], "val_accuracy", "max") is None
