"""Models with a forward of their own: traced by `torch.fx`, and read as the plan of one step.

Neurons, and modules without neurons in them, are leaves of the trace. A loop over time is unrolled,
or run once if the input's size tells its length; in every step each neuron must receive the same
signal. Membranes that are passed by hand are the neurons' own business and fall away.
"""

import copy
import dis
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ep_plugin.conversion import adapters
from ep_plugin.conversion.adapters import place_of
from ep_plugin.conversion.functions import RESHAPES, UNCHANGED, Function, Size, Slot, as_sum, modules_of
from ep_plugin.conversion.plan import Applied, Combination, Input, Joined, Plan, Signal, Spikes, combine


@dataclass(frozen=True)
class _Recorded:
    """A signal over all steps, stacked."""

    signal: Signal
    steps: int


@dataclass(frozen=True)
class _Unknown:
    """Something that is no signal; an error only if a neuron or the output depends on it.

    `reason` names it, or `is_sentence`.
    """

    reason: str
    is_sentence: bool = False


_Value = Signal | _Recorded | _Unknown
_SIGNALS = (Input, Spikes, Applied, Joined, Combination)
_TIMES = _Unknown("a record of all time steps")
_OVER_TIME = (Tensor.sum, torch.sum, Tensor.mean, torch.mean)


def read(net: nn.Module) -> Plan:
    """What `net.forward` computes in one step.

    Raises:
        ValueError: it cannot be traced, or a neuron or the output depends on something that has no
            counterpart, with the place and the reason.
    """
    # A copy, since tracing leaves constants behind on the module.
    root, tracer = copy.copy(net), _Tracer()
    try:
        graph = tracer.trace(root)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(net).__name__} cannot be traced: {error}. Expected neurons and modules called one "
            "after the other, in a loop over a fixed number of steps if you like; what depends on the values or the "
            "sizes of the input belongs outside, or into a module without neurons"
        ) from error
    return _Reader(root, graph).plan()


class _Traced(fx.Proxy):
    """A value in the trace. Of the input's properties only what every loop over it needs is known."""

    @property
    def shape(self) -> "_Shape":
        return _Shape()

    def size(self, dim: int | None = None) -> Any:
        return _Shape() if dim is None else Size(1)

    def __len__(self) -> int:
        return 1

    device = property(lambda self: torch.device("cpu"))
    dtype = property(lambda self: torch.get_default_dtype())


class _Shape:
    """All sizes of a value, of which not even the number is known."""

    def __getitem__(self, dim: int | slice) -> Any:
        return self if isinstance(dim, slice) else Size(1)

    def __iter__(self) -> Iterator[Size]:
        # As many as the caller unpacks them to, which its bytecode tells.
        caller = inspect.stack()[1].frame
        for instruction in dis.get_instructions(caller.f_code):
            if instruction.offset == caller.f_lasti and instruction.opname == "UNPACK_SEQUENCE":
                return iter([Size(1)] * instruction.argval)
        raise TypeError("it goes through the sizes of the input")


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Traced(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if adapters.find_adapter(m) is not None:
            return True
        return type(m) is not nn.Sequential and not any(adapters.find_adapter(inner) for inner in m.modules())

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        called: Any = super().call_module(m, forward, args, kwargs)
        found = adapters.find_adapter(m)
        if found is None or not (count := found.outputs(m)):
            return called
        return tuple(called[i] for i in range(count))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[0]])  # type: ignore[index]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Arguments with a default keep it: hidden states that start from None.
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        defaults = root_fn.__defaults__ or ()
        return fn, [*args[: len(args) - len(defaults)], *defaults]


class _Reader:
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.graph = graph
        self.modules = dict(root.named_modules())
        self.constants = root
        self.values: dict[fx.Node, _Value] = {}
        self.known: dict[_Value, _Value] = {}  # equal values are one object, so that they are quickly compared
        self.written: dict[str, _Value] = {}  # constant tensors that the forward fills: name -> what with
        self.made: dict[tuple[Any, ...], list[nn.Module]] = {}  # the same function is the same module in every step
        self.found = Plan({}, {}, Input())

    def plan(self) -> Plan:
        first = next(node for node in self.graph.nodes if node.op == "placeholder")
        for node in self.graph.nodes:
            if node.op == "output":
                self.found.output = self._output(node.args[0])
            elif node.op == "placeholder":
                self.values[node] = Input() if node is first else _Unknown(f"the argument {node.target!r} of forward")
            else:
                value = getattr(self, f"_{node.op}")(node)
                self.values[node] = self.known.setdefault(value, value)
        return self.found

    def _output(self, output: Any) -> Signal:
        """Of several outputs the first, which is where snnTorch and Norse have the spikes."""
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, fx.Node):
            raise ValueError(f"forward returns {output!r}; expected a tensor, or a tuple of which the first is one")
        value = self.values[output]
        if output.op == "get_attr" and output.target in self.written:
            value = self.written[str(output.target)]
        if isinstance(value, _Recorded):
            value = value.signal
        if isinstance(value, Applied) and value.name in self.found.neurons:
            self.found.notes.append(f"the output is the membrane that {value.name} settles at")
        return self._signal(value, "the output")

    def _signal(self, value: Any, user: str) -> Signal:
        """A value as the signal that `user` receives."""
        if isinstance(value, _SIGNALS):
            return value
        if isinstance(value, _Unknown) and value.is_sentence:
            raise ValueError(value.reason)
        reason = (value if isinstance(value, _Unknown) else _TIMES).reason
        raise ValueError(f"{user} depends on {reason}, which has no counterpart at an equilibrium")

    def _membrane(self, name: str) -> _Value:
        """The membrane that a neuron returns beside its spikes."""
        module, place = self.modules[name], place_of(name, self.modules[name])
        adapter = adapters.adapter_for(module)
        try:
            steady = self._once(("membrane", name), lambda: [adapter.steady_membrane(place, module)])
        except ValueError as error:
            return _Unknown(str(error), is_sentence=True)
        return self._then(name, steady, self.found.received[name])

    def _get_attr(self, node: fx.Node) -> _Value:
        return _Unknown(f"a tensor that forward makes or reads itself ({node.target})")

    def _call_module(self, node: fx.Node) -> _Value:
        name = str(node.target)
        module, found = self.modules[name], adapters.find_adapter(self.modules[name])
        received = self._value(next(iter((*node.args, *node.kwargs.values())), None))
        if found is None:
            if len(node.args) == 1 and not node.kwargs:
                return self._then(name, [module], received)
            signals = tuple(v for a in node.args if isinstance(v := self._value(a), _SIGNALS))
            if node.kwargs or len(signals) < len(node.args):
                return _Unknown(f"{place_of(name, module)}, which is called with more than one argument")
            return Joined(name, module, signals)
        if (parts := found.integrator(module)) is not None:
            return self._then(name, self._once(("integrator", name), lambda: parts), received)
        signal = self._signal(received, place_of(name, module))
        if self.found.received.setdefault(name, signal) != signal:
            raise ValueError(
                f"{place_of(name, module)} receives something else the second time it is called: either it stands in "
                "two places of the network, where it needs a neuron for each, or it receives what a neuron behind it "
                "did in the step before. For such a loop put the network together from ep_plugin.Layer, Connection "
                "and ConvergentNetwork"
            )
        self.found.neurons[name] = module
        return Spikes(name) if found.outputs(module) == 0 else _Unknown(f"all that {name!r} returns")

    def _call_function(self, node: fx.Node) -> _Value:
        return self._called(node, node.target)

    def _call_method(self, node: fx.Node) -> _Value:
        if node.target in UNCHANGED:
            return self._value(node.args[0])
        if node.target == "__setitem__":
            target = node.args[0]
            if isinstance(target, fx.Node) and target.op == "get_attr":
                self.written[str(target.target)] = self._value(node.args[2])
            return _Unknown("an assignment")
        return self._called(node, getattr(Tensor, str(node.target)))

    def _called(self, node: fx.Node, function: Any) -> _Value:
        args, options = node.args, dict(node.kwargs)
        part = self._item(args[0], args[1]) if function is operator.getitem and isinstance(args[0], fx.Node) else None
        if part is not None:
            return part
        if function in (torch.stack, torch.cat) and isinstance(args[0], (list, tuple)):
            return self._stacked(function, args, options)
        if function in _OVER_TIME and isinstance(recorded := self._value(args[0]), _Recorded):
            if (*args[1:], *options.values()) not in ((0,), ((0,),)):
                return _TIMES
            return combine([(recorded.signal, recorded.steps if function in (Tensor.sum, torch.sum) else 1)])
        if function not in RESHAPES and any(isinstance(a, Size) for a in _flat((*args, *options.values()))):
            return _Unknown(f"{getattr(function, '__name__', function)}() with a size of the input")
        terms = as_sum(function, args, options)
        if terms is not None:
            known = [(self._value(a), factor) for a, factor in terms if not self._is_zero(a)]
            signals = [(v, factor) for v, factor in known if isinstance(v, _SIGNALS)]
            if signals and len(signals) == len(known):
                return combine(signals)
            if all(isinstance(a, fx.Node) for a, _ in terms):
                others = [v if isinstance(v, _Unknown) else _TIMES for v, _ in known if not isinstance(v, _SIGNALS)]
                return others[0] if others else _Unknown("a sum of constants")
        return self._function(node, function, args, options)

    def _function(self, node: fx.Node, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _Value:
        """A function of one tensor, or of several."""
        name = getattr(function, "__name__", str(function))
        places = [i for i, a in enumerate(args) if isinstance(a, fx.Node)]
        rest = list(_flat((*args, *options.values())))
        if len(places) != 1 or sum(isinstance(a, fx.Node) for a in rest) != 1:
            return self._joined(name, function, args, options)
        place = places[0]
        others = (*args[:place], *args[place + 1 :])
        key = (function, repr(others), repr(options), place)
        try:
            made = self._once(key, lambda: modules_of(function, others, options, place))
        except (KeyError, TypeError, ValueError) as error:
            return _Unknown(f"{name}(), called with {others} {options or ''}: {error}")
        return self._then(name, made, self._value(args[place]))

    def _joined(self, name: str, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _Value:
        """A function of several tensors, which may stand before the first neuron or after the last."""
        nodes = [a for a in dict.fromkeys(_flat((*args, *options.values()))) if isinstance(a, fx.Node)]
        values = [self._value(node) for node in nodes]
        signals = tuple(v for v in values if isinstance(v, _SIGNALS))
        if not signals or len(signals) < len(values):
            return next((v for v in values if isinstance(v, _Unknown) and v.is_sentence), None) or _Unknown(
                f"{name}() of several tensors (outside of the neurons a module of its own may do that)"
            )

        def slot(node: fx.Node) -> Any:
            return Slot(nodes.index(node))

        args, options = fx.map_arg((args, options), slot)
        (made,) = self._once((function, repr(args), repr(options)), lambda: [Function(function, args, options)])
        return Joined(name, made, signals) if len(signals) > 1 else Applied(name, made, signals[0])

    def _item(self, of: fx.Node, index: Any) -> _Value | None:
        value = self.values[of]
        name = str(of.target)
        found = adapters.find_adapter(self.modules[name]) if of.op == "call_module" else None
        if found is not None and (count := found.outputs(self.modules[name])):
            if found.integrator(self.modules[name]) is not None:
                return value if index == 0 else _Unknown(f"the state of {name!r}")
            if index == 0:
                return Spikes(name)
            if index == count - 1:
                return self._membrane(name)
            return _Unknown(f"the synapse of {name!r}")
        first = index[0] if isinstance(index, tuple) and index else index
        if isinstance(value, Input) and isinstance(first, int):
            whole = not isinstance(index, tuple) or all(i in (slice(None), Ellipsis) for i in index[1:])
            return Input(at_a_step=True) if whole and not value.at_a_step else None
        if isinstance(value, _Recorded):
            return value.signal if isinstance(index, int) else _Unknown("some of the recorded time steps")
        return None

    def _stacked(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _Value:
        values = [self._value(p) for p in args[0]]
        if function is torch.stack and (*args[1:], *options.values()) in ((), (0,)) and len(set(values)) == 1:
            return _Recorded(values[0], len(values)) if isinstance(values[0], _SIGNALS) else values[0]
        return self._joined(function.__name__, function, args, options)

    def _then(self, name: str, modules: list[nn.Module], value: _Value) -> _Value:
        """The modules, one after the other, applied to a value."""
        if not isinstance(value, _SIGNALS):
            return value if isinstance(value, _Unknown) else _TIMES
        signal: Signal = value
        for module in modules:
            signal = Applied(name, module, signal)
        return signal

    def _value(self, argument: Any) -> _Value:
        return self.values[argument] if isinstance(argument, fx.Node) else _Unknown(f"the constant {argument!r}")

    def _is_zero(self, argument: Any) -> bool:
        """Whether an argument adds nothing: what sums over time start from."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr" and str(argument.target).startswith("_tensor"):
            argument = getattr(self.constants, str(argument.target))
            return not bool(argument.any())
        return isinstance(argument, (int, float)) and argument == 0

    def _once(self, key: tuple[Any, ...], make: Callable[[], list[nn.Module]]) -> list[nn.Module]:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def _flat(arguments: Any) -> Iterator[Any]:
    for a in arguments:
        if isinstance(a, (tuple, list)):
            yield from _flat(a)
        else:
            yield a
