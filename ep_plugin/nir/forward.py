"""The forward net alone as a graph of NIR: a node per module, convolutions and pooling among them.

Without the feedback no transposed map is needed, so that nothing has to become a matrix.
"""

import copy
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from ep_plugin.deployment import copies, require_forward
from ep_plugin.dynamics.system import System
from ep_plugin.network import ConvergentNetwork

Nodes = dict[str, nir.NIRNode]
Edges = list[tuple[str, str]]
Shape = tuple[int, ...]


def forward_graph(network: ConvergentNetwork, system: System, shape: Sequence[int]) -> tuple[Nodes, Edges]:
    """Nodes and edges of the net that `to_snntorch` runs, each layer in its own shape.

    Args:
        network: in evaluation mode and float64.
        system: of one input to it.
        shape: of one input, without the batch.

    Raises:
        ValueError: a module has no node, with the place and a way out.
    """
    require_forward(network)
    plain = copies.Copies()
    names = layer_names(system)
    nodes: Nodes = {"input": nir.Input(np.array(shape))}
    edges: Edges = []

    def chain(place: str, name: str, module: nn.Module, source: str, shape: Shape) -> str:
        """Adds the nodes of a module behind a node, and gives the last one."""
        for k, part in enumerate(_parts(plain(module))):
            nothing = torch.zeros(1, *shape)
            after = part(nothing)
            if after is nothing:
                continue  # it does nothing in evaluation
            made, after = _node(place, part, shape), tuple(after.shape[1:])
            own = f"{name}_{k}_{type(part).__name__.lower()}"
            nodes[own] = made
            edges.append((source, own))
            source, shape = own, after
        return source

    last = chain("the stem", "input_stem", network.stem, "input", tuple(shape))
    edges.append((last, names[network.driven[0]]))
    for l in system.layers:
        threshold = system.values.thresholds[l].expand(1, *system.shapes[l])[0].float().numpy().copy()
        nodes[names[l]] = nir.IF(np.ones_like(threshold), threshold, np.zeros_like(threshold))
    for c, connection in enumerate(system.connections):
        i, j = connection.source, connection.target
        name = f"{names[i]}_connection_{c}"
        last = chain(f"the connection {i} -> {j}", name, connection.module, names[i], tuple(system.shapes[i]))
        edges.append((last, names[j]))
    read = network.read[0]
    last = chain("the readout", "readout", network.readout, names[read], tuple(system.shapes[read]))
    nodes["output"] = nir.Output(nodes[last].output_type["output"])
    return nodes, [*edges, (last, "output")]


def layer_names(system: System) -> list[str]:
    """Files keep nodes by name, and nirtorch wires them in that order: senders' names come before receivers'."""
    return [f"layer_{l:0{len(str(len(system.layers) - 1))}}" for l in system.layers]


def _parts(module: nn.Module) -> list[nn.Module]:
    """The modules of a chain."""
    if type(module) is nn.Sequential:
        return [part for child in module for part in _parts(child)]
    return [module]


def _node(place: str, module: Any, shape: Shape) -> nir.NIRNode:
    """The node of a module for an input of this shape."""
    if isinstance(module, nn.Linear) and len(shape) == 1:
        return nir.Affine(_array(module.weight), _bias(module))
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.padding_mode == "zeros":
        kind, size = (nir.Conv1d, shape[-1]) if isinstance(module, nn.Conv1d) else (nir.Conv2d, tuple(shape[-2:]))
        options: list[Any] = [module.stride, module.padding, module.dilation]
        if kind is nir.Conv1d:
            options = [o if isinstance(o, str) else o[0] for o in options]
        return kind(size, _ungrouped(module.weight, module.groups), *options, 1, _bias(module))
    if isinstance(module, nn.AvgPool2d) and (pool := _pool(module, shape)):
        return pool
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim in (-1, len(shape)):
        return nir.Flatten({"input": np.array(shape)}, 0, -1)
    if len(shape) == 3 and (found := _per_channel(module, shape)):
        scale, offset = found
        return nir.Conv2d(tuple(shape[-2:]), _array(scale.diag()[:, :, None, None]), 1, 0, 1, 1, _array(offset))
    raise ValueError(
        f"{place} cannot be written without the feedback: NIR has no node for {module} on an input of the shape "
        f"{list(shape)}. Write the graph with feedback=True, in which linear modules are matrices; or put a "
        "convolution, average pooling, Flatten or Linear there"
    )


def _ungrouped(weight: Tensor, groups: int) -> np.ndarray:
    """With zeros between the groups: NIR's types take the weight's second dimension for all input channels."""
    whole = torch.block_diag(*weight.detach().flatten(1).chunk(groups))
    return _array(whole.view(len(weight), -1, *weight.shape[2:]))


def _pool(module: nn.AvgPool2d, shape: Shape) -> nir.NIRNode | None:
    """Average pooling that counts the zeros around the image, or sums."""
    kernel, stride, padding = (
        np.array([v, v] if isinstance(v, int) else v) for v in (module.kernel_size, module.stride, module.padding)
    )
    uneven = module.ceil_mode and ((np.array(shape[-2:]) + 2 * padding - kernel) % stride).any()
    if uneven or (padding.any() and not module.count_include_pad):
        return None
    if module.divisor_override not in (None, 1, kernel.prod()):
        return None
    return (nir.SumPool2d if module.divisor_override == 1 else nir.AvgPool2d)(kernel, stride, padding)


def _per_channel(module: nn.Module, shape: Shape) -> tuple[Tensor, Tensor] | None:
    """Scale and offset of a module that does no more than to multiply and shift every channel, as normalizations do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *shape, dtype=torch.float64, generator=generator)
    x *= torch.logspace(-1, 2, 16, dtype=torch.float64).view(-1, 1, 1, 1)  # both signs, small and large
    module = copy.deepcopy(module).double()
    found = module(x)
    if found.shape != x.shape:
        return None
    offset = module(torch.zeros_like(x[:1]))[0, :, 0, 0]
    scale = module(torch.ones_like(x[:1]))[0, :, 0, 0] - offset
    same = torch.allclose(found, x * scale.view(-1, 1, 1) + offset.view(-1, 1, 1))
    return (scale, offset) if same else None


def _bias(module: Any) -> np.ndarray:
    """Zeros where there is none: sinabs knows no Linear, and convolutions of NIR have a bias."""
    return np.zeros(len(module.weight), dtype=np.float32) if module.bias is None else _array(module.bias)


def _array(t: Tensor) -> np.ndarray:
    return t.detach().to(torch.float32).numpy().copy()
