"""The trial that this process runs: what it is told, what it has reported, where that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.storage import mirror
from core.storage.files import write_json
from core.trial.stopping import plateau

Row = dict[str, Any]
Report = Callable[[Row], None]
UNKNOWN_MEMORY: dict[str, float | None] = {"peak_memory_mib": None, "peak_allocated_mib": None}


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
        """Return the most memory in MiB: on the GPU, or in tensors during a step on a CPU.

        `peak_memory_mib` is what torch reserved on the GPU since `worker.reset`,
        `peak_allocated_mib` what its tensors took. On a CPU the trial counts its own
        (`core.models.memory.counted`): a process keeps what trials before it took.
        """
        if self.step_bytes is not None:
            return UNKNOWN_MEMORY | {"peak_memory_mib": self.step_bytes / 2**20}
        import torch  # here, as who only reads records does without

        if not torch.cuda.is_available():
            return dict(UNKNOWN_MEMORY)
        return {
            "peak_memory_mib": torch.cuda.max_memory_reserved() / 2**20,
            "peak_allocated_mib": torch.cuda.max_memory_allocated() / 2**20,
        }

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


current: ContextVar[Trial | None] = ContextVar("trial", default=None)
