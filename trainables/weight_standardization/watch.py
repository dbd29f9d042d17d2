"""What happens in the layers in the first steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.layers import pairing
from core.training.multilabel import Loss

# What is watched, per step and norm.
WATCHED = ("activation", "gradient", "weight", "bias")


class Watch:
    """What happens in the layers in the first steps, and the loss of every step.

    Per step and norm: `activation`, the standard deviation of the norm's output over the batch and
    the pixels, mean over channels; `gradient`, the L2 norm of the gradient of its convolution's
    weight; `weight` and `bias`, the mean absolute value of the norm's own, before the step. It
    goes through checkpoints.

    Args:
        model: its convolutions are paired with its norms (`core.layers.pairing`).
        loss: that of training; `self.loss` is the same and takes notes.
        steps: how many are watched in full.
    """

    def __init__(self, model: nn.Module, loss: Loss, steps: int):
        self._loss, self._steps = loss, steps
        self.losses: list[float] = []
        pairs = pairing.pairs(model).pairs
        self.layers = [pair.norm for pair in pairs]
        self.values = {name: np.full((steps, len(pairs)), np.nan, np.float32) for name in WATCHED}
        for place, pair in enumerate(pairs):
            norm, conv = model.get_submodule(pair.norm), model.get_submodule(pair.conv)
            norm.register_forward_hook(self._after_norm(place))
            conv.get_parameter("weight").register_post_accumulate_grad_hook(self._gradient(place))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of the pairs (B, C); in training note the mean of those that count."""
        each = self._loss(logits, labels)
        if not torch.is_inference_mode_enabled():
            counted = labels != 0
            mean = (each.detach() * counted).sum() / counted.sum().clamp(min=1)
            self.losses.append(float(mean))
        return each

    def arrays(self) -> dict[str, np.ndarray]:
        """Return `watch_layers` (L,), `watch_loss` (steps,) and `watch_<what>` (watched, L)."""
        watched = {f"watch_{name}": values for name, values in self.values.items()}
        losses = np.array(self.losses, np.float64)
        return {"watch_layers": np.array(self.layers), "watch_loss": losses, **watched}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        values = {name: torch.from_numpy(v.copy()) for name, v in self.values.items()}
        return {"losses": list(self.losses), "values": values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.losses = list(state_dict["losses"])
        self.values = {name: v.numpy().copy() for name, v in state_dict["values"].items()}

    def _after_norm(self, place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            step = len(self.losses)  # the loss of this step comes after it
            if module.training and step < self._steps:
                spread = output.detach().float().std(dim=(0, 2, 3)).mean()
                self.values["activation"][step, place] = float(spread)
                for name in ("weight", "bias"):
                    size = module.get_parameter(name).detach().abs().mean()
                    self.values[name][step, place] = float(size)

        return hook

    def _gradient(self, place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            step = len(self.losses) - 1  # the loss of this step was before it
            if 0 <= step < self._steps and parameter.grad is not None:
                self.values["gradient"][step, place] = float(parameter.grad.float().norm())

        return hook
