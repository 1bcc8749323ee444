"""Which parameters training does not reach, by the names that their owner knows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.network import ConvergentNetwork


def left_out(model: ConvergentNetwork, original: nn.Module) -> list[str]:
    """The original's trainable parameters that are none of the network's."""
    kept = {id(p) for p in model.parameters()}
    return [name for name, p in original.named_parameters() if p.requires_grad and id(p) not in kept]


def without_gradient(
    model: ConvergentNetwork,
    x: Tensor,
    y: Any,
    loss: Callable[[Tensor, Any], Tensor],
    original: nn.Module | None = None,
) -> list[str]:
    """The network's trainable parameters whose gradient is none, or exactly zero in every entry.

    Args:
        model: with its own estimator.
        x: a batch.
        y: its targets.
        loss: (output, y) -> scalar.
        original: what the model was converted from, whose names are told.
    """
    named = {id(p): name for net in (model, original) if net is not None for name, p in net.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("no parameter of the network is trained: each of them has requires_grad=False")
    found = torch.autograd.grad(loss(model(x), y), trained, allow_unused=True)
    return [named[id(p)] for p, g in zip(trained, found, strict=True) if g is None or not bool(g.any())]
