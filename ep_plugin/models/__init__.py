"""Reference nets, as snnTorch users write them: `ep.convert` converts them, and snnTorch trains them as they are."""

from collections.abc import Callable

from torch import nn

from ep_plugin.models.deep import compact_residual, residual, vgg
from ep_plugin.models.shallow import convolutional_2c2fc, perceptron, small_convolutional
from ep_plugin.models.weights import CenteredWeight, StandardizedWeight

__all__ = [
    "REFERENCE_NETS",
    "CenteredWeight",
    "StandardizedWeight",
    "compact_residual",
    "convolutional_2c2fc",
    "perceptron",
    "residual",
    "small_convolutional",
    "vgg",
]

REFERENCE_NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "2c2fc": (convolutional_2c2fc, (1, 28, 28)),
    "perceptron": (perceptron, (1, 28, 28)),
    "digits": (small_convolutional, (1, 8, 8)),
}
"""Name -> the net and the shape of an input, without the batch."""
