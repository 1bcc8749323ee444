"""Equilibrium propagation: the gradient as a contrast of two equilibria, told in deviations.

With the force -beta dC/dr on the read layers, dE/dtheta contrasted between two phases tends to
dC/dtheta as beta -> 0 (Scellier and Bengio 2017; symmetric nudging: Laborieux et al. 2021):

    dC/dtheta = [dE/dtheta(r^a) - dE/dtheta(r^b)] / ((a - b) beta)

where a and b say how strongly the two phases are nudged, in units of beta. `ep_plugin.dynamics.deviations`
has the phases and their contrast.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.dynamics.deviations import Deviations, contrast, nudge
from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.relaxation import FreePhase, Graph, Observed, Point, Relaxation, default_steps, relax
from ep_plugin.dynamics.system import System
from ep_plugin.estimators.estimator import attach
from ep_plugin.estimators.force import NUDGINGS, Nudging, force_length, normalized, strengths, warn_unless_finite
from ep_plugin.tensors import per_sample, rows
from ep_plugin.validation import chosen, count, plain_numbers

# A deviation that is so many times the force is no answer to it: the phase runs away.
_RUNAWAY = 1e4


@dataclass(frozen=True)
class EquilibriumPropagation:
    """Nudged phases instead of backpropagation. They run when the backward pass comes.

    In a nudged phase neurons send only how far the nudge has moved them. Nothing else is in the signal that could hide
    this, so one nudged phase is enough: the free phase is the other side of the contrast.

    The force on each sample is constant through the phase: dC/dr at the free equilibrium, normalized to the length
    beta. The contrast is multiplied by the length of dC/dr. So the gradient is proportional to the loss, however the
    loss is scaled.

    Args:
        beta: length of the force, in units of the state, from 1e-30 to 1e30. The error of the gradient falls with
            beta squared (symmetric) or beta (one-sided), and a small beta loses nothing. But a neuron that is
            beyond its bound only answers to a force that carries it back: where the last neuron is the output, a
            small beta leaves dead outputs dead (snnTorch's tutorial 5, 50 steps: the loss falls to .52 of its start
            with .01, to .32 with .1, to .16 with .3). A large beta pushes neurons over the kinks of their activation.
        steps: number of steps of the nudged phases. None chooses it from the network's depth and encoder.
        nudging: "positive", "negative" and "random_sign" (drawn for each sample from PyTorch's global generator)
            contrast one nudged phase with the free one; "symmetric" contrasts +beta with -beta.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model.estimator = ep.EquilibriumPropagation(nudging="symmetric")
    """

    beta: float = 0.1
    steps: int | None = None
    nudging: Nudging = "positive"

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "beta", force_length(self.beta))
        if self.steps is not None:
            count("steps", self.steps)
        chosen("nudging", self.nudging, NUDGINGS)

    def solve(
        self, system: System, encoder: Encoder, relaxation: Relaxation, observe: Observed, counted: bool = True
    ) -> tuple[tuple[Tensor, ...], FreePhase]:
        """See `GradientEstimator`."""
        fixed = system.detach()
        with torch.no_grad():
            free = relax(fixed, encoder, relaxation, observe, counted=counted)
        point = free.point

        def gradients(grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
            return self._gradients(fixed, point, grads, encoder, relaxation, observe, needed)

        outputs = [free.observed[l] for l in system.read]
        return attach(outputs, system, gradients), free

    def phases(
        self,
        system: System,
        point: Point,
        gradients: Sequence[Tensor],
        encoder: Encoder,
        relaxation: Relaxation,
        observe: Observed,
        record: bool = False,
        counted: bool = True,
    ) -> tuple[Deviations, Tensor, Tensor | None]:
        """The nudged phases, one after the other in the batch if there are two.

        Args:
            system: the equations.
            point: where the free phase has ended.
            gradients: dC/dr of every read layer, `[B, ...]`.
            encoder: what neurons sent in the free phase.
            relaxation: its order holds here too, from above.
            observe: see `nudge`.
            record: keep every step.
            counted: count the events.

        Returns:
            The deviations; each sample's weight in the contrast, `[B]`; and the second phase's strengths,
            None where it is the free phase.
        """
        directions, length = normalized(gradients)
        warn_unless_finite(length)
        a, b = strengths(self.nudging, len(length), length)
        second = b if NUDGINGS[self.nudging][1] else None
        nudged = a if second is None else torch.cat([a, second])
        forces = {
            l: (d if second is None else torch.cat([d, d])) * per_sample(-self.beta * nudged, d)
            for l, d in zip(system.read, directions, strict=True)
        }
        deviations = nudge(
            system,
            point if second is None else point.repeated(2),
            forces,
            encoder.for_deviations(),
            self.steps_for(system, encoder),
            relaxation.order,
            observe,
            record,
            counted,
        )
        return deviations, length / ((a - b) * self.beta), second

    def steps_for(self, graph: Graph, encoder: Encoder) -> int:
        """The number of steps in a network of this graph."""
        return self.steps or default_steps(graph, encoder)[1]

    def _gradients(
        self,
        system: System,
        point: Point,
        gradients: Sequence[Tensor],
        encoder: Encoder,
        relaxation: Relaxation,
        observe: Observed,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        with torch.no_grad():
            deviations, weight, second = self.phases(
                system, point, gradients, encoder, relaxation, observe, counted=False
            )
            self._warn_of_runaway(deviations)
            first, other = list(deviations.values), None
            if second is not None:
                halves = [d.chunk(2) for d in first]
                first, other = [a for a, _ in halves], [b for _, b in halves]
            return contrast(system, point, first, other, weight, needed)

    def _warn_of_runaway(self, deviations: Deviations) -> None:
        lengths = torch.stack([torch.linalg.vector_norm(rows(d), dim=1).amax() for d in deviations.values])
        if lengths.is_meta or not bool((lengths > _RUNAWAY * self.beta).any()):
            return
        l = int(lengths.nan_to_num(0, 0).argmax())
        warnings.warn(
            f"the nudged phase runs away: in layer {l} a sample's deviation is {lengths[l] / self.beta:.0e} times its "
            "force, so that this gradient means nothing. The network has not settled: use a weaker feedback, more free "
            "steps, or smaller weights (Equilibrium.residual says how far from settled a sample is)",
            RuntimeWarning,
            stacklevel=2,
        )
