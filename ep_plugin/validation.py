"""Checks of what users give, made once at the door so that the code behind it need not ask again."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def chosen(what: str, name: str, options: Mapping[str, T]) -> T:
    """The option called `name`, or an error that lists the names there are."""
    if not isinstance(name, str) or name not in options:
        raise ValueError(f"{what} is {name!r}; expected one of {', '.join(map(repr, options))}")
    return options[name]


def number(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def plain_numbers(settings: object) -> None:
    """Scalars of NumPy and PyTorch among a dataclass's fields become Python's own, so that it prints and compares."""
    for name, value in vars(settings).items():
        object.__setattr__(settings, name, number(value))


def finite_number(what: str, value: float) -> float:
    value = number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {value!r}; expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf  # a whole number beyond the largest float
    if not math.isfinite(found):
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return found


def positive(what: str, value: float) -> float:
    if finite_number(what, value) <= 0:
        raise ValueError(f"{what} is {value!r}; expected a number above 0")
    return float(number(value))


def not_negative(what: str, value: float) -> float:
    if finite_number(what, value) < 0:
        raise ValueError(f"{what} is {value!r}; expected 0 or more")
    return float(number(value))


def fraction(what: str, value: float) -> float:
    if not 0 < finite_number(what, value) <= 1:
        raise ValueError(f"{what} is {value!r}; expected a number in (0, 1]")
    return float(number(value))


def share(what: str, value: float) -> float:
    if not 0 <= finite_number(what, value) <= 1:
        raise ValueError(f"{what} is {value!r}; expected a number in [0, 1]")
    return float(number(value))


def count(what: str, value: int, least: int = 1) -> int:
    """The whole number as Python's own: use it in place of what was given."""
    value = number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is {value!r}; expected a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{what} is {value!r}; expected a whole number, {least} or more")
    if value > sys.maxsize:
        raise ValueError(f"{what} is {value!r}; expected a whole number, {least} to {sys.maxsize}")
    return value


def counts(what: str, values: Sequence[int], length: int | None = None) -> list[int]:
    """Whole numbers, 1 or more each: one or more of them, or as many as `length` says."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{what} is {values!r}; expected a sequence of whole numbers, 1 or more each")
    found = list(values)
    found = [count(f"a number of {what} {found}", n) for n in found]
    if not found or len(found) != (length or len(found)):
        raise ValueError(f"{what} is {found}; expected {length or 'one or more'} whole numbers, 1 or more each")
    return found


def seed_number(value: int) -> int:
    """A seed that every generator takes: a whole number from 0 to 2^63 - 1."""
    return count("seed", value, least=0)


def require_finite(what: str, tensors: Sequence[Tensor], names: list[str], owner: nn.Module | None = None) -> None:
    """Stops the training at the first value that is no number, where it arises.

    Args:
        what: the values are.
        tensors: of them.
        names: of the tensors, for the error.
        owner: whose parameters the values come from. Those that are not finite are named in place of the tensors, as
            the user's own model calls them.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    if not tensors or tensors[0].is_meta:
        return
    # A sum is infinite or NaN where any value is, and takes a fraction of the time of isfinite(). (It may
    # overflow by itself, so what it finds is looked at again.)
    sums = torch.stack([t.detach().sum() for t in tensors])
    if not bool(sums.isfinite().all()):  # one synchronization for all of them
        bad = [not bool(t.isfinite().all()) for t in tensors]
        if not any(bad):
            return
        found = _lost_parameters(owner) or [name for name, b in zip(names, bad, strict=True) if b]
        raise FloatingPointError(
            f"{what} became NaN or infinite in {', '.join(dict.fromkeys(found))}. Try a lower learning rate, gradient "
            "clipping, a smaller initialization or, with a loss that can divide by zero, a look at the targets."
        )


def _lost_parameters(owner: nn.Module | None) -> list[str]:
    if owner is None:
        return []
    from ep_plugin.conversion.origin import parameter_names  # which imports this module

    names = parameter_names(owner)
    return [names[id(p)] for p in owner.parameters() if not bool(p.isfinite().all())]


def expected_input(stem: nn.Module) -> list[int | None] | None:
    """A sample's shape (None: any size); None if the first module does not tell it.

    Before a linear layer it has one axis, unless the stem tells how many by its attribute `axes`.
    """
    first = _first(stem)
    if isinstance(first, nn.modules.lazy.LazyModuleMixin) and first.has_uninitialized_params():
        return None  # the first input tells it
    if isinstance(first, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return [first.in_channels, *[None] * len(first.kernel_size)]
    if isinstance(first, nn.Linear):
        return [*[None] * (getattr(stem, "axes", 1) - 1), first.in_features]
    return None


def input_shape(stem: nn.Module, given: Sequence[int] | None, option: str) -> tuple[int, ...]:
    """The input's shape without the batch: the given one, or the only one that fits.

    Args:
        stem: what stands before the first neuron.
        given: sizes, 1 or more each.
        option: an example of how to give them, for the error.

    Raises:
        ValueError, TypeError: it is not given and the first module leaves a size open, or a size is not 1 or more.
    """
    if given is not None:
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"the input's shape is {given!r}; expected whole numbers, without the batch: {option}")
        return tuple(count(f"a size of the input's shape {tuple(given)}", n) for n in given)
    expected = expected_input(stem)
    if expected is None or None in expected:
        raise ValueError(
            f"the shape of an input cannot be told from {type(_first(stem)).__name__}, the first module; give it, "
            f"without the batch: {option}"
        )
    return tuple(n for n in expected if n is not None)


def _first(stem: nn.Module) -> nn.Module | None:
    return next((m for m in stem.modules() if not isinstance(m, (nn.Sequential, nn.Identity))), None)
