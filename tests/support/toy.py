"""A study with the smallest real training there is: it makes faults quick to provoke.

python tests/support/toy.py --set epochs=3 pause=0.1

As those of the other studies, its driver does without torch, which takes seconds to load.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import trial
from core.errors import Diverged, TrialError, UserError
from core.study import Data, Part, Range, Scale, Search, Study, main
from core.trial import running
from tests.support.calls import until

Kind = Literal["train", "raise", "diverge", "refuse", "die", "die-once", "oom", "hoard", "gather",
               "fill", "eat"]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of one trial.

    Attributes:
        kind: what happens: train, or one of the ways to end early.
        seed: of weights and data.
        epochs: passes.
        pause: seconds to wait in each epoch.
        hold: epoch before which it waits for TOY_GO/<seed> or TOY_GO/all; 0: none.
        lr: learning rate.
        data_dir: not used.
    """

    kind: Kind = "train"
    seed: int = 0
    epochs: int = 4
    pause: float = 0.0
    hold: int = 0
    lr: float = 0.1
    data_dir: str | None = None

    def __post_init__(self):
        if self.epochs < 1:
            raise UserError(f"--set epochs={self.epochs}: epochs must be at least 1")


def train_toy(config: dict[str, Any], report: trial.Report | None = None) -> None:
    """Fit a line by SGD with dropout (so that the random state matters); report its loss."""
    import torch
    from torch import nn

    cfg = Config(**config)
    if "TOY_FAULT" in os.environ:
        from tests.support import faults

        faults.arm(Path(os.environ["TOY_FAULT"]))
    torch.manual_seed(cfg.seed)
    x = torch.randn(64, 8)
    y = x.sum(1, keepdim=True)
    if cfg.kind == "gather":
        gather(cfg)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), cfg.lr, momentum=0.9)
    state = {"model": model, "optimizer": optimizer}
    for epoch in range(trial.restore(state) + 1, cfg.epochs + 1):
        if trial.stopped():
            break
        if epoch == cfg.hold:
            go = Path(os.environ["TOY_GO"])
            until(lambda go=go: (go / "all").exists() or (go / f"{cfg.seed}").exists())
        loss = nn.functional.mse_loss(model(x + torch.randn_like(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(cfg.pause)
        if epoch == 2:
            misbehave(cfg)
        row = {"epoch": epoch, "val_accuracy": 1 / (1 + loss.item()), "train_loss": loss.item()}
        trial.save(state, row)
        current = running.current.get()
        if current and os.environ.get("TOY_KILL") == f"{current.spec.name}:{epoch}":
            os.kill(os.getpid(), 9)
        (report or trial.report)(row)
    if cfg.kind == "gather":
        (Path(os.environ["TOY_MARKER"]) / f"{cfg.seed}-gone").touch()


def misbehave(cfg: Config) -> None:
    """End the trial in the way that `kind` names."""
    import torch

    if cfg.kind == "raise":
        raise KeyError("a bug")
    if cfg.kind == "diverge":
        raise Diverged("the loss is nan at epoch 2, step 1 (lr 0.1)")
    if cfg.kind == "refuse":
        raise TrialError("needs more than it may take: lower batch_size")
    if cfg.kind == "oom":  # what torch raises on a GPU whose cap is reached
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has")
    if cfg.kind == "hoard":  # more than any machine has
        torch.empty(2**50, dtype=torch.uint8)
    if cfg.kind == "eat":  # until the system's or Ray's guard of main memory ends the process
        eaten = []
        while len(eaten) < 64:
            eaten.append(torch.ones(2**25))
            time.sleep(0.05)
        time.sleep(20)
    if cfg.kind == "die":
        os.kill(os.getpid(), 9)
    if cfg.kind == "fill":
        fill(Path(os.environ["TOY_FILL"]))
    marker = Path(os.environ.get("TOY_MARKER", "/nonexistent"))
    if cfg.kind == "die-once" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)


def fill(path: Path) -> None:
    """Leave no byte free on the disk of `path`."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def gather(cfg: Config) -> None:
    """Wait until as many trials as TOY_GATHER names run at once, as they do from then on."""
    place = Path(os.environ["TOY_MARKER"])
    place.mkdir(exist_ok=True)
    (place / f"{cfg.seed}-came").touch()
    until(lambda: len(list(place.glob("*-came"))) >= int(os.environ["TOY_GATHER"]))


def write_report(folder: Path) -> None:
    """Write the names of the trials."""
    (folder / "report.html").write_text((folder / "trials.csv").read_text())


study = Study(
    name="toy",
    question="Does the engine keep its promises?",
    trainable=train_toy,
    config=Config,
    parts={"main": Part(grid={"kind": ["train"]})},
    scales={"demo": Scale(seeds=3), "full": Scale(seeds=3), "smoke": Scale(seeds=1)},
    metric="val_accuracy",
    mode="max",
    data=Data(prepare=lambda settings: {"kind": "synthetic", "fingerprint": "toy"}),
    search=Search({"lr": Range(1e-3, 0.3, log=True)}),
    report=write_report,
)

if __name__ == "__main__":
    from tests.support.toy import study as importable  # workers find its functions by name

    main(importable)
