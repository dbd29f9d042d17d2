"""The 6n+2 residual network for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.layers.norms import NORMS, frozen_statistics
from core.models.weights import fill, load_state

WIDTHS = (16, 32, 64)  # filters of the three stages


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by its norm, and a parameter-free shortcut.

    Where the width doubles, the shortcut takes every second pixel and pads the new channels with
    zeros (option A of the paper). The zeros are put half before and half after, as in the public
    CIFAR weights that `load_weights` reads. The stride is 2 where `c_out` differs from `c_in`;
    `norm` is a key of `core.layers.norms.NORMS`.
    """

    def __init__(self, c_in: int, c_out: int, norm: str):
        super().__init__()
        self.recompute = False
        self.stride = 1 if c_in == c_out else 2
        self.padding = (c_out - c_in) // 2
        self.conv1 = _conv(c_in, c_out, self.stride, norm)
        self.norm1 = NORMS[norm](c_out)
        self.conv2 = _conv(c_out, c_out, 1, norm)
        self.norm2 = NORMS[norm](c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, ceil(H / stride), ceil(W / stride))."""
        if not (self.recompute and self.training):
            return self._second(self._first(x), x)
        return _recomputed(self._in_two_steps, self, x)

    def _in_two_steps(self, x: Tensor) -> Tensor:
        """Keep only one activation between the halves while the backward pass is in this block."""
        return _recomputed(self._second, self, _recomputed(self._first, self, x), x)

    def _first(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x)).relu()  # ReLUs out of place: Grad-CAM reads the norms'

    def _second(self, h: Tensor, x: Tensor) -> Tensor:
        if self.stride != 1:
            p = self.padding
            x = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, p, p))
        return (self.norm2(self.conv2(h)) + x).relu()


def _recomputed(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """Keep the inputs alone for the backward pass, which computes `function` of `module` again.

    The second run must not count the batch again. Segments may hold segments.
    """
    contexts = (nullcontext(), frozen_statistics(module))
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class ResNet(nn.Module):
    """A convolution, three stages of n blocks with 16, 32 and 64 filters, mean pool, linear head.

    Args:
        n: blocks per stage, at least 1; there are 6n + 2 weighted layers.
        num_classes: width of the head, r in the lab's text.
        norm: key of `core.layers.norms.NORMS`; the norm follows each convolution directly.
    """

    def __init__(self, n: int, num_classes: int, norm: str = "bn"):
        super().__init__()
        if n < 1 or num_classes < 1:
            raise ValueError(
                f"resnet: n and num_classes must be at least 1, got {n}, {num_classes}"
            )
        if norm not in NORMS:
            raise ValueError(f"resnet: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.conv = _conv(3, WIDTHS[0], 1, norm)
        self.norm = NORMS[norm](WIDTHS[0])
        self.stage1 = _stage(n, WIDTHS[0], WIDTHS[0], norm)
        self.stage2 = _stage(n, WIDTHS[0], WIDTHS[1], norm)
        self.stage3 = _stage(n, WIDTHS[1], WIDTHS[2], norm)
        self.head = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @property
    def recompute(self) -> bool:
        """Whether training keeps few activations and computes the others again for backward.

        Kept are the outputs of blocks (of the stem and the first block together: none), and inside
        the block where the backward pass is, one more. For n = 2 that is 37 % of the memory, for
        most of another forward pass or two; running statistics count each batch once all the same.
        """
        return any(block.recompute for block in self.modules() if isinstance(block, Block))

    @recompute.setter
    def recompute(self, value: bool) -> None:
        for block in self.modules():
            if isinstance(block, Block):
                block.recompute = value

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) of any size to logits (B, num_classes)."""
        if self.recompute and self.training:
            x = _recomputed(self._start, self, x)
            for block in list(self.stage1)[1:]:
                x = block(x)
        else:
            x = self.stage1(self._stem(x))
        x = self.stage3(self.stage2(x))
        return self.head(x.mean((2, 3)))

    def _start(self, x: Tensor) -> Tensor:
        """Stem and first block: the stem's output is as large as any, and need not be kept."""
        return self.stage1[0](_recomputed(self._stem, self, x))

    def _stem(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


def resnet(n: int, num_classes: int, norm: str = "bn") -> ResNet:
    """Build the 6n+2 ResNet; see `ResNet` for the arguments.

    n = 2 with 25 classes and batch norm has 173,481 parameters. The lab's text speaks of n layers
    per stage; 6n + 2 layers and the paper need 2n, which is what is built. Raises ValueError: n or
    num_classes below 1, or an unknown norm.
    """
    return ResNet(n, num_classes, norm)


def _stage(n: int, c_in: int, c_out: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*(Block(c_in if i == 0 else c_out, c_out, norm) for i in range(n)))


def _conv(c_in: int, c_out: int, stride: int, norm: str) -> nn.Conv2d:
    """Build a 3x3 convolution; only without a norm, whose bias would make it redundant, a bias."""
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    if norm == "none":  # set here, so that every norm draws the same weights from one seed
        conv.bias = nn.Parameter(torch.zeros(c_out))
    return conv


def load_weights(model: ResNet, path: str | Path) -> ResNet:
    """Load a state dict into `model`, also that of the public CIFAR ResNets, and return `model`.

    Reads our own state dicts and the files of akamaster/pytorch_resnet_cifar10 (names prefixed
    `module.`, `bn` for norms, `layer` for stages, `linear` for the head, no `num_batches_tracked`).
    Only tensors are read: a file that holds code is refused. Raises UserError: no such file, not a
    file of tensors, or names or shapes that do not fit (both sides of every mismatch are listed).
    """
    state = own_names(load_state(path))
    fill(model, state, str(path), "the model", "give weights of this network")
    return model


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of ours or of the public CIFAR ResNets under our names."""

    def own(name: str) -> str:
        first, _, rest = name.partition(".")
        renamed = {"conv1": "conv", "bn1": "norm", "linear": "head"}.get(first)
        if renamed is not None:
            return f"{renamed}.{rest}"
        return name.replace("layer", "stage", 1).replace(".bn", ".norm")

    return {own(name): value for name, value in state.items()}


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state, under our names, is that of a `ResNet`."""
    return "head.weight" in state and any(name.startswith("stage1.") for name in state)


def resnet_of(state: Mapping[str, Tensor], norm: str) -> ResNet:
    """Build the network, with weights of its own, that a state under our names belongs to."""
    blocks = {name.split(".")[1] for name in state if name.startswith("stage1.")}
    return resnet(len(blocks), len(state["head.weight"]), norm)
