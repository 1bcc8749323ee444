"""Equilibrium propagation as arXiv:2405.02546 has it: nudged phases in which whole states are sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.relaxation import FreePhase, Means, Observed, Relaxation, relax
from ep_plugin.dynamics.system import System
from ep_plugin.estimators.estimator import attach
from ep_plugin.estimators.force import NUDGINGS, Nudging, force_length, normalized, strengths, warn_unless_finite
from ep_plugin.profiling import section
from ep_plugin.tensors import per_sample
from ep_plugin.validation import chosen, count, plain_numbers

_LEAST = 1e-6  # below it rounding hides what a nudge moves in whole states


@dataclass(frozen=True)
class FullPhaseEP:
    """Two full nudged phases: neurons go on sending their whole states, and the contrast is between these.

    For users who reproduce the paper. With spikes the contrast is a small difference of two noisy numbers: it needs a
    strong nudge, is lost beyond four levels, and does not match with max pooling. `EquilibriumPropagation` has none of
    these limits.

    The paper's setting: `encoder="predictive_sigma_delta"` (or `"sigma_delta"`), average pooling, symmetric nudging.

    Args:
        beta: length of the force, in units of the state, from 1e-6 to 1e30. Errors of the gradient fall with beta
            squared (symmetric) or beta (one-sided); noise falls as beta grows.
        steps: number of steps of the nudged phases.
        nudging: "symmetric" contrasts +beta with -beta; "positive", "negative" and "random_sign" contrast one nudged
            phase with a continuation of the free phase, without a nudge and of the same length.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model.estimator = ep.FullPhaseEP(beta=5.0, steps=8)
    """

    beta: float = 5.0
    steps: int = 8
    nudging: Nudging = "symmetric"

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "beta", force_length(self.beta, _LEAST))
        count("steps", self.steps)
        chosen("nudging", self.nudging, NUDGINGS)

    def solve(
        self, system: System, encoder: Encoder, relaxation: Relaxation, observe: Observed, counted: bool = True
    ) -> tuple[tuple[Tensor, ...], FreePhase]:
        """See `GradientEstimator`."""
        for l, threshold in enumerate(system.values.thresholds):
            if threshold.requires_grad and system.activations[l].potential is None:
                raise ValueError(
                    f"layer {l} has a learnable threshold and an activation without a potential, from which full "
                    "phases take its gradient; give an Activation(value, slope, potential), or use "
                    "EquilibriumPropagation()"
                )
        fixed = system.detach()
        with torch.no_grad():
            free = relax(fixed, encoder, relaxation, observe, counted=counted)

        def gradients(grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
            with torch.no_grad():
                return self._gradients(fixed, free, grads, relaxation, observe, needed)

        return attach([free.observed[l] for l in system.read], system, gradients), free

    def _gradients(
        self,
        system: System,
        free: FreePhase,
        grads: Sequence[Tensor],
        relaxation: Relaxation,
        observe: Observed,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        directions, length = normalized(grads)
        warn_unless_finite(length)
        a, b = strengths(self.nudging, len(length), length)
        both = torch.cat([a, b])
        forces = {
            l: torch.cat([d, d]) * per_sample(both * (-self.beta / system.scales[l]), d)
            for l, d in zip(system.read, directions, strict=True)
        }
        with section("nudged phases"):
            states = self._nudged(system, free, forces, relaxation, observe)
        weight = length / ((a - b) * self.beta)
        with section("contrast"):
            return _contrast(system, states, torch.cat([weight, -weight]), needed)

    def _nudged(
        self, system: System, free: FreePhase, forces: dict[int, Tensor], relaxation: Relaxation, observe: Observed
    ) -> list[Tensor]:
        """Both phases in one batch; what is observed of each layer, `[2 B, ...]`."""
        state = free.state.repeated(2)
        frames, seen = system.values.frames, range(0)
        if frames is not None:  # they see the last frames again
            seen = range(len(frames[0]) - self.steps, len(frames[0]))
            state.system = system.with_values(
                system.values._replace(frames=tuple(torch.cat([f, f], dim=1) for f in frames))
            )
        state.push(forces)
        order, means = system.order(relaxation.order), Means(self.steps)
        start = free.steps
        for step in range(self.steps):
            if frames is not None:
                state.show(seen[step] % len(frames[0]))
            state.sweep(order, start + step + 1)
            means.see(step, state.membranes, state.traces)
        averages = state.encoder.averages or frames is not None
        membranes, traces = means.mean() if averages else (state.membranes, state.traces)
        return traces if observe == "trace" else membranes


def _contrast(system: System, states: Sequence[Tensor], weight: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """sum_b weight_b dE/dvalues of the given states, `[2 B, ...]`: the energy's own derivative, states held fixed."""
    weighted = [s * per_sample(weight * -system.scales[l], s) for l, s in enumerate(states)]
    found: list[Tensor | None] = [sum(weighted[l].chunk(2)) for l in system.driven]  # type: ignore[misc]
    for l, threshold in enumerate(system.values.thresholds):
        potential = system.activations[l].potential
        if not needed[len(found)] or potential is None:
            found.append(None)
            continue
        own = potential(states[l]) * per_sample(weight * system.scales[l], states[l])
        found.append(own.sum_to_size(threshold.shape) if threshold.dim() else own.sum())
    for bound in system.plain:
        at = bound.at(states[bound.source])[0]
        found.extend(at.pullback(states[bound.source], weighted[bound.target]))
    return found
