"""The states that a forward hands to its neurons: what they returned themselves, or what it makes of that.

A converted neuron has none of these states. So what it takes over must not depend on what a forward does to them: a
leak or a reset by hand may fall away like the neuron's own, and nothing else.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from ep_plugin.conversion.adapters import States
from ep_plugin.conversion.tracer import state_of
from ep_plugin.conversion.watch import DRAWS, function_name

ZEROS_LIKE = frozenset(["zeros_like", "new_zeros"])
MADE_LIKE = frozenset(["ones_like", "full_like", "empty_like", "new_ones", "new_full", "new_empty", "new_tensor"])
"""Functions of which only the shape of their argument counts."""

_SAME = frozenset(["detach", "clone", "contiguous", "to", "float", "double", "requires_grad", "type_as"])
_SUMS = frozenset(["add", "radd", "iadd", "sub", "rsub", "isub", "subtract"])
_PRODUCTS = frozenset(["mul", "rmul", "imul", "multiply"])
_ELEMENTWISE = (
    _SAME
    | _SUMS
    | _PRODUCTS
    | frozenset(["truediv", "itruediv", "div", "divide", "neg", "abs", "pow", "square", "relu", "tanh"])
    | frozenset(["clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "where", "masked_fill"])
    | frozenset(["gt", "ge", "lt", "le", "eq", "ne", "invert", "logical_not", "bool", "type", "heaviside", "getattr"])
)
"""Functions that leave every neuron to itself, and one at rest at rest."""

Constant = Callable[[fx.Node], Tensor | None]


class Handed:
    """What one call of a neuron is handed.

    Args:
        call: the call.
        states: of the neuron.
        again: whether the same forward has called the neuron before. What the first call is handed is forgotten.
        constant: the tensor that a node is, if it is one.

    Attributes:
        other: what a state depends on beside the neuron itself: the input, another module, a parameter, a random draw,
            or a sum with a constant; None if there is nothing of these.
        fault: why the converted neuron would do something else, in words that follow on "is handed"; None if not.
        altered: a state that falls away -> what forward does to it, in words.
    """

    def __init__(self, call: fx.Node, states: States, again: bool, constant: Constant) -> None:
        self.call, self.states, self.again, self.constant = call, states, again, constant
        self.other: fx.Node | None = None
        self.fault: str | None = None
        self.altered: dict[str, str] = {}
        for name, value in self._slots():
            if self.other is None and self.fault is None:
                self._look(name, value)

    def _slots(self) -> Iterator[tuple[str, Any]]:
        """Each state and what is handed for it: as an argument, or kept by the neuron."""
        names, given = self.states.names, list(self.call.args[1:])
        if self.states.packed:
            yield from self._unpacked(given[0] if given else self.call.kwargs.get("state"))
            return
        found: dict[str, Any] = {**dict(zip(names, given, strict=False)), **self.call.kwargs}
        kept: dict[str, Any] = self.call.meta.get("kept", {})
        for name in names:
            value = found.get(name)
            yield name, kept.get(name) if value is None else value
        yield from ((name, value) for name, value in found.items() if name not in names)  # of a registered neuron
        yield from (("", value) for value in given[len(names) :])

    def _unpacked(self, state: Any) -> Iterator[tuple[str, Any]]:
        changed: dict[str, Any] = {}
        while isinstance(state, fx.Node) and state.target == "_replace":
            changed = {**state.kwargs, **changed}
            state = state.args[0]
        if isinstance(state, fx.Node) and (fields := getattr(state.target, "_fields", None)):  # put together anew
            changed = {**dict(zip(fields, state.args, strict=False)), **state.kwargs, **changed}
            state = None
        yield from ((name, changed.get(name, state)) for name in self.states.names)

    def _look(self, name: str, value: Any) -> None:
        free = name in self.states.free or name not in self.states.names
        nodes = list(self._made_of(value)) if isinstance(value, fx.Node) else []
        if not any(self._is_own(node) for node in nodes):
            if not self.again:
                return
            if (other := self._driven(nodes)) is not None:
                self.other = other
            elif free:
                self.altered[name] = "begins it anew at every step"
            else:
                self.fault = f"a new state {name!r} at every step, {_BUILT_UP}"
            return
        if self._as_returned(name, value):
            return
        functions = [n for n in map(_called, nodes) if n not in (*_SAME, "getattr", "getitem", "state_of", None)]
        words = ", ".join(dict.fromkeys(str(n) for n in functions)) or "another state"
        if (other := self._driven(nodes)) is not None:
            self.other = other
        elif more := next((n for n in nodes if self._is_more(n)), None):
            self.fault = (
                f"a state that forward has made by {_called(more)}(), which is more than a leak or a reset, and "
                "states that are passed by hand are left out; for inhibition among neurons use a recurrent neuron "
                "(snn.RLeaky, norse.LIFRecurrentCell)"
            )
        elif not free:
            self.fault = f"a state {name!r} that forward has changed ({words}), {_BUILT_UP}"
        else:
            self.altered[name] = f"changes it ({words})"

    def _made_of(self, value: fx.Node) -> Iterator[fx.Node]:
        """All nodes that a state is made of, down to what the neuron itself returned."""
        waiting, seen = [value], set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            yield node
            if node.op != "call_module" and _called(node) not in ZEROS_LIKE | MADE_LIKE:
                waiting.extend(node.all_input_nodes)

    def _is_own(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.op == "call_module" and node.target == self.call.target

    def _as_returned(self, name: str, value: Any) -> bool:
        """Whether a state is the one that the neuron returned or kept."""
        while isinstance(value, fx.Node) and (_called(value) in _SAME or value.args[1:] == ("data",)):
            value = value.args[0]
        if not isinstance(value, fx.Node):
            return False
        if value.target is state_of:
            return bool(value.args[1] == name)
        if name not in self.states.names:
            return False
        place = self.states.names.index(name)
        if self.states.packed:
            if self._is_state(value):
                return True
            return bool(value.args and self._is_state(value.args[0]) and value.args[1:] in ((name,), (place,)))
        behind = 1 if "spk" not in self.states.names else 0  # spikes are returned first
        return bool(value.args and self._is_own(value.args[0]) and value.args[1:] == (place + behind,))

    def _is_state(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.args[1:] == (1,) and self._is_own(node.args[0])

    def _is_more(self, node: fx.Node) -> bool:
        """Whether a function may do more than a leak or a reset, such as join neurons."""
        if node.op not in ("call_function", "call_method") or node.target is state_of:
            return False
        if (name := _called(node)) == "getitem":
            of = node.args[0]
            return not (self._is_own(of) or self._is_state(of))
        return name not in _ELEMENTWISE | ZEROS_LIKE | MADE_LIKE | {"replace"}

    def _driven(self, nodes: list[fx.Node]) -> fx.Node | None:
        """What drives a state beside the neuron itself."""
        for node in nodes:
            if node.op == "placeholder" or (node.op == "call_module" and not self._is_own(node)):
                return node
        first = sorted(nodes, key=lambda node: node.op != "get_attr")  # a parameter tells more than the sum it is in
        return next((node for node in first if self._drives(node)), None)

    def _drives(self, node: fx.Node) -> bool:
        """Whether a node adds something to a state, or is learned, or drawn."""
        if isinstance(held := self.constant(node), nn.Parameter) and held.requires_grad:
            return True
        if node.op == "get_attr":
            return False
        if function_name(node.target) in DRAWS:
            return True
        if _called(node) not in _SUMS or self._is_factor(node):
            return False
        numbers = [a for a in node.args if isinstance(a, (int, float)) and a != 0]
        tensors = [t for a in node.args if isinstance(a, fx.Node) and (t := self.constant(a)) is not None]
        return bool(numbers) or any(bool(t.any()) for t in tensors)

    def _is_factor(self, node: fx.Node) -> bool:
        """Whether a sum with the neuron's spikes alone multiplies its state, as in a reset, `mem * (1 - spk)`."""
        of_spikes = [a for a in node.args if isinstance(a, fx.Node) and self.constant(a) is None]
        return all(map(self._is_spikes, of_spikes)) and all(
            _called(user) in _PRODUCTS and any(self._is_of_state(a) for a in user.args if a is not node)
            for user in node.users
        )

    def _is_of_state(self, node: Any) -> bool:
        """Whether a value is made of a state, and not of spikes and constants alone."""
        made_of = self._made_of(node) if isinstance(node, fx.Node) else ()
        return any(n.target is state_of or _called(n) == "getitem" for n in made_of if not self._is_spikes(n))

    def _is_spikes(self, node: Any) -> bool:
        while isinstance(node, fx.Node) and _called(node) in _SAME:
            node = node.args[0]
        if not isinstance(node, fx.Node):
            return False
        if node.target is state_of:
            return bool(node.args[1] == "spk")
        return self._is_own(node) or (node.args[1:] == (0,) and self._is_own(node.args[0]))


_BUILT_UP = (
    "while what the converted neuron makes of a steady input is what that state builds up to over the steps; hand it "
    "on as it was returned (a factor on it is a leak of the neuron: set that)"
)


def _called(node: fx.Node) -> str | None:
    """The name of a function, without the underscores of operators and of changes in place."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = function_name(node.target)
    return name if name in ZEROS_LIKE | MADE_LIKE else name.strip("_")
