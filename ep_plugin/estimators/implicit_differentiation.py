"""The exact gradient at an equilibrium, by the implicit function theorem."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState
from ep_plugin.dynamics.relaxation import FreePhase, Observed, Relaxation, relax
from ep_plugin.dynamics.system import System
from ep_plugin.estimators.estimator import attach
from ep_plugin.profiling import section
from ep_plugin.tensors import per_sample
from ep_plugin.validation import count, plain_numbers, positive


@dataclass(frozen=True)
class ImplicitDifferentiation:
    """Differentiates the fixed point r = S(r, theta) of one full step S of the relaxation.

    It iterates lambda = dC/dr + (dS/dr)^T lambda until it converges, which it does where the relaxation itself does.
    Then dC/dtheta = (dS/dtheta)^T lambda (Almeida 1987, Pineda 1987). This is exact for a relaxation that has
    converged; spiking neurons are linearized at their observed states.

    Args:
        tolerance: largest change of lambda in the last iteration, relative to its largest entry in each layer; above 0.
        max_steps: number of iterations, 1 or more, after which a warning is given.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model.estimator = ep.ImplicitDifferentiation()
    """

    tolerance: float = 1e-12
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "tolerance", positive("tolerance", self.tolerance))
        count("max_steps", self.max_steps)

    def solve(
        self, system: System, encoder: Encoder, relaxation: Relaxation, observe: Observed, counted: bool = True
    ) -> tuple[tuple[Tensor, ...], FreePhase]:
        """See `GradientEstimator`."""
        fixed = system.detach()
        with torch.no_grad():
            free = relax(fixed, encoder, relaxation, observe, counted=counted)
        states = [s.detach().clone() for s in free.observed]

        def gradients(grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
            with section("adjoint"):
                return self._gradients(fixed.exact(), states, grads, relaxation, needed)

        return attach([states[l] for l in system.read], system, gradients), free

    def _gradients(
        self,
        system: System,
        observed: Sequence[Tensor],
        grads: Sequence[Tensor],
        relaxation: Relaxation,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        flat = [t.detach().requires_grad_(n) for t, n in zip(system.values.flat(), needed, strict=True)]
        states = [s.detach().requires_grad_() for s in observed]
        with torch.enable_grad():
            state = NetworkState.at(system.with_values(system.values.like(flat)), states, Graded())
            state.sweep(system.order(relaxation.order), time=1)
        new, adjoint = state.membranes, self._adjoint(system, states, state.membranes, grads)
        wanted = [t for t in flat if t.requires_grad]
        found = iter(torch.autograd.grad(new, wanted, adjoint, allow_unused=True, materialize_grads=True))
        return [next(found) if n else None for n in needed]

    def _adjoint(
        self, system: System, states: Sequence[Tensor], new: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> list[Tensor]:
        """lambda, the solution of lambda = dC/dr + (dS/dr)^T lambda."""
        source = [torch.zeros_like(s) for s in states]
        for l, grad in zip(system.read, grads, strict=True):
            source[l] += grad
        # A sample whose dC/dr is no number has a gradient that is none; the others keep theirs.
        lost = torch.stack([~g.flatten(1).isfinite().all(1) for g in grads]).any(0)
        for own in source:
            own.masked_fill_(per_sample(lost, own), torch.nan)
        adjoint = source
        # Sums of a few thousand products turn in their last bits for ever: 8 eps was too little for residual nets.
        rounding = 64 * torch.finfo(source[0].dtype).eps
        precision = max(self.tolerance, rounding)
        ends = [(c.source, c.target) for c in system.connections]
        near = [sorted({l, *(n for pair in ends if l in pair for n in pair)}) for l in system.layers]
        for _ in range(self.max_steps):
            back = torch.autograd.grad(
                new, states, adjoint, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            before, adjoint = adjoint, [s + b for s, b in zip(source, back, strict=True)]
            # Layer by layer: in deep networks the first ones' lambda is small beside the last one's.
            # (And a layer may have none at all, but what rounding leaves of its neighbours'.)
            changes = _largest([a - b for a, b in zip(adjoint, before, strict=True)])
            if changes.is_meta:
                return adjoint
            sizes = _largest(adjoint)
            around = torch.stack([sizes[n].max() for n in near])
            if bool((changes <= precision * sizes + rounding * around).all()):
                return adjoint
        warnings.warn(
            f"implicit differentiation has not converged in {self.max_steps} steps; the relaxation of "
            "this network probably does not converge either (see Equilibrium.residual)",
            stacklevel=2,
        )
        return adjoint


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    """The largest entry of each, of those that are numbers."""
    return torch.stack([t.nan_to_num(0, 0, 0).abs().max() for t in tensors])
