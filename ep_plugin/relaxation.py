"""Settling to equilibrium."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ep_plugin.checks import chosen, count, fraction, positive
from ep_plugin.dynamics import Dynamics, Neurons, Values
from ep_plugin.encoders import NeuronState
from ep_plugin.stepping import stepper

ORDERS = {"alternating": True, "simultaneous": False}

# Steps between two looks at whether all samples have converged: a look synchronises the device.
_STEPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True)
class Relaxation:
    """How a network settles.

    Args:
        steps: number of steps of the free phase.
        step_size: how far a neuron moves towards its activation in one step, in (0, 1]. It belongs
            to the relaxation and not to the neuron: the equilibrium does not depend on it.
        order: "alternating" (groups of layers without a connection among them, one after the other:
            with full steps the energy of graded neurons never rises) or "simultaneous".
        tolerance: a graded sample stops once no state of it changes by more than this in a step.
            Each sample stops by itself, so its result does not depend on its batch. Spiking neurons
            run all their steps; their tolerance only says what counts as converged.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    steps: int = 15
    step_size: float = 0.85
    order: str = "alternating"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        count("steps", self.steps)
        fraction("step_size", self.step_size)
        chosen("order", self.order, ORDERS)
        if self.tolerance is not None:
            positive("tolerance", self.tolerance)


@dataclass(frozen=True)
class Equilibrium:
    """Where a network has settled, without a graph.

    Attributes:
        states: membranes r of each layer, `[B, ...]`, in units of the threshold. Spiking: averaged
            over the last half of the phase.
        traces: what the neighbours saw of them, likewise.
        spikes: number of spikes of each layer and sample, `[layers, B]`; None for graded neurons.
        residual: how far from settled each sample is, `[B]`. Graded: the largest change of a state
            in the last step. Spiking: the largest change of a mean state between the two halves of
            the time that is averaged over.
        steps: number of steps that were run.
        converged: `residual` is below the tolerance, `[B]`; None without a tolerance.
    """

    states: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]
    spikes: Tensor | None
    residual: Tensor
    steps: int
    converged: Tensor | None


class Phase(NamedTuple):
    """The end of a phase: the states to go on from, what was observed, the steps taken so far."""

    neurons: Neurons
    observed: tuple[Tensor, ...]
    time: int


def observe_phase(
    dynamics: Dynamics, values: Values, neurons: Neurons, time: int, steps: int, force: Tensor | None = None
) -> Phase:
    """`steps` steps from `neurons` on, which it takes over. Only what is observed is kept: a nudged phase."""
    window = _Window(steps, dynamics.encoder.spiking)
    phase = stepper(dynamics, dynamics.prepared(values), neurons, force)
    for step in range(steps):
        phase.step(step, time + step + 1)
        window.see(step, [getattr(n, dynamics.observe) for n in phase.neurons])
    return Phase(phase.neurons, window.mean(), time + steps)


def relax(dynamics: Dynamics, values: Values, relaxation: Relaxation) -> tuple[Phase, Equilibrium]:
    """The free phase, from rest."""
    neurons = dynamics.rest(values)
    spiking = dynamics.encoder.spiking
    membranes, traces = _Window(relaxation.steps, spiking, halves=True), _Window(relaxation.steps, spiking)
    stopping = relaxation.tolerance if not spiking else None
    moving = torch.ones(len(values.drive), dtype=torch.bool, device=values.drive.device)
    change = torch.zeros(len(values.drive), dtype=values.drive.dtype, device=values.drive.device)
    fired = change.new_zeros(len(neurons), len(change))
    phase = stepper(dynamics, dynamics.prepared(values), neurons)
    step = 0
    for step in range(relaxation.steps):
        last = step + 1 == relaxation.steps
        looks = not spiking and (stopping is not None or last)
        before = [n.membrane.clone() for n in phase.neurons] if looks else []
        spikes = phase.step(step, step + 1)
        if looks:
            now = _largest([a.membrane - b for a, b in zip(phase.neurons, before, strict=True)])
            change = torch.where(moving, now, change)
            if stopping is not None:
                phase.neurons = tuple(
                    NeuronState(r := torch.where(_per_sample(moving, n.membrane), n.membrane, b), r, n.residue)
                    for n, b in zip(phase.neurons, before, strict=True)
                )
                moving = moving & (now > stopping)
        neurons = phase.neurons
        if spiking:
            fired += torch.stack([_per_sample_sum(s.detach()) for s in spikes if s is not None])
        membranes.see(step, [n.membrane for n in neurons])
        traces.see(step, [n.trace for n in neurons])
        if stopping is not None and step % _STEPS_BETWEEN_CHECKS == 0 and not moving.any():
            membranes.stop([n.membrane for n in neurons])
            traces.stop([n.trace for n in neurons])
            break
    residual = membranes.drift() if spiking else change.detach()
    means = {"membrane": membranes.mean(), "trace": traces.mean()}
    equilibrium = Equilibrium(
        states=tuple(s.detach() for s in means["membrane"]),
        traces=tuple(s.detach() for s in means["trace"]),
        spikes=fired if spiking else None,
        residual=residual,
        steps=step + 1,
        converged=None if relaxation.tolerance is None else residual <= relaxation.tolerance,
    )
    return Phase(neurons, means[dynamics.observe], step + 1), equilibrium


class _Window:
    """Mean over the last half of a phase. Graded states have no noise to average: their last one.

    `halves` keeps what `drift` compares.
    """

    def __init__(self, steps: int, spiking: bool, halves: bool = False) -> None:
        self.length = steps - steps // 2 if spiking else 1
        self.start, self.halves = steps - self.length, halves
        self.total: list[Tensor] = []
        self.middle: list[Tensor] = []

    def see(self, step: int, states: list[Tensor]) -> None:
        if step == self.start:
            self.total = states if self.length == 1 else [s.clone() for s in states]
        elif step > self.start:
            for total, state in zip(self.total, states, strict=True):
                total += state
        if self.halves and step == self.start + self.length // 2 - 1:
            self.middle = [t.detach().clone() for t in self.total]

    def stop(self, states: list[Tensor]) -> None:
        self.total = states

    def mean(self) -> tuple[Tensor, ...]:
        """The mean, which takes the place of the sum."""
        return tuple(self.total if self.length == 1 else (t.div_(self.length) for t in self.total))

    def drift(self) -> Tensor:
        """Largest difference between the means of the window's two halves, for each sample."""
        if not self.middle:
            return self.total[0].new_full((len(self.total[0]),), torch.inf)
        half = self.length // 2
        return _largest(
            [m / half - (t.detach() - m) / (self.length - half) for m, t in zip(self.middle, self.total, strict=True)]
        )


def _largest(differences: list[Tensor]) -> Tensor:
    return torch.stack([d.detach().abs().amax(tuple(range(1, d.dim()))) for d in differences]).amax(0)


def _per_sample_sum(t: Tensor) -> Tensor:
    return t.sum(tuple(range(1, t.dim())))


def _per_sample(v: Tensor, like: Tensor) -> Tensor:
    return v.view(-1, *[1] * (like.dim() - 1))
