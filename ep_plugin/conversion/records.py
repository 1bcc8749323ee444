"""Records of all steps: what a function or a module makes of them, given that each step holds the same signal."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ep_plugin.conversion.axes import LIKELY, OfOne, is_axis, without
from ep_plugin.conversion.functions import Function, Slot
from ep_plugin.conversion.indexing import is_whole, parsed
from ep_plugin.conversion.plan import Applied, Joined, Signal, combine
from ep_plugin.conversion.sizes import stands_in
from ep_plugin.conversion.values import Record, Several, Unknown, Value, whole_record

_PAIRS = ("max", "min", "median")
_WHICH = (
    "which step has the largest (or least) value, which an equilibrium does not tell, since it has no steps; expected "
    "the value itself, [0] of what max() returns"
)


class Records:
    """What becomes of records.

    Args:
        axes: how many axes a signal has, where that is known.
        inside: what a module of the user's makes of a record, if that is known.
        notes: remarks for the user are added to these.
        of_one: what a module does along an axis.
    """

    def __init__(
        self,
        axes: dict[Signal, int],
        inside: Callable[[str, nn.Module, Record], Value],
        notes: list[str],
        of_one: OfOne,
    ) -> None:
        self.axes, self.inside, self.notes, self.of_one = axes, inside, notes, of_one

    def numbers(self, record: Record) -> tuple[int, ...]:
        return (self.axes[record.signal] + 1,) if record.signal in self.axes else LIKELY

    def through(self, name: str, module: nn.Module, record: Record) -> Value:
        """A module applied to all steps at once."""
        found = self.of_one(module, record.axis, self.numbers(record))
        if found is not None:
            signal = record.signal
            for inner in found[0]:
                signal = Applied(name, inner, signal)
            return Record(signal, found[1], record.steps)
        if isinstance(module, Function) or type(module).__module__.startswith("torch."):
            return whole_record(f"{name!r}")
        return self.inside(name, module, record)

    def reduced(self, name: str, record: Record, args: Sequence[Any], options: dict[str, Any]) -> Value | None:
        """A sum, mean, maximum over the steps; None if it is not over them."""
        options = dict(options)
        dims = args[0] if args else options.pop("dim", options.pop("axis", None))
        keeps = bool(args[1] if len(args) > 1 else options.get("keepdim", False))
        if dims is None:
            return Unknown(
                f"{name}() of all steps and samples together; expected it over one axis, {name}(dim=0)", True
            )
        if isinstance(dims, int):
            dims = (dims,)
        if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims):
            return whole_record(f"{name}()")
        over = [is_axis(d, record.axis, self.numbers(record)) for d in dims]
        if None in over:
            return Unknown(
                f"{name}() over axis {dims[0]}, of which it is not known whether the steps lie along it; count axes "
                f"from the first, or convert(net, example_input=x)",
                explained=True,
            )
        if not any(over):
            return None
        others = [without(d, record.axis, self.numbers(record)) for d, o in zip(dims, over, strict=True) if not o]
        signal = self._over_steps(name, record)
        if signal is None:
            return Unknown(
                f"{name}() over the steps, which an equilibrium does not tell, since it has no steps; expected mean, "
                "sum, max or min over them",
                explained=True,
            )
        if None in others:
            return whole_record(f"{name}()")
        if others:
            made = self.of_one.function(getattr(torch, name), (Slot(0), tuple(others), keeps))
            signal = Applied(name, made, signal)
        value: Value = Record(signal, record.axis, 1) if keeps else signal
        return Several((value, Unknown(_WHICH, explained=True))) if name in _PAIRS else value

    def _over_steps(self, name: str, record: Record) -> Signal | None:
        if name in ("sum", "nansum"):
            return combine([(record.signal, record.steps)])
        if name in ("mean", "nanmean", "median"):
            return record.signal
        if name in ("max", "min", "amax", "amin"):
            note = f"{name}() over the steps is taken as the value that each step has at the equilibrium"
            if note not in self.notes:
                self.notes.append(note)
            return record.signal
        return None

    def item(self, record: Record, index: Any) -> Value:
        """Some of the steps, or places, of a record."""
        found = parsed(index)
        if found is None:
            return whole_record("an index")
        if not found.taken:
            return record
        numbers = self.numbers(record)
        same = [is_axis(axis, record.axis, numbers) for axis, _ in found.parts]
        if True not in same:
            if None in same:
                return whole_record("an index")
            return self._beside(record, found.entries)
        i = same.index(True)
        part, rest = found.parts[i][1], found.rest(i)
        if isinstance(part, slice):
            shift = sum(isinstance(p, int) for axis, p in found.parts[:i])
            if any(isinstance(p, int) for _, p in found.parts) and record.axis < 0:
                return whole_record("an index")
            steps = len(range(record.steps)[part])
            if not steps:
                return Unknown(
                    f"none of the {record.steps} steps of a record; expected one or more{stands_in(record.steps)}",
                    explained=True,
                )
            return Record(self._rest(record.signal, rest), record.axis - shift, steps)
        if not -record.steps <= part < record.steps:
            return Unknown(
                f"step {int(part)} of a record of {record.steps} steps; expected one of 0..{record.steps - 1}"
                f"{stands_in(record.steps)}",
                explained=True,
            )
        return self._rest(record.signal, rest)

    def _rest(self, signal: Signal, rest: tuple[Any, ...]) -> Signal:
        if all(is_whole(e) for e in rest):
            return signal
        return Applied("getitem", self.of_one.function(operator.getitem, (Slot(0), rest)), signal)

    def _beside(self, record: Record, entries: tuple[Any, ...]) -> Value:
        """An index of axes that are not the steps'."""
        if Ellipsis not in entries or record.axis < 0 or entries[0] is not Ellipsis:
            return whole_record("an index")
        return Record(self._rest(record.signal, entries), record.axis, record.steps)

    def summed(self, terms: Sequence[tuple[Record | Signal, float]]) -> Value:
        """A sum of records, of as many steps."""
        kinds = {(v.axis, v.steps) for v, _ in terms if isinstance(v, Record)}
        (axis, steps), *others = kinds
        if others or (axis != 0 and any(not isinstance(v, Record) for v, _ in terms)):
            return whole_record("a sum")
        return Record(combine([(v.signal if isinstance(v, Record) else v, f) for v, f in terms]), axis, steps)

    def joined(self, name: str, function: Any, values: Sequence[Record], args: Any, options: Any) -> Value:
        """A function of several records, entry by entry."""
        made = self.of_one.function(function, args, options)
        kinds = {(v.axis, v.steps) for v in values}
        if len(kinds) != 1 or self.of_one(made, values[0].axis, LIKELY) is None:
            return whole_record(f"{name}()")
        axis, steps = kinds.pop()
        return Record(Joined(name, made, tuple(v.signal for v in values)), axis, steps)

    def chained(self, values: Sequence[Record], dim: int) -> Value:
        """Records that are concatenated."""
        numbers = self.numbers(values[0])
        same, axes = is_axis(dim, values[0].axis, numbers), {v.axis for v in values}
        if len(axes) == 1 and same is True and len({v.signal for v in values}) == 1:
            return Record(values[0].signal, values[0].axis, sum(v.steps for v in values))
        inner = None if same is not False else without(dim, values[0].axis, numbers)
        if inner is None or len({(v.axis, v.steps) for v in values}) != 1:
            return whole_record("cat()")
        return Record(concatenation([v.signal for v in values], inner, self.of_one), values[0].axis, values[0].steps)


def concatenation(signals: Sequence[Signal], dim: int, of_one: OfOne) -> Signal:
    """Signals along an axis; the same signal twice is one argument twice."""
    distinct = list(dict.fromkeys(signals))
    slots = tuple(Slot(distinct.index(s)) for s in signals)
    made = of_one.function(torch.cat, (slots, dim))
    return Joined("cat", made, tuple(distinct)) if len(distinct) > 1 else Applied("cat", made, distinct[0])
