"""What is known while a trace is read: the values of its nodes, and the modules made of its functions."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from ep_plugin.conversion.axes import OfOne
from ep_plugin.conversion.frames import Frames
from ep_plugin.conversion.functions import RESHAPES, Size, modules_of
from ep_plugin.conversion.plan import Applied, Signal
from ep_plugin.conversion.records import Records
from ep_plugin.conversion.trace import Trace
from ep_plugin.conversion.values import SIGNALS, UNKNOWN, Filled, Record, Unknown, Value

Made = dict[tuple[Any, ...], Any]


class State:
    """The values so far.

    Args:
        traced: the trace.
        made: modules made of functions, by what they do: the same function is the same module in every step.

    Attributes:
        frames, records: what becomes of places of the input, and of records.
        axes: how many axes a signal has, where that is known.
        shaped: what `view` and `reshape` made of the whole input -> that, and their arguments.
        notes: remarks for the user.
    """

    frames: Frames
    records: Records

    def __init__(self, traced: Trace, made: Made) -> None:
        self.trace, self.made, self.one = traced, made, OfOne(made)
        self.values: dict[fx.Node, Any] = {}
        self.known: dict[Value, Value] = {}  # equal values are one object, so that they are quickly compared
        self.filled: dict[str, Filled] = {}  # constant tensors that the forward writes into
        self.axes: dict[Signal, int] = {}
        self.shaped: dict[Signal, tuple[Signal, tuple[Any, ...]]] = {}
        self.shared: dict[fx.Node, set[fx.Node]] = {}  # nodes whose values may lie in the same place
        self.notes: list[str] = []

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _raw(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            if argument.op == "get_attr":
                return self.filled.get(str(argument.target), self.values[argument])
            return self.values[argument]
        if isinstance(argument, (tuple, list)):
            return Unknown(
                "several values at once, such as the spikes and the state that a neuron returns; expected one of them "
                "(spk, mem = neuron(x))",
                explained=True,
            )
        return Unknown(f"the constant {argument!r}; expected something made of the input", explained=True)

    def _value(self, argument: Any) -> Any:
        value = self._raw(argument)
        return value.read() if isinstance(value, Filled) else value

    def _constant(self, argument: Any) -> Tensor | None:
        if not (isinstance(argument, fx.Node) and argument.op == "get_attr"):
            return None
        value: Any = self.trace.root
        for part in str(argument.target).split("."):
            value = getattr(value, part)
        return value

    def _is_zero(self, argument: Any) -> bool:
        """Whether an argument adds nothing: what sums over time start from."""
        constant = self._constant(argument)
        if constant is not None and "_tensor_constant" in str(argument.target):
            return str(argument.target) not in (*self.filled, *self.trace.drawn) and not bool(constant.any())
        return isinstance(argument, (int, float)) and not isinstance(argument, Size) and argument == 0

    def _size_of(self, node: Any, dim: int) -> int | None:
        shape = node.meta.get("shape") if isinstance(node, fx.Node) else None
        return shape.shape[dim] if isinstance(shape, Tensor) and -shape.dim() <= dim < shape.dim() else None

    def modules_of(
        self, function: Any, args: tuple[Any, ...], options: dict[str, Any], place: int = 0
    ) -> list[nn.Module]:
        shown = (
            repr(["a size" if isinstance(a, Size) else a for a in flat(args)][1:])
            if function in RESHAPES
            else repr(args)
        )
        return self._once((function, shown, repr(options), place), lambda: modules_of(function, args, options, place))

    def _once(self, key: tuple[Any, ...], make: Callable[[], list[nn.Module]]) -> list[nn.Module]:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _then(self, name: str, modules: list[nn.Module], value: Any) -> Value:
        """The modules, one after the other, applied to a value."""
        for module in modules:
            if isinstance(value, Record):
                value = self.records.through(name, module, value)
            elif isinstance(value, SIGNALS):
                value = Applied(name, module, value)
            else:
                return value if isinstance(value, Unknown) else UNKNOWN
        return value


def flat(arguments: Any) -> Iterator[Any]:
    for a in arguments:
        if isinstance(a, (tuple, list)):
            yield from flat(a)
        else:
            yield a
