"""Functions that a forward calls: sums, shapes, concatenations, and any function of one value or several."""

from typing import Any

import torch
from torch import Tensor, fx

from ep_plugin.conversion import frames as f
from ep_plugin.conversion.functions import RESHAPES, Size, Slot
from ep_plugin.conversion.linear_functions import is_constant
from ep_plugin.conversion.plan import Applied, Joined, combine
from ep_plugin.conversion.records import concatenation
from ep_plugin.conversion.selection import unsqueezed
from ep_plugin.conversion.state import State, flat
from ep_plugin.conversion.values import SIGNALS, ZEROS, Record, Several, Unknown, Value, recorded, whole_record
from ep_plugin.conversion.watch import function_name


class Calls(State):
    """Reads calls of functions."""

    def _sum(self, terms: list[tuple[Any, float]]) -> Value | None:
        known = [(self._value(a), factor) for a, factor in terms if not self._is_zero(a)]
        known = [(v, factor) for v, factor in known if v is not ZEROS]
        if known and all(isinstance(v, SIGNALS) for v, _ in known):
            return combine(known)
        if known and all(isinstance(v, (*SIGNALS, Record)) for v, _ in known):
            if any(not isinstance(v, Record) and is_constant(v) for v, _ in known):
                return whole_record("the sum with a tensor of the model")
            return self.records.summed(known)
        if all(isinstance(a, fx.Node) for a, _ in terms):
            return first_unknown([v for v, _ in known]) or (Unknown("a sum of constants") if known else ZEROS)
        return None

    def _function(self, node: fx.Node, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        """A function of one tensor, or of several."""
        name = function_name(function)
        nodes = [self._value(a) for a in flat((*args, *options.values())) if isinstance(a, fx.Node)]
        if nodes and all(isinstance(v, SIGNALS) and is_constant(v) for v in nodes):
            return self._joined(name, function, args, options)
        places = [i for i, a in enumerate(args) if isinstance(a, fx.Node)]
        rest = list(flat((*args, *options.values())))
        if len(places) != 1 or sum(isinstance(a, fx.Node) for a in rest) != 1:
            return self._joined(name, function, args, options)
        place = places[0]
        others, value = (*args[:place], *args[place + 1 :]), self._value(args[place])
        if isinstance(value, Unknown):
            return value
        if function in RESHAPES and place == 0 and isinstance(value, (Record, *SIGNALS)):
            return self._reshape(node, name, value, others, options)
        try:
            made = self.modules_of(function, others, options, place)
        except (KeyError, TypeError, ValueError) as error:
            return Unknown(f"{name}(), called with {others} {options or ''}: {error}", explained=True)
        return self._then(name, made, value)

    def _reshape(
        self, node: fx.Node, name: str, value: Value, sizes: tuple[Any, ...], options: dict[str, Any]
    ) -> Value:
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)):
            sizes = tuple(sizes[0])
        if isinstance(value, Record):
            if value.axis != 0 or len(sizes) < 3 or not self._keeps_steps(node, value.steps, sizes):
                return whole_record(f"{name}()")
            made = self.modules_of(Tensor.reshape, sizes[1:], options)
            return Record(self._then(name, made, value.signal), 0, value.steps)  # type: ignore[arg-type]
        batch, first = self._size_of(node.args[0], 0), self._size_of(node, 0)
        first = int(sizes[0]) if first is None else first
        swaps = [size.of for size in sizes[:2] if isinstance(size, Size)] == [(node.args[0], 1), (node.args[0], 0)]
        if swaps or (batch is not None and first not in (-1, batch)):
            return Unknown(
                f"{name}{tuple(map(int, sizes))}, which mixes samples; expected the batch's size first (permute and "
                "transpose move axes; where steps are folded into the batch, call modules on one step, inside the "
                "loop)",
                explained=True,
            )
        try:
            made = self.modules_of(Tensor.reshape, sizes, options)
        except ValueError as error:
            if not (isinstance(value, SIGNALS) and f.is_of_input(value)):
                return Unknown(f"{name}(): {error}", explained=True)
            made = [self.one.function(Tensor.reshape, (Slot(0), *sizes), options)]
        done = self._then(name, made, value)
        if isinstance(done, Applied) and isinstance(value, SIGNALS) and f.is_of_input(value):
            self.shaped[done] = (value, sizes)
        return done

    def _keeps_steps(self, node: fx.Node, steps: int, sizes: tuple[Any, ...]) -> bool:
        """Whether a record of steps is one after a reshape: its first two sizes are the steps' and the batch's."""
        batch, second = self._size_of(node.args[0], 1), self._size_of(node, 1)
        if batch is not None and second is not None:
            return self._size_of(node, 0) == steps and second == batch
        if int(sizes[0]) not in (-1, steps):
            return False
        return isinstance(sizes[1], Size) or (int(sizes[0]) == steps and int(sizes[1]) == -1)

    def _joined(self, name: str, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        """A function of several tensors, which may stand before the first neuron or after the last."""
        nodes = list(dict.fromkeys(a for a in flat((*args, *options.values())) if isinstance(a, fx.Node)))
        values = [self._value(node) for node in nodes]
        signals = tuple(v for v in values if isinstance(v, SIGNALS))

        def slot(node: fx.Node) -> Any:
            return Slot(nodes.index(node))

        if values and all(isinstance(v, Record) for v in values):
            args, options = fx.map_arg((args, options), slot)
            return self.records.joined(name, function, values, args, options)
        if not signals or len(signals) < len(values):
            return first_unknown(values, f"{name}()") or Unknown(f"{name}() of no tensor", explained=True)
        args, options = fx.map_arg((args, options), slot)
        made = self.one.function(function, args, options)
        return Joined(name, made, signals) if len(signals) > 1 else Applied(name, made, signals[0])

    def _stacked(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        values = [self._value(p) for p in args[0]]
        dim = args[1] if len(args) > 1 else options.get("dim", options.get("axis", 0))
        if not values or not isinstance(dim, int):
            return Unknown(f"{function_name(function)}() of nothing")
        if function is torch.stack:
            stacked = recorded(values, dim)
            if not isinstance(stacked, Several):
                return stacked
        elif all(isinstance(v, Record) for v in values):
            return self.records.chained(values, dim)
        elif all(isinstance(v, Applied) and unsqueezed(v) == dim for v in values):
            stacked = recorded([v.signal for v in values], dim)
            if isinstance(stacked, Record):
                return stacked
        elif dim == 0 and isinstance(values[0], SIGNALS) and len(set(values)) == 1:
            return Unknown(
                "a concatenation along the batch, which makes samples of steps; use torch.stack in its place", True
            )
        if not all(isinstance(v, SIGNALS) for v in values):
            return first_unknown(values) or whole_record(f"{function_name(function)}()")
        if function is torch.stack:
            nodes = list(dict.fromkeys(values))
            slots = [Slot(nodes.index(v)) for v in values]
            return Joined("stack", self.one.function(torch.stack, (slots, dim)), tuple(nodes))
        return concatenation(values, dim, self.one)


def first_unknown(values: list[Any], function: str = "a function") -> Unknown | None:
    """The first of the values that are no signals, as what is not known."""
    unknown = [v for v in values if isinstance(v, Unknown)]
    if unknown:
        return next((v for v in unknown if v.is_sentence or v.explained), unknown[0])
    return whole_record(function) if any(not isinstance(v, SIGNALS) for v in values) else None
