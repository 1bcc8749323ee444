"""A traced forward as the plan of one step: every node of the trace becomes a value, one after the other."""

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ep_plugin.conversion import frames as f
from ep_plugin.conversion.adapters import States, adapter_for, find_adapter, lifted, place_of, runs_over_time
from ep_plugin.conversion.axes import REDUCTIONS
from ep_plugin.conversion.calls import Calls, first_unknown
from ep_plugin.conversion.functions import RESHAPES, UNCHANGED, Size, as_sum, may_be_of_another_type
from ep_plugin.conversion.handed import MADE_LIKE, ZEROS_LIKE, Handed
from ep_plugin.conversion.linear_functions import Held, constant, is_constant
from ep_plugin.conversion.plan import Applied, Input, Joined, Plan, Signal, Spikes, sources, substitute_input
from ep_plugin.conversion.records import Records
from ep_plugin.conversion.returned import Path
from ep_plugin.conversion.selection import Selection, unread
from ep_plugin.conversion.shapes import axes_of
from ep_plugin.conversion.sizes import EXAMPLE
from ep_plugin.conversion.state import Made, flat
from ep_plugin.conversion.trace import Trace, trace
from ep_plugin.conversion.tracer import state_of
from ep_plugin.conversion.values import SIGNALS, UNKNOWN, ZEROS, Record, Unknown, Value, any_step, whole_record
from ep_plugin.conversion.watch import DRAWN, DRAWS, asks_in_place, function_name, is_in_place, out_of_place
from ep_plugin.conversion.writing import Writing

_CATS = (torch.cat, torch.concat, torch.concatenate)
_SYMBOLS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "truediv", "neg", "pow", "matmul", "iadd", "isub", "imul", "itruediv")
} | {"radd": operator.add, "rmul": operator.mul, "div": operator.truediv, "idiv": operator.itruediv}
"""Methods that stand for operators."""


class Reader(Selection, Writing, Calls):
    """Reads a trace.

    Args:
        net: what was traced.
        traced: its trace.
        made: modules made of functions, by what they do: the same function is the same module in every step.
        given: what the first argument is.
        prefix: of names.
    """

    def __init__(self, net: nn.Module, traced: Trace, made: Made, given: Value | None = None, prefix: str = "") -> None:
        super().__init__(traced, made)
        self.given, self.prefix = Input() if given is None else given, prefix
        self.modules = dict(net.named_modules())
        self.calls: dict[str, list[frozenset[tuple[int, int]]]] = {}
        self.latest: dict[str, Signal] = {}  # what each neuron receives at the step that is read
        self.of_each = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
        self.called: Counter[str] = Counter()  # so far
        self.altered: dict[str, str] = {}  # neurons -> what forward does to their membranes
        self.found = Plan({}, {}, Input(), self.notes)
        self.frames = f.Frames(self.axes, self.shaped, self._inside, self.one, self.modules_of)
        self.records = Records(self.axes, self._of_record, self.notes, self.one)
        self._nodes()

    def _nodes(self) -> None:
        first = next(node for node in self.trace.graph.nodes if node.op == "placeholder")
        for node in self.trace.graph.nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                value: Any = self.given if node is first else _argument(str(node.target))
            else:
                value = getattr(self, f"_{node.op}")(node)
                value = self.known.setdefault(value, value)
            self.values[node] = value
            if isinstance(value, SIGNALS) and (axes := axes_of(node)) is not None:
                self.axes.setdefault(value, axes)

    def outputs(self) -> list[tuple[Path, Value]]:
        """What forward returns, each with its place in that."""
        return [(path, self._value(node)) for path, node in self.trace.outputs]

    def steps(self, size: Callable[[int], int | None]) -> int | None:
        """Settles what each neuron reads of the input: the input at any step, or the whole input.

        Args:
            size: of an axis of the input, if it is known.

        Returns:
            How many steps are read; None if the input is read as a whole.
        """
        found: dict[str, tuple[int, int]] = {}
        for name, calls in self.calls.items():
            axis = next((axis for call in calls for axis, _ in call), None)
            place = place_of(name, self.modules[name])
            read = f.steps_read(place, calls, None if axis is None else size(axis))
            signal = self.found.received[name]
            if read is None:
                for axis, step in sorted(calls[0]):
                    self._note(f"of the input's axis {axis} it reads only place {step}")
                self.found.received[name] = f.alone(signal, self.one.function, Input() in self.axes)
            else:
                found[name] = read
                self.found.received[name] = any_step(signal)
        if len(set(found.values())) > 1:
            words = ", ".join(f"{n} steps along axis {axis} ({name})" for name, (axis, n) in found.items())
            raise ValueError(f"its neurons read the input's steps in different ways: {words}; {f.ALL_STEPS}")
        return next((n for _, n in found.values()), None)

    def signal(self, value: Any, user: str) -> Signal:
        """A value as the signal that `user` receives."""
        if isinstance(value, SIGNALS):
            return value
        if isinstance(value, Record):
            value = Unknown(
                "a record of all time steps, of which it takes one at a time; call it inside the loop over the steps "
                "(beside neurons over time, such as norse.LIF: put the cell into a norse.Lift)",
                explained=True,
            )
        if not isinstance(value, Unknown):
            value = Unknown("several values at once; expected one of them, by an index such as [0]", explained=True)
        if value.is_sentence:
            raise ValueError(value.reason)
        ending = "" if value.explained else ", which has no counterpart at an equilibrium"
        raise ValueError(f"{user} depends on {value.reason}{ending}")

    # Nodes of the trace

    def _get_attr(self, node: fx.Node) -> Any:
        name = str(node.target)
        if name in self.trace.drawn:
            return Unknown(DRAWN, explained=True)
        if name in self.filled:
            return self.filled[name]
        return ZEROS if self._is_zero(node) else self._held(name, node)

    def _held(self, name: str, node: fx.Node) -> Value:
        """A tensor of the model, or one that forward makes, which is the same at every step if its values are."""
        tensor = self._constant(node)
        assert tensor is not None
        key: tuple[Any, ...] = ("held", id(tensor))
        if "_tensor_constant" in name:
            if tensor.requires_grad:
                return Unknown(
                    "a tensor made of parameters that are no attributes of the model's modules; expected them to be "
                    "(in an nn.ParameterList if there are several)",
                    explained=True,
                )
            key = ("held", tensor.dtype, tensor.shape, tensor.detach().cpu().numpy().tobytes())
        (held,) = self._once(key, lambda: [Held(tensor)])
        return constant(_short(name) if "_tensor_constant" not in name else "a tensor that forward makes", held)

    def _call_module(self, node: fx.Node) -> Any:
        name = str(node.target)
        module, found = self.modules[name], find_adapter(self.modules[name])
        received = self._value(next(iter((*node.args, *node.kwargs.values())), None))
        if (inner := lifted(module)) is not None and found is None:
            return self._over_time(self.prefix + name, node, lambda signal: self._then(name, [inner], signal))
        if runs_over_time(module):
            return self._over_time(name, node, lambda signal: self._at_every_step(name, module, signal))
        if found is None:
            value = self._leaf(node, self.prefix + name, module, received)
            return self._in_place(node, value) if getattr(module, "inplace", False) is True else value
        self._require_own_states(node, name, found.states(module))
        if (parts := found.integrator(module)) is not None:
            return self._then(name, self._once(("integrator", name), lambda: parts), received)
        return self._neuron(name, module, self.signal(received, place_of(name, module)))

    def _require_own_states(self, node: fx.Node, name: str, states: States) -> None:
        """Refuses states by which a neuron does what the converted one would not."""
        before, self.called[name] = self.called[name], self.called[name] + 1
        in_a_forward = max(self.of_each[name] // self.trace.calls, 1)
        handed = Handed(node, states, before % in_a_forward != 0, self._constant)
        place = place_of(name, self.modules[name])
        if handed.other is not None:
            raise ValueError(
                f"{place} is handed a state that depends on {self._named(handed.other)}, and states that are passed "
                "by hand are left out; add that to what the neuron receives, by a linear module"
            )
        if handed.fault is not None:
            raise ValueError(f"{place} is handed {handed.fault}")
        if told := handed.altered.get("mem"):
            self.altered[name] = told

    def _named(self, node: fx.Node) -> str:
        """What a state depends on."""
        label = str(node.target)
        if node.op == "placeholder":
            return "the input"
        if node.op == "get_attr":
            return f"the parameter {_short(label)!r}"
        if node.op == "call_module":
            return place_of(label, self.modules[label])
        return "a random draw" if function_name(node.target) in DRAWS else "a constant that is added in every step"

    def _over_time(self, name: str, node: fx.Node, step: Callable[[Signal], Value]) -> Value:
        """What takes all steps at once, as what it does at each."""
        first = next(iter((*node.args, *node.kwargs.values())), None)
        if isinstance(first, (tuple, list)) and first:  # a neuron's spikes and its state
            first = first[0]
        received = self._value(first)
        if isinstance(received, Unknown):
            return received
        if not isinstance(received, Record) or received.axis != 0:
            return Unknown(
                f"{place_of(name, self.modules[str(node.target)])}, which takes all time steps at once: what it is "
                "given is not known to have them along its first axis; expected the model's input as it is, and "
                "modules before it that keep that axis (in a norse.Lift)",
                explained=True,
            )
        value = step(received.signal)
        return Record(value, 0, received.steps) if isinstance(value, SIGNALS) else value

    def _at_every_step(self, name: str, module: nn.Module, signal: Signal) -> Value:
        """A neuron that takes all steps."""
        if (parts := adapter_for(module).integrator(module)) is not None:
            return self._then(name, self._once(("integrator", name), lambda: parts), signal)
        place = place_of(name, module)
        if self.found.received.setdefault(name, signal) != signal:
            raise ValueError(_differs(place, self.found.received[name], signal))
        self.found.neurons[name], self.latest[name] = module, signal
        return Spikes(name)

    def _leaf(self, node: fx.Node, name: str, module: nn.Module, received: Value) -> Value:
        if getattr(module, "inplace", False) is True and (kind := type(module)).__module__.startswith("torch."):
            # Its argument is the new value from now on; the converted model leaves the old one to those before.
            (module,) = self._once(("out of place", kind, module), lambda: [_out_of_place(module)])
        if getattr(module, "return_indices", False) is True:
            return Unknown(
                f"{place_of(name, module)}, which returns indices beside its values; expected return_indices=False "
                "(a transposed convolution or nn.Upsample in the place of an unpooling)",
                explained=True,
            )
        if node.meta.get("frozen") and any(p.requires_grad for p in module.parameters()):
            self._note(f"{name} is called under torch.no_grad(), and is trained here all the same")
        if len(node.args) == 1 and not node.kwargs:
            return self._then(name, [module], received)
        values = [self._value(a) for a in node.args]
        signals = tuple(v for v in values if isinstance(v, SIGNALS))
        if node.kwargs or len(signals) < len(values):
            others = [a for a in node.args if not isinstance(a, fx.Node)]
            given = f"with {', '.join(map(repr, others))}" if others else f"by keyword ({', '.join(node.kwargs)})"
            return (None if others else first_unknown(values)) or Unknown(
                f"{place_of(name, module)}, which is called {given}; expected values made of the input alone, by their "
                "position (keep constants in the module)",
                explained=True,
            )
        return Joined(name, module, signals)

    def _neuron(self, name: str, module: nn.Module, signal: Signal) -> Value:
        place, before = place_of(name, module), self.found.received.setdefault(name, signal)
        if before != signal and not f.same_but_for_the_step(before, signal):
            raise ValueError(_differs(place, before, signal))
        if any(isinstance(s, Input) and s.axis is not None and s.step is None for s in sources(signal)):
            raise ValueError(
                f"{place} depends on a record of the input's steps; call it inside the loop, on what one step gives"
            )
        self.calls.setdefault(name, []).append(f.frames(signal))
        self.found.neurons[name] = module
        self.latest[name] = signal
        return Spikes(name) if adapter_for(module).outputs(module) == 0 else Unknown(f"all that {name!r} returns")

    def _call_function(self, node: fx.Node) -> Any:
        return self._called(node, node.target)

    def _call_method(self, node: fx.Node) -> Any:
        name = str(node.target)
        if name == "__setitem__":
            return self._written(node.args[0], node.args[1], self._value(node.args[2]))
        if name in UNCHANGED and (value := self._with_the_same_values(node)) is not None:
            return self._may_share(node, value)
        if name.strip("_") in _SYMBOLS and name.startswith("__"):
            return self._called(node, _SYMBOLS[name.strip("_")])
        if name in ("values", "indices") or not hasattr(Tensor, name):
            return unread(self._value(node.args[0]), f"{name}()")
        return self._called(node, getattr(Tensor, name))

    def _with_the_same_values(self, node: fx.Node) -> Value | None:
        """The argument of a method that changes no more than its place or precision; None if it may change more."""
        value, name = self._value(node.args[0]), str(node.target)
        types = [a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, torch.dtype)]
        if any(not kind.is_floating_point for kind in types):
            return None
        changes_type = bool(types) or name in ("float", "double", "type_as")
        if not (changes_type and isinstance(value, SIGNALS) and may_be_of_another_type(value)):
            return value
        # The other tensor of `type_as` is floating point, as all is that a network computes.
        return self._then("float", self.modules_of(Tensor.float, (), {}), value) if name == "type_as" else None

    def _called(self, node: fx.Node, function: Any) -> Any:
        name = function_name(function)
        if name in DRAWS or (name == "rrelu" and node.kwargs.get("training")):
            return Unknown(DRAWN, explained=True)
        if "dropout" in name and isinstance(of := self._value(node.args[0]), SIGNALS) and is_constant(of):
            training: Any = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
            return _DROPPED_WEIGHTS if int(training) else of
        value = self._computed(node, out_of_place(function), name)
        return self._in_place(node, value) if is_in_place(name) or asks_in_place(node) else value

    def _computed(self, node: fx.Node, function: Any, name: str) -> Any:
        args, options = node.args, dict(node.kwargs)
        if function is state_of:
            neuron = str(args[0].target)  # type: ignore[union-attr]
            if args[1] == "spk":
                return Spikes(neuron)
            return self._membrane(neuron) if args[1] == "mem" else _state(neuron, "synapse")
        if name in ZEROS_LIKE:
            return ZEROS
        if name in MADE_LIKE:
            return UNKNOWN
        if function is getattr:
            return self._attribute(self._raw(args[0]), args[1])
        if function in (*_CATS, torch.stack) and args and isinstance(args[0], (list, tuple)):
            return self._stacked(function, args, options)
        if args and isinstance(args[0], fx.Node):
            part = self._of_neuron(args[0], args[1]) if name == "getitem" else None
            part = self._part(name, args, options) if part is None else part
            if part is not None:
                return part
            if isinstance(record := self._value(args[0]), Record) and name in REDUCTIONS:
                if f.is_of_steps(record.signal):
                    return whole_record(f"{name}()")
                done = self.records.reduced(name, record, args[1:], options)
                if done is not None:
                    return done
        terms = as_sum(function, args, options)
        if terms is not None and (total := self._sum(terms)) is not None:
            return total
        if function not in RESHAPES and any(isinstance(a, Size) for a in flat((*args, *options.values()))):
            return Unknown(f"{name}() with a size of the input, which is not known; {EXAMPLE}", explained=True)
        return self._function(node, function, args, options)

    def _of_neuron(self, node: fx.Node, index: Any) -> Value | None:
        """One of the values that a neuron returns; None if the node is none."""
        name = str(node.target)
        found = find_adapter(self.modules[name]) if node.op == "call_module" else None
        if found is None or not (count := found.outputs(self.modules[name])):
            return None
        if found.integrator(self.modules[name]) is not None:
            return self.values[node] if index == 0 else _state(name, "state", "the first value that it returns")
        if index == 0:
            return self.values[node] if runs_over_time(self.modules[name]) else Spikes(name)
        return self._membrane(name) if index == count - 1 else _state(name, "synapse")

    def _membrane(self, name: str) -> Value:
        """The membrane that a neuron returns beside its spikes."""
        module, place = self.modules[name], place_of(name, self.modules[name])
        if name in self.altered:
            return Unknown(
                f"{place} is read by its membrane, and forward {self.altered[name]}, while its steady value is what it "
                "builds up to over the steps; hand it on as it was returned (a factor on it is the leak: set beta)",
                is_sentence=True,
            )
        try:
            steady = self._once(("membrane", name), lambda: [adapter_for(module).steady_membrane(place, module)])
        except ValueError as error:
            return Unknown(str(error), is_sentence=True)
        return self._then(name, steady, self.latest[name])

    def _inside(self, signal: Applied) -> Signal | None:
        """What a module of the user's does to a signal."""
        if type(signal.module).__module__.startswith(("torch.", "ep_plugin.")):
            return None
        done = inside(signal.module)
        return None if done is None else substitute_input(done, signal.signal, "")

    def _of_record(self, name: str, module: nn.Module, value: Any) -> Value:
        """What a module of the user's makes of a record: what its own forward makes of it."""
        try:
            traced = trace(module, length=7)
            outputs = Reader(module, traced, self.made, value, f"{name}.").outputs()
        except ValueError:
            return whole_record(f"{name!r}")
        if traced.sized or len(outputs) != 1 or outputs[0][0]:
            return whole_record(f"{name!r}")
        return outputs[0][1]


_GIVEN = Spikes("what a module is given")
"""No `Input`: a place of it is no step."""


def inside(module: nn.Module) -> Signal | None:
    """What a module without neurons makes of its argument, whatever that is; None where only the module can tell."""
    made: Made = {}
    found: set[Value] = set()
    for length in (7, 11):
        try:
            traced = trace(module, length=length)
            outputs = Reader(module, traced, made, _GIVEN).outputs()
        except ValueError:
            return None
        if traced.by_mode or len(outputs) != 1 or outputs[0][0]:  # what it does in one mode is not what it does
            return None
        found.add(outputs[0][1])
    value = found.pop()
    return value if not found and isinstance(value, SIGNALS) else None


_DROPPED_WEIGHTS = Unknown(
    "dropout of a parameter, which the original draws anew in every step; drop places of the signal in its place "
    "(nn.Dropout, one mask a batch), or convert the model in evaluation mode",
    explained=True,
)


def _argument(name: str) -> Unknown:
    return Unknown(
        f"the argument {name!r} of forward, beside the input, which is the first; give it a value "
        f"(net.forward = functools.partial(net.forward, {name}=...)), or make one input of both (torch.cat)",
        explained=True,
    )


def _state(name: str, state: str, instead: str = "its spikes") -> Unknown:
    return Unknown(f"the {state} of {name!r}, which is not read; expected {instead} to be read", explained=True)


def _out_of_place(module: nn.Module) -> nn.Module:
    other = copy.copy(module)
    other.inplace = False  # type: ignore[assignment]
    return other


def _differs(place: str, before: Signal, signal: Signal) -> str:
    """Why a neuron cannot receive one thing at one step and another at another."""

    def neurons(s: Signal) -> set[Any]:
        return {source for source in sources(s) if isinstance(source, Spikes)}

    if neurons(before) != neurons(signal):
        return (
            f"{place} receives something else the second time it is called: either it stands in two places of the "
            "network, where it needs a neuron for each, or it receives what a neuron did in the step before. If those "
            "are its own spikes, use a recurrent neuron (snn.RLeaky, norse.LIFRecurrentCell); if they come from a "
            "neuron behind it, put the network together from ep_plugin.Layer, Connection and ConvergentNetwork"
        )
    return (
        f"{place} receives something that differs between steps: {f.difference(before, signal)}; expected the same in "
        "every step but for the step of the input, since a relaxation has no count of steps (if it stands in two "
        "places of the network, it needs a neuron for each)"
    )


def _short(name: str) -> str:
    return name.removeprefix("net.")
