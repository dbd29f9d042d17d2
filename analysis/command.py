"""What the commands on finished results do alike."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from core.errors import UserError
from core.output import patient_output

Options = TypeVar("Options")


@patient_output()
def run(
    act: Callable[[Options], object],
    options: type[Options],
    about: str | None,
    argv: Sequence[str] | None,
) -> int:
    """Act as `argv` says, by default the command line; return 0, or 2 after a UserError."""
    opts = tyro.cli(options, args=argv, description=about)
    try:
        act(opts)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0
