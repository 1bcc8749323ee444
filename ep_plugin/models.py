"""Reference nets, as snnTorch users write them."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ep_plugin.initialization import initialize_
from ep_plugin.validation import chosen, positive

POOLS: dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


class CenteredWeight(nn.Module):
    """A parametrization (`torch.nn.utils.parametrize`) of a weight `[out, ...]`: what goes into an output sums to zero.

    Spikes and rates lie in [0, 1], far from zero mean; so what all inputs have in common adds nothing
    to a drive.
    """

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))


def _neuron(leak: float) -> nn.Module:
    import snntorch as snn

    return snn.Leaky(beta=leak, init_hidden=True)


def _normalize(mean: float, std: float) -> nn.Module:
    from torchvision.transforms import v2

    return v2.Normalize([mean], [positive("std", std)])


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
    normalize: tuple[float, float] | None = None,
    centered: bool = False,
) -> nn.Sequential:
    """Two convolutions (5x5, pooling) and two linear layers, for `[B, 1, 28, 28]`.

    The net of arXiv:2405.02546 with a linear readout.

    Args:
        channels: of the two convolutions.
        hidden: neurons of the hidden layer.
        classes: outputs.
        leak: `beta` of the `snn.Leaky` neurons.
        gain: of `initialize_`; None keeps PyTorch's initialization.
        dropout: share of the hidden layer's neurons that the readout does not see in training.
        pooling: "average" or "max".
        normalize: mean and standard deviation of the images' pixels, which the net then takes off
            and divides by; None leaves the images as they are.
        centered: the weights into a neuron of the second and third layer sum to zero
            (`CenteredWeight`).

    Raises:
        ValueError: an unknown pooling, or a standard deviation or gain that is not above 0.

    Example:
        >>> model = convert(convolutional_2c2fc(pooling="max", gain=2.0))
    """
    first, second = channels
    pool = chosen("pooling", pooling, POOLS)
    net = nn.Sequential(
        *([] if normalize is None else [_normalize(*normalize)]),
        *(nn.Conv2d(1, first, 5), pool(2), _neuron(leak)),
        *(nn.Conv2d(first, second, 5), pool(2), _neuron(leak)),
        *(nn.Flatten(), nn.Linear(16 * second, hidden), _neuron(leak)),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, classes),
    )
    _initialized(net, gain)
    if centered:
        between = [m for m in net if isinstance(m, (nn.Conv2d, nn.Linear))][1:-1]
        for module in between:
            parametrize.register_parametrization(module, "weight", CenteredWeight())
    return net


def small_convolutional(classes: int = 10, leak: float = 0.5) -> nn.Sequential:
    """One convolution and two linear layers, for digits of `[B, 1, 8, 8]`.

    Args:
        classes: outputs.
        leak: `beta` of the `snn.Leaky` neurons.
    """
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
    """One hidden layer, for images of any shape.

    Args:
        inputs: pixels of an image.
        hidden: neurons of the hidden layer.
        classes: outputs.
        leak: as in `convolutional_2c2fc`.
        gain: as in `convolutional_2c2fc`.
        dropout: as in `convolutional_2c2fc`.

    Raises:
        ValueError: the gain is not above 0.
    """
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
