"""What every gradient estimator is to the network."""

from typing import Protocol

from torch import Tensor

from ep_plugin.dynamics import Dynamics, Values
from ep_plugin.relaxation import Equilibrium, Relaxation


class GradientEstimator(Protocol):
    def equilibrium(self, dynamics: Dynamics, values: Values, relaxation: Relaxation) -> tuple[Tensor, Equilibrium]:
        """The output layer's equilibrium, `[B, ...]`, with the estimator's way back to `values`."""


def require_finite(what: str, tensors: list[Tensor], names: list[str]) -> None:
    """Stops the training at the first value that is no number, where it arises."""
    import torch

    # The extremes are infinite or NaN where any value is, and take a third of the time of isfinite().
    extremes = [torch.stack(t.detach().aminmax()) for t in tensors]
    bad = ~torch.stack(extremes).isfinite().all(1)
    if bad.any():  # one synchronisation for all of them
        where = ", ".join(name for name, b in zip(names, bad.tolist(), strict=True) if b)
        raise FloatingPointError(
            f"{what} became NaN or infinite in {where}. Try a lower learning rate, gradient clipping, a smaller "
            "initialisation or, with a loss that can divide by zero, a look at the targets."
        )
