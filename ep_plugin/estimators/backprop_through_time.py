"""Backpropagation through the relaxation: the baseline on the same dynamics."""

from dataclasses import dataclass

from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.relaxation import FreePhase, Observed, Relaxation, relax
from ep_plugin.dynamics.system import System


@dataclass(frozen=True)
class BackpropThroughTime:
    """Autograd through every step of the free phase; its memory grows with the number of steps.

    Gradients pass straight through spikes: the derivative of the quantizer is taken as 1.
    It is the one estimator that second derivatives pass through: gradient penalties and Hessians.

    Example:
        >>> model.estimator = ep.BackpropThroughTime()
    """

    def solve(
        self, system: System, encoder: Encoder, relaxation: Relaxation, observe: Observed, counted: bool = True
    ) -> tuple[tuple[Tensor, ...], FreePhase]:
        """See `GradientEstimator`."""
        free = relax(system, encoder, relaxation, observe, counted=counted)
        return tuple(free.observed[l].clone() for l in system.read), free  # a readout may write into them
