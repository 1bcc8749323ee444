"""Checks of what users give, made once at the door so that the code behind it need not ask again."""

import math
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def chosen(what: str, name: str, options: Mapping[str, T]) -> T:
    """The option called `name`, or an error that lists the names there are."""
    if not isinstance(name, str) or name not in options:
        raise ValueError(f"{what} is {name!r}; expected one of {', '.join(map(repr, options))}")
    return options[name]


def finite_number(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {value!r}; expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return float(value)


def positive(what: str, value: float) -> float:
    if finite_number(what, value) <= 0:
        raise ValueError(f"{what} is {value!r}; expected a number above 0")
    return float(value)


def fraction(what: str, value: float) -> float:
    if not 0 < finite_number(what, value) <= 1:
        raise ValueError(f"{what} is {value!r}; expected a number in (0, 1]")
    return float(value)


def count(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is {value!r}; expected a whole number, 1 or more")
    if value < 1:
        raise ValueError(f"{what} is {value!r}; expected a whole number, 1 or more")
    return value
