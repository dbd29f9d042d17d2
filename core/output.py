"""Output that ends nothing: what a reader, a full disk or an encoding does not take is left out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from core.errors import FULL

PLAIN = str.maketrans(
    {"−": "-", "–": "-", "…": "...", "±": "+-", "×": "x", "’": "'", "“": '"', "”": '"'}
)


class Patient:
    """A text stream that ends nothing: what cannot be written is left out.

    Its reader may have left (`| head`), its terminal have closed, its disk be full, its encoding
    lack a sign.

    Args:
        stream: the stream, such as `sys.stdout`.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # signs that the encoding lacks, as with LANG=C
            encoding = self._stream.encoding
            self.write(text.translate(PLAIN).encode(encoding, "replace").decode(encoding))
        except OSError as e:
            self._drop(e)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self._stream.flush()
        except OSError as e:
            self._drop(e)

    def settle(self) -> None:
        """Flush for the last time; what is left would end the interpreter with an error."""
        try:
            self._stream.flush()
        except OSError:
            self._close()

    def _drop(self, error: OSError) -> None:
        if error.errno not in FULL:  # there may be room again later
            self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Let nothing that happens to standard output or error end what runs inside."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file opened would get what is written to it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    streams = [Patient(s or open(os.devnull, "w")) for s in (sys.stdout, sys.stderr)]  # noqa: SIM115
    out, err = (cast(TextIO, stream) for stream in streams)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for stream in streams:
            stream.settle()
