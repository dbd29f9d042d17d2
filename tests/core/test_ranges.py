"""The ranges of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from annotated_types import Ge, Interval, MultipleOf

from core.errors import UserError
from core.ranges import Amount, Checked, Count, Says, Share


@dataclass(frozen=True)
class Config(Checked):
    """Settings."""

    amount: Amount | None = None
    count: Count = 2
    share: Share = 0.0
    width: Annotated[int, Ge(8), MultipleOf(8), Says("{name} must be a multiple of 8")] = 8
    part: Annotated[float, Interval(ge=0, le=0.5), Says("at most a half")] = 0.0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"count": 0}, "--set count=0: count must be at least 1"),
        ({"amount": -1.0}, "--set amount=-1.0: amount must be a number of at least 0"),
        ({"amount": float("inf")}, "--set amount=inf: amount must be a number of at least 0"),
        ({"amount": float("nan")}, "--set amount=nan: amount must be a number of at least 0"),
        ({"share": -0.1}, "--set share=-0.1: share must be a number of at least 0"),
        ({"share": 1.0}, "--set share=1.0: share is a share, below 1"),
        ({"width": 0}, "--set width=0: width must be at least 8"),
        ({"width": 12}, "--set width=12: width must be a multiple of 8"),
        ({"part": 0.6}, "--set part=0.6: at most a half"),
    ],
)
def test_a_value_outside_its_range_is_refused(setting, sentence):
    with pytest.raises(UserError) as refused:
        Config(**setting)
    assert str(refused.value) == sentence


def test_the_ends_of_ranges_and_none_are_taken():
    assert Config(count=1, amount=None, width=16, part=0.5).share == 0
    assert Config(amount=0.0).amount == 0
