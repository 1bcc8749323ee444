"""The exact gradient at an equilibrium, by the implicit function theorem."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ep_plugin.checks import count, positive
from ep_plugin.dynamics import Dynamics, Values
from ep_plugin.encoders import Graded, NeuronState
from ep_plugin.relaxation import Equilibrium, Phase, Relaxation, relax


@dataclass(frozen=True)
class ImplicitDifferentiation:
    """Differentiates the fixed point r = S(r, theta) of one full step S of the relaxation.

    lambda = dC/dr + (dS/dr)^T lambda is iterated to convergence, which it reaches where the
    relaxation itself does; then dC/dtheta = (dS/dtheta)^T lambda (Almeida 1987, Pineda 1987). Exact
    for a relaxation that has converged; spiking neurons are linearised at their mean states.

    Args:
        tolerance: largest relative change of lambda in the last iteration, above 0.
        max_steps: iterations, 1 or more, after which a warning is given.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    tolerance: float = 1e-12
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        positive("tolerance", self.tolerance)
        count("max_steps", self.max_steps)

    def equilibrium(self, dynamics: Dynamics, values: Values, relaxation: Relaxation) -> tuple[Tensor, Equilibrium]:
        with torch.no_grad():
            free, equilibrium = relax(dynamics, values.detach(), relaxation)
        return _Implicit.apply(self, dynamics, free, values, *values.flat()), equilibrium


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rule: ImplicitDifferentiation,
        dynamics: Dynamics,
        free: Phase,
        values: Values,
        *flat: Tensor,
    ) -> Tensor:
        ctx.rule, ctx.dynamics, ctx.observed = rule, dynamics, free.observed
        ctx.structure = values.detach()
        ctx.save_for_backward(*flat)
        return free.observed[dynamics.output].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        graded = replace(ctx.dynamics, encoder=Graded(), step_size=1.0, products=None)
        needed = ctx.needs_input_grad[4:]
        flat = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        states = [s.detach().requires_grad_() for s in ctx.observed]
        with torch.enable_grad():
            neurons = tuple(NeuronState(s, s, s) for s in states)
            after, _ = graded.sweep(neurons, ctx.structure.like(flat), time=1)
            new = [n.membrane for n in after]

        source = [torch.zeros_like(s) for s in states]
        source[graded.output].copy_(grads[0])
        # A sample whose dC/dr is no number has a gradient that is none; the others keep theirs.
        lost = ~grads[0].flatten(1).isfinite().all(1)
        for own in source:
            own[lost] = torch.nan
        adjoint, scale = source, _largest([grads[0]])
        for _ in range(ctx.rule.max_steps):
            back = torch.autograd.grad(
                new, states, adjoint, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            before, adjoint = adjoint, [s + b for s, b in zip(source, back, strict=True)]
            change = _largest([a - b for a, b in zip(adjoint, before, strict=True)])
            precision = max(ctx.rule.tolerance, torch.finfo(scale.dtype).eps)
            if change <= precision * scale:
                break
        else:
            warnings.warn(
                f"implicit differentiation has not converged in {ctx.rule.max_steps} steps; the relaxation of "
                "this network probably does not converge either (see Equilibrium.residual)",
                stacklevel=2,
            )
        wanted = [t for t in flat if t.requires_grad]
        found = iter(torch.autograd.grad(new, wanted, adjoint, allow_unused=True, materialize_grads=True))
        return None, None, None, None, *(next(found) if n else None for n in needed)


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest entry of those that are numbers."""
    return torch.stack([t.nan_to_num(0, 0, 0).abs().max() for t in tensors]).max()
