"""What tests call: the toy and other studies in this process, scripts and the toy in others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
TOY = ("tests/support/toy.py", "--results-dir")
METRICS = ["trial", "kind", "seed", "epoch", "val_accuracy", "train_loss"]


def toy(folder: Path, *arguments: str) -> int:
    """Run the toy study in this process; return its exit code."""
    from core.study.command import command_line
    from tests.support.toy import study

    return command_line(study, ["--local", "--results-dir", str(folder), *arguments])


def history(folder: Path) -> pd.DataFrame:
    """Return what the toy's trials reported, without times."""
    import pandas as pd  # which trials need not load

    return pd.read_csv(folder / "history.csv")[METRICS]


def python(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run this Python from the checkout's root and wait for it.

    Args:
        arguments: a script and what it is given, or "-c" and a program.
        options: of `subprocess.run`; `interpreter`, if not this one; names with a capital are
            variables of the environment.
    """
    options = {"capture_output": True, "timeout": 280} | options
    return subprocess.run(_command(arguments, options), **_options(options))


def start(*arguments: object, **options) -> subprocess.Popen:
    """Start this Python as `python` does, its two outputs in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests themselves run under nohup or behind `&`, these two are ignored.
    heard = ["env", "--default-signal=INT,HUP", *_command(arguments, options)]
    return subprocess.Popen(heard, **_options(pipes | options))


def _command(arguments: tuple[object, ...], options: dict) -> list[str]:
    return [options.pop("interpreter", sys.executable), *map(str, arguments)]


def _options(options: dict) -> dict:
    more = {name: options.pop(name) for name in list(options) if name[0].isupper()}
    environment = {"PYTHONPATH": str(ROOT)} | more
    return {"cwd": ROOT, "env": os.environ | environment, "text": True} | options


def refusal(call: Callable, *arguments: object, **options) -> str:
    """Return the sentence, of one line, with which a call refuses what a user gave."""
    import pytest  # which workers need not load

    from core.errors import UserError

    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def until(condition: Callable[[], object], seconds: float = 200) -> float:
    """Wait for a condition; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.05)
    return time.monotonic() - started
