"""Converged networks as graphs of NIR, the Neuromorphic Intermediate Representation (neuroir.org).

An integrate-and-fire neuron that subtracts its threshold when it fires has, over a long time, the
rate clip(drive / threshold, 0, 1): the state of this package's neuron at equilibrium. So the graph
is the network's own recurrent circuit,

    input -> input_stem -> layer_0 -> layer_0_connection_0 -> layer_1 -> ... -> readout -> output
                              ^-------- layer_1_feedback_0 <-----'

with the neurons as `nir.IF`, one unit of time a step.

NIR has neither a transposed convolution nor the reverse of flattening, of which the feedback through
convolutions and pooling consists. So every linear map is written as the matrix that it is: stem,
connections and readout as `nir.Affine` (K and b), feedback as `nir.Linear`, (c_j / c_i) K^T with
the strength of the feedback in it. All signals are vectors; flatten the input. The price is that a
convolution's shared weights are written once a synapse, which is also what a chip without weight
sharing stores. Most entries are then zero and compress: 2C2FC takes 4 s and a file of 4 MB.
"""

import copy
import math
from collections.abc import Callable, Sequence

import nir
import numpy as np
import torch
from torch import Tensor

from ep_plugin.network import ConvergentNetwork
from ep_plugin.neurons.layer import Layer
from ep_plugin.shapes import input_shape as told_shape

_MOST_SYNAPSES = 2**28  # of one matrix: 1 GiB in float32

_PROBES = 32  # of whether a map is linear
_BLOCK = 256  # columns of a matrix that are worked out at once

Function = Callable[[Tensor], Tensor]
Matrix = tuple[np.ndarray, np.ndarray]


def to_nir(model: ConvergentNetwork, input_shape: Sequence[int] | None = None) -> nir.NIRGraph:
    """The network as a NIR graph, feedback included; `nir.write("net.nir", graph)` makes it a file.

    The graph's neurons are integrate-and-fire neurons whatever `model.encoder` is, and its modules
    are those of `model.eval()`. Nodes: "input" and "output"; "input_stem" and "readout" (left out if
    there is none); "layer_l" for every layer; "layer_i_connection_c" and "layer_j_feedback_c" for
    connection c from i to j. Metadata: "reset" is "subtract" and "dt" 1, since NIR itself only
    knows a reset to a value.

    What importers make of it (norse 1.1, snntorch 1.0, nirtorch 2.6): `norse.torch.from_nir(graph,
    dt=1.0)` runs it; its neurons reset to 0 and so fire less than those of the equilibrium. With
    skips its executor does not return the output. `snntorch.import_nir.import_from_nir` takes it over
    with one threshold a layer; it builds `snn.Leaky(beta=0.9, init_hidden=False)`, whose pair of
    outputs its own executor refuses: set `init_hidden` to True and `beta` to 1 in each, and it runs.

    Args:
        model: the network.
        input_shape: of one input, without the batch; needed where the first module leaves it open.

    Raises:
        ValueError: NIR cannot represent it: an activation other than the hard sigmoid, a stem, readout
            or connection that is not linear, or a matrix of more than 2^28 entries. Or the input's
            shape is missing or does not fit.
    """
    for l, activation in enumerate(model.dynamics().activations):
        if activation.projection != (0.0, 1.0):
            raise ValueError(
                f"layer {l} cannot be written: the rate of NIR's integrate-and-fire neuron is the hard sigmoid. "
                'Convert with activation="hard_sigmoid"'
            )
    shape = told_shape(model.stem, input_shape, "to_nir(model, (1, 28, 28))")
    network = copy.deepcopy(model).to("cpu", torch.float64).eval()
    network.encoder = "graded"
    shapes = [s.shape[1:] for s in network.relax(torch.zeros(1, *shape, dtype=torch.float64)).states]
    with torch.no_grad():
        return nir.NIRGraph(*_graph(network, shape, shapes), metadata={"reset": "subtract", "dt": 1.0})


def _graph(
    network: ConvergentNetwork, shape: Sequence[int], shapes: list[torch.Size]
) -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    dynamics = network.dynamics()
    layers: list[Layer] = list(network.layers)  # type: ignore[arg-type]
    # Files keep nodes by name, and nirtorch wires them in that order: senders' names come before receivers'.
    names = [f"layer_{l:0{len(str(len(layers) - 1))}}" for l in range(len(layers))]
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input(np.array([math.prod(shape)])),
        "input_stem": nir.Affine(*_matrix("the stem", network.stem, shape)),
    }
    edges = [("input", "input_stem"), ("input_stem", names[0])]
    for name, layer, own in zip(names, layers, shapes, strict=True):
        threshold = _array(layer.theta.expand(1, *own))
        nodes[name] = nir.IF(np.ones_like(threshold), threshold, np.zeros_like(threshold))
    for c, connection in enumerate(dynamics.connections):
        i, j = connection.source, connection.target
        up, down = f"{names[i]}_connection_{c}", f"{names[j]}_feedback_{c}"
        matrix, bias = _matrix(f"the connection {i} -> {j}", connection.module, shapes[i])
        nodes[up] = nir.Affine(matrix, bias)
        strength = dynamics.scales[j] / dynamics.scales[i]
        nodes[down] = nir.Linear(np.ascontiguousarray(strength * matrix.T, dtype=np.float32))
        edges += [(names[i], up), (up, names[j]), (names[j], down), (down, names[i])]
    last = names[-1]
    if not isinstance(network.readout, torch.nn.Identity):
        nodes["readout"] = nir.Affine(*_matrix("the readout", network.readout, shapes[-1]))
        edges.append((last, "readout"))
        last = "readout"
    nodes["output"] = nir.Output(nodes[last].output_type["output"])
    return nodes, [*edges, (last, "output")]


def _matrix(what: str, function: Function, shape: Sequence[int]) -> Matrix:
    """K `[out, in]` and b `[out]` of an affine function of `[B, *shape]`, in float32."""
    inputs = math.prod(shape)
    bias = function(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    if inputs * len(bias) > _MOST_SYNAPSES:
        raise ValueError(
            f"{what} cannot be written: it has {inputs * len(bias):,} synapses, of which {_MOST_SYNAPSES:,} fit in "
            "one matrix, and NIR has no transposed convolution for its feedback. Pool or stride more, or use fewer "
            "channels"
        )
    # Many probes, small and large: one pair may lie on the same side of every kink.
    a, b = torch.randn(2, _PROBES, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    size = torch.logspace(-1, 2, _PROBES, dtype=torch.float64).view(-1, *[1] * len(shape))
    a, b = size * a, size * b
    if not torch.allclose(function(a + b).flatten(1) + bias, (function(a) + function(b)).flatten(1)):
        raise ValueError(
            f"{what} cannot be written: it is not linear, and NIR has no node for what it does. Use linear modules "
            "there (average in place of max pooling), or leave it out and compute it outside the graph"
        )
    matrix = np.empty((len(bias), inputs), dtype=np.float32)
    for start in range(0, inputs, _BLOCK):
        units = torch.zeros(min(_BLOCK, inputs - start), inputs, dtype=torch.float64)
        units.diagonal(start).fill_(1)
        columns = function(units.view(-1, *shape)).flatten(1) - bias
        matrix[:, start : start + len(units)] = columns.T.numpy()
    return matrix, _array(bias)


def _array(t: Tensor) -> np.ndarray:
    return t.flatten().to(torch.float32).numpy().copy()
