"""From a plan to the parts of a convergent network: stem, layers, connections, readout."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ep_plugin.conversion.adapters import Neuron, place_of
from ep_plugin.conversion.computation import as_module
from ep_plugin.conversion.concatenation import Measurement, Measuring
from ep_plugin.conversion.paths import Paths, through
from ep_plugin.conversion.plan import Applied, Input, Plan, Signal, Spikes, combine, sources
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.modules import Scale


@dataclass(frozen=True)
class Blocks:
    """The parts, and how they go together.

    Attributes:
        stem: input -> drive of the driven layer, or a tuple of several layers' drives.
        connections: among the layers.
        readout: of the read layers' equilibria, one argument each; None if the output is the equilibrium.
        driven, read: layers.
        levels: of every layer, how many feedback steps it stands above the lowest.
        time_axis: of the steps, in the model's input; 0 if it does not read it step by step.
        notes: remarks for the user.
    """

    stem: nn.Module
    connections: list[Connection]
    readout: nn.Module | None
    driven: list[int]
    read: list[int]
    levels: list[int]
    time_axis: int
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
    paths = Paths(max_pooling, notes := list(plan.notes))
    drives: dict[int, Signal] = {}
    connections = []
    for name in order:
        received, weights = plan.received[name], neurons[name].input_weights
        found = paths.paths_to(received if weights is None else Applied(name, weights, received), places[name])
        outer = [through(name, modules, start) for start, modules in found if not isinstance(start, Spikes)]
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
            connections += _lateral(paths, name, lateral, places[name], index[name])
    read = sorted(index[s.neuron] for s in sources(plan.output) if isinstance(s, Spikes))
    if any(isinstance(s, Input) for s in sources(plan.output)):
        raise ValueError(
            f"the output reads the input beside {' and '.join(places[order[l]] for l in read)}; expected neurons "
            "alone, since a readout sees nothing but their equilibria. Convert the model without that part, and add "
            "what reads the input to the converted model's output"
        )
    equilibria = [Spikes(order[l]) for l in read]
    stem = as_module(list(drives.values()), [given])
    if paths.concatenations:
        weights_inside = {name: w for name in order if (w := neurons[name].input_weights) is not None}
        measurement = Measurement(plan, given, weights_inside, list(paths.concatenations.values()))
        stem = Measuring(stem, measurement)
    return Blocks(
        stem=stem,
        connections=connections,
        readout=None if plan.output in equilibria else as_module([plan.output], equilibria),
        driven=list(drives),
        read=read,
        levels=levels,
        time_axis=given.axis or 0,
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
    if not inputs:
        alone = " and ".join(place_of(name, plan.neurons[name]) for name in order)
        raise ValueError(
            f"the output does not depend on the input, but on {alone} alone; expected neurons that receive something "
            "made of it"
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


def _lateral(paths: Paths, name: str, lateral: nn.Module, place: str, layer: int) -> list[Connection]:
    """A neuron's own recurrent weights, which act by their symmetric part.

    <r, A r> with half the weights has the derivative (V + V^T) r / 2 + bias.
    """
    found = paths.paths_to(Applied(f"{name}.recurrent", lateral, Spikes(name)), place)
    made = [Connection(nn.Sequential(Scale(0.5), *modules), layer, layer) for _, modules in found]
    if not all(connection.is_linear for connection in made):
        raise ValueError(
            f"{place} cannot be converted: among its recurrent weights stands what is linear only piece by piece, and "
            "half of it is not its half; use linear modules there (average pooling, no ReLU)"
        )
    return made
