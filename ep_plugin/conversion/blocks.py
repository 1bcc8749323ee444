"""From a plan to the parts of a convergent network: stem, layers, connections, readout."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ep_plugin.conversion import tracing
from ep_plugin.conversion.adapters import Neuron, place_of
from ep_plugin.conversion.between import as_connection_module, without_offset
from ep_plugin.conversion.computation import as_module
from ep_plugin.conversion.plan import (
    Applied,
    Combination,
    Input,
    Joined,
    Plan,
    Signal,
    Spikes,
    combine,
    modules_in,
    sources,
    substitute_input,
)
from ep_plugin.linear.connection import Connection, is_known
from ep_plugin.linear.modules import Scale

Path = tuple[Signal, list[nn.Module]]
"""A neuron's spikes or what is made of the input alone, and the modules on its way."""


@dataclass(frozen=True)
class Blocks:
    """The parts, and how they go together.

    Attributes:
        stem: input -> drive of the driven layer, or a tuple of several layers' drives.
        connections: among the layers.
        readout: of the read layers' equilibria, one argument each; None if the output is the equilibrium.
        driven, read: layers.
        levels: of every layer, how many feedback steps it stands above the lowest.
        stepwise: whether the model reads its input step by step.
        notes: remarks for the user.
    """

    stem: nn.Module
    connections: list[Connection]
    readout: nn.Module | None
    driven: list[int]
    read: list[int]
    levels: list[int]
    stepwise: bool
    notes: list[str]


def reachable_neurons(plan: Plan) -> list[str]:
    """The neurons that the output depends on, in the order of their first call.

    Raises:
        ValueError: it depends on none.
    """
    found: set[str] = set()
    pending = [plan.output]
    while pending:
        for source in sources(pending.pop()):
            if isinstance(source, Spikes) and source.neuron not in found:
                found.add(source.neuron)
                pending.append(plan.received[source.neuron])
    if not found:
        raise ValueError("the output depends on no neuron's spikes; expected it to depend on the last neuron's")
    return [name for name in plan.neurons if name in found]


def blocks(plan: Plan, order: Sequence[str], neurons: dict[str, Neuron], max_pooling: str) -> Blocks:
    """The parts, with every module in a place that it can stand in.

    Args:
        plan: what the model computes.
        order: the layers' neurons, from the input to the output.
        neurons: what each layer takes over of them.
        max_pooling: as in `convert`.

    Raises:
        ValueError: a module or a path between neurons has no counterpart, with the place and the reason.
    """
    index = {name: l for l, name in enumerate(order)}
    places = {name: place_of(name, plan.neurons[name]) for name in order}
    given = _the_input(plan, order)
    paths = _Paths(max_pooling, notes := list(plan.notes))
    drives: dict[int, Signal] = {}
    connections = []
    for name in order:
        received, weights = plan.received[name], neurons[name].input_weights
        found = paths.paths_to(received if weights is None else Applied(name, weights, received), places[name])
        outer = [_applied(name, modules, start) for start, modules in found if not isinstance(start, Spikes)]
        _require_weights(places[name], [*modules_in(*outer), *(m for _, modules in found for m in modules)])
        if outer:
            drives[index[name]] = combine([(drive, 1.0) for drive in outer])
        connections += [
            Connection(nn.Sequential(*modules), index[start.neuron], index[name])
            for start, modules in found
            if isinstance(start, Spikes)
        ]
    levels = _levels(len(order), connections)
    for name in order:
        if (lateral := neurons[name].lateral) is not None:
            # <r, A r> with half the weights has the derivative (V + V^T) r / 2 + bias.
            connections.append(Connection(nn.Sequential(Scale(0.5), lateral), index[name], index[name]))
    read = sorted(index[s.neuron] for s in sources(plan.output) if isinstance(s, Spikes))
    if any(isinstance(s, Input) for s in sources(plan.output)):
        raise ValueError(
            f"the output reads the input beside {' and '.join(places[order[l]] for l in read)}; expected neurons "
            "alone, since a readout sees nothing but their equilibria. Convert the model without that part, and add "
            "what reads the input to the converted model's output"
        )
    equilibria = [Spikes(order[l]) for l in read]
    return Blocks(
        stem=as_module(list(drives.values()), [given]),
        connections=connections,
        readout=None if plan.output in equilibria else as_module([plan.output], equilibria),
        driven=list(drives),
        read=read,
        levels=levels,
        stepwise=given.at_a_step,
        notes=notes,
    )


def _the_input(plan: Plan, order: Sequence[str]) -> Input:
    """The input as the model reads it."""
    inputs = {s for s in sources(*(plan.received[name] for name in order), plan.output) if isinstance(s, Input)}
    if len(inputs) > 1:
        raise ValueError(
            "the model reads its input both step by step and as a whole; expected one of them, since the network "
            "settles under one input, or under one a step"
        )
    return inputs.pop()


def _levels(layers: int, connections: Sequence[Connection]) -> list[int]:
    """The longest way to each layer from one that nothing but the input drives.

    `connections` come in the order of their targets, and lead from a layer to a later one.
    """
    levels = [0] * layers
    for c in connections:
        levels[c.target] = max(levels[c.target], levels[c.source] + 1)
    return levels


class _Paths:
    """The paths of signals between neurons. Every module is looked at once, whatever the number of its paths."""

    def __init__(self, max_pooling: str, notes: list[str]) -> None:
        self.max_pooling, self.notes = max_pooling, notes
        self.placed: dict[nn.Module, nn.Module] = {}

    def paths_to(self, signal: Signal, user: str) -> list[Path]:
        """All paths that lead into a signal. Of those through one module all but the first leave out its offset.

        Args:
            signal: what is received.
            user: who receives it, for errors.
        """
        if isinstance(signal, Spikes) or all(isinstance(s, Input) for s in sources(signal)):
            return [(signal, [])]
        if isinstance(signal, Combination):
            return [
                (start, [*modules, *([Scale(factor)] if factor != 1 else [])])
                for part, factor in signal.terms
                for start, modules in self.paths_to(part, user)
            ]
        if isinstance(signal, Joined):
            raise ValueError(
                f"{user} depends on {signal.name}() of several tensors; expected only sums of signals between "
                "neurons, each times a number (a linear module of a concatenation is the sum of one of each part)"
            )
        assert isinstance(signal, Applied)
        if (inside := _inside(signal)) is not None:
            return self.paths_to(inside, user)
        before = self.paths_to(signal.signal, user)
        if signal.module not in self.placed:
            self.placed[signal.module] = as_connection_module(signal.name, signal.module, self.max_pooling, self.notes)
        module = self.placed[signal.module]
        (start, modules), *others = before
        return [
            (start, [*modules, module]),
            *((s, [*ms, without_offset(place_of(signal.name, signal.module), module)]) for s, ms in others),
        ]


def _inside(signal: Applied) -> Signal | None:
    """What a module that is not PyTorch's own does to its signal; None where only the module can tell."""
    if type(signal.module).__module__.startswith(("torch.", "ep_plugin.")) or is_known(signal.module):
        return None
    try:
        done = tracing.read(signal.module).output
    except ValueError:
        return None
    return substitute_input(done, signal.signal, f"{signal.name}.")


def _applied(name: str, modules: Sequence[nn.Module], signal: Signal) -> Signal:
    """The modules, one after the other, applied to a signal."""
    for module in modules:
        signal = Applied(name, module, signal)
    return signal


def _require_weights(place: str, modules: Sequence[nn.Module]) -> None:
    if not any(True for m in modules for _ in m.parameters()):
        raise ValueError(
            f"{place} has no weights before it; expected a convolution or a linear module between it and the input "
            "or the neuron before"
        )
