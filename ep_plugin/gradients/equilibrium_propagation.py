"""Equilibrium propagation: the gradient as a contrast of two nudged equilibria.

With the force -beta dC/dr on the output layer, dE/dtheta contrasted between two nudged equilibria
tends to dC/dtheta as beta -> 0 (Scellier and Bengio 2017; symmetric nudging: Laborieux et al. 2021):

    dC/dtheta = [dE/dtheta(r^a) - dE/dtheta(r^b)] / ((a - b) beta)

where a and b tell how strongly the two phases are nudged, in units of beta.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ep_plugin.checks import chosen, count, positive
from ep_plugin.dynamics import Dynamics, Neurons, Values
from ep_plugin.encoders import NeuronState
from ep_plugin.gradients.estimator import require_finite
from ep_plugin.profiling import section
from ep_plugin.relaxation import Equilibrium, Phase, Relaxation, observe_phase, relax

NUDGINGS = {
    "symmetric": (1.0, -1.0),
    "positive": (1.0, 0.0),
    "negative": (-1.0, 0.0),
    "random_sign": (None, 0.0),  # +1 or -1, drawn for each sample
}


@dataclass(frozen=True)
class EquilibriumPropagation:
    """Two nudged phases in place of backpropagation; they run when the backward pass comes.

    The force on each sample is normalised to the length beta, and its contrast multiplied by the
    length of the sample's dC/dr. So the gradient is proportional to the loss, however the loss is
    scaled, and the nudge stands out of the spikes' noise even when errors are small.

    Args:
        beta: length of the force, in units of the state; above 0. The error of the gradient falls
            with beta squared (symmetric) or beta (one-sided); noise falls as beta grows.
        steps: number of steps of the nudged phases.
        nudging: "symmetric" contrasts +beta with -beta; "positive", "negative" and "random_sign"
            (drawn for each sample from PyTorch's global generator) contrast one nudged phase with an
            un-nudged continuation of the free phase of the same length.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    beta: float = 5.0
    steps: int = 8
    nudging: str = "symmetric"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        count("steps", self.steps)
        chosen("nudging", self.nudging, NUDGINGS)

    def equilibrium(self, dynamics: Dynamics, values: Values, relaxation: Relaxation) -> tuple[Tensor, Equilibrium]:
        with torch.no_grad(), section("free phase"):
            free, equilibrium = relax(dynamics, values.detach(), relaxation)
        return _Nudge.apply(self, dynamics, free, values, *values.flat()), equilibrium

    def strengths(self, samples: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """How strongly each sample is nudged in the two phases, in units of beta."""
        first, second = NUDGINGS[self.nudging]
        if first is None:
            a = torch.randint(0, 2, (samples,), device=like.device).to(like.dtype) * 2 - 1
        else:
            a = like.new_full((samples,), first)
        return a, like.new_full((samples,), second)


class _Nudge(torch.autograd.Function):
    """Where autograd ends and equilibrium propagation begins: dC/dr in, dC/dtheta out."""

    @staticmethod
    def forward(
        ctx: Any, rule: EquilibriumPropagation, dynamics: Dynamics, free: Phase, values: Values, *flat: Tensor
    ) -> Tensor:
        ctx.rule, ctx.dynamics, ctx.free = rule, dynamics, free
        ctx.structure = values.detach()
        ctx.save_for_backward(*flat)
        return free.observed[dynamics.output].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule, dynamics, free = ctx.rule, ctx.dynamics, ctx.free
        values = ctx.structure.like(ctx.saved_tensors)
        direction, length = normalised(grads[0])
        finite = _warn_unless_finite(length)

        a, b = rule.strengths(len(length), length)
        push = torch.cat([a, b]).view(-1, *[1] * (direction.dim() - 1)) * direction.repeat(
            2, *[1] * (direction.dim() - 1)
        )
        force = push * (-rule.beta / dynamics.scales[dynamics.output])
        with section("nudged phases"):
            both = values.twice(rule.steps)
            nudged = observe_phase(dynamics, both, _twice(free.neurons), free.time, rule.steps, force)
        weight = length / ((a - b) * rule.beta)
        needed = list(ctx.needs_input_grad[4:])
        with section("contrast"):
            contrast = _contrast(dynamics, values, nudged.observed, torch.cat([weight, -weight]), needed)
        if finite:
            named = _names(values)
            found = [(g, n) for g, n in zip(contrast, named, strict=True) if g is not None]
            require_finite("the gradient", [g for g, _ in found], [n for _, n in found])
        return None, None, None, None, *contrast


def _warn_unless_finite(length: Tensor) -> bool:
    """Whether each sample's dC/dr, of the given length, is a number.

    One that is none becomes a gradient that is none, as everywhere in autograd: a scaler for float16
    meets such losses by design, skips the step and lowers its scale.
    """
    bad = int((~length.isfinite()).sum())
    if bad:
        warnings.warn(
            f"the loss's gradient is NaN or infinite at the output layer's equilibrium (loss or readout) in {bad} of "
            f"{len(length)} samples, and so are the gradients that follow from it. A gradient scaler skips this "
            "step. Without one, do not step the optimizer: lower the learning rate, clip, or look at the targets "
            "of a loss that can divide by zero",
            RuntimeWarning,
            stacklevel=2,
        )
    return bad == 0


def normalised(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's direction and length; zeros for both where the gradient is zero, NaN where it is not finite.

    Divided by its largest entry first, so that nothing over- or underflows and a loss that is
    scaled by a power of two gives the same direction to the last bit.
    """
    largest = gradient.flatten(1).abs().amax(1)
    safe = torch.where(largest > 0, largest, 1).view(-1, *[1] * (gradient.dim() - 1))
    unit = gradient / safe
    length = unit.flatten(1).norm(dim=1)
    return unit / torch.where(length > 0, length, 1).view_as(safe), length * largest


def _contrast(
    dynamics: Dynamics, values: Values, states: tuple[Tensor, ...], weight: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    """sum_b weight_b dE/dvalues of the given states: the energy's own derivative, states held fixed."""
    with torch.enable_grad():
        leaves = values.like([t.detach().requires_grad_(n) for t, n in zip(values.flat(), needed, strict=True)])
        both = leaves._replace(drive=torch.cat([leaves.drive] * 2))
        energy = dynamics.coupling(states, both)
        for l, threshold in enumerate(leaves.thresholds):
            if threshold.requires_grad:
                energy = energy + dynamics.own_energy(l, states[l], threshold)
        wanted = [t for t in leaves.flat() if t.requires_grad]
        found = iter(torch.autograd.grad((weight * energy).sum(), wanted))
    return [next(found) if n else None for n in needed]


def _twice(neurons: Neurons) -> Neurons:
    """Both phases' starts in one batch. The free phase's own states are left as they are."""
    return tuple(NeuronState(*(torch.cat([t, t]) for t in n)) for n in neurons)


def _names(values: Values) -> list[str]:
    return [
        "the drive of layer 0",
        *(f"the threshold of layer {l}" for l in range(len(values.thresholds))),
        *(f"the weights of connection {c}" for c, own in enumerate(values.weights) for _ in own),
    ]
