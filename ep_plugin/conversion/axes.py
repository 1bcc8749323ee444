"""What a module does along one axis of its input: whether it does the same at every place there, and what to each.

The number of axes may be unknown. Then every likely number is tried, and what is not the same for all of them is not
known.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.conversion.functions import Function, Slot, is_pointwise

LIKELY = (3, 4, 5, 6)
"""How many axes a value may have of which that is not known, time among them."""

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
_PERMUTING = frozenset(["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"])
REDUCTIONS = frozenset(
    ["sum", "mean", "amax", "amin", "max", "min", "median", "nansum", "nanmean", "var", "std", "prod", "logsumexp"]
)
_ALONG = frozenset(
    (F.softmax, F.log_softmax, F.normalize, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax)
)
_INSERTING = (torch.unsqueeze, Tensor.unsqueeze)
_REMOVING = (torch.squeeze, Tensor.squeeze)


def same_axis(places: Sequence[int], numbers: Sequence[int]) -> int | None:
    """The axis that is at `places` where there are so many axes as `numbers` say; None if it is not one."""
    if not places:
        return None
    if len(set(places)) == 1:
        return places[0]
    from_end = {p - n for p, n in zip(places, numbers, strict=True)}
    return from_end.pop() if len(from_end) == 1 else None


def is_axis(dim: int, axis: int, numbers: Sequence[int]) -> bool | None:
    """Whether two axes are the same; None if that is not known."""
    found = {dim % n == axis % n for n in _fitting(numbers, dim, axis)}
    return found.pop() if len(found) == 1 else None


def without(dim: int, axis: int, numbers: Sequence[int]) -> int | None:
    """`dim` in a value without `axis`, which is another one; None if it is not known."""
    fitting = _fitting(numbers, dim, axis)
    if any(dim % n == axis % n for n in fitting):
        return None
    return same_axis([dim % n - (dim % n > axis % n) for n in fitting], [n - 1 for n in fitting])


def _fitting(numbers: Sequence[int], *dims: int) -> list[int]:
    return [n for n in numbers if all(-n <= d < n for d in dims)]


def permutation(function: Any, args: Sequence[Any], options: dict[str, Any], axes: int) -> list[int] | None:
    """Which axis of the input each axis of the output is, for a function that only permutes them."""
    try:
        made = function(torch.empty(_PRIMES[:axes], device="meta"), *args, **options)
    except (RuntimeError, IndexError, TypeError):
        return None
    shape = list(made.shape)
    return [_PRIMES.index(n) for n in shape] if sorted(shape) == list(_PRIMES[:axes]) else None


def is_permuting(module: nn.Module) -> bool:
    return isinstance(module, Function) and getattr(module.function, "__name__", "") in _PERMUTING


class OfOne:
    """What modules do to the value at each place of an axis: the same question has the same modules as its answer.

    Args:
        made: where they are kept.
    """

    def __init__(self, made: dict[tuple[Any, ...], Any]) -> None:
        self.made = made

    def __call__(self, module: nn.Module, axis: int, numbers: Sequence[int]) -> tuple[list[nn.Module], int] | None:
        """As the function `of_one`."""
        key = (module, axis, tuple(numbers))
        if key not in self.made:
            self.made[key] = of_one(module, axis, numbers)
        return self.made[key]

    def function(self, function: Any, args: tuple[Any, ...], options: dict[str, Any] | None = None) -> Function:
        """A function as a module."""
        key = ("function", function, repr(args), repr(options))
        if key not in self.made:
            self.made[key] = Function(function, args, options or {})
        return self.made[key]


def of_one(module: nn.Module, axis: int, numbers: Sequence[int]) -> tuple[list[nn.Module], int] | None:
    """What `module` does to the value at each place of an axis, and where that axis is in the output.

    Args:
        module: of one signal.
        axis: of its input.
        numbers: how many axes its input may have.

    Returns:
        Modules for the value without the axis, and the axis; None if they are not known.
    """
    if is_pointwise(module):
        return [module], axis
    if type(module) is nn.Sequential:
        done: list[nn.Module] = []
        for inner in module:
            found = of_one(inner, axis, numbers)
            if found is None or (found[1] != axis and len(numbers) > 1):
                return None
            done, axis = [*done, *found[0]], found[1]
        return done, axis
    if isinstance(module, nn.Linear):
        return ([module], axis) if is_axis(-1, axis, numbers) is False else None
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
        if axis < 0 or start <= axis or 0 <= end <= axis:
            return None
        return [nn.Flatten(start - 1, end - 1 if end > 0 else end)], axis
    if isinstance(module, nn.Unflatten) and isinstance(module.dim, int) and 0 <= axis < module.dim:
        return [nn.Unflatten(module.dim - 1, module.unflattened_size)], axis
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)) and module.dim is not None:
        dim = without(module.dim, axis, numbers)
        return None if dim is None else ([type(module)(dim)], axis)
    return _function_of_one(module, axis, numbers) if isinstance(module, Function) else None


def _function_of_one(module: Function, axis: int, numbers: Sequence[int]) -> tuple[list[nn.Module], int] | None:
    function, (first, *args), options = module.function, module.args or (None,), dict(module.options)
    if first != Slot(0):
        return None
    if is_permuting(module):
        return _permuted(function, args, options, axis, numbers)
    if not args and "dim" not in options:
        return None
    dim, *rest = args if args else (options.pop("dim"),)
    name = getattr(function, "__name__", "")
    if not isinstance(dim, int) or isinstance(dim, bool):
        return None
    keeps = function in _ALONG or (name in REDUCTIONS and (bool(options.get("keepdim")) or rest == [True]))
    if keeps or name in REDUCTIONS or function in _REMOVING:
        inner = without(dim, axis, numbers)
        fitting = _fitting(numbers, dim, axis)
        shift = 0 if keeps else 1
        place = same_axis([axis % n - shift * (dim % n < axis % n) for n in fitting], [n - shift for n in fitting])
    elif function in _INSERTING:
        fitting = [n for n in numbers if -n - 1 <= dim <= n and -n <= axis < n]
        at = [dim % (n + 1) for n in fitting]
        place = same_axis(
            [axis % n + (d <= axis % n) for d, n in zip(at, fitting, strict=True)], [n + 1 for n in fitting]
        )
        inner = same_axis([d - (d > axis % n) for d, n in zip(at, fitting, strict=True)], fitting)
    else:
        return None
    if inner is None or place is None:
        return None
    return [Function(function, (Slot(0), inner, *rest), options)], place


def _permuted(
    function: Any, args: Sequence[Any], options: dict[str, Any], axis: int, numbers: Sequence[int]
) -> tuple[list[nn.Module], int] | None:
    known = {n: p for n in numbers if (p := permutation(function, args, options, n)) is not None}
    if not known or _fitting(list(known), axis) != list(known):
        return None
    place = same_axis([p.index(axis % n) for n, p in known.items()], list(known))
    if place is None:
        return None
    rests = [tuple(a - (a > axis % n) for a in p if a != axis % n) for n, p in known.items()]
    if all(rest == tuple(sorted(rest)) for rest in rests):
        return [], place
    if len(rests) > 1:
        return None
    return [Function(Tensor.permute, (Slot(0), *rests[0]), {})], place
