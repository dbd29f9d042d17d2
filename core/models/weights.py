"""State dicts from files: read without running anything, and held against a model."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from core.errors import UserError
from core.storage import cache
from core.storage.files import write_bytes

# Where training programs keep the state dict in their checkpoints, and what wrappers (data
# parallel, torch.compile, Lightning) put before each name, one inside the other in any order.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_WRAPPERS = re.compile(r"^((module|model)\.)+|\b_orig_mod\.")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, also one under a key such as `state_dict` or `net`.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`, `model.`) are taken off, and numbers of
    any floating-point type become float32. Only tensors and plain values are read: a file with code
    or other objects is refused. Raises UserError: no such file, not a file of tensors, or a tensor
    that holds nan or infinity.
    """
    path = Path(path).expanduser()
    content = _content(path)
    found = _state_in(content)
    if found is None:
        keys = f" (it holds {_some([*map(str, content)])})" if isinstance(content, dict) else ""
        raise UserError(
            f"{path} holds no state dict{keys}: save model.state_dict() with torch.save"
        )
    state: dict[str, Tensor] = {}
    for key, value in found.items():
        name = key
        while (bare := _WRAPPERS.sub("", name)) != name:
            name = bare
        if name in state:
            raise UserError(f"{path} holds {name} twice, as {key} too: save one of the networks")
        state[name] = value.detach().float() if value.is_floating_point() else value
    check_finite(state, path)
    return state


def _content(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no weights at {path}: give the path of a state dict saved by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many types here: unpickling, zip, end of file
        raise UserError(
            f"{path} is not a file of tensors (a truncated file, or one that holds other objects or"
            " code, which is never run): save model.state_dict() with torch.save"
        ) from e


def kept(path: Path, learn: Callable[[], dict[str, Tensor]]) -> Path:
    """Return a file of weights in the cache; on first use `learn` returns the state dict.

    Raises UserError: the cache cannot be written.
    """

    def write() -> None:
        buffer = io.BytesIO()  # by a path, the file's name would be among its bytes
        torch.save(learn(), buffer)
        write_bytes(path, buffer.getvalue())

    return cache.once(path, write)


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse, by a UserError, weights with which every output would be nan."""
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{source}: {name} holds numbers that are not finite (nan or infinity), as the"
                " weights of a training that diverged do: give weights from before"
            )


def _state_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict that a file's content is or has under one of the usual keys."""
    if not isinstance(content, dict):
        return None
    if content and all(isinstance(v, Tensor) for v in content.values()):
        return {str(key): value for key, value in content.items()}
    inside = (_state_in(content.get(key)) for key in _KEYS)
    return next((state for state in inside if state is not None), None)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return how a state dict differs from what `model` takes, in words; nothing if it fits."""
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    both = [(name, own[name], state[name]) for name in sorted(own.keys() & state.keys())]
    found = {
        "missing from the file": sorted(own.keys() - state.keys() - optional),
        "not in the model": sorted(state.keys() - own.keys()),
        "other shapes": [
            f"{name} is {tuple(given.shape)} in the file, {tuple(wanted.shape)} in the model"
            for name, wanted, given in both
            if given.shape != wanted.shape
        ],
        "other kinds of numbers": [  # quantised, say: as floats they would be others, mostly 0
            f"{name} is {given.dtype} in the file, {wanted.dtype} in the model"
            for name, wanted, given in both
            if wanted.is_floating_point() and not given.is_floating_point()
        ],
    }
    return "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str, what: str, say: str) -> None:
    """Load `state` into `model`; counters of batches may be missing, nothing else.

    Raises UserError: names or shapes differ. The message says that `source` does not fit `what`,
    with the first differences of each kind, and what to do: `say`.
    """
    wrong = mismatch(model, state)
    if wrong:
        raise UserError(f"{source} does not fit {what} ({wrong}): {say}")
    model.load_state_dict(dict(state), strict=False)


def published(name: str, told: str, otherwise: str) -> dict[str, Tensor]:
    """Return torchvision's default ImageNet weights, fetched once for every program here.

    `name` is as torchvision's `get_model` takes it. Raises UserError: there is no network, or the
    download is damaged; the message names the option `told` and what can be given `otherwise`.
    """
    from torchvision.models import get_model_weights  # takes seconds to import

    url = get_model_weights(name)["DEFAULT"].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "labtune.lock"):
            return torch.hub.load_state_dict_from_url(
                url, str(folder), "cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"{told}: {Path(url).name} cannot be fetched ({e}): put that file of torchvision's into"
            f" {folder}, or give {otherwise}"
        ) from e


def _some(names: list[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
