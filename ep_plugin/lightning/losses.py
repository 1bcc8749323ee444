"""Losses by name, as callables, or from `snntorch.functional`."""

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.validation import chosen

Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, output.shape[-1]).to(output.dtype))


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": _mse}


def as_loss(loss: str | Loss) -> Loss:
    """A loss of ([B, classes], [B]) from its name, or the callable that was given."""
    return loss if callable(loss) else chosen("loss", cast(str, loss), LOSSES)


def wants_time(loss: Loss) -> bool:
    """Losses of `snntorch.functional` take the record [T, B, classes]: without the leading axis
    `mse_count_loss` would silently take the batch for time."""
    return type(loss).__module__.startswith("snntorch.functional")
