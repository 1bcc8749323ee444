"""Activations: from a neuron's drive to its state.

A neuron with threshold theta settles where r = value(drive / theta). `potential` is the convex
function whose gradient is the inverse of `value`; theta * potential(r) is the neuron's own energy
(Omega in the equations of the network).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ep_plugin.checks import chosen

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise activation.

    Args:
        value: drive over threshold -> state.
        slope: derivative of `value`, for the estimators that backpropagate; by default autograd's.
            Equilibrium propagation never uses it.
        potential: convex function of the state with potential'(value(h)) = h inside the range; the
            energy and learnable thresholds need it.
        maximum: the largest state. A spike stands for this value, so spiking encoders need states
            in [0, maximum].
        projection: the interval (low, high), if `value` is the projection on one. The membrane then
            leaks before it is clipped: r <- value((1 - step) r + step * drive). Others move towards
            value(drive).
    """

    value: Elementwise
    slope: Elementwise | None = None
    potential: Elementwise | None = None
    maximum: float = 1.0
    projection: tuple[float, float] | None = None

    def __call__(self, drive: Tensor) -> Tensor:
        if self.slope is not None and drive.requires_grad:
            return _WithSlope.apply(drive, self.value, self.slope)
        return self.value(drive)

    def step(self, state: Tensor, drive: Tensor, step_size: float) -> Tensor:
        """One step of `step_size` from `state` towards the value of `drive` (over the threshold)."""
        if self.projection is not None:
            return self(torch.lerp(state, drive, step_size))
        return torch.lerp(state, self(drive), step_size)

    def step_(self, state: Tensor, drive: Tensor, step_size: float) -> None:
        """The same without a graph, written into `drive`."""
        if self.projection is not None:
            torch.lerp(state, drive, step_size, out=drive).clamp_(*self.projection)
        else:
            torch.lerp(state, self.value(drive), step_size, out=drive)


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
    s = _sigmoid(h)
    return 4 * s * (1 - s)


def _sigmoid_potential(r: Tensor) -> Tensor:
    return (torch.xlogy(r, r) + torch.xlogy(1 - r, 1 - r)) / 4 + r / 2


def _clip6(h: Tensor) -> Tensor:
    return h.clamp(0, 6)


def _clip6_slope(h: Tensor) -> Tensor:
    return ((h >= 0) & (h <= 6)).to(h.dtype)


ACTIVATIONS = {
    "hard_sigmoid": Activation(_clip, _clip_slope, _half_square, projection=(0.0, 1.0)),
    "sigmoid": Activation(_sigmoid, _sigmoid_slope, _sigmoid_potential),
    "relu6": Activation(_clip6, _clip6_slope, _half_square, maximum=6.0, projection=(0.0, 6.0)),
}


def as_activation(activation: str | Activation | Elementwise) -> Activation:
    """An activation from its name, itself, or a bare callable (which has no energy)."""
    if isinstance(activation, Activation):
        return activation
    if callable(activation):
        return Activation(activation)
    return chosen("activation", activation, ACTIVATIONS)
