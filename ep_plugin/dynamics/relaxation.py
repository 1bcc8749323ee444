"""Settling to equilibrium: the free phase."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState
from ep_plugin.dynamics.system import System
from ep_plugin.linear.connection import BoundConnection
from ep_plugin.profiling import section
from ep_plugin.tensors import into, largest, rows
from ep_plugin.validation import chosen, count, fraction, plain_numbers, positive

Order = Literal["sequential", "alternating", "simultaneous"]
Observed = Literal["trace", "membrane"]

ORDERS: dict[str, str] = {
    "sequential": "one layer after the other, from below",
    "alternating": "groups of layers without a connection among them, in turn",
    "simultaneous": "all at once",
}
OBSERVED: dict[str, str] = {"trace": "u, what the neighbours know", "membrane": "r, the neurons' own states"}

# Steps between two looks at whether all samples have converged: a look synchronizes the device.
_STEPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True)
class Relaxation:
    """How a network settles.

    Args:
        steps: number of steps of the free phase. None chooses it from the network's depth, loops and encoder
            (`default_steps`) and the step size.
        step_size: how far a neuron moves towards its activation in one step, in (0, 1]. It belongs to the relaxation
            and not to the neuron: the equilibrium does not depend on it. None is 1, or 0.5 if a layer is connected
            with itself.
        order: "sequential" (one layer after the other, from below: a step is a forward pass with the feedback added),
            "alternating" (groups of layers without a connection among them) or "simultaneous". In the first two, and
            with full steps, the energy of graded neurons never rises (unless weights follow max pooling).
        tolerance: a graded sample stops when none of its states changes in a step by more than this number times the
            step size. Each sample stops separately, so its result does not depend on its batch. Spiking neurons
            run all their steps; for them the tolerance only decides what counts as converged.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model.relaxation = ep.Relaxation(steps=10)
    """

    steps: int | None = None
    step_size: float | None = None
    order: Order = "sequential"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.steps is not None:
            count("steps", self.steps)
        if self.step_size is not None:
            fraction("step_size", self.step_size)
        chosen("order", self.order, ORDERS)
        if self.tolerance is not None:
            positive("tolerance", self.tolerance)

    def steps_for(self, graph: "Graph", encoder: Encoder) -> int:
        """The number of steps in a network of this graph."""
        if self.steps is not None:
            return self.steps
        step_size = self.step_size_for(graph)
        slow = 1 if step_size == 1 else math.ceil(math.log(_UNSETTLED) / math.log(1 - step_size))
        return max(default_steps(graph, encoder)[0], slow)

    def step_size_for(self, graph: "Graph") -> float:
        """The step size in a network of this graph."""
        recurrent = any(c.source == c.target for c in graph.connections)
        return self.step_size or (0.5 if recurrent else 1.0)


class Graph(Protocol):
    """What steps depend on: a network, or its equations."""

    @property
    def levels(self) -> Sequence[int]: ...

    @property
    def connections(self) -> Any: ...


# Deepest network -> free and nudged steps in which graded states settle; ternary digits that events have to tell.
_SETTLED = {9: (4, 3), 17: (4, 3), math.inf: (6, 4)}
_DIGITS = {3: (7, 5), 9: (8, 6), 17: (15, 10), math.inf: (20, 12)}


# Loops within a level, which no feedback weakens, settle slowly. (A layer of `snn.RLeaky` before training: cosine .97
# and norm 0.8 with 4 and 3 steps, .99 and 1.0 with these.)
_LOOPS = (14, 10)

# What a free phase of steps smaller than 1 may leave, of what was there.
_UNSETTLED = 1e-4


def default_steps(graph: Graph, encoder: Encoder) -> tuple[int, int]:
    """Free and nudged steps for a network of this graph.

    Enough for the states to settle and for their digits to be told: the more of both the deeper the network. Loops
    within a level and the means of binary spikes need more.
    """
    levels = max(graph.levels) - min(graph.levels) + 1
    settled, digits = (
        next(counts for deepest, counts in table.items() if levels <= deepest) for table in (_SETTLED, _DIGITS)
    )
    if any(graph.levels[c.source] == graph.levels[c.target] for c in graph.connections):
        settled = max(settled[0], _LOOPS[0]), max(settled[1], _LOOPS[1])
    if encoder.averages:
        return max(15, 2 * digits[0], settled[0]), default_steps(graph, encoder.for_deviations())[1]
    free, nudged = (max(n, math.ceil(d / encoder.digits)) for n, d in zip(settled, digits, strict=True))
    return free, nudged


@dataclass(frozen=True)
class Trajectory:
    """What every neuron did in every step of a phase: one tensor `[steps, B, ...]` per layer.

    Attributes:
        states: membranes (in a nudged phase: deviations, times c_l).
        traces: what the neighbours knew of them.
        spikes: -1, 0 or 1, `[steps * digits, B, ...]`. Each step has one slot per digit of an event, and the slots
            follow each other. None for graded neurons.

    Example:
        >>> trajectory = model.free_phase(x, record=True).trajectory
        >>> [tuple(states.shape[1:]) for states in trajectory.states]
        [(8, 16, 3, 3), (8, 64)]
    """

    states: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]
    spikes: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Equilibrium:
    """Where a network has settled, without a graph.

    Attributes:
        states: membranes r of each layer, `[B, ...]`, in units of the threshold.
        traces: what the neighbours know of them, u, in the same units. With encoders of binary spikes, and under an
            input that changes over time, states and traces are means over the last half of the phase.
        spikes: number of spikes of each layer and sample, `[layers, B]`; None for graded neurons. With
            `AdaptiveDelta` a spike is a signed event; its weight is a reduction over its layer unless it is fixed.
        residual: how far from settled each sample is, `[B]`: the largest difference of any neuron between the state
            that its drive asks for and what its neighbours know, |rho(h) - u|.
        steps: number of steps that were run.
        converged: whether `residual` is below the tolerance, `[B]`; None without a tolerance.
        trajectory: every step, if it was asked for.

    Example:
        >>> equilibrium = model.free_phase(x)
        >>> equilibrium.states[0].shape, equilibrium.residual.shape
        (torch.Size([8, 16, 3, 3]), torch.Size([8]))
    """

    states: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]
    spikes: Tensor | None
    residual: Tensor
    steps: int
    converged: Tensor | None
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Point:
    """Where a phase starts from that nudges a settled network: no phase changes it.

    Attributes:
        traces: u, what is known of each layer, `[B, ...]`.
        drives: what these traces drive each layer with.
        bound: the connections, with the winners that they have there.
    """

    traces: tuple[Tensor, ...]
    drives: tuple[Tensor, ...]
    bound: tuple[BoundConnection, ...]

    @classmethod
    def of(cls, state: NetworkState) -> "Point":
        """The end of a phase."""
        return cls(tuple(state.traces), tuple(state.drives), tuple(link.bound for link in state.links))

    def repeated(self, times: int) -> "Point":
        """For a batch that is this one several times over."""
        return Point(
            tuple(torch.cat([t] * times) for t in self.traces),
            tuple(torch.cat([d] * times) for d in self.drives),
            tuple(b.repeated(times) for b in self.bound),
        )


@dataclass(frozen=True)
class FreePhase:
    """The free phase's end.

    Attributes:
        observed: what readout and contrasts see of each layer, `[B, ...]`; on the graph if there is one.
        state: the neurons, to go on from.
        point: where deviations start from.
        steps: number of steps that were run.
        membranes, traces: of each layer, as `Equilibrium` has them.
        tolerance: of the relaxation.
        spikes: number of spikes of each layer and sample; None for graded neurons, and where they were not counted.
        trajectory: every step, if it was asked for.
    """

    observed: tuple[Tensor, ...]
    state: NetworkState
    point: Point
    steps: int
    membranes: tuple[Tensor, ...]
    traces: tuple[Tensor, ...]
    tolerance: float | None
    spikes: Tensor | None
    trajectory: Trajectory | None

    @torch.no_grad()
    def equilibrium(self) -> Equilibrium:
        """What the user gets, in tensors of its own; to be asked for before a phase goes on from the state."""
        residual = _residual(self.state.system, self.point)
        return Equilibrium(
            states=tuple(m.detach().clone() for m in self.membranes),
            traces=tuple(t.detach().clone() for t in self.traces),
            spikes=self.spikes,
            residual=residual,
            steps=self.steps,
            converged=None if self.tolerance is None else residual <= self.tolerance,
            trajectory=self.trajectory,
        )


def relax(
    system: System,
    encoder: Encoder,
    relaxation: Relaxation,
    observe: Observed,
    record: bool = False,
    counted: bool = True,
) -> FreePhase:
    """Runs the free phase, from rest.

    Args:
        system: the equations.
        encoder: what neurons send.
        relaxation: how the network settles.
        observe: "trace" or "membrane".
        record: keep every step.
        counted: count the spikes.

    Returns:
        The free phase: its last states, and what the nudged phase needs of it.

    Example:
        >>> from ep_plugin.dynamics.relaxation import relax
        >>> with torch.no_grad():
        ...     free = relax(model.system(x), ep.Graded(), ep.Relaxation(steps=20), "trace")
        >>> [tuple(trace.shape) for trace in free.traces]
        [(8, 16, 3, 3), (8, 64)]
    """
    with section("free phase"):
        steps, order = relaxation.steps_for(system, encoder), system.order(relaxation.order)
        state = NetworkState(system, encoder, relaxation.step_size_for(system))
        averages = encoder.averages or system.values.frames is not None
        means = Means(steps) if averages else None
        fired = None
        if encoder.spiking and counted:
            fired = system.like.new_zeros(len(system.layers), len(system.like))
        recorder = Recorder() if record else None
        stopping = None if encoder.spiking else relaxation.tolerance
        if stopping is not None:
            state.moving = torch.ones(len(system.like), dtype=torch.bool, device=system.like.device)
        step = 0
        for step in range(steps):
            state.show(step)
            state.sweep(order, step + 1)
            messages = [m for m in state.sent if m is not None]
            if fired is not None:
                fired += torch.stack([m.spikes() for m in messages])
            if means is not None:
                means.see(step, state.membranes, state.traces)
            if recorder is not None:
                recorder.see(state)
            if stopping is not None and state.moving is not None:
                state.moving = state.moving & (largest([m.sent for m in messages]) > stopping * state.step_size)
                if step % _STEPS_BETWEEN_CHECKS == 0 and not state.moving.is_meta and not state.moving.any():
                    break
        for l in system.layers:
            state.refresh(l)
        if means is None:
            membranes, traces, point = state.membranes, state.traces, Point.of(state)
        else:
            membranes, traces = means.mean()
            with torch.no_grad():
                point = _mean_point(system, traces)
    return FreePhase(
        observed=tuple(traces if observe == "trace" else membranes),
        state=state,
        point=point,
        steps=step + 1,
        membranes=tuple(membranes),
        traces=tuple(traces),
        tolerance=relaxation.tolerance,
        spikes=fired,
        trajectory=None if recorder is None else recorder.trajectory(),
    )


def _mean_point(system: System, traces: Sequence[Tensor]) -> Point:
    """Where mean traces (and, of an input that changes over time, the frames' mean) would hold the network."""
    return Point.of(NetworkState.at(system.detach(), [t.detach() for t in traces], Graded()))


def _residual(system: System, point: Point) -> Tensor:
    """|rho(h) - u|, the largest of each sample, `[B]`."""
    worst = []
    for l in system.layers:
        asked = system.activations[l].value(point.drives[l] / system.values.thresholds[l])
        worst.append(rows(asked.sub_(point.traces[l]).abs_()).amax(1))
    return torch.stack(worst).amax(0)


class Means:
    """Means over the last half of a phase."""

    def __init__(self, steps: int) -> None:
        self.start, self.length = steps // 2, steps - steps // 2
        self.totals: list[list[Tensor]] = []

    def see(self, step: int, *kinds: Sequence[Tensor]) -> None:
        if step < self.start:
            return
        if step == self.start:
            self.totals = [[t.clone() for t in kind] for kind in kinds]
        else:
            self.totals = [
                [torch.add(a, b, out=into(a)) for a, b in zip(*pair, strict=True)]
                for pair in zip(self.totals, kinds, strict=True)
            ]

    def mean(self) -> list[list[Tensor]]:
        return [[t / self.length for t in kind] for kind in self.totals]


@dataclass
class Recorder:
    """Keeps every step of a phase."""

    steps: list[tuple[list[Tensor], list[Tensor], list[Tensor] | None]] = field(default_factory=list)

    def see(self, state: NetworkState) -> None:
        """A step that has just been made."""
        self.keep(state.membranes, state.traces, [m.slots() for m in state.sent if m is not None])

    def keep(self, states: Sequence[Tensor], traces: Sequence[Tensor], slots: Sequence[Sequence[Tensor]]) -> None:
        """What the neurons are at, what is known of them, and the spikes that they have sent."""
        sent = [torch.stack(list(own)) for own in slots if own]
        self.steps.append(([t.detach().clone() for t in states], [t.detach().clone() for t in traces], sent or None))

    def trajectory(self) -> Trajectory:
        """One tensor `[steps, B, ...]` a layer."""
        states, traces, spikes = zip(*self.steps, strict=True)
        sent = None if spikes[0] is None else tuple(torch.cat(layer) for layer in zip(*spikes, strict=True))
        states, traces = (tuple(map(torch.stack, zip(*kind, strict=True))) for kind in (states, traces))
        return Trajectory(states, traces, sent)
