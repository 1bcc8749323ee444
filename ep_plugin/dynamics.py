"""The equations of a network of neurons: its drives, its energy and one step of its relaxation.

With layers l of weight c_l > 0, connections A_ij(s) = K_ij s + b_ij from i to j and states r_l,

    E(r) = sum_l c_l theta_l Omega_l(r_l) - sum_(i->j) c_j <r_j, A_ij(r_i)> - c_1 <r_1, d_1>

is stationary where every neuron's state is the activation of its drive over its threshold,

    drive_i = sum_(h->i) A_hi(r_h) + sum_(i->j) (c_j / c_i) K_ij^T r_j        (+ d_1 for the first)

so feedback scaled by c_j / c_i still follows one energy. d_1 is what the input drives the first
layer with. Everything here is a function of tensors that are given: no state, no parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ep_plugin.connections import Connection
from ep_plugin.encoders import Encoder, NeuronState
from ep_plugin.neurons.activations import Activation

Neurons = tuple[NeuronState, ...]


class Values(NamedTuple):
    """All tensors of the energy that are not states: the first drive `[B, ...]`, a threshold a layer
    (it broadcasts against the layer's state) and the effective weights of every connection."""

    drive: Tensor
    thresholds: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, ...], ...]

    def flat(self) -> list[Tensor]:
        return [self.drive, *self.thresholds, *chain.from_iterable(self.weights)]

    def like(self, flat: Sequence[Tensor]) -> "Values":
        """The same structure, filled from a flat sequence."""
        rest: Iterator[Tensor] = iter(flat)
        return Values(
            next(rest),
            tuple(next(rest) for _ in self.thresholds),
            tuple(tuple(next(rest) for _ in own) for own in self.weights),
        )

    def detach(self) -> "Values":
        return self.like([t.detach() for t in self.flat()])


@dataclass(frozen=True)
class Dynamics:
    """How a network's neurons act on each other.

    Args:
        activations: one a layer.
        scales: c_l, one a layer.
        connections: the edges.
        order: groups of layers that move at once, one group after the other in every step.
        encoder: what a layer's neighbours see of it.
        step_size: how far a neuron moves towards its activation in a step.
        output: index of the layer that the readout sees.
        observe: "membrane" or "trace", what readout and contrasts see of a neuron.
    """

    activations: tuple[Activation, ...]
    scales: tuple[float, ...]
    connections: tuple[Connection, ...]
    order: tuple[tuple[int, ...], ...]
    encoder: Encoder
    step_size: float
    output: int
    observe: str

    def rest(self, values: Values) -> Neurons:
        """The state that every relaxation starts from: zero."""
        shapes: dict[int, Sequence[int]] = {0: values.drive.shape[1:]}
        pending = [c for c in self.connections if c.source != c.target]
        while pending:
            connection = next(c for c in pending if c.source in shapes)
            pending.remove(connection)
            shapes.setdefault(connection.target, connection.shapes(shapes[connection.source])[-1])
        return tuple(
            NeuronState(*(values.drive.new_zeros(len(values.drive), *shapes[l]),) * 3)
            for l in range(len(self.activations))
        )

    def drive(self, layer: int, traces: Sequence[Tensor], values: Values) -> Tensor:
        """What the neurons of a layer receive, `[B, ...]`, in units of the threshold's own."""
        total = values.drive if layer == 0 else None
        for connection, weights in zip(self.connections, values.weights, strict=True):
            i, j = connection.source, connection.target
            if j == layer:
                up = connection.apply(weights, traces[i])
                total = up if total is None else total + up
            if i == layer:
                down = connection.adjoint(weights, traces[j], traces[i])
                scale = self.scales[j] / self.scales[i]
                total = down * scale if total is None else torch.add(total, down, alpha=scale)
        assert total is not None
        return total

    def sweep(
        self, neurons: Neurons, values: Values, time: int, force: Tensor | None = None
    ) -> tuple[Neurons, list[Tensor | None]]:
        """Every layer moves once. Returns the new states and each layer's spikes.

        `force` is added to the drive of the output layer.
        """
        states = list(neurons)
        spikes: list[Tensor | None] = [None] * len(neurons)
        for group in self.order:
            traces = [n.trace for n in states]
            for l in group:
                drive = self.drive(l, traces, values)
                if force is not None and l == self.output:
                    drive = drive + force
                membrane = self.activations[l].step(states[l].membrane, drive / values.thresholds[l], self.step_size)
                states[l], spikes[l] = self.encoder.encode(membrane, states[l], time, self.activations[l].maximum)
        return tuple(states), spikes

    def energy(self, states: Sequence[Tensor], values: Values) -> Tensor:
        """E of each sample, `[B]`."""
        return sum(map(self.own_energy, range(len(states)), states, values.thresholds)) + self.coupling(states, values)

    def own_energy(self, layer: int, state: Tensor, threshold: Tensor) -> Tensor:
        """c_l theta_l Omega_l(r_l) of each sample, `[B]`."""
        potential = self.activations[layer].potential
        if potential is None:
            raise ValueError(
                f"the activation of layer {layer} has no potential, so it has no energy and its threshold no "
                "gradient; give an Activation(value, slope, potential) with all three"
            )
        return self.scales[layer] * (threshold * potential(state)).flatten(1).sum(1)

    def coupling(self, states: Sequence[Tensor], values: Values) -> Tensor:
        """The part of the energy that connections and the input contribute, for each sample, `[B]`."""
        total = -self.scales[0] * (states[0] * values.drive).flatten(1).sum(1)
        for connection, weights in zip(self.connections, values.weights, strict=True):
            received = connection.apply(weights, states[connection.source])
            product = (states[connection.target] * received).flatten(1).sum(1)
            total = total - self.scales[connection.target] * product
        return total
