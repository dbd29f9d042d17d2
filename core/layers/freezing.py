"""Fine-tuning a part of a ResNet: what is frozen, and that it stays as it was, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.choices import Stem, Variant

# What is trained under each variant, as prefixes of parameter names.
TRAINED: dict[Variant, tuple[str, ...]] = {
    "all": ("",),
    "layer4": ("layer4.", "fc."),
    "head": ("fc.",),
    "scratch": ("",),
}


def small_stem(model: nn.Module, stem: Stem, *, maxpool: bool = True) -> None:
    """Give a torchvision ResNet a first convolution of 3x3 with stride 1, for small images.

    Args:
        model: changed in place; has a `conv1` of 7x7 and a `maxpool`.
        stem: "averaged" starts the new kernel from the old one (`averaged_kernel`); "printed" and
            "trained" start it anew, so that what was learned there is lost.
        maxpool: keep the pool behind it, as the lab's snippet does (maps of 32, 16, 16, 8, 4, 2
            for 32x32 images); False takes it out, as ResNets for CIFAR do.
    """
    old = model.get_submodule("conv1")
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=False)
    if stem == "averaged":
        with torch.no_grad():
            new.weight.copy_(averaged_kernel(old.weight))
    model.register_module("conv1", new.to(old.weight.device))
    if not maxpool:
        model.register_module("maxpool", nn.Identity())


def averaged_kernel(kernel: Tensor) -> Tensor:
    """Shrink kernels (out, in, k, k) to 3 x 3 by adding up what falls into each of 9 equal parts.

    A weight on a border is divided by area. The small kernel answers an image as the large one
    answers the same image enlarged by (k / 3) with equal squares for pixels, so features learned on
    large photographs keep their size relative to what a thumbnail shows. Sums stay.
    """
    large = kernel.shape[-1]
    edges = torch.arange(3 + 1, dtype=torch.float64) * large / 3
    cells = torch.arange(large, dtype=torch.float64)
    ends = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    share = ends.clamp(min=0).to(kernel.device)  # (3, k): the part of a cell in each bin
    return (share @ kernel.detach().double() @ share.T).to(kernel.dtype)


def freeze(model: nn.Module, variant: Variant, *, train_stem: bool = False) -> None:
    """Let only a part of a ResNet be trained.

    Args:
        model: `requires_grad` of its parameters is set.
        variant: see `TRAINED`.
        train_stem: train `conv1` as well, whatever the variant.
    """
    trained = TRAINED[variant] + (("conv1.",) if train_stem else ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


class PartlyFrozen(nn.Module):
    """A network whose frozen batch norms stay in evaluation mode while the rest trains.

    `requires_grad = False` does not stop running statistics: in training mode they follow the
    batches all the same. A layer counts as frozen if it has parameters and none is trained.

    Args:
        network: already frozen in part, see `freeze`; shared, not copied.
        statistics: "frozen" as said above; "moving" leaves every layer to the mode of the whole.
    """

    def __init__(self, network: nn.Module, statistics: Literal["frozen", "moving"] = "frozen"):
        super().__init__()
        self.network = network
        self.statistics = statistics

    def train(self, mode: bool = True) -> PartlyFrozen:
        """Switch to training mode all but the frozen batch norms."""
        super().train(mode)
        if mode and self.statistics == "frozen":
            for layer in frozen_norms(self.network).values():
                layer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network returns."""
        return self.network(x)


def frozen_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms none of whose parameters is trained, by name."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm)
        and list(m.parameters())
        and not any(p.requires_grad for p in m.parameters())
    }


def trained_part(model: nn.Module) -> nn.ParameterList:
    """Return the parameters that are trained, as a module: all that an optimiser may get.

    An optimiser that is given frozen parameters too leaves them alone only as long as their
    gradient is None; one with a gradient of zeros would shrink them by weight decay.
    """
    return nn.ParameterList(p for p in model.parameters() if p.requires_grad)


def counts(model: nn.Module) -> dict[str, int]:
    """Return the number of all, of trained and of frozen parameters."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in trained_part(model))
    counted = {"parameters": total, "trainable_parameters": trained}
    return counted | {"frozen_parameters": total - trained}


def weights_digest(model: nn.Module) -> str:
    """Return a digest of names and bits of the frozen parameters; "" where there are none."""
    return _short_digest({n: p for n, p in model.named_parameters() if not p.requires_grad})


def statistics_digest(model: nn.Module) -> str:
    """Return the same of the running statistics of frozen batch norms."""
    norms = frozen_norms(model).items()
    return _short_digest({n: b for name, m in norms for n, b in m.named_buffers(prefix=name)})


def _short_digest(tensors: Mapping[str, Tensor]) -> str:
    # 16 digits: they are to be compared, not trusted
    return state_digest(tensors, "{} {} {}\n", 16) if tensors else ""


def state_digest(tensors: Mapping[str, Tensor], head: str, digits: int = 32) -> str:
    """Return a SHA-256 of named tensors, equal for equal bits wherever they are.

    Args:
        tensors: of any type.
        head: what precedes the bits of each; its name, shape and type are put in. It differs
            between what is recorded in results, so it stays as it was there.
        digits: of the sum that are kept.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(head.format(name, tuple(tensor.shape), tensor.dtype).encode())
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:digits]}"
