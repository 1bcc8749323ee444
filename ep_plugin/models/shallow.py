"""Nets of one to three hidden layers, as snnTorch users write them."""

from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from ep_plugin.initialization import initialize_
from ep_plugin.models.parts import POOLS, Normalization, dropout_of, image_shape, neuron, normalization, require_size
from ep_plugin.models.weights import CenteredWeight
from ep_plugin.validation import chosen, count, counts


def _initialized(net: nn.Sequential, gain: float | None) -> nn.Sequential:
    return net if gain is None else initialize_(net, gain)


def convolutional_2c2fc(
    channels: tuple[int, int] = (32, 64),
    hidden: int = 256,
    classes: int = 10,
    leak: float = 0.5,
    gain: float | None = None,
    dropout: float = 0.0,
    pooling: str = "average",
    normalize: Normalization | None = None,
    centered: bool = False,
    shape: Sequence[int] = (1, 28, 28),
) -> nn.Sequential:
    """Two convolutions (5x5, pooling) and two linear layers, for images `[B, C, H, W]`.

    The net of arXiv:2405.02546 with a linear readout.

    Args:
        channels: of the two convolutions.
        hidden: neurons of the hidden layer.
        classes: outputs.
        leak: `beta` of the `snn.Leaky` neurons, in [0, 1].
        gain: of `initialize_`; None keeps PyTorch's initialization.
        dropout: share of the hidden layer's neurons that the readout does not see in training.
        pooling: "average" or "max".
        normalize: mean and standard deviation of the images' pixels (one number each, or one per channel); the net
            subtracts the mean and divides by the deviation. None leaves the images as they are.
        centered: the weights into each neuron of the second and third layer sum to zero (`CenteredWeight`).
        shape: channels, height and width of an image.

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: an unknown pooling, a number that is out of its range, or an image too small.
        TypeError: a number is of a wrong type.

    Example:
        >>> net = ep.models.convolutional_2c2fc(pooling="max", gain=2.0)
        >>> ep.convert(net)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    inputs, *size = image_shape(shape)
    first, second = counts("channels", channels, 2)
    hidden, classes = count("hidden", hidden), count("classes", classes)
    pool = chosen("pooling", pooling, POOLS)
    height, width = (((n - 4) // 2 - 4) // 2 for n in size)
    require_size("2C2FC", shape, height, width)
    net = nn.Sequential(
        *normalization(normalize, inputs),
        *(nn.Conv2d(inputs, first, 5), pool(2), neuron(leak)),
        *(nn.Conv2d(first, second, 5), pool(2), neuron(leak)),
        *(nn.Flatten(), nn.Linear(second * height * width, hidden), neuron(leak)),
        *dropout_of(dropout),
        nn.Linear(hidden, classes),
    )
    _initialized(net, gain)
    if centered:
        between = [m for m in net if isinstance(m, (nn.Conv2d, nn.Linear))][1:-1]
        for module in between:
            parametrize.register_parametrization(module, "weight", CenteredWeight())
    return net


def small_convolutional(
    classes: int = 10, leak: float = 0.5, channels: int = 16, hidden: int = 64, pooling: str = "average"
) -> nn.Sequential:
    """One convolution and two linear layers, for digits of `[B, 1, 8, 8]`.

    Args:
        classes: outputs.
        leak: `beta` of the `snn.Leaky` neurons, in [0, 1].
        channels: of the convolution.
        hidden: neurons of the hidden layer.
        pooling: "average" or "max".

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: an unknown pooling, or a number that is out of its range.
        TypeError: a number has a wrong type.

    Example:
        >>> model = ep.convert(ep.models.small_convolutional(hidden=128))
    """
    pool = chosen("pooling", pooling, POOLS)
    classes, channels, hidden = count("classes", classes), count("channels", channels), count("hidden", hidden)
    return nn.Sequential(
        *(nn.Conv2d(1, channels, 3), pool(2), neuron(leak)),
        *(nn.Flatten(), nn.Linear(channels * 3 * 3, hidden), neuron(leak)),
        nn.Linear(hidden, classes),
    )


def perceptron(
    inputs: int = 784,
    hidden: int = 500,
    classes: int = 10,
    leak: float = 0.5,
    gain: float | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """One hidden layer, for images of any shape.

    Args:
        inputs: pixels of an image.
        hidden: neurons of the hidden layer.
        classes: outputs.
        leak: as in `convolutional_2c2fc`.
        gain: as in `convolutional_2c2fc`.
        dropout: as in `convolutional_2c2fc`.

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: a number is out of its range.
        TypeError: a number has a wrong type.

    Example:
        >>> model = ep.convert(ep.models.perceptron(inputs=64, hidden=100))
    """
    inputs, hidden, classes = count("inputs", inputs), count("hidden", hidden), count("classes", classes)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, hidden), neuron(leak)),
        *dropout_of(dropout),
        nn.Linear(hidden, classes),
    )
    return _initialized(net, gain)
