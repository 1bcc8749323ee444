"""Steps of a relaxation, one after the other: on the graph, or in place.

`Dynamics.sweep` says what a step is; it returns new tensors, so autograd can follow it. A phase that
keeps no graph needs none of them: its neurons live in buffers of their own that every step writes
to. Both do the same operations on the same numbers, so their results agree to the last bit.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ep_plugin.dynamics import Dynamics, Neurons, Values
from ep_plugin.encoders import Graded, NeuronState, PredictiveSigmaDelta, SigmaDelta
from ep_plugin.profiling import section


class Stepper(Protocol):
    neurons: Neurons

    def step(self, step: int, time: int) -> list[Tensor | None]:
        """Every layer moves once: step `step` of the phase, counted from 0, and `time` of all, from 1.

        Returns each layer's spikes, which hold until the next step.
        """


def stepper(dynamics: Dynamics, values: Values, neurons: Neurons, force: Tensor | None = None) -> Stepper:
    """Steps from `neurons` on, in place where that is possible: their tensors are the stepper's from now on."""
    if not torch.is_grad_enabled() and type(dynamics.encoder) in _IN_PLACE:
        return _InPlace(dynamics, values, neurons, force)
    return _OutOfPlace(dynamics, values, neurons, force)


class _OutOfPlace:
    def __init__(self, dynamics: Dynamics, values: Values, neurons: Neurons, force: Tensor | None) -> None:
        self.dynamics, self.values, self.neurons, self.force = dynamics, values, neurons, force

    def step(self, step: int, time: int) -> list[Tensor | None]:
        self.neurons, spikes = self.dynamics.sweep(self.neurons, self.values.at(step), time, self.force)
        return spikes


class _InPlace:
    """Each layer owns the three tensors of its state and a spare one, in which its next membrane is
    made. The two then change places, and the old membrane's place holds the spikes."""

    def __init__(self, dynamics: Dynamics, values: Values, neurons: Neurons, force: Tensor | None) -> None:
        self.dynamics, self.values, self.force = dynamics, values, force
        self.encode = _IN_PLACE[type(dynamics.encoder)]
        self.neurons = neurons
        self.spare = [torch.empty_like(n.membrane) for n in neurons]

    @property
    def neurons(self) -> Neurons:
        return self._neurons

    @neurons.setter
    def neurons(self, neurons: Neurons) -> None:
        self._neurons, self.sent = neurons, [self.dynamics.sent(n.trace) for n in neurons]

    def step(self, step: int, time: int) -> list[Tensor | None]:
        dynamics, values = self.dynamics, self.values.at(step)
        states = list(self._neurons)
        spikes: list[Tensor | None] = [None] * len(states)
        for group in dynamics.order:
            for l in group:  # all drives first: the layers of a group see each other before they move
                dynamics.drive(l, self.sent, values, self.force, out=self.spare[l])
            for l in group:
                activation, before, membrane = dynamics.activations[l], states[l], self.spare[l]
                with section(f"layer {l} neurons"):
                    activation.step_(before.membrane, membrane.div_(values.thresholds[l]), dynamics.step_size)
                    states[l], spikes[l] = self.encode(dynamics.encoder, membrane, before, time, activation.maximum)
                    self.spare[l], self.sent[l] = before.membrane, dynamics.sent(states[l].trace)
        self._neurons = tuple(states)
        return spikes


InPlaceEncode = Callable[..., tuple[NeuronState, Tensor | None]]


def _graded(
    encoder: Graded, membrane: Tensor, before: NeuronState, time: int, maximum: float
) -> tuple[NeuronState, None]:
    return NeuronState(membrane, membrane, before.residue), None


def _sigma_delta(
    encoder: SigmaDelta, membrane: Tensor, before: NeuronState, time: int, maximum: float
) -> tuple[NeuronState, Tensor]:
    return _quantise(membrane, membrane, before, encoder.step_size(time), maximum)


def _predictive(
    encoder: PredictiveSigmaDelta, membrane: Tensor, before: NeuronState, time: int, maximum: float
) -> tuple[NeuronState, Tensor]:
    lam = encoder.step_size(time)
    signal = torch.lerp(before.membrane, membrane, 1 / lam, out=before.membrane)
    return _quantise(signal, membrane, before, lam, maximum)


def _quantise(
    signal: Tensor, membrane: Tensor, before: NeuronState, lam: float, maximum: float
) -> tuple[NeuronState, Tensor]:
    spikes, total = before.membrane, before.residue.add_(signal)
    # Comparing into a float tensor is ten times faster than making booleans and converting them.
    torch.gt(total, 0.5, out=spikes) if maximum == 1 else torch.gt(total / maximum, 0.5, out=spikes)
    sent = spikes if maximum == 1 else spikes * maximum
    return NeuronState(membrane, before.trace.lerp_(sent, lam), total.sub_(sent)), spikes


_IN_PLACE: dict[type, InPlaceEncode] = {Graded: _graded, SigmaDelta: _sigma_delta, PredictiveSigmaDelta: _predictive}
"""Encoder -> its `encode` that writes into the state before it."""
