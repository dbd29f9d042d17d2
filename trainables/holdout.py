"""A share of the training images that a search is scored on in place of the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from core.data import folds, images

S = TypeVar("S", bound=images.ImageSet)


def trained_and_scored(sets: Mapping[str, S], share: float) -> tuple[S, S]:
    """Return the images that are trained on and those that are scored.

    Args:
        sets: "train" and, without a share, "val".
        share: of the training images that is held out; 0: none, the validation images are scored.
    """
    train = sets["train"]
    if not share:
        return train, sets["val"]
    kept, held = folds.hold_out(train.labels, share, train.digests)
    return images.part(train, kept, lazily=True), images.part(train, held, lazily=True)


def describe(train: images.ImageSet, share: float) -> dict[str, Any]:
    """Return what the report says about the images held out, as `holdout`; nothing without any."""
    if not share:
        return {}
    known = train.labels, share, train.digests, train.classes
    return {"holdout": folds.describe_hold_out(*known)}
