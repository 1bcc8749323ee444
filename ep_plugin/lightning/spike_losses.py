"""Losses of `snntorch.functional`: which of them have a meaning here, and what they are given.

They take a record over time, `[T, B, ...]`. A net that is run for T steps has one. An equilibrium is the same at every
step, so its record may have any length:

- Losses of means (`ce_rate_loss`) and of membranes (`mse_membrane_loss`, `ce_max_membrane_loss`) have the same value
  for all lengths, and get one step. The membrane is what the network returns, a state or a value of the readout.
- Losses of counts (`mse_count_loss`, `ce_count_loss`) get `STEPS` steps. So the targets of
  `mse_count_loss(0.8, 0.2)` are 80 and 20 of 100 possible spikes, and the loss is 100 times the squared error of the
  rates. For another length: `loss=lambda output, y: SF.ce_count_loss()(output.expand(25, *output.shape), y)`.
- Losses of spike times, and of targets that change over time, are refused: a constant state has no times.
"""

from dataclasses import dataclass
from typing import Any

import snntorch.functional as SF
from snntorch.functional.loss import LossFunctions
from torch import Tensor

from ep_plugin.lightning.losses import Loss, named
from ep_plugin.linear.base import at_least_float32

# snnTorch rounds targets down to whole spikes: of so many steps that is less than 1 %.
STEPS = 100

_TEMPORAL = (SF.mse_temporal_loss, SF.ce_temporal_loss)
_ANY_LENGTH = (SF.ce_rate_loss, SF.ce_max_membrane_loss, SF.mse_membrane_loss)


def wants_time(loss: Loss) -> bool:
    """Whether a loss takes a record `[T, B, ...]`: `mse_count_loss` would silently take a batch for time."""
    return isinstance(loss, (LossFunctions, *_TEMPORAL))


def populations(loss: Loss) -> int | None:
    """The classes whose populations of outputs a loss sums, if it does."""
    return int(getattr(loss, "num_classes", 0)) if getattr(loss, "population_code", False) else None


def check(loss: Loss) -> None:
    """Refuses what snnTorch has beside losses, and options with which its losses fail.

    Raises:
        ValueError: the loss is one of them.
    """
    if isinstance(loss, SF.l1_rate_sparsity):
        raise ValueError(
            "the loss l1_rate_sparsity is a regularizer, which sees no targets; expected a loss of (output, y), to "
            "which it may be added: lambda output, y: nn.functional.cross_entropy(output, y) + "
            "SF.l1_rate_sparsity()(output)"
        )
    if not wants_time(loss) and str(getattr(loss, "__module__", "")).startswith("snntorch.functional"):
        raise ValueError(
            f"{named(loss)} of snntorch.functional is no loss; expected one, such as SF.ce_rate_loss(), or "
            '"cross_entropy"'
        )
    if isinstance(loss, SF.ce_rate_loss) and loss.population_code:
        raise ValueError(
            "the loss ce_rate_loss(population_code=True) does not sum populations in snnTorch, and fails for want of "
            "a weight; use ce_count_loss(population_code=True, num_classes=...), which does"
        )
    if populations(loss) == 0:
        raise ValueError(
            f"the loss {named(loss)}(population_code=True) does not say of how many classes; give it num_classes=..."
        )
    if isinstance(loss, (SF.mse_count_loss, SF.mse_membrane_loss)) and loss.weight is not None:
        raise ValueError(
            f"the loss {named(loss)}(weight=...) multiplies errors [batch, classes] by weights [batch], along the "
            "wrong axis, in snnTorch; leave the weight out, or use ce_count_loss(weight=...), which has it by class"
        )


def require_classes(loss: Loss, output: Any) -> None:
    """Refuses outputs along whose last axis a loss of snnTorch would take something else for classes.

    Raises:
        ValueError: the output is not `[B, n]`.
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = f"the shape {list(output.shape)}" if isinstance(output, Tensor) else f"the type {type(output).__name__}"
        raise ValueError(
            f"the loss {named(loss)} was given an output of {got}; snnTorch's losses expect [batch, classes]. Use "
            '"cross_entropy", which takes [batch, classes, ...], or a callable of (output, y)'
        )


@dataclass(frozen=True)
class OnEquilibrium:
    """A loss of snnTorch for the output at an equilibrium: it is given a record in which that stays."""

    loss: Any
    steps: int

    def __call__(self, output: Tensor, target: Any) -> Tensor:
        require_classes(self, output)
        output = at_least_float32(output)  # in which 100 steps are counted
        return self.loss(output.expand(self.steps, *output.shape), target)

    @property
    def __name__(self) -> str:
        return named(self.loss)


def on_equilibrium(loss: Loss) -> Loss:
    """The loss as one of (output, target) of an equilibrium.

    Raises:
        ValueError: it is one of snnTorch's that means nothing there.
    """
    if isinstance(loss, _TEMPORAL):
        raise ValueError(
            f"the loss {named(loss)} reads the times of spikes, and an equilibrium is a state that stays, whose spikes "
            'have no times; use a loss of rates: "cross_entropy", SF.ce_rate_loss(), or SF.mse_count_loss(0.8, 0.2)'
        )
    if isinstance(loss, SF.mse_membrane_loss) and loss.time_var_targets:
        raise ValueError(
            "the loss mse_membrane_loss(time_var_targets=True) has a target for every step, and an equilibrium is the "
            "same at all of them; use mse_membrane_loss(), with one target a sample"
        )
    if not wants_time(loss):
        return loss
    return OnEquilibrium(loss, 1 if type(loss) in _ANY_LENGTH else STEPS)
