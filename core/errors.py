"""Errors whose text is written for the person who runs a study."""


class UserError(ValueError):
    """Something the user gave (an option, a file, a cluster) cannot be used.

    The message is one sentence that names the file or option and says what to do. Command lines
    print it alone, without a traceback, and exit with code 2.
    """


class StorageError(UserError):
    """A result folder that cannot be written or read: a full disk, no rights, a damaged file."""


class TrialError(RuntimeError):
    """A trial cannot go on, and running it again unchanged would end the same way.

    The message is one sentence for the trials table. The engine records it and does not retry.
    """

    state = "failed"


class Diverged(TrialError):
    """The loss of a trial is no longer finite."""

    state = "diverged"


class OutOfMemory(TrialError):
    """A trial asked for more memory than its slot or the machine has."""
