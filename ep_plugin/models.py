"""Reference nets, as snnTorch users write them."""

from collections.abc import Callable

from torch import nn

from ep_plugin.checks import chosen
from ep_plugin.initialization import initialize_

POOLS: dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


def _neuron(leak: float) -> nn.Module:
    import snntorch as snn

    return snn.Leaky(beta=leak, init_hidden=True)


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
) -> nn.Sequential:
    """Two convolutions (5x5, pooling) and two linear layers, for `[B, 1, 28, 28]`.

    The net of arXiv:2405.02546 with a linear readout.

    Args:
        channels, hidden, classes: widths of the convolutions, the hidden layer and the output.
        leak: `beta` of the `snn.Leaky` neurons.
        gain: of `initialize_`; None keeps PyTorch's initialisation.
        dropout: share of the hidden layer's neurons that the readout does not see in training.
        pooling: "average" or "max".
    """
    first, second = channels
    pool = chosen("pooling", pooling, POOLS)
    net = nn.Sequential(
        *(nn.Conv2d(1, first, 5), pool(2), _neuron(leak)),
        *(nn.Conv2d(first, second, 5), pool(2), _neuron(leak)),
        *(nn.Flatten(), nn.Linear(16 * second, hidden), _neuron(leak)),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, classes),
    )
    return _initialized(net, gain)


def small_convolutional(classes: int = 10, leak: float = 0.5) -> nn.Sequential:
    """One convolution and two linear layers, for digits of `[B, 1, 8, 8]`."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.AvgPool2d(2), _neuron(leak)),
        *(nn.Flatten(), nn.Linear(16 * 3 * 3, 64), _neuron(leak)),
        nn.Linear(64, classes),
    )


def perceptron(
    inputs: int = 784,
    hidden: int = 500,
    classes: int = 10,
    leak: float = 0.5,
    gain: float | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """One hidden layer, for images of any shape with `inputs` pixels. The rest as `convolutional_2c2fc`."""
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, hidden), _neuron(leak)),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, classes),
    )
    return _initialized(net, gain)


REFERENCE_NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "2c2fc": (convolutional_2c2fc, (1, 28, 28)),
    "perceptron": (perceptron, (1, 28, 28)),
    "digits": (small_convolutional, (1, 8, 8)),
}
"""Name -> the net and the shape of an input, without the batch."""
