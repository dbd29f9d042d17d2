"""One trial, from its first line to the record of how it ended."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable

from filelock import FileLock

from core import numerics
from core.errors import StorageError, TrialError
from core.later import Later
from core.storage import mirror
from core.storage.files import reserve, write_json, write_text
from core.trial import worker
from core.trial.records import attempt_record, ended, remove_checkpoints
from core.trial.running import Attempt, Report, Spec, Trial, current

RESERVE = 1 << 16  # bytes set aside, so that a full disk still takes the record of the failure


def run(
    trainable: Callable[..., None], spec: Spec, forward: Report, attempt: Attempt | None = None
) -> None:
    """Run one trial to its end and record how it ended in `result.json`.

    A trial that fails is recorded, not raised: its worker goes on to the next trial. Only the end
    of the process itself (killed, lost node) leaves no record, and the engine starts it again.
    Raises StorageError: the result folder takes no record, not even of the failure.
    """
    attempt = attempt or Attempt()
    if spec.remote is not None:
        spec = _on_this_node(spec, spec.remote)
    spec.folder.mkdir(parents=True, exist_ok=True)
    # A worker that lost its driver may still be writing its last epoch: wait until it is gone.
    with FileLock(spec.folder / "lock", timeout=120):
        worker.reset(int(spec.config.get("seed", 0)), attempt.threads, attempt.memory)
        if isinstance(trainable, Later):
            trainable.load()
        # Its clock starts here: what a new worker loads is not its.
        trial = Trial(spec, forward, memory=attempt.memory)
        trial.facts["numerics"] = numerics.label(attempt.threads)
        state, error = _attempted(trainable, trial, attempt)
        result = ended(trial, state, error, trial.peak_memory())
        worker.release()
        if state in ("finished", "stopped"):
            remove_checkpoints(spec.folder)
        write_json(spec.folder / "result.json", result)


def _attempted(trainable: Callable[..., None], trial: Trial, attempt: Attempt) -> tuple[str, str]:
    """Run the trainable on a trial whose folder says so; return how it ended, see `_outcome`."""
    folder, token = trial.spec.folder, current.set(trial)
    try:
        with reserve(folder / "reserve", RESERVE):
            write_json(folder / "attempt.json", attempt_record(attempt))
            return _outcome(trainable, trial)
    except StorageError as e:
        return "failed", str(e)
    finally:
        current.reset(token)


def _outcome(trainable: Callable[..., None], trial: Trial) -> tuple[str, str]:
    """Run the trainable; return how it ended and, for a failure, the sentence for the table."""
    spec = trial.spec
    try:
        trainable({**spec.config, **spec.shared, **spec.private}, report=trial.report)
    except StorageError:
        raise
    except TrialError as e:
        return e.state, str(e)
    except Exception as e:
        sentence = worker.memory_sentence(e)
        write_text(spec.folder / "error.txt", traceback.format_exc())
        return "failed", sentence or _sentence(e)
    reason = trial.why_stop()
    return ("stopped", reason) if reason and not trial.is_whole() else ("finished", "")


def _on_this_node(spec: Spec, remote: mirror.Mirror) -> Spec:
    """Fetch what other nodes wrote of a trial, and send what this one writes."""
    if mirror.of(spec.study / "study.json") is None and mirror.of(remote.local / "x") is None:
        mirror.attach(remote)
    remote.pull(f"trials/{spec.name}")
    return dataclasses.replace(spec, study=remote.local)


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
