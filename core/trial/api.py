"""What a trainable may ask of the engine: its epochs, to note facts, to keep predictions.

Called outside the engine (a test, a notebook), restoring finds nothing, saving keeps nothing and
`report` goes to Ray Tune, so that a trainable is a plain function of its config.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.storage.files import remove, write_bytes, write_json
from core.trial import checkpoint
from core.trial.running import Report, Row, Stateful, current


def epochs(
    state: Mapping[str, Stateful], count: int, reporter: Report | None = None
) -> Iterator[Row]:
    """Restore `state`; yield a row for each epoch that is left, to be filled in place.

    When the body of the loop is through, the row gets the `seconds` that it took, `state` is saved
    and the row is reported.

    Args:
        state: the parts of a trial; restored when this is called, before the first epoch.
        count: epochs of the whole trial; fewer come of one that is to end early.
        reporter: gets the rows; none: `report`.

    Yields:
        A dict with `epoch`, counted from 1.
    """
    return _epochs(state, range(restore(state) + 1, count + 1), reporter or report)


def _epochs(state: Mapping[str, Stateful], left: range, reporter: Report) -> Iterator[Row]:
    for epoch in left:
        if stopped():
            return
        start = time.monotonic()
        row: Row = {"epoch": epoch}
        yield row
        row["seconds"] = time.monotonic() - start
        save(state, row)
        reporter(row)


def report(row: Row) -> None:
    """Report one epoch's metrics; `epoch` counts from 1."""
    if trial := current.get():
        trial.report(row)
    elif tune := sys.modules.get("ray.tune"):  # loaded where Tune itself calls the trainable
        tune.report(row)


def stopped() -> bool:
    """Return whether the trial is to end here: its metric is on a plateau, or others are better."""
    trial = current.get()
    return trial is not None and bool(trial.why_stop())


def stop(reason: str) -> None:
    """Have the running trial end after this epoch (for who schedules it in this process)."""
    if trial := current.get():
        trial.told_to_stop = reason


def note(**facts: Any) -> None:
    """Keep facts about the trial for trials.csv, such as settings that were chosen for it."""
    if trial := current.get():
        trial.facts.update(facts)


def restore(state: Mapping[str, Stateful]) -> int:
    """Load the newest whole checkpoint into `state`; return its epoch, 0 for a new trial."""
    trial = current.get()
    if trial is None:
        return 0
    content, damaged = checkpoint.load_newest(trial.spec.folder)
    for path in damaged:
        print(f"{trial.spec.name}: {path.name} is damaged, going back one epoch", flush=True)
        remove(path)
    if content is None:
        return 0
    for name, part in state.items():
        part.load_state_dict(content["state"][name])
    checkpoint.set_rng_state(content["rng"])
    trial.rows, trial.elapsed = content["rows"], content["seconds"]
    trial.step_bytes = content.get("step_bytes")
    earlier = json.loads(content.get("facts", "{}"))
    both = _both(earlier.get("numerics", ""), trial.facts["numerics"])
    trial.facts = earlier | trial.facts | {"numerics": both}
    write_json(trial.spec.folder / "history.json", trial.history())
    return content["epoch"]


def _both(earlier: str, own: str) -> str:
    """Return under which numerics the epochs of earlier processes and this one's ran."""
    return earlier if own in earlier.split(", ") else ", ".join(filter(None, (earlier, own)))


def save(state: Mapping[str, Stateful], row: Row) -> None:
    """Checkpoint the parts of `state` after the epoch that `row` describes, before reporting it.

    Also keeps the weights of `state["model"]` as `best.pt` when `row` is the best so far.
    """
    trial = current.get()
    if trial is None:
        return
    states = {name: part.state_dict() for name, part in state.items()}
    if trial.is_best(row) and "model" in states:
        buffer = io.BytesIO()
        torch.save({k: v.detach().cpu() for k, v in states["model"].items()}, buffer)
        write_bytes(trial.spec.folder / "best.pt", buffer.getvalue())
    content = {
        "epoch": row["epoch"],
        "rows": [r for r in trial.rows if r["epoch"] != row["epoch"]] + [row],
        "seconds": trial.seconds(),
        "step_bytes": trial.step_bytes,
        "facts": json.dumps(trial.facts),
        "rng": checkpoint.rng_state(),
        "state": states,
    }
    checkpoint.save(trial.spec.folder, row["epoch"], content)


def load_best(model: nn.Module) -> None:
    """Load the weights that `save` kept as `best.pt`; outside the engine they stay the last."""
    trial = current.get()
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
        trial = current.get()
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


def step_counter() -> Callable[[int], None] | None:
    """Return what notes the bytes of a step; None on a GPU, which counts itself, or when known."""
    trial = current.get()
    if trial is None or trial.step_bytes is not None or torch.cuda.is_available():
        return None
    return functools.partial(setattr, trial, "step_bytes")


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
    trial = current.get()
    if trial is None:
        return
    arrays: dict[str, Any] = {
        **(more or {}),
        "scores": np.asarray(scores, dtype=np.float32),
        "labels": np.asarray(labels),
        "files": np.array(files),
        "classes": np.array(classes),
        "config": np.array(json.dumps(dict(trial.spec.config), sort_keys=True)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(trial.spec.study / "predictions" / f"{trial.spec.name}.npz", buffer.getvalue())


def save_picture(name: str, epoch: int, png: bytes) -> None:
    """Keep a picture of an epoch in the trial's folder; TensorBoard shows it under `name`.

    Args:
        name: lower-case letters only.
        epoch: counted from 1; call before this epoch is reported.
        png: the bytes of a PNG file.
    """
    if trial := current.get():
        write_bytes(trial.spec.folder / "pictures" / f"{name}-{epoch:05d}.png", png)
