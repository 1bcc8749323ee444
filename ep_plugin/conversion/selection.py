"""Items, selections and pieces of values: a step of the input, of a record, a place of a signal."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ep_plugin.conversion import frames as f
from ep_plugin.conversion.concatenation import stacked
from ep_plugin.conversion.functions import Function, Size
from ep_plugin.conversion.indexing import is_whole, one_place, parsed
from ep_plugin.conversion.linear_functions import is_constant
from ep_plugin.conversion.plan import Applied, Joined, Signal
from ep_plugin.conversion.state import State
from ep_plugin.conversion.values import SIGNALS, Filled, Pieces, Record, Several, Unknown, Value, whole_record
from ep_plugin.conversion.watch import function_name

_NAMES = {
    "select": ("dim", "index"),
    "unbind": ("dim",),
    "narrow": ("dim", "start", "length"),
    "split": ("split_size", "dim"),
    "chunk": ("chunks", "dim"),
    "tensor_split": ("chunks", "dim"),
    "squeeze": ("dim",),
}

_OF_PIECES = ("split", "chunk", "tensor_split", "unbind", "aminmax", "std_mean", "var_mean")
_WITH_PLACES = ("max", "min", "topk", "sort", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin")
"""Functions that return values and where they are."""


class Selection(State):
    """Reads parts of values."""

    def _part(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """An item, a selection, a split; None if it is none of these, or a function like any other."""
        of, value = args[0], self._raw(args[0])
        if isinstance(value, SIGNALS) and is_constant(value):
            return None
        if name == "getitem":
            return self._item(of, value, args[1])
        if isinstance(value, Filled):
            value = value.read()
        if not isinstance(value, (*SIGNALS, Record)):
            return None
        rest = dict(zip(_NAMES.get(name, ()), args[1:], strict=False)) | options
        dim = rest.get("dim", 0)
        if not isinstance(dim, int):
            return None
        if name == "select" and isinstance(rest.get("index"), int):
            return self._select(value, dim, rest["index"])
        if name == "unbind":
            return Pieces(value, dim, kept=False)
        if name == "narrow" and rest.get("length") == 1 and isinstance(rest.get("start"), int):
            return self._kept(value, dim, rest["start"])
        if name == "split" and rest.get("split_size") == 1:
            return Pieces(value, dim, kept=True)
        if name in ("chunk", "tensor_split") and isinstance(rest.get("chunks"), Size):
            return Pieces(value, dim, kept=True)
        if name == "chunk" and self._size_of(of, dim) == rest.get("chunks") != 1:
            return Pieces(value, dim, kept=True)
        if name == "squeeze" and isinstance(value, Applied) and unsqueezed(value) == dim and "dim" in rest:
            return value.signal
        if name == "squeeze" and isinstance(value, Record) and value.steps == 1 and rest.get("dim") == value.axis:
            return value.signal
        return None

    def _item(self, of: fx.Node, value: Any, index: Any) -> Any:
        if isinstance(value, Filled):
            part = value.item(index)
            value = value.read() if part is None else part
            if part is not None:
                return part
        if isinstance(value, Several) and isinstance(index, int) and -len(value.values) <= index < len(value.values):
            return value.values[index]
        if isinstance(value, Pieces) and isinstance(index, int):
            if value.kept:
                return self._kept(value.value, value.axis, index)
            return self._select(value.value, value.axis, index)
        if isinstance(value, Record):
            if f.is_of_steps(value.signal):
                return _OF_STEPS
            return self.records.item(value, index)
        return self._index(of, value, index) if isinstance(value, SIGNALS) else None

    def _index(self, of: fx.Node, signal: Signal, index: Any) -> Any:
        """A place or a part of a signal."""
        if isinstance(signal, (Applied, Joined)) and not _is_tensor(signal.module):
            return None
        found = parsed(index)
        if found is None:
            first = index[0] if isinstance(index, tuple) and index else index
            return None if is_whole(first) else self._of_first(signal, index)
        taken = found.taken
        if not taken:
            return signal
        if len(taken) == 1:
            axis, part = found.parts[taken[0]]
            place = one_place(part)
            if place is not None and (isinstance(part, int) or f.is_of_input(signal)):
                return self._select(signal, axis, place) if isinstance(part, int) else self._kept(signal, axis, place)
        integers = [i for i in taken if isinstance(found.parts[i][1], int)]
        if f.is_of_input(signal) and integers:
            axis, part = found.parts[integers[0]]
            step, rest = self._select(signal, axis, part), found.rest(integers[0])
            if isinstance(step, SIGNALS):
                return self._then("getitem", self.modules_of(operator.getitem, (rest,), {}), step)
            return step
        first = found.parts[0][0] == 0 and not is_whole(found.parts[0][1])
        return self._of_first(signal, index) if first else None

    def _of_first(self, signal: Signal, index: Any) -> Unknown:
        return _of_batch(index) if f.is_of_input(signal) else _of_samples(index)

    def _select(self, value: Signal | Record, axis: int, place: int) -> Value:
        place = int(place)
        if isinstance(value, Record) and f.is_of_steps(value.signal):
            return _OF_STEPS
        if isinstance(value, Record):
            index = (*[slice(None)] * axis, place) if axis >= 0 else (..., place, *[slice(None)] * (-axis - 1))
            return self.records.item(value, index)
        if f.is_of_input(value):
            step = self.frames.at(value, axis, place)
            if isinstance(step, SIGNALS) or axis == 0:
                return step
        elif (members := stacked(value)) is not None and members[1] == axis:
            return members[0][place] if -len(members[0]) <= place < len(members[0]) else _of_samples(place)
        elif axis == 0:
            return _of_samples(place)
        return self._then("select", self.modules_of(torch.select, (axis, place), {}), value)

    def _kept(self, value: Signal | Record, axis: int, place: int) -> Value:
        """One place, with its axis still there."""
        if isinstance(value, Record):
            return whole_record("a part")
        return self._then("unsqueeze", self.modules_of(torch.unsqueeze, (axis,), {}), self._select(value, axis, place))

    def _attribute(self, value: Any, name: Any) -> Value:
        if isinstance(value, Several) and name == "values":
            return value.values[0]
        module = value.module if isinstance(value, Applied) else None
        of_two = isinstance(module, Function) and function_name(module.function) in _WITH_PLACES
        if of_two and name in ("values", "indices"):
            place = ("values", "indices").index(name)
            return self._then("getitem", self.modules_of(operator.getitem, (place,), {}), value)
        return unread(value, f"the attribute {name!r}")


def unread(value: Any, what: str) -> Unknown:
    """What is asked of a value and not known: for the value's own reason, if that is not known either."""
    if isinstance(value, Unknown):
        return value
    return Unknown(
        f"{what} of a value, which is not read; expected a function or a method in its place, such as x.detach() for "
        "x.data or x.transpose(1, 2) for x.mT, and one tensor as the input",
        explained=True,
    )


def unsqueezed(signal: Signal) -> int | None:
    """The axis that a signal was given last."""
    module = signal.module if isinstance(signal, Applied) else None
    if isinstance(module, Function) and module.function in (torch.unsqueeze, Tensor.unsqueeze):
        args = (*module.args[1:], *module.options.values())
        return args[0] if args else None
    return None


def _is_tensor(module: nn.Module) -> bool:
    """Whether a module gives a tensor, as far as is known, and not a tuple."""
    if isinstance(module, Function):
        return function_name(module.function) not in (*_OF_PIECES, *_WITH_PLACES)
    return not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and type(module).__module__.startswith("torch.")


_OF_STEPS = Unknown(
    "one of the input's steps, taken out of all of them (which a stack holds, or neurons over time read, such as "
    "norse.LIF); expected one loop over the input's steps, with cells that take one (norse.LIFCell), or neurons over "
    "time alone",
    explained=True,
)


def _of_samples(index: Any) -> Unknown:
    return Unknown(
        f"an index, {index!r}, which takes some of the samples of the batch, and each has a state of its own; expected "
        "an index of later axes, such as s[:, 0]",
        explained=True,
    )


def _of_batch(index: Any) -> Unknown:
    if isinstance(index, str):
        return Unknown(f"an entry of a dictionary, {index!r}; expected one tensor as the input", True)
    return Unknown(
        f"an index of the input, {index!r}, which takes some of its first axis; {f.ALL_STEPS}", explained=True
    )
