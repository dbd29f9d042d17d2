"""TensorBoard: every trial's curves and pictures while it runs, and a table of what is compared.

Written with TensorBoard's own messages, which need no torch: a driver that trains nothing should
not load it. HParams shows the compared settings and the study's metric, at the last epoch and at
its best, and nothing else; what all trials share stands in a text.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from core.cluster.work import Listener
from core.trial import records

SPLITS = ("train", "val", "test")  # metrics are named after them, as in val_accuracy
ABOUT = "study"  # the run that holds what is no trial's own
ENDED = {"finished": api_pb2.STATUS_SUCCESS, "stopped": api_pb2.STATUS_SUCCESS}


class Live(Listener):
    """Writes event files under `<study>/tensorboard/<trial>/` as epochs end.

    TensorBoard is for looking: where its files cannot be written, one line says so and the study
    goes on without.

    Args:
        folder: the study's result folder.
        declared: what `study.json` says of the study, of each trial before its first epoch.
        announce: prints a line.
    """

    def __init__(
        self, folder: Path, declared: Mapping[str, Any], announce: Callable[[str], None] = print
    ):
        self.folder, self.declared, self.announce = folder, declared, announce
        self.metric, self.mode = declared["metric"], declared["mode"]
        self.compared = compared(declared)
        self._writers: dict[str, EventFileWriter] = {}
        self._best: dict[str, float] = {}
        self._broken = False
        self._try(self._describe)

    def row(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one epoch's metrics and pictures to the trial's run."""
        self._try(self._row, name, row)

    def ended(self, name: str, state: str, error: str) -> None:
        """Close the trial's run with how it ended."""
        self._try(self._end, name, state)

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write, or give up writing with a word at the first write that fails."""
        try:
            if not self._broken:
                write(*arguments)
        except OSError as e:
            self._broken = True
            self.announce(
                f"TensorBoard's files in {self.folder / 'tensorboard'} cannot be written"
                f" ({e.strerror or e}): the study goes on without them"
            )

    def _row(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._writers:
            self._begin(name, row.get("epoch", 1))
        self._add(name, row)
        self._writers[name].flush()

    def _end(self, name: str, state: str) -> None:
        if name not in self._writers:
            self._begin(name, float("inf"))
        status = ENDED.get(state, api_pb2.STATUS_FAILURE)
        ended = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        content = plugin_data_pb2.HParamsPluginData(session_end_info=ended)
        metadata = hparams_metadata.create_summary_metadata(content)
        value = Summary.Value(
            tag=hparams_metadata.SESSION_END_INFO_TAG,
            metadata=metadata,
            tensor=hparams_metadata.NULL_TENSOR,
        )
        writer = self._writers.pop(name)
        self._best.pop(name, None)
        _write(writer, Summary(value=[value]))
        writer.close()

    def _describe(self) -> None:
        """Tell HParams its columns, and keep the settings that all trials share as a text."""
        last, best = tag(self.metric), tag(self.metric, best=True)
        columns = hparams.hparams_config_pb(
            hparams=[
                # The values among which the page filters must be of one type.
                hparams.HParam(key, hparams.Discrete([_plain(v, vs) for v in vs]) if vs else None)
                for key, vs in self.compared.items()
            ],
            metrics=[
                hparams.Metric(last, display_name=f"{self.metric} (last)"),
                hparams.Metric(best, display_name=f"{self.metric} (best)"),
            ],
        )
        shared = self.declared.get("constants", {}).items()
        lines = [f"| {key} | {value} |" for key, value in shared if key not in self.compared]
        text = "\n".join(["| setting | value |", "| --- | --- |", *lines])
        writer = self._fresh(ABOUT)
        _write(writer, columns)
        _write(writer, text_pb("settings/the same in all trials", text))
        writer.close()

    def _begin(self, name: str, before: float) -> None:
        """Start the trial's run anew, with the kept epochs before `before`."""
        writer = self._writers[name] = self._fresh(name)
        planned = next(t for t in self.declared["trials"] if t["trial"] == name)
        settings = {"part": planned["part"], **planned["config"]}
        varied = {key: _plain(settings.get(key), v) for key, v in self.compared.items()}
        _write(writer, hparams.hparams_pb(varied, trial_id=name))
        for row in records.read_rows(self.folder / "trials" / name):
            if row.get("epoch", 0) < before:
                self._add(name, row)

    def _fresh(self, name: str) -> EventFileWriter:
        path = self.folder / "tensorboard" / name
        shutil.rmtree(path, ignore_errors=True)
        return EventFileWriter(str(path))

    def _add(self, name: str, row: Mapping[str, Any]) -> None:
        epoch = row.get("epoch", 0)
        numbers = {tag(key): v for key, v in row.items() if key != "epoch" and _is_number(v)}
        value = row.get(self.metric)
        if value is not None and value == value:
            better = max if self.mode == "max" else min
            self._best[name] = better(value, self._best.get(name, value))
        if name in self._best:
            numbers[tag(self.metric, best=True)] = self._best[name]
        values = [Summary.Value(tag=key, simple_value=v) for key, v in numbers.items()]
        pictures = (self.folder / "trials" / name / "pictures").glob(f"*-{epoch:05d}.png")
        values += [_picture(path) for path in sorted(pictures)]
        _write(self._writers[name], Summary(value=values), epoch)


def compared(declared: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what the trials of a `study.json` are compared by, each with its values.

    The part, where there are several, and every setting that varies within one; of a search every
    setting that it varies, with no values, as they are not known beforehand.
    """
    if "search" in declared:
        return {key: [] for key in declared["search"]["space"]}
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for planned in declared["trials"]:
        parts.setdefault(planned["part"], []).append(planned["config"])
    found: dict[str, list[Any]] = {"part": list(parts)} if len(parts) > 1 else {}
    for configs in parts.values():
        for key in configs[0]:  # 1 and True are equal, and no setting has both
            if key not in found and len({config[key] for config in configs}) > 1:
                # With the values of the other parts, or HParams' filter would leave them out.
                found[key] = list(dict.fromkeys(t["config"][key] for t in declared["trials"]))
    return found


def tag(metric: str, *, best: bool = False) -> str:
    """Return a metric's tag; what stands before its `/` is a section of TensorBoard's page.

    `val_accuracy` becomes `val/accuracy`, `seconds` (of an epoch) `time/epoch`, a learning rate
    `train/lr`, and anything else `metrics/...`; the best so far has `_best` at its end.
    """
    group, _, rest = metric.partition("_")
    name = f"metrics/{metric}"
    if metric == "seconds":
        name = "time/epoch"
    elif metric == "lr" or metric.endswith("_lr"):
        name = f"train/{metric}"
    elif metric.endswith("_seconds"):
        name = f"time/{metric.removesuffix('_seconds')}"
    elif rest and group in SPLITS:
        name = f"{group}/{rest}"
    return name + "_best" * best


def _plain(value: Any, among: Sequence[Any]) -> bool | float | str:
    """Return a value as HParams takes it: as text, unless all it is compared with are numbers."""
    kind = bool if all(isinstance(v, bool) for v in [value, *among]) else float
    numbers = all(isinstance(v, bool) or _is_number(v) for v in [value, *among])
    return kind(value) if numbers else "none" if value is None else str(value)


def _picture(path: Path) -> Summary.Value:
    """Return a picture that the trial kept of an epoch (see `core.trial.save_picture`)."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        width, height = picture.size
    kept = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary.Value(tag=path.stem.rpartition("-")[0], image=kept)


def _write(writer: EventFileWriter, summary: Summary, step: int = 0) -> None:
    writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
