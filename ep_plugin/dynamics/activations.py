"""Activations: from a neuron's drive to its state.

A neuron with threshold theta settles where r = value(drive / theta). `potential` is the convex
function whose gradient is the inverse of `value`; theta * potential(r) is the neuron's own energy
(Omega in the equations of the network).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ep_plugin.tensors import into, is_one
from ep_plugin.validation import chosen

Elementwise = Callable[[Tensor], Tensor]
ActivationName = Literal["hard_sigmoid", "sigmoid", "relu6"]

# Below this change of a drive (over the threshold) a difference quotient of an activation is its
# slope in the middle: the difference of two nearly equal numbers would lose more. The slope in the
# middle is off by x^2, the difference by eps / x, so that wider numbers allow a smaller change.
_SMALL = 1e-3


def _small(dtype: torch.dtype) -> float:
    return min(_SMALL, torch.finfo(dtype).eps ** (1 / 3))


@dataclass(frozen=True)
class Activation:
    """An elementwise activation.

    Args:
        value: drive over threshold -> state.
        slope: derivative of `value`, for the estimators that backpropagate; by default autograd's. Equilibrium
            propagation uses it only for changes so small that a difference would lose them.
        potential: convex function of the state with potential'(value(h)) = h inside the range. The energy needs it, and
            so do learnable thresholds under full nudged phases.
        minimum: the smallest state.
        maximum: the largest state. A binary spike stands for it, so encoders with binary spikes need states in
            [0, maximum], and a finite one.
        projection: the interval (low, high), if `value` is the projection on an interval. The membrane then leaks
            before it is clipped: r <- value((1 - step) r + step * drive). Other activations move towards
            value(drive).
        secant: (h, x) -> (value(h + x) - value(h)) / x without the cancellation of the difference.

    Raises:
        ValueError: one of the functions is a module with parameters or buffers, or one that draws.

    Example:
        >>> swish = ep.Activation(nn.functional.silu, minimum=-0.3, maximum=float("inf"))
        >>> model = ep.convert(net, activation=swish)
    """

    value: Elementwise
    slope: Elementwise | None = None
    potential: Elementwise | None = None
    minimum: float = 0.0
    maximum: float = 1.0
    projection: tuple[float, float] | None = None
    secant: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for function in (self.value, self.slope, self.potential, self.secant):
            if isinstance(function, nn.Module) and _is_not_fixed(function):
                raise ValueError(
                    f"activation is {function}, which has numbers of its own, or draws them; a layer would neither "
                    "train, save nor move them. Expected a function that always does the same, such as "
                    "nn.LeakyReLU(0.1)"
                )

    @property
    def least(self) -> float:
        """The smallest state."""
        return self.minimum if self.projection is None else self.projection[0]

    def __call__(self, drive: Tensor) -> Tensor:
        if self.slope is not None and drive.requires_grad:
            return _WithSlope.apply(drive, self.value, self.slope)
        return self.value(drive)

    def step(self, state: Tensor, drive: Tensor, step_size: float, out: Tensor | None = None) -> Tensor:
        """One step of `step_size` from `state` towards the value of `drive` (over the threshold).

        Without a graph the result is written to `out`, which may be `drive`.
        """
        if self.projection is not None:
            moved = drive if step_size == 1 else torch.lerp(state, drive, step_size, out=into(out))
            if not torch.is_grad_enabled():
                return torch.clamp(moved, *self.projection, out=out)
            return self(moved)
        asked = self(drive)
        return asked if step_size == 1 else torch.lerp(state, asked, step_size, out=into(out))

    def deviation(
        self, drive: Tensor, threshold: Tensor, scale: float
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """From a change of the drive to the change of the state, without the difference of two large numbers.

        Args:
            drive: h of a layer, `[B, ...]`, not yet over the threshold.
            threshold: theta.
            scale: c of the layer. Both changes are multiplied by it, so that neither under- nor overflows
                where a nudge arrives weakly: C = c dh -> D = c (value((h + dh) / theta) - value(h / theta)).

        Returns:
            What the changes add up on (0, or how far a drive stands beyond the bound of its state), in a tensor of
            its own; and a function of that sum and of the tensor to write D to, which it returns.
        """
        inverse = threshold.reciprocal()
        h = drive * inverse
        if self.projection is not None:
            low, high = self.projection
            state = h.clamp(low, high)
            beyond = h.sub_(state).mul_(threshold * scale)
            most = torch.rsub(state, high).mul_(scale)
            least = state.neg_().add_(low).mul_(scale) if low else state.mul_(-scale)
            if is_one(threshold):
                return beyond, lambda change, out: torch.clamp(change, least, most, out=out)
            return beyond, lambda change, out: torch.clamp(torch.mul(change, inverse, out=out), least, most, out=out)
        secant = self.secant or self._secant_from(h)

        def deviate(change: Tensor, out: Tensor) -> Tensor:
            asked = torch.mul(change, inverse, out=out)
            return asked.mul_(secant(h, asked / scale))

        return torch.zeros_like(drive), deviate

    def _secant_from(self, h: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The secant by a difference; the value it starts at is computed once for all steps of a phase."""
        start = self.value(h.clone())  # of a copy, since a value may write into its argument: nn.ReLU(inplace=True)
        least = _small(h.dtype)

        def secant(h: Tensor, x: Tensor) -> Tensor:
            small = x.abs() < least
            safe = torch.where(small, 1, x)
            return torch.where(small, self._slope(h + x / 2), (self.value(h + safe) - start) / safe)

        return secant

    def _slope(self, h: Tensor) -> Tensor:
        if self.slope is not None:
            return self.slope(h)
        return torch.func.jvp(self.value, (h,), (torch.ones_like(h),))[1]


def _is_not_fixed(module: nn.Module) -> bool:
    draws = any(isinstance(m, (nn.RReLU, _DropoutNd)) for m in module.modules())
    return draws or any(True for _ in module.parameters()) or any(True for _ in module.buffers())


class _WithSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, value: Elementwise, slope: Elementwise) -> Tensor:
        ctx.save_for_backward(drive)
        ctx.slope = slope
        return value(drive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (drive,) = ctx.saved_tensors
        return grads[0] * ctx.slope(drive), None, None


def _clip(h: Tensor) -> Tensor:
    return h.clamp(0, 1)


def _clip_slope(h: Tensor) -> Tensor:
    return ((h >= 0) & (h <= 1)).to(h.dtype)


def _half_square(r: Tensor) -> Tensor:
    return r * r / 2


def _sigmoid(h: Tensor) -> Tensor:
    return torch.sigmoid(4 * h - 2)


def _sigmoid_slope(h: Tensor) -> Tensor:
    return 4 * _sigmoid(h) * torch.sigmoid(2 - 4 * h)


def _sigmoid_potential(r: Tensor) -> Tensor:
    r = r.clamp(0, 1)  # traces may go over the bounds a little
    return (torch.xlogy(r, r) + torch.xlogy(1 - r, 1 - r)) / 4 + r / 2


def _sigmoid_secant(h: Tensor, x: Tensor) -> Tensor:
    # s' - s = s (1 - s') expm1(4 x) = s' (1 - s) (-expm1(-4 x)): the form whose exponent is not positive.
    size = 4 * x.abs()
    fall = torch.where(size > 0, -torch.expm1(-size) / torch.where(size > 0, size, 1), 1)
    upper, lower = h + x.clamp_min(0), h + x.clamp_max(0)
    return 4 * _sigmoid(upper) * torch.sigmoid(2 - 4 * lower) * fall


def _clip6(h: Tensor) -> Tensor:
    return h.clamp(0, 6)


def _clip6_slope(h: Tensor) -> Tensor:
    return ((h >= 0) & (h <= 6)).to(h.dtype)


ACTIVATIONS = {
    "hard_sigmoid": Activation(_clip, _clip_slope, _half_square, projection=(0.0, 1.0)),
    "sigmoid": Activation(_sigmoid, _sigmoid_slope, _sigmoid_potential, secant=_sigmoid_secant),
    "relu6": Activation(_clip6, _clip6_slope, _half_square, maximum=6.0, projection=(0.0, 6.0)),
}


def as_activation(activation: str | Activation | Elementwise) -> Activation:
    """An activation from its name, itself, or a bare callable (which has no energy)."""
    if isinstance(activation, Activation):
        return activation
    if callable(activation):
        minimum, maximum = _range(activation)
        return Activation(activation, minimum=minimum, maximum=maximum)
    return chosen("activation", activation, ACTIVATIONS)


@torch.no_grad()
def _range(value: Elementwise) -> tuple[float, float]:
    """The least and the largest state that a callable gives on a wide range of drives; inf where it still grows."""
    states = value(torch.linspace(-50, 50, 2001))
    grows = states[-1] - states[-2] > _SMALL * 0.05
    return min(0.0, states.min().item()), math.inf if grows else states.max().item()
