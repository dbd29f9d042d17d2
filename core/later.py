"""Functions that are named now and imported when they are needed."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Later:
    """A function elsewhere, so that naming it in a declaration loads no torch.

    Attributes:
        place: where it is, as in "trainables.birds.train:train_birds".
    """

    place: str

    def load(self) -> Callable[..., Any]:
        """Import the function and return it."""
        return pkgutil.resolve_name(self.place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.load()(*args, **kwargs)
