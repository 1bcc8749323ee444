"""Reference nets, as snnTorch users write them."""

from collections.abc import Callable

from torch import nn


def _neuron(leak: float) -> nn.Module:
    import snntorch as snn

    return snn.Leaky(beta=leak, init_hidden=True)


def convolutional_2c2fc(
    channels: tuple[int, int] = (32, 64), hidden: int = 256, classes: int = 10, leak: float = 0.5
) -> nn.Sequential:
    """Two convolutions (5x5, average pooling) and two linear layers, for `[B, 1, 28, 28]`.

    The net of arXiv:2405.02546 with a linear readout.
    """
    first, second = channels
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5), nn.AvgPool2d(2), _neuron(leak)),
        *(nn.Conv2d(first, second, 5), nn.AvgPool2d(2), _neuron(leak)),
        *(nn.Flatten(), nn.Linear(16 * second, hidden), _neuron(leak)),
        nn.Linear(hidden, classes),
    )


def small_convolutional(classes: int = 10, leak: float = 0.5) -> nn.Sequential:
    """One convolution and two linear layers, for digits of `[B, 1, 8, 8]`."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.AvgPool2d(2), _neuron(leak)),
        *(nn.Flatten(), nn.Linear(16 * 3 * 3, 64), _neuron(leak)),
        nn.Linear(64, classes),
    )


def perceptron(inputs: int = 784, hidden: int = 500, classes: int = 10, leak: float = 0.5) -> nn.Sequential:
    """One hidden layer, for images of any shape with `inputs` pixels."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, hidden), _neuron(leak)),
        nn.Linear(hidden, classes),
    )


REFERENCE_NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "2c2fc": (convolutional_2c2fc, (1, 28, 28)),
    "perceptron": (perceptron, (1, 28, 28)),
    "digits": (small_convolutional, (1, 8, 8)),
}
"""Name -> the net and the shape of an input, without the batch."""
