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
from ep_plugin.profiling import section

Neurons = tuple[NeuronState, ...]


class Values(NamedTuple):
    """All tensors of the energy that are not states: the first drive `[B, ...]`, a threshold a layer
    (it broadcasts against the layer's state) and the effective weights of every connection.

    An input that changes over time has `frames`, the drive at every step `[steps, B, ...]`; `drive`
    is then their mean, to which the energy and its derivatives refer.
    """

    drive: Tensor
    thresholds: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, ...], ...]
    frames: Tensor | None = None

    def flat(self) -> list[Tensor]:
        return [self.drive, *self.thresholds, *chain.from_iterable(self.weights)]

    def like(self, flat: Sequence[Tensor]) -> "Values":
        """The same structure, filled from a flat sequence."""
        rest: Iterator[Tensor] = iter(flat)
        return Values(
            next(rest),
            tuple(next(rest) for _ in self.thresholds),
            tuple(tuple(next(rest) for _ in own) for own in self.weights),
            self.frames,
        )

    def detach(self) -> "Values":
        frames = None if self.frames is None else self.frames.detach()
        return self.like([t.detach() for t in self.flat()])._replace(frames=frames)

    def at(self, step: int) -> "Values":
        """What drives the network in a step of a phase, counted from 0."""
        return self if self.frames is None else self._replace(drive=self.frames[step])

    def twice(self, steps: int) -> "Values":
        """For two phases in one batch, of so many steps: they see the last frames again."""
        frames = self.frames
        if frames is not None:
            seen = torch.arange(len(frames) - steps, len(frames), device=frames.device) % len(frames)
            frames = torch.cat([frames[seen]] * 2, dim=1)
        return self._replace(drive=torch.cat([self.drive] * 2), frames=frames)


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
        products: dtype in which connections multiply; None for that of the values. States, forces
            and contrasts keep the values' own.
    """

    activations: tuple[Activation, ...]
    scales: tuple[float, ...]
    connections: tuple[Connection, ...]
    order: tuple[tuple[int, ...], ...]
    encoder: Encoder
    step_size: float
    output: int
    observe: str
    products: torch.dtype | None = None

    def prepared(self, values: Values) -> Values:
        """The values as many steps want them: weights in the products' dtype and layout."""
        shapes = self.shapes(values)
        dtype = values.drive.dtype
        if self.products is not None and dtype == torch.float32:
            dtype = self.products
        return values._replace(
            weights=tuple(
                c.prepared(own, shapes[c.source], dtype)
                for c, own in zip(self.connections, values.weights, strict=True)
            )
        )

    def sent(self, trace: Tensor) -> Tensor:
        """A trace as `drive` wants it."""
        if self.products is None or trace.dtype != torch.float32:
            return trace
        return trace.to(self.products)

    def shapes(self, values: Values) -> list[Sequence[int]]:
        """The shape of every layer, without the batch."""
        shapes: dict[int, Sequence[int]] = {0: values.drive.shape[1:]}
        pending = [c for c in self.connections if c.source != c.target]
        while pending:
            connection = next(c for c in pending if c.source in shapes)
            pending.remove(connection)
            shapes.setdefault(connection.target, connection.shapes(shapes[connection.source])[-1])
        return [shapes[l] for l in range(len(self.activations))]

    def rest(self, values: Values) -> Neurons:
        """The state that every relaxation starts from: zero."""
        last = _is_channels_last(values.drive)

        def zeros(shape: Sequence[int]) -> Tensor:
            z = values.drive.new_zeros(len(values.drive), *shape)
            return z.contiguous(memory_format=torch.channels_last) if last and z.dim() == 4 else z

        return tuple(NeuronState(zeros(shape), zeros(shape), zeros(shape)) for shape in self.shapes(values))

    def drive(
        self,
        layer: int,
        traces: Sequence[Tensor],
        values: Values,
        force: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """What the neurons of a layer receive, `[B, ...]`, in units of the threshold's own.

        `traces` are as `sent` gives them and `values` as `prepared` does. `force` is added to the
        drive of the output layer. `out` is filled and returned, if given.
        """
        terms: list[tuple[Tensor, float]] = [(values.drive, 1.0)] if layer == 0 else []
        for connection, weights in zip(self.connections, values.weights, strict=True):
            i, j = connection.source, connection.target
            if j == layer:
                with section(f"{i} -> {j} up"):
                    terms.append((connection.apply(weights, traces[i]), 1.0))
            if i == layer:
                with section(f"{i} -> {j} down"):
                    down = connection.adjoint(weights, traces[j], traces[i])
                terms.append((down, self.scales[j] / self.scales[i]))
        if force is not None and layer == self.output:
            terms.append((force, 1.0))
        return _sum(terms, values.drive.dtype, out)

    def sweep(
        self, neurons: Neurons, values: Values, time: int, force: Tensor | None = None
    ) -> tuple[Neurons, list[Tensor | None]]:
        """Every layer moves once. Returns the new states and each layer's spikes.

        `values` are `prepared`; `force` is added to the drive of the output layer.
        """
        states = list(neurons)
        spikes: list[Tensor | None] = [None] * len(neurons)
        for group in self.order:
            traces = [self.sent(n.trace) for n in states]
            for l in group:
                drive = self.drive(l, traces, values, force)
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
        return self.scales[layer] * _inner(threshold, potential(state))

    def coupling(self, states: Sequence[Tensor], values: Values) -> Tensor:
        """The part of the energy that connections and the input contribute, for each sample, `[B]`."""
        total = -self.scales[0] * _inner(states[0], values.drive)
        for connection, weights in zip(self.connections, values.weights, strict=True):
            received = connection.apply(weights, states[connection.source])
            product = _inner(states[connection.target], received)
            total = total - self.scales[connection.target] * product
        return total


def _sum(terms: list[tuple[Tensor, float]], dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Sum of (tensor, factor) in `dtype`; the first factor of a layer's drive is 1, or the only one."""
    (total, factor), *others = terms
    if total.dtype != dtype:
        total = total.to(dtype) if out is None else out.copy_(total)
    if factor != 1:
        total = total * factor
    for term, factor in others:
        total = torch.add(total, term, alpha=factor, out=out)
    if out is None or total is out:
        return total
    return out.copy_(total)


def _is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, `[B]`."""
    product = a * b
    return product.sum(tuple(range(1, product.dim())))
