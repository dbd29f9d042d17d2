"""The command line of a study file: from its words to an exit code."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from core import instruction_set
from core.errors import UserError
from core.output import patient_output
from core.study import options
from core.study.declare import Study
from core.study.options import Options

UNUSABLE, INTERRUPTED = 2, 130
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later


def command_line(study: Study, argv: Sequence[str]) -> int:
    """Run `study` as `argv` says; return the exit code (see docs/studies.md)."""
    received = []

    def terminate(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
        raise KeyboardInterrupt

    # A batch system's time limit, a closed terminal; ignored ones stay so, as under `nohup`.
    both = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous = {number: before for number, before in both.items() if before is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, terminate)
    with patient_output():
        try:
            instruction_set.check()
            action, words = options.take_action(study, argv)
            opts = options.parse(study, words)
            if action:
                return _act(study, opts, action)
            from core.study.driver import run  # brings pandas, Optuna and TensorBoard's messages

            return run(study, opts, argv)
        except UserError as e:
            print(e, file=sys.stderr)
            return UNUSABLE
        except KeyboardInterrupt:
            again = shlex.join([f"studies/{study.name}.py", *argv])
            again += "" if "--resume" in argv else " --resume"
            print(
                f"\nstopped: nothing finished is lost; go on with: python {again}", file=sys.stderr
            )
            return RESUMABLE if received else INTERRUPTED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _act(study: Study, opts: Options, action: str) -> int:
    """Do something else than run the study."""
    from core.study.folder import private_settings

    settings = options.parse_settings(study, opts.set)
    private = {
        k: v for k, v in private_settings(study, opts, settings).items() if v not in (None, False)
    }
    return study.settings.actions[action]({**settings, **private}, opts.folder(study))
