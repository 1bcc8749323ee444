"""Backpropagation through the relaxation: the baseline on the same dynamics."""

from dataclasses import dataclass

from torch import Tensor

from ep_plugin.dynamics import Dynamics, Values
from ep_plugin.relaxation import Equilibrium, Relaxation, relax


@dataclass(frozen=True)
class BackpropThroughTime:
    """Autograd through every step of the free phase; its memory grows with the number of steps.

    Spikes pass gradients straight through: the derivative of the quantiser is taken as 1.
    """

    def equilibrium(self, dynamics: Dynamics, values: Values, relaxation: Relaxation) -> tuple[Tensor, Equilibrium]:
        free, equilibrium = relax(dynamics, values, relaxation)
        return free.observed[dynamics.output], equilibrium
