"""The equations of a network of neurons: its energy, and what one batch fixes of them.

With layers l of weight c_l > 0, connections A_ij(s) = K_ij s + b_ij from i to j and states r_l,

    E(r) = sum_l c_l theta_l Omega_l(r_l) - sum_(i->j) c_j <r_j, A_ij(r_i)> - sum_l c_l <r_l, d_l>

is stationary where every neuron's state is the activation of its drive over its threshold,

    drive_i = d_i + sum_(h->i) A_hi(r_h) + sum_(i->j) (c_j / c_i) K_ij^T r_j

so feedback scaled by c_j / c_i still follows one energy. d_l is what the input drives layer l with; most
networks have it for the first layer alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ep_plugin.dynamics.activations import Activation
from ep_plugin.linear.connection import BoundConnection, Connection
from ep_plugin.tensors import inner


class Values(NamedTuple):
    """All tensors of the energy that are not states.

    Attributes:
        drives: of every driven layer, `[B, ...]`.
        thresholds: one a layer; it broadcasts against the layer's state.
        weights: the effective weights of every connection.
        frames: of an input that changes over time, each driven layer's drive at every step,
            `[steps, B, ...]`; `drives` are then their means, to which the energy refers.
    """

    drives: tuple[Tensor, ...]
    thresholds: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, ...], ...]
    frames: tuple[Tensor, ...] | None = None

    def flat(self) -> list[Tensor]:
        """Every tensor that a gradient may be asked of."""
        return [*self.drives, *self.thresholds, *chain.from_iterable(self.weights)]

    def like(self, flat: Sequence[Tensor]) -> "Values":
        """The same structure, filled from a flat sequence."""
        rest: Iterator[Tensor] = iter(flat)
        return Values(
            tuple(next(rest) for _ in self.drives),
            tuple(next(rest) for _ in self.thresholds),
            tuple(tuple(next(rest) for _ in own) for own in self.weights),
            self.frames,
        )

    def detach(self) -> "Values":
        """The same without a graph."""
        frames = None if self.frames is None else tuple(f.detach() for f in self.frames)
        return self.like([t.detach() for t in self.flat()])._replace(frames=frames)


@dataclass(frozen=True)
class System:
    """The energy of one network under one batch.

    Attributes:
        activations: one a layer.
        levels: of every layer, how many feedback steps it stands above the lowest.
        feedback: strength from each level to the one below, from the lowest.
        connections: the edges.
        driven: layers that the input drives, in the order of `values.drives`.
        read: layers that the readout sees.
        shapes: of every layer, without the batch.
        values: the tensors.
        products: dtype in which connections multiply; None for that of the values. States, forces and
            contrasts keep the values' own.
    """

    activations: tuple[Activation, ...]
    levels: tuple[int, ...]
    feedback: tuple[float, ...]
    connections: tuple[Connection, ...]
    driven: tuple[int, ...]
    read: tuple[int, ...]
    shapes: tuple[Sequence[int], ...]
    values: Values
    products: torch.dtype | None = None

    @property
    def layers(self) -> range:
        return range(len(self.activations))

    @property
    def like(self) -> Tensor:
        """A tensor of the batch's size, dtype and place."""
        return self.values.drives[0]

    def with_values(self, values: Values) -> "System":
        """The same equations with other tensors (of the same shapes)."""
        return replace(self, values=values)

    def detach(self) -> "System":
        """The same without a graph."""
        return self.with_values(self.values.detach())

    def exact(self) -> "System":
        """The same with all products in the values' own dtype."""
        return replace(self, products=None)

    def ratio(self, upper: int, lower: int) -> float:
        """c_upper / c_lower: how strongly `upper` feeds back to `lower`."""
        return _ratio(self.feedback, self.levels[upper], self.levels[lower])

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """c_l: 1 at the last layer's level, divided by the feedback for every level below.

        Bounded where the dtype's range would end; deviations there have no size beside a state.
        """
        most = 1e30 if self.like.dtype == torch.float32 else 1e290
        last = len(self.levels) - 1
        return tuple(1 / max(self.ratio(last, l), 1 / most) for l in self.layers)

    @cached_property
    def bound(self) -> tuple[BoundConnection, ...]:
        """The connections with their weights, prepared for many products."""
        dtype = self.like.dtype
        if self.products is not None and dtype == torch.float32:
            dtype = self.products
        return tuple(
            c.bound(own, self.shapes[c.source], dtype)
            for c, own in zip(self.connections, self.values.weights, strict=True)
        )

    @cached_property
    def plain(self) -> tuple[BoundConnection, ...]:
        """The connections with their weights as they are: for contrasts and energies."""
        return tuple(
            c.bound(own, self.shapes[c.source]) for c, own in zip(self.connections, self.values.weights, strict=True)
        )

    def names(self) -> list[str]:
        """What each of `values.flat()` is, for messages."""
        return [
            *(f"the drive of layer {l} (the input, or the weights before the first neuron)" for l in self.driven),
            *(f"the threshold of layer {l}" for l in self.layers),
            *(
                f"the weights of {c.source} -> {c.target}"
                for c, own in zip(self.connections, self.values.weights, strict=True)
                for _ in own
            ),
        ]

    def order(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Groups of layers that move at once, one group after the other in every step, from below.

        "sequential": one layer after the other, level by level. "alternating": the colour classes of
        the graph, so that no two layers of a group see each other. "simultaneous": all of them.
        """
        if name == "simultaneous":
            return (tuple(self.layers),)
        upward = sorted(self.layers, key=lambda l: (self.levels[l], l))
        if name == "sequential":
            return tuple((l,) for l in upward)
        colours: dict[int, int] = {}
        for l in self.layers:
            ends = [(c.source, c.target) for c in self.connections if l in (c.source, c.target)]
            taken = {colours[other] for other in chain.from_iterable(ends) if other < l}
            colours[l] = min(set(range(len(taken) + 1)) - taken)
        return tuple(tuple(l for l in self.layers if colours[l] == k) for k in range(max(colours.values()) + 1))

    def energy(self, states: Sequence[Tensor]) -> Tensor:
        """E of each sample, `[B]`, at the given states of all layers."""
        return torch.stack([self.coupling(states), *(self.own_energy(l, states[l]) for l in self.layers)]).sum(0)

    def own_energy(self, layer: int, state: Tensor) -> Tensor:
        """c_l theta_l Omega_l(r_l) of each sample, `[B]`."""
        potential = self.activations[layer].potential
        if potential is None:
            raise ValueError(
                f"the activation of layer {layer} has no potential, so it has no energy; give an "
                "Activation(value, slope, potential)"
            )
        return self.scales[layer] * inner(self.values.thresholds[layer], potential(state))

    def coupling(self, states: Sequence[Tensor]) -> Tensor:
        """The part of the energy that connections and the input contribute, for each sample, `[B]`."""
        total = torch.zeros_like(self.like.flatten(1)[:, 0])
        for l, drive in zip(self.driven, self.values.drives, strict=True):
            total = total - self.scales[l] * inner(states[l], drive)
        for connection in self.plain:
            product = inner(states[connection.target], connection.affine(states[connection.source]))
            total = total - self.scales[connection.target] * product
        return total


@cache
def _ratio(feedback: tuple[float, ...], a: int, b: int) -> float:
    return math.prod(feedback[b:a]) if a >= b else 1 / math.prod(feedback[a:b])
