"""What tests call: studies and trainables in this process, scripts and the toy in others."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from core.study import Study

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds for what takes one, beside other load a hundred
TOY = ("tests/support/toy.py", "--results-dir")
METRICS = ["trial", "kind", "seed", "epoch", "val_accuracy", "train_loss"]


def command(study: Study, results: Path | str, *arguments: object) -> int:
    """Run a study in this process; return its exit code."""
    from core.study.command import command_line

    return command_line(study, ["--local", "--results-dir", str(results), *map(str, arguments)])


def silent(study: Study) -> Study:
    """Return a study that does the same but writes no report, which takes seconds."""

    def nothing(folder: Path) -> None: ...

    search = study.search and dataclasses.replace(study.search, report=nothing)
    return dataclasses.replace(study, report=nothing, search=search)


def refusal(study: Study, results: Path | str, *arguments: object) -> str:
    """Return the one sentence with which a study refuses a command line, with exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert command(study, results, *arguments) == 2
    (sentence,) = told.getvalue().splitlines()
    return sentence


def toy(folder: Path | str, *arguments: str) -> int:
    """Run the toy study in this process; return its exit code."""
    from tests.support.toy import study

    return command(study, folder, *arguments)


def trained(trainable: Callable[..., None], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a trainable reports outside the engine, without times."""
    rows: list[dict[str, Any]] = []
    trainable(settings, report=rows.append)
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def history(folder: Path) -> pd.DataFrame:
    """Return what the toy's trials reported, without times."""
    return table(folder, "history")[METRICS]


def table(folder: Path, name: str = "trials", index: str | None = None) -> pd.DataFrame:
    """Read a table of a result folder."""
    import pandas as pd  # which trials need not load

    return pd.read_csv(folder / f"{name}.csv", index_col=index)


def assert_same_numbers(one: Path, other: Path, *without: str) -> None:
    """Compare what two result folders tell of their trials, bit by bit.

    Args:
        one: a result folder.
        other: another.
        without: parts of the names of columns that may differ, beside times.
    """
    import pandas as pd

    for name in ("history", "trials"):
        tables = [table(folder, name) for folder in (one, other)]
        left_out = [c for c in tables[0] if any(word in c for word in ("seconds", *without))]
        plain = [t.drop(columns=left_out) for t in tables]
        pd.testing.assert_frame_equal(*plain, check_exact=True)
    for path in (one / "predictions").iterdir():
        assert path.read_bytes() == (other / "predictions" / path.name).read_bytes(), path.name


def copied(folder: Path, results: Path, *kept: str) -> Path:
    """Copy a result folder below `results`, without what only reports make or trials need."""
    made = {"trials", "ray", "tensorboard", "tables", "figures", "samples", "report.*"}
    made |= {".private.json"}
    copy = results / folder.parent.name / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*(made - {*kept})))
    return copy


def python(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run this Python from the checkout's root and wait for it.

    Args:
        arguments: a script and what it is given, or "-c" and a program.
        options: of `subprocess.run`; `interpreter`, if not this one; names with a capital are
            variables of the environment.
    """
    options = {"capture_output": True, "timeout": PATIENCE} | options
    return subprocess.run(_command(arguments, options), **_options(options))


def start(*arguments: object, **options) -> subprocess.Popen:
    """Start this Python as `python` does, its two outputs in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests themselves run under nohup or behind `&`, these two are ignored.
    heard = ["env", "--default-signal=INT,HUP", *_command(arguments, options)]
    return subprocess.Popen(heard, **_options(pipes | options))


def copied_process(call: Callable[..., object], *arguments: object, **variables: str) -> int:
    """Run a call in a copy of this process, which has loaded all; return the copy's number.

    The copy ends with the exit code that the call returns; `variables` are of its environment.
    """
    if number := os.fork():
        return number
    try:
        os.environ.update(variables)
        os._exit(int(call(*arguments)))
    finally:
        os._exit(3)  # whatever was raised: the tests go on in the other process alone


def exit_code(number: int) -> int:
    """Wait for the end of a copied process; return its exit code, or less than 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _command(arguments: tuple[object, ...], options: dict) -> list[str]:
    return [options.pop("interpreter", sys.executable), *map(str, arguments)]


def _options(options: dict) -> dict:
    more = {name: options.pop(name) for name in list(options) if name[0].isupper()}
    environment = {"PYTHONPATH": str(ROOT)} | more
    return {"cwd": ROOT, "env": os.environ | environment, "text": True} | options


def error_of(call: Callable, *arguments: object, **options) -> str:
    """Return the sentence, of one line, with which a call refuses what a user gave."""
    import pytest  # which workers need not load

    from core.errors import UserError

    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Wait for a condition; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.05)
    return time.monotonic() - started
