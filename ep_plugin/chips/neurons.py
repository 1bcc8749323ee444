"""What analog hardware does to neurons and to the reading of weights: fixed mismatch, and noise in every read."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.layer import Layer
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.network import ConvergentNetwork
from ep_plugin.unnoticed import buffers_as_before, random_numbers_as_before
from ep_plugin.validation import not_negative, seed_number


def add_read_noise(model: ConvergentNetwork, std: float) -> ConvergentNetwork:
    """Adds noise to everything that neurons read: from the input and from each other, up and down.

    Args:
        model: changed in place.
        std: of the factor that multiplies a sum, drawn again in every read; 0 or more. 0 removes the noise.

    Returns:
        The model.

    Raises:
        ValueError: std is below 0.
        TypeError: std is not a number.

    Example:
        >>> model = ep.chips.add_read_noise(ep.convert(net), 0.05)
    """
    std = not_negative("std", std)
    axes = getattr(model.stem, "axes", None)  # of a sample, where the conversion was told
    model.stem = _noisy(model.stem, std, ("up",))
    if axes is not None:
        model.stem.axes = axes
    for connection in model.connections:
        assert isinstance(connection, Connection)
        connection.module = _noisy(connection.module, std, ("down", "up"))
    return model


def _noisy(module: nn.Module, std: float, directions: Sequence[Literal["up", "down"]]) -> nn.Module:
    """The module with noise of this strength in place of what it had."""
    own = list(module) if type(module) is nn.Sequential else [module]
    own = [m for m in own if not isinstance(m, ReadNoise)]
    if std > 0:
        own = [*(ReadNoise(std, "down") for d in directions if d == "down"), *own, ReadNoise(std)]
    return own[0] if len(own) == 1 else nn.Sequential(*own)


def add_mismatch(model: ConvergentNetwork, x: Tensor, std: float, seed: int = 0) -> ConvergentNetwork:
    """Gives every neuron its own threshold, off by a fixed factor, as fabrication does.

    Each threshold is multiplied by exp(std * N(0, 1)). The thresholds are buffers of the layers, so the `state_dict`
    keeps them; call this first on a model that shall load them.

    Args:
        model: changed in place.
        x: an input, `[B, ...]`, from which the number of neurons follows.
        std: of the factor's logarithm; 0 or more. 0.05 is five per cent.
        seed: of the factors, 0 or more.

    Returns:
        The model.

    Raises:
        ValueError: std is below 0 or so large that a threshold would be 0 or infinite, the seed is out of its range,
            or thresholds are trained.
        TypeError: std is not a number, or the seed not a whole one.

    Example:
        >>> model = ep.chips.add_mismatch(ep.convert(net), x, 0.05)
    """
    std, seed = not_negative("std", std), seed_number(seed)
    with torch.no_grad(), buffers_as_before(model), random_numbers_as_before(x.device):
        shapes = model.system(x[:1] if not model.time_varying else x).shapes
    drawn = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model.layers if isinstance(layer, Layer)]
    if trained := [l for l, layer in enumerate(layers) if isinstance(layer.threshold, nn.Parameter)]:
        raise ValueError(f"the thresholds of layer {trained[0]} are trained; mismatch is for thresholds that stay")
    factors = [torch.randn(1, *shape, generator=drawn).mul_(std).exp_() for shape in shapes]
    own = [layer.threshold * factor.to(layer.threshold) for layer, factor in zip(layers, factors, strict=True)]
    if not all(bool(((t > 0) & t.isfinite()).all()) for t in own):
        raise ValueError(f"std is {std:g}, with which some thresholds would be 0 or infinite; 0.05 is five per cent")
    for layer, threshold in zip(layers, own, strict=True):
        layer.threshold = threshold
    return model
