"""The small CNN of the CIFAR-10 lab, without batch norm, with it as listed, and as it was meant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.choices import Form

FORMS: tuple[Form, ...] = ("none", "listing", "meant")


class SmallCNN(nn.Module):
    """Two 5x5 convolutions (6 and 16 maps), each pooled, then linear layers of 120, 84, classes.

    With one seed the three forms start from the same weights: batch norm draws no random numbers.
    With 3 channels and 10 classes they have 62,006, 62,458 and 62,458 parameters.

    Args:
        bn: "none"; "listing", as the lab prints it: bn3 and bn4 are made and never called, so their
            408 parameters get no gradient; "meant": all four are used, each behind its ReLU as the
            first two are.
        channels: of the images.
        num_classes: outputs.
    """

    def __init__(self, bn: Form = "meant", channels: int = 3, num_classes: int = 10):
        super().__init__()
        if bn not in FORMS:
            raise ValueError(f"bn must be one of {', '.join(FORMS)}, got {bn!r}")
        self.bn = bn
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        if bn != "none":
            self.bn1 = nn.BatchNorm2d(6)
            self.bn2 = nn.BatchNorm2d(16)
            self.bn3 = nn.BatchNorm1d(120)
            self.bn4 = nn.BatchNorm1d(84)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, channels, 32, 32)."""
        convolved, linear = self.bn != "none", self.bn == "meant"
        x = self.pool(F.relu(self.conv1(x)))
        x = self.bn1(x) if convolved else x
        x = self.pool(F.relu(self.conv2(x)))
        x = self.bn2(x) if convolved else x
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        x = self.bn3(x) if linear else x
        x = F.relu(self.fc2(x))
        x = self.bn4(x) if linear else x
        return self.fc3(x)


def without_gradient(model: nn.Module) -> list[str]:
    """Return the names of parameters that wanted a gradient and got none in the last step.

    A layer that is made and never called is found so. (It also stops DistributedDataParallel,
    unless that looks for unused parameters.)
    """
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
