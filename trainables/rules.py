"""Rules on settings that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError


def check_batch(config: Mapping[str, Any], images: int) -> None:
    """Refuse, by a UserError, a trial's batch that its training images do not fill."""
    if config["batch_size"] > images:
        raise UserError(
            f"--set batch_size={config['batch_size']}: there are only {images} training images:"
            f" give at most {images}"
        )


def weights_of(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return the weights to start from that follow from a user's settings: those of a demo."""
    if "weights" in settings or scale == "full":
        return {}
    return {"weights": "embedded" if scale == "demo" else "none"}
