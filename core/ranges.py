"""The settings of a task: each field's annotation states its range, checked when one is made."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf

from core.errors import UserError


@dataclass(frozen=True)
class Says:
    """How the range before it is told to who is outside it; `{name}` is the setting's name."""

    sentence: str


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Amount = Annotated[
    float, Interval(ge=0, lt=float("inf")), Says("{name} must be a number of at least 0")
]
Share = Annotated[Amount, Lt(1), Says("{name} is a share, below 1")]

_HOLDS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: operator.ge,
    Gt: operator.gt,
    Le: operator.le,
    Lt: operator.lt,
    MultipleOf: lambda value, of: value % of == 0,
}


class Checked:
    """Base of the dataclass of a task's settings: `Annotated[int, Ge(1)]` refuses 0.

    What two fields must fulfil together is checked by a `__post_init__` that calls this one first.
    Raises UserError: a value (other than None) is outside the range of its field.
    """

    def __post_init__(self) -> None:
        for name, rule, sentence in _ranges(type(self)):
            value = getattr(self, name)
            if value is not None and not _holds(value, rule):
                raise UserError(f"--set {name}={value}: {sentence.format(name=name)}")


@functools.cache
def _ranges(config: type) -> list[tuple[str, Any, str]]:
    """Return (name, range, sentence) of every range in the annotations of a class."""
    found = []
    for name, hint in typing.get_type_hints(config, include_extras=True).items():
        for one in (hint, *typing.get_args(hint)):  # `Count`, and `Count | None`
            said = [*getattr(one, "__metadata__", ()), None]
            for rule, after in itertools.pairwise(said):
                if not isinstance(rule, Says):
                    sentence = after.sentence if isinstance(after, Says) else _sentence(rule)
                    found.append((name, rule, sentence))
    return found


def _holds(value: Any, rule: Any) -> bool:
    if isinstance(rule, Interval):
        return all(_holds(value, part) for part in rule)
    return _HOLDS[type(rule)](value, *dataclasses.astuple(rule))


def _sentence(rule: Any) -> str:
    assert isinstance(rule, Ge), f"say what {rule} means"
    return f"{{name}} must be at least {rule.ge}"
