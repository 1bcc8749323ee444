"""Parametrizations (`torch.nn.utils.parametrize`) that keep drives in the range of bounded neurons.

They belong to the effective weights of a connection, so that equilibrium propagation's gradient with them is exact.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ep_plugin.linear.base import at_least_float32
from ep_plugin.validation import count, positive

Weighted = TypeVar("Weighted", nn.Conv2d, nn.Linear)


class CenteredWeight(nn.Module):
    """A parametrization of a weight `[out, ...]`: the weights into each output sum to zero.

    Spikes and rates are in [0, 1], far from zero mean. With this parametrization what all inputs have in common adds
    nothing to a drive.

    Example:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(64, 32)
        >>> layer = parametrize.register_parametrization(layer, "weight", ep.models.CenteredWeight())
        >>> bool(layer.weight.sum(1).abs().max() < 1e-5)
        True
    """

    def forward(self, weight: Tensor) -> Tensor:
        return weight - _mean(weight)


class StandardizedWeight(nn.Module):
    """A parametrization of a weight `[out, ...]` that standardizes mean and variance of each output's weights.

        weight <- gain * (weight - mean) / |weight - mean|

    with one learned gain per output. Weight standardization (arXiv:1903.10520), scaled as in arXiv:2101.08692: if the
    inputs are independent with a variance v, a drive has the variance gain^2 v, whatever the number of inputs. It
    replaces a batch normalization, whose batch statistics would couple the samples.

    Args:
        outputs: length of the weight's first dimension.
        gain: at the start, of every output; above 0.
        epsilon: the smallest norm that is divided by, above 0.

    Raises:
        ValueError: a number is not above 0. With a weight: an output has a single weight, which is its own mean.
        TypeError: an argument is not a number.

    Example:
        >>> from torch.nn.utils import parametrize
        >>> conv = nn.Conv2d(64, 64, 3, padding=1)
        >>> conv = parametrize.register_parametrization(conv, "weight", ep.models.StandardizedWeight(64))
    """

    def __init__(self, outputs: int, gain: float = 1.0, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((count("outputs", outputs),), positive("gain", gain)))
        self.epsilon = positive("epsilon", epsilon)

    def extra_repr(self) -> str:
        return f"outputs={len(self.gain)}"

    def forward(self, weight: Tensor) -> Tensor:
        if weight[0].numel() == 1:
            raise ValueError(
                f"a weight {list(weight.shape)} has one number an output, which is its own mean, so that nothing "
                "would be left of it; expected two or more inputs of an output"
            )
        centered = weight - _mean(weight)
        # In float32 at least: squares in float16 are infinite from 256 on.
        squares = at_least_float32(centered).square().sum(tuple(range(1, weight.dim())), keepdim=True)
        factor = self.gain.view_as(squares) * squares.clamp_min(self.epsilon**2).rsqrt()
        return centered * factor.to(weight.dtype)


def standardized(module: Weighted, gain: float) -> Weighted:
    """`module` with standardized weights of this gain, and biases of zero; it is changed in place."""
    parametrize.register_parametrization(module, "weight", StandardizedWeight(len(module.weight), gain))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _mean(weight: Tensor) -> Tensor:
    """Of each output."""
    return weight.mean(tuple(range(1, weight.dim())), keepdim=True)
