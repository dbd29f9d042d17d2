"""State dicts from files: read without running anything, and held against a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from core.errors import UserError


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, also one under the key `state_dict` or `model`.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`) are taken off. Only tensors are read: a
    file that holds code is refused.

    Raises:
        UserError: no such file, or not a file of tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no weights at {path}: give the path of a state dict saved by torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many types here: unpickling, zip, end of file
        raise UserError(
            f"{path} is not a file of tensors (a truncated file, or one that holds code, which is"
            " never run): save model.state_dict() with torch.save"
        ) from e
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict: save model.state_dict() with torch.save")
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in content.items()}


def mismatch(model: nn.Module, state: dict[str, Tensor]) -> str:
    """Return how a state dict differs from what `model` takes, in words; nothing if it fits."""
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    found = (
        ("missing from the file", missing),
        ("not in the model", unexpected),
        ("other shapes", shapes),
    )
    return "; ".join(f"{what}: {_some(names)}" for what, names in found if names)


def _some(names: list[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
