"""TensorBoard: every trial's curves and pictures while it runs, and HParams with final metrics."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from core import trial


class Live:
    """Writes event files under `<study>/tensorboard/<trial>/`.

    Args:
        folder: the study's result folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writers: dict[str, SummaryWriter] = {}

    def row(self, name: str, config: dict[str, Any], row: dict[str, Any]) -> None:
        """Add one epoch's metrics to the trial's curves."""
        if name not in self.writers:
            self.writers[name] = self._fresh(name, row.get("epoch", 1))
        _add(self.writers[name], row)
        _add_pictures(self.writers[name], self.folder / "trials" / name, row)
        self.writers[name].flush()

    def ended(self, name: str, config: dict[str, Any], state: str, error: str) -> None:
        """Close the trial's file with its settings and final metrics."""
        rows = trial.read_rows(self.folder / "trials" / name)
        writer = self.writers.pop(name, None) or self._fresh(name, float("inf"))
        if rows:
            final = {k: v for k, v in rows[-1].items() if _is_number(v) and k != "epoch"}
            settings = {k: v if isinstance(v, bool | int | float | str) else str(v)
                        for k, v in config.items()}  # fmt: skip
            for summary in hparams(settings, final):
                assert writer.file_writer is not None  # made with the writer, until it is closed
                writer.file_writer.add_summary(summary)
        writer.close()

    def tick(self) -> None:
        """Nothing to do between rows."""

    def _fresh(self, name: str, before: float) -> SummaryWriter:
        """Start the trial's file anew, with the kept rows of the epochs before `before`."""
        path = self.folder / "tensorboard" / name
        shutil.rmtree(path, ignore_errors=True)
        writer = SummaryWriter(str(path))
        for row in trial.read_rows(self.folder / "trials" / name):
            if row.get("epoch", 0) < before:
                _add(writer, row)
                _add_pictures(writer, self.folder / "trials" / name, row)
        return writer


def _add(writer: SummaryWriter, row: dict[str, Any]) -> None:
    for key, value in row.items():
        if key != "epoch" and _is_number(value):
            writer.add_scalar(key, value, row.get("epoch"))


def _add_pictures(writer: SummaryWriter, folder: Path, row: dict[str, Any]) -> None:
    """Add the pictures that the trial kept of this epoch (see `core.trial.save_picture`)."""
    epoch = row.get("epoch", 0)
    for path in sorted((folder / "pictures").glob(f"*-{epoch:05d}.png")):
        with Image.open(path, formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        writer.add_image(path.stem.rpartition("-")[0], pixels, epoch, dataformats="HWC")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
