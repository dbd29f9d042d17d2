"""What needs torch or reads the data, in a process of its own that ends before the first trial.

The driver lives as long as the study and trains nothing: without torch it starts at once, and
takes 400 MB less, and nothing of a card's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import core.cluster  # noqa: F401 - what Ray reads when it is imported
from core.errors import UserError

# With the driver's folders of modules, and not the folder it was started in, or its `core` wins.
START = "import sys; sys.path[:] = sys.argv[2:]; from core.study.apart import serve; serve()"
SETTLE = 10.0  # seconds in which it may tidy up when it is told to end


class Here:
    """Calls functions in this process, for `--local`."""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns."""
        return function(*arguments)

    def close(self) -> None:
        """Nothing to end."""


class Apart:
    """Calls functions in another process of this interpreter, which prints where this one does.

    It is in a process group of its own: an interrupt from the terminal reaches the driver alone,
    which then ends it by `close`.
    """

    def __init__(self) -> None:
        self._link, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-c", START, str(number), *sys.path]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[number], process_group=0
            )

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns, or raise what it raises.

        Raises UserError: the process has died.
        """
        from ray import cloudpickle  # also takes functions that have no name elsewhere

        sys.stdout.flush()
        try:
            self._link.send_bytes(cloudpickle.dumps((function, arguments)))
            value, error = self._link.recv()
        except (EOFError, ConnectionError) as e:
            code = self._process.wait()
            raise UserError(
                f"the process that reads the data died (exit code {code}): with -9 the machine"
                " ran out of main memory; close other programs, or use fewer or smaller images"
            ) from e
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.terminate()
        try:
            self._process.wait(SETTLE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._link.close()


def serve() -> None:
    """Call what the driver sends until it sends no more."""
    from core.output import patient_output  # not before the paths are the driver's

    driver, link = os.getppid(), Connection(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # what is half done is tidied up
    threading.Thread(target=_end_without, args=(driver,), daemon=True).start()
    with contextlib.suppress(EOFError, SystemExit), patient_output():
        while True:
            function, arguments = link.recv()
            link.send(_answer(function, arguments))
    os._exit(0)  # torch's own farewell takes seconds


def _answer(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """Return what a function returns, or what it raises."""
    try:
        return function(*arguments), None
    except Exception as e:
        if not isinstance(e, UserError):  # a bug: where it is
            e.add_note(traceback.format_exc())
        return None, e
    finally:
        sys.stdout.flush()


def _end_without(driver: int) -> None:
    """End with the driver, should that be killed while it waits."""
    while os.getppid() == driver:
        time.sleep(1)
    os._exit(1)
