"""Initialization for bounded convergent neurons."""

import math
from typing import TypeVar

import torch
from torch import nn

from ep_plugin.validation import positive

Net = TypeVar("Net", bound=nn.Module)


@torch.no_grad()
def initialize_(net: Net, gain: float = 2.0) -> Net:
    """Fills the weights of every convolution and linear module from U(-gain/sqrt(fan_in), +gain/sqrt(fan_in)).

    Biases become zero. PyTorch's own default corresponds to gain 1, which leaves most bounded
    neurons near zero, where a nudge pushes them over their bound.

    Args:
        net: changed in place, with PyTorch's global generator.
        gain: above 0.

    Returns:
        `net`.

    Raises:
        ValueError: `gain` is not above 0, or `net` has no convolution or linear module.
        TypeError: `gain` is no number.

    Example:
        >>> model = convert(initialize_(net))
    """
    positive("gain", gain)
    modules = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if not modules:
        raise ValueError(f"{type(net).__name__} holds no convolution or linear module to initialize")
    for module in modules:
        bound = gain / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
        module.weight.uniform_(-bound, bound)
        if module.bias is not None:
            module.bias.zero_()
    return net
