"""What the reference nets are made of."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from ep_plugin.validation import counts, finite_number, number, positive, share

POOLS: dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}

Normalization = tuple[float | Sequence[float], float | Sequence[float]]
"""Mean and standard deviation of the pixels: a number each, or one a channel."""


def neuron(leak: float) -> nn.Module:
    """A neuron that keeps this share of its membrane, in [0, 1], from step to step."""
    import snntorch as snn

    return snn.Leaky(beta=share("leak", leak), init_hidden=True)


def dropout_of(part: float) -> list[nn.Module]:
    """A dropout, if any, of this share of neurons; not of all, of which a readout would see nothing."""
    part = share("dropout", part)
    if part == 1:
        raise ValueError("dropout is 1.0, with which the readout sees nothing; expected a number in [0, 1)")
    return [nn.Dropout(part)] if part else []


def normalization(normalize: Normalization | None, channels: int) -> list[nn.Module]:
    """The module that takes the mean off and divides by the deviation, if there is one.

    Raises:
        ValueError: a deviation is not above 0, or there are as many numbers as there are no channels.
        TypeError: a number is none.
    """
    if normalize is None:
        return []
    from torchvision.transforms import v2

    pair: Any = normalize
    try:
        mean, std = (list(value) if isinstance(number(value), Iterable) else [value] for value in pair)
    except (TypeError, ValueError) as error:
        raise TypeError(f"normalize is {normalize!r}; expected a pair: mean and standard deviation") from error
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} is {values}; expected one number, or one for each of the {channels} channels")
    return [v2.Normalize([finite_number("mean", v) for v in mean], [positive("std", v) for v in std])]


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an image.

    Raises:
        ValueError, TypeError: it is not three whole numbers, 1 or more.
    """
    sizes = counts("shape", shape)
    if len(sizes) != 3:
        raise ValueError(f"the shape is {sizes}; expected channels, height and width of an image")
    channels, height, width = sizes
    return channels, height, width


def require_size(net: str, shape: Sequence[int], height: int, width: int) -> None:
    """Stops where nothing is left of an image behind convolutions and pooling.

    Raises:
        ValueError: the height or the width is below 1.
    """
    if min(height, width) < 1:
        raise ValueError(
            f"{net} leaves {max(height, 0)} x {max(width, 0)} of an image of the shape {list(shape)}; expected a "
            "larger image, or fewer poolings"
        )
