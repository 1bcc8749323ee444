"""Converged networks as graphs of NIR, the Neuromorphic Intermediate Representation (neuroir.org).

An integrate-and-fire neuron that subtracts its threshold when it fires has, over a long time, the
rate clip(drive / threshold, 0, 1): the state of this package's neuron at equilibrium. So the graph
is the network's own recurrent circuit,

    input -> input_stem -> layer_0 -> layer_0_connection_0 -> layer_1 -> ... -> readout -> output
                              ^-------- layer_1_feedback_0 <-----'

with the neurons as `nir.IF`, one unit of time a step.

NIR has neither a transposed convolution nor the reverse of flattening, of which the feedback through
convolutions and pooling consists. So every linear map is written as the matrix that it is: stem,
connections and readout as `nir.Affine` (K and b), feedback as `nir.Affine` too, (c_j / c_i) K^T with
the strength of the feedback in it, and zeros. All signals are vectors; flatten the input. The price is that a
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

from ep_plugin.chips.neurons import add_read_noise
from ep_plugin.deployment.copies import without_weight_hooks
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.system import System
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.separate import SeparateFeedback
from ep_plugin.network import ConvergentNetwork
from ep_plugin.nir.forward import forward_graph, layer_names
from ep_plugin.validation import input_shape as resolved_shape

_MOST_SYNAPSES = 2**28  # of one matrix: 1 GiB in float32

_PROBES = 32  # of whether a map is linear
_BLOCK = 256  # columns of a matrix that are worked out at once
_LARGE = 2.0**60  # beside which no bias takes bits from a weight

Function = Callable[[Tensor], Tensor]
Matrix = tuple[np.ndarray, np.ndarray]


def to_nir(model: ConvergentNetwork, input_shape: Sequence[int] | None = None, feedback: bool = True) -> nir.NIRGraph:
    """The network as a NIR graph; `nir.write("net.nir", graph)` makes it a file.

    With its feedback it is the settled circuit. With `feedback=False` it is the plain net that `to_snntorch` runs:
    a node per module, with convolutions, pooling and Flatten as nodes, and each layer in its own shape. Membranes
    start at 0 in a graph; where a tool lets you, start them at half the threshold, as `to_snntorch` does.

    The graph's neurons are integrate-and-fire neurons whatever `model.encoder` is, and its modules
    are those of `model.eval()`. Nodes, with the feedback: "input" and "output"; "input_stem" and "readout" (left out if
    there is none); "layer_l" for every layer; "layer_i_connection_c" and "layer_j_feedback_c" for
    connection c from i to j. Metadata: "reset" is "subtract" and "dt" 1, since NIR itself only
    knows a reset to a value.

    `from_nir` reads it as the same network. Other importers (norse 1.1, snntorch 1.0, sinabs 3.1, nirtorch 2.6):

    - `norse.torch.from_nir(graph, dt=1.0)` runs it. Its neurons reset to 0, so they fire less than those of the
      equilibrium. With skips its executor does not return the output.
    - `snntorch.import_nir.import_from_nir` reads it with one threshold per layer. It builds
      `snn.Leaky(beta=0.9, init_hidden=False)`, whose pair of outputs its own executor refuses. Set `init_hidden` to
      True and `beta` to 1 in each neuron, and it runs.
    - `sinabs.from_nir(graph, batch_size=1)` runs it. Its neurons may send several spikes in a step, so their rates may
      exceed 1.

    Args:
        model: the network.
        input_shape: of one input, without the batch; needed where the first module leaves it open.
        feedback: write the feedback too. Without it, weights of a connection back or within a level are refused.

    Returns:
        The graph.

    Raises:
        ValueError: NIR cannot represent it: an activation other than the hard sigmoid, several driven or
            read layers, a stem, readout or connection that is not linear (max pooling, say), or a matrix
            of more than 2^28 entries; without the feedback, a module that has no node. Or the input's shape is
            missing or does not fit.
        TypeError: `feedback` is neither True nor False.

    Example:
        >>> import nir
        >>> nir.write("net.nir", ep.to_nir(model, (1, 8, 8)))
    """
    if not isinstance(feedback, bool):
        raise TypeError(f"feedback is {feedback!r}; expected True or False")
    _check(model)
    shape = resolved_shape(model.stem, input_shape, "to_nir(model, (1, 28, 28))")
    network = (
        copy.deepcopy(without_weight_hooks(model))
        .to("cpu", torch.float64)
        .eval()
        .variant(encoder="graded", time_varying=False)
    )
    add_read_noise(network, 0)  # a chip brings its own
    with torch.no_grad():
        system = network.system(torch.zeros(1, *shape, dtype=torch.float64))
        graph = _graph if feedback else forward_graph
        return nir.NIRGraph(*graph(network, system, shape), metadata={"reset": "subtract", "dt": 1.0})


def _check(model: ConvergentNetwork) -> None:
    """Refuses what NIR has no nodes for, but for the parts that have to be evaluated to know."""
    if len(model.driven) > 1:
        raise ValueError(
            f"the stem cannot be written: it drives the layers {', '.join(map(str, model.driven))}, each with a drive "
            "of its own, and a node of NIR sends the same to all. Use a net whose input reaches one layer"
        )
    if len(model.read) > 1:
        raise ValueError(
            f"the readout cannot be written: it reads the layers {', '.join(map(str, model.read))}, each as an "
            "argument of its own, and a node of NIR sees the sum of what it receives. Use a net whose output "
            "reads one layer"
        )
    layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
    for l, layer in enumerate(layers):
        if layer.activation.projection != (0.0, 1.0):
            raise ValueError(
                f"layer {l} cannot be written: the rate of NIR's integrate-and-fire neuron is the hard sigmoid. "
                'Convert with activation="hard_sigmoid" (a convergent neuron keeps its own: give it that one)'
            )
    connections: list[Connection] = list(model.connections)  # type: ignore[arg-type]
    for c in connections:
        if not c.is_linear:
            raise ValueError(
                f"the connection {c.source} -> {c.target} cannot be written: max pooling and the like are linear only "
                "near a state, and their feedback follows their winners, for which NIR has no node. Use average "
                'pooling (convert(net, max_pooling="average")), and no ReLU or the like between neurons'
            )


def _graph(
    network: ConvergentNetwork, system: System, shape: Sequence[int]
) -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    layers = system.layers
    names = layer_names(system)
    nodes: dict[str, nir.NIRNode] = {
        "input": nir.Input(np.array([math.prod(shape)])),
        "input_stem": nir.Affine(*_matrix("the stem", network.stem, shape)),
    }
    edges = [("input", "input_stem"), ("input_stem", names[network.driven[0]])]
    for l in layers:
        threshold = _array(system.values.thresholds[l].expand(1, *system.shapes[l]))
        nodes[names[l]] = nir.IF(np.ones_like(threshold), threshold, np.zeros_like(threshold))
    for c, connection in enumerate(system.connections):
        i, j = connection.source, connection.target
        up, down = f"{names[i]}_connection_{c}", f"{names[j]}_feedback_{c}"
        matrix, bias = _matrix(f"the connection {i} -> {j}", connection.module, system.shapes[i])
        nodes[up] = nir.Affine(matrix, bias)
        # Affine, since sinabs knows no Linear, and leaves out what it does not know.
        transpose = matrix.T
        if any(isinstance(m, SeparateFeedback) for m in connection.modules()):
            transpose, _ = _matrix(f"the feedback {j} -> {i}", system.bound[c].adjoint, system.shapes[j])
        back = np.ascontiguousarray(system.ratio(j, i) * transpose, dtype=np.float32)
        nodes[down] = nir.Affine(back, np.zeros(len(back), dtype=np.float32))
        edges += [(names[i], up), (up, names[j]), (names[j], down), (down, names[i])]
    last = names[network.read[0]]
    state = torch.zeros(1, *system.shapes[network.read[0]], dtype=torch.float64)
    if network.readout(state) is not state:
        nodes["readout"] = nir.Affine(*_matrix("the readout", network.readout, state.shape[1:]))
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
        units.diagonal(start).fill_(_LARGE)
        columns = function(units.view(-1, *shape)).flatten(1) - bias
        matrix[:, start : start + len(units)] = (columns.T / _LARGE).numpy()
    return matrix, _array(bias)


def _array(t: Tensor) -> np.ndarray:
    return t.flatten().to(torch.float32).numpy().copy()
