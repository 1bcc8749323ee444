"""Graphs of NIR as convergent networks: a plain net of PyTorch and snnTorch first, then `convert`."""

import keyword
import math
import operator
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nir
import torch
from torch import fx, nn

from ep_plugin.conversion import ConversionWarning, convert
from ep_plugin.network import ConvergentNetwork
from ep_plugin.nir.feedback import Circuit, unrolled
from ep_plugin.nir.flat import Flat, flattened
from ep_plugin.nir.modules import is_leaky, module_for, neuron_for
from ep_plugin.validation import positive

Source: TypeAlias = nir.NIRGraph | str | os.PathLike[str]


def from_nir(
    source: Source, *, dt: float | None = None, output: str | None = None, **settings: Any
) -> ConvergentNetwork:
    """Reads a NIR graph of any library as a convergent network: `convert(as_module(source), **settings)`.

    Kept: weights and biases (to the last bit, if they are float32), thresholds, the graph with its sums. Not kept:
    leaks, synapses and resets, which have no effect on an equilibrium; `r` and `w_in` become part of the thresholds
    (`ep_plugin.nir.modules` has the formulas). One ConversionWarning says so. Subgraphs are unfolded. Recurrent weights
    V of one neuron act as (V + V^T) / 2.

    A graph that `to_nir` has written becomes the same network again: its feedback is recognized, and `model.feedback`
    is set to its strength (the shortest number with the same float32). Its encoder, steps and estimator are not in the
    graph: give them as settings. Convolutions are matrices in the graph, and stay matrices. Other graphs have no
    feedback; the network makes its own, of the default strength.

    Args:
        source: a graph, or a file that `nir.write` has written.
        dt: seconds of a step, for leaky neurons into which a step adds r dt / tau of the input; that is then their
            gain. None: r is the gain, except that the gain is 1 if r = tau / 1e-4, as snnTorch and Lava write it.
        output: the name of an Output node, if there are several.
        settings: of `convert`, such as `encoder`, `feedback`, `estimator`.

    Returns:
        The network.

    Raises:
        ValueError: a node or a connection back has no counterpart (the message gives its name, the reason and a way
            out), or the file cannot be read.
        TypeError: `source` is neither a graph nor a path, or a setting is unknown.

    Example:
        >>> import nir
        >>> nir.write("net.nir", ep.to_nir(model, (1, 8, 8)))
        >>> same = ep.from_nir("net.nir")
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        circuit, net = _read(source, dt, output)
        model = convert(net, **settings)
        if circuit.ratios and settings.get("feedback") is None:
            model.feedback = _strengths(model, circuit)  # type: ignore[assignment]
    leaky = [name for name in circuit.order if is_leaky(circuit.flat.nodes[name])]
    notes = [str(w.message).removeprefix("converted: ") for w in told if issubclass(w.category, ConversionWarning)]
    if leaky:
        notes.insert(
            0,
            f"the neurons {', '.join(leaky)} keep their weights and thresholds, and not their leaks, synapses and "
            "resets: they settle at the rate gain * drive / threshold (the gains: help('ep_plugin.nir.modules'))",
        )
    if notes:
        warnings.warn("converted: " + "; ".join(notes), ConversionWarning, stacklevel=2)
    for w in told:
        if not issubclass(w.category, ConversionWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return model


def as_module(source: Source, dt: float | None = None, output: str | None = None) -> fx.GraphModule:
    """The plain net of a NIR graph, which `from_nir` converts: to look at it, or to change it first.

    Its neurons are snnTorch's, with leak 1 and the subtract reset, under the names of the graph. Recognized feedback is
    left out. `print(net.code)` shows what it computes in a step.

    Args:
        source: as in `from_nir`.
        dt: as in `from_nir`.
        output: as in `from_nir`.

    Returns:
        A module, input `[B, ...]` of one step -> output.

    Raises:
        ValueError: as `from_nir`.
        TypeError: as `from_nir`.

    Example:
        >>> plain = ep.nir.as_module(ep.to_nir(model, (1, 8, 8)))
        >>> same = ep.convert(plain)
    """
    return _read(source, dt, output)[1]


def _read(source: Source, dt: float | None, output: str | None) -> tuple[Circuit, fx.GraphModule]:
    if dt is not None:
        dt = positive("dt", dt)
    flat, start, end = flattened(_graph(source), output)
    circuit = unrolled(flat, start)
    return circuit, _net(circuit, flat, start, end, dt)


def _graph(source: Source) -> nir.NIRGraph:
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"from_nir was given a {type(source).__name__}; expected a nir.NIRGraph, or the path of a file of one"
        )
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected one that nir.write has written")
    try:
        # Norse writes a batch among the shapes, at which the check of types fails. What does not fit, PyTorch tells.
        return nir.read(path, type_check=False)
    except Exception as error:
        raise ValueError(f"cannot read {path}: {error}; expected a file that nir.write has written") from error


def _net(circuit: Circuit, flat: Flat, start: str, end: str, dt: float | None) -> fx.GraphModule:
    """The graph written out as one step's forward."""
    root, graph, values = nn.Module(), fx.Graph(), {}
    for name in circuit.order:
        node, place = flat.nodes[name], flat.place(name)
        if name == start:
            values[name] = graph.placeholder("x")
            continue
        received = values[(before := circuit.flat.before(name))[0]]
        for other in before[1:]:
            received = graph.call_function(operator.add, (received, values[other]))
        if name == end:
            graph.output(received)
            break
        if circuit.flat.is_neuron(name):
            module = neuron_for(place, node, dt, _recurrent(circuit, flat, name, dt))
        else:
            behind = circuit.flat.reached(name)
            module = module_for(place, node, dt, not any(map(circuit.flat.is_neuron, behind)))
        own = name.replace(".", "_") or "node"
        while hasattr(root, own) or keyword.iskeyword(own):  # nir.NIRGraph.from_list calls a neuron "if"
            own += "_"
        root.add_module(own, module)
        values[name] = graph.call_module(own, (received,))
    return fx.GraphModule(root, graph, "NIRNet")


@torch.no_grad()
def _recurrent(circuit: Circuit, flat: Flat, neuron: str, dt: float | None) -> nn.Module | None:
    if neuron not in circuit.recurrent:
        return None
    name, factor = circuit.recurrent[neuron]
    module: Any = module_for(flat.place(name), flat.nodes[name], dt, False)
    if factor != 1:
        module.weight.mul_(factor)
    return module


def _strengths(model: ConvergentNetwork, circuit: Circuit) -> Sequence[float]:
    """The feedback from each level to the one below, of which all ways back are made."""
    layers = [name for name in circuit.order if circuit.flat.is_neuron(name)]
    level = {name: model.levels[l] for l, name in enumerate(layers)}
    connections = [c for c in model.connections if c.source != c.target]
    if len(connections) != len(circuit.ratios):
        raise ValueError(
            f"{len(circuit.ratios)} of {len(connections)} connections between neurons have a feedback in the graph; "
            "expected all or none. Give the strength that all shall have: from_nir(graph, feedback=0.02)"
        )
    known = [(level[i], level[j], ratio, f"{i!r} -> {j!r}") for i, j, ratio in circuit.ratios if ratio]
    strengths = list(model.settings.between(max(model.levels)))
    for low, high, ratio, _ in known:
        if high - low == 1:
            strengths[low] = ratio
    for low, high, ratio, place in known:
        made = math.prod(strengths[low:high])
        if not math.isclose(made, ratio, rel_tol=1e-6):
            raise ValueError(
                f"the feedback of {place} is {ratio:g} times its weights, where that of others makes it {made:g}; "
                "expected one strength between two levels of neurons, as an energy has. Give the strength that all "
                "shall have: from_nir(graph, feedback=0.02)"
            )
    return strengths
