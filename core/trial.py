"""What a trainable may ask of the engine: restore, save, report, keep predictions.

Called outside the engine (a test, a notebook), restoring finds nothing, saving keeps nothing and
`report` goes to Ray Tune, so that a trainable is a plain function of its config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from core import checkpoint, memory, mirror, numerics, process
from core.errors import DamagedError, StorageError, TrialError, printable
from core.stopping import plateau
from core.storage import read_json, remove, reserve, write_bytes, write_json, write_text

RESERVE = 1 << 16  # bytes set aside, so that a full disk still takes the record of the failure
Row = dict[str, Any]
Report = Callable[[Row], None]
B = TypeVar("B")


class Stateful(Protocol):
    """A part of a trial with a state: model, optimiser, schedule, scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take over such a state."""
        ...


@dataclass(frozen=True)
class Spec:
    """What a worker needs to know to run one trial of a study.

    Attributes:
        name: the trial's folder under `trials/`.
        config: settings of the trainable that make this trial what it is.
        private: settings that say where things are on this machine; used, never recorded.
        study: the study's result folder.
        metric: the reported metric that picks the best epoch.
        mode: "max" or "min".
        remote: the object store that mirrors the result folder, if any.
        patience: epochs without a better metric after which the trial ends; 0: never.
        shared: settings that all trials of the study take over so that each fits its slot.
    """

    name: str
    config: Mapping[str, Any]
    private: Mapping[str, Any]
    study: Path
    metric: str
    mode: str
    remote: mirror.Mirror | None = None
    patience: int = 0
    shared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return the trial's own folder."""
        return self.study / "trials" / self.name


@dataclass(frozen=True)
class Attempt:
    """One process's try at a trial, and what it may take there.

    Attributes:
        number: counted from 1; more than 1 after a lost process.
        threads: of torch on the CPU.
        memory: bytes that torch may allocate on the GPU; None for no cap.
        node: Ray's id of the node, shortened; empty without Ray.
        gpus: ids of the cards, as Ray gave them.
    """

    number: int = 1
    threads: int = 1
    memory: int | None = None
    node: str = ""
    gpus: tuple[str, ...] = ()


@dataclass
class Trial:
    """A running trial: its rows so far, and where they are kept."""

    spec: Spec
    forward: Report
    rows: list[Row] = field(default_factory=list)
    elapsed: float = 0.0  # seconds in earlier processes, of the epochs that are kept
    started: float = field(default_factory=time.monotonic)
    memory: int | None = None  # bytes that it may take on its GPU
    step_bytes: int | None = None  # that a step took in main memory, where there is no GPU
    facts: dict[str, Any] = field(default_factory=dict)
    told_to_stop: str = ""

    def report(self, row: Row) -> None:
        """Keep `row` and hand it on; a row of an epoch that is there already replaces it."""
        self.rows = [r for r in self.rows if r.get("epoch") != row.get("epoch", object())] + [row]
        write_json(self.spec.folder / "history.json", self.history())
        self.forward(row)

    def history(self) -> dict[str, Any]:
        """Return what `history.json` holds."""
        known = {"rows": self.rows, "seconds": self.seconds(), "facts": self.facts}
        return known | {"memory": self.peak_memory()}

    def peak_memory(self) -> dict[str, float | None]:
        """Return the most memory in MiB: on the GPU, or in tensors during a step on a CPU."""
        if self.step_bytes is None:
            return process.peak_memory()
        return process.UNKNOWN_MEMORY | {"peak_memory_mib": self.step_bytes / 2**20}

    def seconds(self) -> float:
        """Return the seconds spent on this trial, in this process and those before."""
        return self.elapsed + time.monotonic() - self.started

    def is_whole(self) -> bool:
        """Return whether the last epoch that the config asks for has been reported."""
        return bool(self.rows) and self.rows[-1]["epoch"] >= self.spec.config.get("epochs", 0) > 0

    def why_stop(self) -> str:
        """Return why the trial must end before its last epoch, or nothing."""
        spec = self.spec
        return self.told_to_stop or plateau(self.rows, spec.metric, spec.mode, spec.patience)

    def is_best(self, row: Row) -> bool:
        """Return whether `row` has the best metric so far (nan never is)."""
        value = row.get(self.spec.metric)
        if value is None or value != value:
            return False
        sign = 1 if self.spec.mode == "max" else -1
        earlier = [r[self.spec.metric] for r in self.rows if r.get("epoch") != row.get("epoch")]
        return all(sign * value > sign * other for other in earlier if other == other)


_current: ContextVar[Trial | None] = ContextVar("trial", default=None)


def report(row: Row) -> None:
    """Report one epoch's metrics; `epoch` counts from 1."""
    trial = _current.get()
    if trial is not None:
        trial.report(row)
    else:
        from ray import tune

        tune.report(row)


def stopped() -> bool:
    """Return whether the trial is to end here: its metric is on a plateau, or others are better."""
    trial = _current.get()
    return trial is not None and bool(trial.why_stop())


def stop(reason: str) -> None:
    """Have the running trial end after this epoch (for who schedules it in this process)."""
    trial = _current.get()
    if trial is not None:
        trial.told_to_stop = reason


def note(**facts: Any) -> None:
    """Keep facts about the trial for trials.csv, such as settings that were chosen for it."""
    trial = _current.get()
    if trial is not None:
        trial.facts.update(facts)


def restore(state: Mapping[str, Stateful]) -> int:
    """Load the newest whole checkpoint into the parts of `state`.

    Returns:
        The last epoch that is done, 0 for a new trial.
    """
    trial = _current.get()
    if trial is None:
        return 0
    content, damaged = checkpoint.load_newest(trial.spec.folder)
    for path in damaged:
        print(f"{trial.spec.name}: {path.name} is damaged, going back one epoch", flush=True)
        remove(path)
    if content is None:
        trial.rows, trial.elapsed = [], 0.0
        return 0
    for name, part in state.items():
        part.load_state_dict(content["state"][name])
    checkpoint.set_rng_state(content["rng"])
    trial.rows, trial.elapsed = content["rows"], content["seconds"]
    trial.step_bytes = content.get("step_bytes")
    earlier = json.loads(content.get("facts", "{}"))
    trial.facts = earlier | trial.facts
    trial.facts["numerics"] = _both(earlier.get("numerics", ""), trial.facts["numerics"])
    write_json(trial.spec.folder / "history.json", trial.history())
    return content["epoch"]


def _both(earlier: str, own: str) -> str:
    """Return under which numerics the epochs of earlier processes and this one's ran."""
    return earlier if own in earlier.split(", ") else ", ".join(filter(None, (earlier, own)))


def save(state: Mapping[str, Stateful], row: Row) -> None:
    """Checkpoint the parts of `state` after the epoch that `row` describes, before reporting it.

    Also keeps the weights of `state["model"]` as `best.pt` when `row` is the best so far.
    """
    trial = _current.get()
    if trial is None:
        return
    states = {name: part.state_dict() for name, part in state.items()}
    if trial.is_best(row) and "model" in states:
        buffer = io.BytesIO()
        torch.save({k: v.detach().cpu() for k, v in states["model"].items()}, buffer)
        write_bytes(trial.spec.folder / "best.pt", buffer.getvalue())
    kept = [r for r in trial.rows if r["epoch"] != row["epoch"]] + [row]
    content = {
        "epoch": row["epoch"],
        "rows": kept,
        "seconds": trial.seconds(),
        "step_bytes": trial.step_bytes,
        "facts": json.dumps(trial.facts),
        "rng": checkpoint.rng_state(),
        "state": states,
    }
    checkpoint.save(trial.spec.folder, row["epoch"], content)


def load_best(model: nn.Module) -> None:
    """Load the weights that `save` kept as `best.pt`; outside the engine they stay the last."""
    trial = _current.get()
    if trial is not None and (path := trial.spec.folder / "best.pt").is_file():
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


class Best:
    """The scores of the epoch whose weights are kept, through interruptions.

    It is part of what `save` checkpoints. Outside the engine the epoch is the last.

    Attributes:
        epoch: counted from 1; 0 before the first.
        scores: of that epoch, such as logits (N, C).
    """

    def __init__(self) -> None:
        self.epoch, self.scores = 0, torch.empty(0)
        self._sure = False  # whether an epoch had a metric; without any, the last one counts

    def add(self, row: Row, scores: Tensor | None = None) -> None:
        """Take the scores of the epoch that `row` describes if it is the best; before `save`."""
        trial = _current.get()
        better = trial is None or trial.is_best(row)
        if better or not self._sure:
            self.epoch, self._sure = row["epoch"], better
            self.scores = self.scores if scores is None else scores

    def named(self) -> dict[str, np.ndarray]:
        """Return the epoch as `save_predictions` takes it."""
        return {"epoch": np.array(self.epoch)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"epoch": self.epoch, "sure": self._sure, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.epoch, self._sure = state_dict["epoch"], state_dict["sure"]
        self.scores = state_dict["scores"]


def counted(batches: Iterable[B], *models: nn.Module) -> Iterable[B]:
    """Return the batches of an epoch; the first steps on a CPU tell the trial's peak memory."""
    trial = _current.get()
    if trial is None or trial.step_bytes is not None or torch.cuda.is_available():
        return batches

    def note(size: int) -> None:
        trial.step_bytes = size

    tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
    return memory.counted(batches, tensors, note)


def save_predictions(
    scores: np.ndarray,
    labels: np.ndarray,
    files: tuple[str, ...],
    classes: tuple[str, ...],
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Keep the raw scores from which the report's numbers can be computed again.

    Args:
        scores: (N, C) float32 logits.
        labels: (N,) int64, or (N, C) for several labels per image.
        files: N names relative to the data root, in the order of the rows.
        classes: C names.
        more: further arrays of the task, under their names; no objects.
    """
    trial = _current.get()
    if trial is None:
        return
    buffer = io.BytesIO()
    further: dict[str, Any] = dict(more or {})
    np.savez_compressed(
        buffer,
        **further,
        scores=np.asarray(scores, dtype=np.float32),
        labels=np.asarray(labels),
        files=np.array(files),
        classes=np.array(classes),
        config=np.array(json.dumps(dict(trial.spec.config), sort_keys=True)),
    )
    write_bytes(trial.spec.study / "predictions" / f"{trial.spec.name}.npz", buffer.getvalue())


def save_picture(name: str, epoch: int, png: bytes) -> None:
    """Keep a picture of an epoch in the trial's folder; TensorBoard shows it under `name`.

    Args:
        name: lower-case letters only.
        epoch: counted from 1; call before this epoch is reported.
        png: the bytes of a PNG file.
    """
    trial = _current.get()
    if trial is not None:
        write_bytes(trial.spec.folder / "pictures" / f"{name}-{epoch:05d}.png", png)


def run(
    trainable: Callable[..., None], spec: Spec, forward: Report, attempt: Attempt | None = None
) -> None:
    """Run one trial to its end and record how it ended in `result.json`.

    A trial that fails is recorded, not raised: its worker goes on to the next trial. Only the end
    of the process itself (killed, lost node) leaves no record, and the engine starts it again.

    Raises:
        StorageError: the result folder takes no record, not even of the failure.
    """
    attempt = attempt or Attempt()
    if spec.remote is not None:
        spec = _on_this_node(spec, spec.remote)
    spec.folder.mkdir(parents=True, exist_ok=True)
    # A worker that lost its driver may still be writing its last epoch: wait until it is gone.
    with FileLock(spec.folder / "lock", timeout=120):
        process.reset(int(spec.config.get("seed", 0)), attempt.threads, attempt.memory)
        # Its clock starts here: what a new worker loads is not its.
        trial = Trial(spec, forward, memory=attempt.memory)
        trial.facts["numerics"] = numerics.label(attempt.threads)
        token = _current.set(trial)
        try:
            with reserve(spec.folder / "reserve", RESERVE):
                write_json(spec.folder / "attempt.json", _attempt_record(attempt))
                state, error = _outcome(trainable, trial)
        except StorageError as e:
            state, error = "failed", str(e)
        finally:
            _current.reset(token)
        result = _result(trial, state, error, trial.peak_memory())
        process.release()
        if state in ("finished", "stopped"):
            with contextlib.suppress(StorageError):  # what stays there takes room, no more
                checkpoint.remove_all(spec.folder)
        write_json(spec.folder / "result.json", result)


def _outcome(trainable: Callable[..., None], trial: Trial) -> tuple[str, str]:
    """Run the trainable; return how it ended and, for a failure, the sentence for the table.

    Raises:
        StorageError: the result folder cannot be written.
    """
    spec = trial.spec
    try:
        trainable({**spec.config, **spec.shared, **spec.private}, report=trial.report)
    except StorageError:
        raise
    except TrialError as e:
        return e.state, str(e)
    except Exception as e:
        sentence = process.memory_sentence(e)
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


def _attempt_record(attempt: Attempt) -> dict[str, Any]:
    return {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "gpus": list(attempt.gpus),
        "node": attempt.node,
        "attempt": attempt.number,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return how the trial in `folder` ended, or None while it has not (or the file is damaged)."""
    return _recorded(folder / "result.json")


def read_attempt(folder: Path) -> dict[str, Any]:
    """Return where the trial in `folder` was begun last: host, pid, gpus; empty if nowhere."""
    return _recorded(folder / "attempt.json") or {}


def read_rows(folder: Path) -> list[Row]:
    """Return the rows reported so far by the trial in `folder`."""
    return (_recorded(folder / "history.json") or {"rows": []})["rows"]


def write_result(spec: Spec, state: str, error: str) -> None:
    """Record the end of a trial whose process could not do so itself."""
    known = _recorded(spec.folder / "history.json") or {"rows": [], "seconds": 0.0}
    trial = Trial(spec, lambda row: None, known["rows"], known["seconds"])
    trial.facts = known.get("facts", {})
    memory = process.UNKNOWN_MEMORY if state == "failed" else known.get("memory", {})
    write_json(spec.folder / "result.json", _result(trial, state, error, memory))
    if state == "stopped":
        with contextlib.suppress(StorageError):
            checkpoint.remove_all(spec.folder)


def _recorded(path: Path) -> dict[str, Any] | None:
    """Return a trial's JSON file; None if it is not there or damaged, which running it mends.

    Raises:
        StorageError: it cannot be read now; to run a trial again for that would lose its result.
    """
    try:
        content = read_json(path)
    except DamagedError:
        return None
    return content if isinstance(content, dict) else None


def _result(trial: Trial, state: str, error: str, memory: Mapping[str, Any]) -> dict[str, Any]:
    ended = {"state": state, "error": printable(error), "seconds": trial.seconds()}
    return ended | {"facts": trial.facts, **memory}


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
