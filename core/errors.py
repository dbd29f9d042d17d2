"""Errors whose text is written for the person who runs a study."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Sequence

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError for want of room
# What moves the cursor, colours the terminal, turns the direction of writing or is no character.
_UNSHOWN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def printable(text: object) -> str:
    r"""Return a text that does nothing to a terminal or page but stand there.

    Names and messages come from files and libraries: a control character in them is shown as
    `\x1b`. Line feeds stay.
    """
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], str(text))


class UserError(ValueError):
    """Something the user gave (an option, a file, a cluster) cannot be used.

    The message is one sentence that names the file or option and says what to do. Command lines
    print it alone, without a traceback, and exit with code 2.
    """

    def __str__(self) -> str:
        return printable(super().__str__())  # it names files and quotes what they hold


class StorageError(UserError):
    """A result folder that cannot be written or read: a full disk, no rights, a damaged file."""


class DamagedError(StorageError):
    """A file that is missing or holds something else than was written there."""


class TrialError(RuntimeError):
    """A trial cannot go on, and running it again unchanged would end the same way.

    The message is one sentence for the trials table. The engine records it and does not retry.
    """

    state = "failed"


class Diverged(TrialError):
    """The loss of a trial is no longer finite."""

    state = "diverged"


@contextlib.contextmanager
def refused(say: Callable[[OSError], UserError]) -> Iterator[None]:
    """Raise in place of an OSError inside what `say` makes of it."""
    try:
        yield
    except OSError as e:
        raise say(e) from e


def some(names: Sequence[str], most: int = 10) -> str:
    """Join the first names and count the rest; undecodable bytes become escapes."""
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in names[:most]]
    rest = len(names) - most
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")
