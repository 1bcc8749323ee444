"""Graphs of NIR without nesting: what from_nir goes through."""

from collections.abc import Iterable
from dataclasses import dataclass

import nir

Edge = tuple[str, str]

NEURONS = (nir.IF, nir.LIF, nir.CubaLIF)


@dataclass
class Flat:
    """Nodes by name, and the edges among them; what a node receives is the sum over its edges."""

    nodes: dict[str, nir.NIRNode]
    edges: list[Edge]

    def before(self, name: str) -> list[str]:
        return [a for a, b in self.edges if b == name]

    def after(self, name: str) -> list[str]:
        return [b for a, b in self.edges if a == name]

    def is_neuron(self, name: str) -> bool:
        return isinstance(self.nodes[name], NEURONS)

    def only(self, names: Iterable[str]) -> "Flat":
        """The nodes of these names, with the edges among them."""
        kept = set(names)
        nodes = {n: node for n, node in self.nodes.items() if n in kept}
        return Flat(nodes, [(a, b) for a, b in self.edges if a in kept and b in kept])

    def reached(self, start: str, backwards: bool = False) -> dict[str, int]:
        """The nodes that a way leads to from `start` (or from which one leads to it), and how many edges it has."""
        found = {start: 0}
        neighbours: dict[str, list[str]] = {}
        for a, b in self.edges:
            neighbours.setdefault(b if backwards else a, []).append(a if backwards else b)
        pending = [start]
        for name in pending:
            for other in neighbours.get(name, []):
                if other not in found:
                    found[other] = found[name] + 1
                    pending.append(other)
        return found

    def place(self, name: str) -> str:
        return f"node {name!r} ({type(self.nodes[name]).__name__})"


def flattened(graph: nir.NIRGraph, output: str | None) -> tuple[Flat, str, str]:
    """The graph without subgraphs, and the names of its input and of the output that is asked for.

    What leads to no output is left out.

    Raises:
        ValueError: there is not one input, or no or several outputs and none is chosen, or a node receives nothing.
    """
    flat = _unfolded(graph, "")
    for name in [n for n, node in flat.nodes.items() if _passes(n, node, graph)]:
        _splice(flat, name)
    inputs = [n for n, node in flat.nodes.items() if isinstance(node, nir.Input)]
    outputs = [n for n, node in flat.nodes.items() if isinstance(node, nir.Output)]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} Input nodes ({', '.join(inputs)}); expected one")
    if output is None and len(outputs) == 1:
        output = outputs[0]
    if output not in outputs:
        raise ValueError(
            f"output is {output!r} and the graph has the Output nodes {', '.join(map(repr, outputs)) or 'none'}; "
            "expected one of them: from_nir(graph, output=...)"
        )
    flat = flat.only(flat.reached(output, backwards=True))
    if inputs[0] not in flat.nodes:
        raise ValueError(f"no way leads from {inputs[0]!r} to {output!r}; expected an output that the input acts on")
    heard = flat.reached(inputs[0])
    for name in flat.nodes:
        if name not in heard:
            raise ValueError(
                f"{flat.place(name)} receives nothing of the input; expected an edge to it, or none from it"
            )
    return flat, inputs[0], output


def _unfolded(graph: nir.NIRGraph, prefix: str) -> Flat:
    flat, subgraphs = Flat({}, []), {}
    for key, node in graph.nodes.items():
        name = prefix + _text(key)
        inner = _unfolded(node, f"{name}.") if isinstance(node, nir.NIRGraph) else Flat({name: node}, [])
        if clash := flat.nodes.keys() & inner.nodes.keys():
            raise ValueError(f"two nodes are called {min(clash)!r} once subgraphs are unfolded; expected other names")
        flat.nodes |= inner.nodes
        flat.edges += inner.edges
        if isinstance(node, nir.NIRGraph):
            subgraphs[name] = node
    for a, b in graph.edges:
        source, target = prefix + _text(a), prefix + _text(b)
        if source in subgraphs:
            source = _door(source, subgraphs[source], nir.Output)
        if target in subgraphs:
            target = _door(target, subgraphs[target], nir.Input)
        for name in (source, target):
            if name not in flat.nodes:
                raise ValueError(f"the edge {source!r} -> {target!r} names {name!r}, which is no node of the graph")
        flat.edges.append((source, target))
    return flat


def _door(name: str, graph: nir.NIRGraph, kind: type[nir.NIRNode]) -> str:
    """The one Input or Output of a subgraph."""
    doors = [_text(n) for n, node in graph.nodes.items() if isinstance(node, kind)]
    if len(doors) != 1:
        raise ValueError(
            f"the subgraph {name!r} has {len(doors)} {kind.__name__} nodes; expected one, since an edge to a subgraph "
            "does not say which it means"
        )
    return f"{name}.{doors[0]}"


def _passes(name: str, node: nir.NIRNode, graph: nir.NIRGraph) -> bool:
    """Whether the node is a mere name: inputs and outputs of subgraphs, identities."""
    if isinstance(node, (nir.Input, nir.Output)):
        return name not in {_text(key) for key in graph.nodes}
    return type(node).__name__ == "Identity"


def _splice(flat: Flat, name: str) -> None:
    """Takes a node out, so that what it received goes where it sent."""
    through = [(a, b) for a in flat.before(name) for b in flat.after(name)]
    flat.edges = [e for e in flat.edges if name not in e] + through
    del flat.nodes[name]


def _text(key: object) -> str:
    """Names are text in files, and bytes or numbers in graphs that some libraries make."""
    return key.decode() if isinstance(key, bytes) else str(key)
