"""The ways back in a graph: feedback, which the network has by itself, and recurrent weights of one neuron.

A connection with the weights W from neuron i to neuron j has its feedback if some node of weights leads from j to i
with c W^T, one number c in (0, 1] for all of them, to the last bit of float32: what `to_nir` writes.
"""

from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import torch

from ep_plugin.nir.flat import Flat


@dataclass
class Circuit:
    """A graph without its ways back.

    Attributes:
        flat: what is left: no way leads round in it.
        order: its nodes, each behind those that it receives from.
        ratios: of each connection that has a feedback, its two neurons and c (0 where all weights are).
        recurrent: neuron -> the node of its recurrent weights V, which act as (V + V^T) / 2, and the number that
            makes V of the node's weights.
    """

    flat: Flat
    order: list[str] = field(default_factory=list)
    ratios: list[tuple[str, str, float]] = field(default_factory=list)
    recurrent: dict[str, tuple[str, float]] = field(default_factory=dict)


def unrolled(flat: Flat, start: str) -> Circuit:
    """The graph without its ways back, which are told beside it.

    Raises:
        ValueError: a way back is neither a feedback nor a neuron's own.
    """
    distance = flat.reached(start)
    links = {name: ends for name in flat.nodes if (ends := _ends(flat, name)) is not None}
    # A connection leads away from the input. Where both ends are as near, it is what has a bias.
    outward = sorted(
        links,
        key=lambda n: (distance[links[n][0]] - distance[links[n][1]], not _has_bias(flat.nodes[n])),
    )
    circuit, gone = Circuit(flat), set[str]()
    connected: set[str] = set()
    for name in outward:
        i, j = links[name]
        if name in connected | gone:
            continue
        for other in outward:
            if other == name or other in connected | gone or links[other] != (j, i):
                continue
            ratio = _ratio(flat.nodes[name], flat.nodes[other])
            if ratio is None or (i == j and ratio not in (1.0, 0.0)):
                continue
            if len(flat.only(flat.nodes.keys() - gone - {other}).reached(start)) < len(flat.nodes) - len(gone) - 1:
                continue  # it is not the way back, but the only way to something
            if i == j:
                _own(circuit, i, name, 2.0)
                gone.add(name)
            else:
                circuit.ratios.append((i, j, ratio))
                connected.add(name)
            gone.add(other)
            break
    for name in [n for n in flat.nodes if n not in gone]:
        around = flat.before(name)
        if len(around) == 1 and around == flat.after(name) and flat.is_neuron(around[0]) and not flat.is_neuron(name):
            _own(circuit, around[0], name, 1.0)
            gone.add(name)
    circuit.flat = flat.only(flat.nodes.keys() - gone)
    circuit.order = _sorted(circuit.flat)
    return circuit


def _ends(flat: Flat, name: str) -> tuple[str, str] | None:
    """The two neurons that a node of weights alone connects; None for other nodes."""
    if not isinstance(flat.nodes[name], (nir.Linear, nir.Affine)):
        return None
    before, after = flat.before(name), flat.after(name)
    if len(before) != 1 or len(after) != 1 or not (flat.is_neuron(before[0]) and flat.is_neuron(after[0])):
        return None
    return before[0], after[0]


def _has_bias(node: Any) -> bool:
    return isinstance(node, nir.Affine) and bool(np.any(numbers(node.bias)))


def _ratio(connection: Any, back: Any) -> float | None:
    """The shortest number c of which the weights back are c times those of the connection, transposed.

    0 where all weights are; None where there is no such number in (0, 1], or the way back has a bias.
    """
    if _has_bias(back):
        return None
    up, down = (numbers(node.weight).astype(np.float32) for node in (connection, back))
    up = up.T
    if up.shape != down.shape or not up.size:
        return None
    at = np.unravel_index(np.abs(up).argmax(), up.shape)
    if up[at] == 0:
        return None if down.any() else 0.0
    guess = down[at] / up[at]
    near = (guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(2)))
    fitting = [str(c) for c in near if 0 < c <= 1 and np.array_equal(c * up, down)]
    return float(min(fitting, key=len)) if fitting else None


def _own(circuit: Circuit, neuron: str, name: str, factor: float) -> None:
    if neuron in circuit.recurrent:
        raise ValueError(
            f"{circuit.flat.place(neuron)} has two ways back to itself, through {circuit.recurrent[neuron][0]!r} and "
            f"{name!r}; expected one node of recurrent weights: add them up"
        )
    circuit.recurrent[neuron] = name, factor


def _sorted(flat: Flat) -> list[str]:
    """The nodes, each behind those that it receives from, otherwise as they come."""
    order: list[str] = []
    waiting = {name: len(flat.before(name)) for name in flat.nodes}
    while ready := next((n for n in flat.nodes if waiting.get(n) == 0), None):
        order.append(ready)
        del waiting[ready]
        for name in flat.after(ready):
            waiting[name] -= 1
    if not waiting:
        return order
    loop = [next(iter(waiting))]
    while loop[0] not in loop[1:]:  # against the edges, so that it ends in a loop
        loop.insert(0, next(n for n in flat.before(loop[0]) if n in waiting))
    loop = loop[: loop.index(loop[0], 1) + 1]
    raise ValueError(
        f"the graph leads back by {' -> '.join(loop)}, and this is no feedback that an energy has: that of a "
        "connection with the weights W is a node of weights c W^T, with one number c in (0, 1], and no bias. Leave the "
        "way back out, and the network makes its own; or use recurrent weights of one neuron"
    )


def numbers(value: object) -> np.ndarray:
    """What a node holds, as some libraries write tensors where NIR has arrays."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
