"""Initialization for bounded convergent neurons."""

import math
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ep_plugin.validation import positive

Net = TypeVar("Net", bound=nn.Module)


@torch.no_grad()
def initialize_(net: Net, gain: float = 2.0) -> Net:
    """Fills the weights of every convolution and linear module from U(-gain/sqrt(fan_in), +gain/sqrt(fan_in)).

    Biases become zero. If a weight is parametrized (`torch.nn.utils.parametrize`), the parameter beneath is filled.
    PyTorch's own default corresponds to gain 1. With it most bounded neurons stay near zero, where a nudge pushes them
    over their bound. If the last neurons are the output, keep PyTorch's default: larger weights put outputs beyond
    their bounds, where they stay. (Digits, two hidden layers, five epochs, three seeds: 36, 81 and 46 % were right
    instead of 98, 90 and 96 %.)

    Args:
        net: changed in place, with PyTorch's global generator.
        gain: above 0.

    Returns:
        `net`.

    Raises:
        ValueError: `gain` is not above 0, `net` has no convolution or linear module, or a weight is computed from
            several parameters.
        TypeError: `gain` is not a number.

    Example:
        >>> model = ep.convert(ep.initialize_(net))
    """
    gain = positive("gain", gain)
    modules = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if not modules:
        raise ValueError(f"{type(net).__name__} holds no convolution or linear module to initialize")
    for module, weight in [(module, _learned(module)) for module in modules]:
        bound = gain / math.sqrt(nn.init._calculate_fan_in_and_fan_out(weight)[0])
        weight.uniform_(-bound, bound)
        if module.bias is not None:
            module.bias.zero_()
    return net


def _learned(module: nn.Module) -> nn.Parameter:
    """The parameter that the weight is, or that one parametrization after the other makes it from."""
    weight: object = module.weight
    if parametrize.is_parametrized(module, "weight"):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        weight = getattr(module.parametrizations["weight"], "original", None)
    if not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"the weight of a {type(module).__name__} is computed from several parameters, so that filling it would "
            "change nothing; initialize the net before its weight is normalized"
        )
    return weight
