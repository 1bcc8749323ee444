"""Nets that train deep without batch statistics: the weights between their neurons are standardized.

Why with this gain and biases of zero: loss in the second epoch of 5,000 images of CIFAR-10 (JPEG copies) in 200 batches
of narrow feedforward nets whose neurons are clips, and accuracy on 1,000 others.

| weights at the start | `vgg`, 7 layers | 9 layers |
|---|---|---|
| PyTorch's | 1.80, 39 % | 2.06, 27 % |
| U(-2, 2) / sqrt(fan_in), `initialize_` | 1.76, 39 % | |
| the same, `CenteredWeight` | 1.43, 45 % | 1.60, 42 % |
| standardized, gain 1.2 | 1.41, 48 % | 1.66, 42 % |
| standardized, gain 1.5 | 1.42, 48 % | 1.53, 46 % |
| standardized, gain 2.2 | 1.66, 41 % | |
| standardized, gain 1.2, biases 0.25 | 1.49, 46 % | |

`residual` of 9 and 13 layers: 1.39 and 1.42, 50 and 49 %; 1.73, 40 % where the readout sees means over whole channels.
"""

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor, nn

from ep_plugin.models.parts import POOLS, Normalization, dropout_of, image_shape, neuron, normalization, require_size
from ep_plugin.models.weights import standardized
from ep_plugin.validation import chosen, count, counts

GAIN = 1.5


def vgg(
    shape: Sequence[int] = (3, 32, 32),
    channels: Sequence[int] = (64, 64, 128, 128, 256, 256),
    hidden: int = 256,
    classes: int = 10,
    leak: float = 0.9,
    gain: float = GAIN,
    dropout: float = 0.0,
    pooling: str = "max",
    normalize: Normalization | None = None,
) -> nn.Sequential:
    """Convolutions (3x3) one after the other, a hidden layer and a linear readout, for images `[B, C, H, W]`.

    It has 6 to 9 layers of neurons: one per convolution, and the hidden one. Where the number of channels changes, and
    after the last convolution, pooling halves the image.

    Args:
        shape: channels, height and width of an image.
        channels: of every convolution.
        hidden: neurons of the hidden layer.
        classes: outputs.
        leak: `beta` of the `snn.Leaky` neurons. It has no effect on the converted net. (With a small leak factor
            snnTorch's own neurons are silent in deep layers.)
        gain: of the standardized weights at the start.
        dropout: share of the hidden layer's neurons that the readout does not see in training.
        pooling: "average" or "max".
        normalize: as in `convolutional_2c2fc`.

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: an unknown pooling, a number that is out of its range, or an image too small for the poolings.
        TypeError: a number has a wrong type.

    Example:
        >>> net = ep.models.vgg((1, 28, 28), channels=(32, 32, 64, 64, 64), pooling="average")
        >>> model = ep.convert(net)
    """
    inputs, height, width = image_shape(shape)
    pool = chosen("pooling", pooling, POOLS)
    layers = normalization(normalize, inputs)
    for outputs, run in groupby(counts("channels", channels)):
        *others, last = run
        for _ in others:
            layers += [_convolution(inputs, outputs, gain), neuron(leak)]
            inputs = outputs
        layers += [_convolution(inputs, last, gain), pool(2), neuron(leak)]
        inputs, height, width = last, height // 2, width // 2
    require_size("vgg", shape, height, width)
    hidden = count("hidden", hidden)
    full = nn.Linear(inputs * height * width, hidden)
    layers += [nn.Flatten(), standardized(full, gain), neuron(leak)]
    return nn.Sequential(*layers, *_readout(hidden, classes, dropout))


class ResidualBlock(nn.Module):
    """Two layers of neurons, and the block's input added to what drives the second: f(second(f(first(x))) + skip(x)).

    Args:
        inputs: channels.
        outputs: channels.
        pool: of what drives the first layer, and of the skip by the average; None keeps the image's size.
        leak: as in `residual`.
        gain: as in `residual`.
        branch: as in `residual`.
    """

    def __init__(
        self, inputs: int, outputs: int, pool: nn.Module | None, leak: float, gain: float, branch: float
    ) -> None:
        super().__init__()
        first = _convolution(inputs, outputs, gain)
        self.first = first if pool is None else nn.Sequential(first, pool)
        self.inside = neuron(leak)
        self.second = _convolution(outputs, outputs, branch)
        skip: list[nn.Module] = [] if pool is None else [nn.AvgPool2d(2)]
        if inputs != outputs:
            skip.append(standardized(nn.Conv2d(inputs, outputs, 1), gain))
        self.skip = nn.Sequential(*skip)
        self.sum = neuron(leak)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.second(self.inside(self.first(x))) + self.skip(x))


def residual(
    shape: Sequence[int] = (3, 32, 32),
    channels: Sequence[int] = (64, 128, 256),
    blocks: Sequence[int] = (1, 1, 2),
    classes: int = 10,
    leak: float = 0.9,
    gain: float = GAIN,
    branch: float = 0.75,
    dropout: float = 0.0,
    pooling: str = "max",
    normalize: Normalization | None = None,
) -> nn.Sequential:
    """A convolution (3x3), stages of residual blocks, average pooling and a linear readout.

    It has 9 (`blocks=(1, 1, 2)`) to 13 (`(2, 2, 2)`) layers of neurons: one, and two per block. Signals are added
    before neurons, so what neurons send stays in [0, 1]. Each stage except the first begins with pooling, and the
    readout sees averages over 2 x 2 places: with means over whole channels training starts slowly.

    Args:
        shape: channels, height and width of an image.
        channels: of every stage.
        blocks: in every stage.
        classes: outputs.
        leak: as in `vgg`.
        gain: as in `vgg`.
        branch: gain of the convolution that is added to the skip.
        dropout: share of its inputs that the readout does not see in training.
        pooling: "average" or "max".
        normalize: as in `convolutional_2c2fc`.

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: an unknown pooling, a number that is out of its range, not as many channels as blocks, or an
            image too small for the poolings.
        TypeError: a number has a wrong type.

    Example:
        >>> model = ep.convert(ep.models.residual(blocks=(2, 2, 2)))
    """
    inputs, height, width = image_shape(shape)
    pool = chosen("pooling", pooling, POOLS)
    stages, lengths = counts("channels", channels), counts("blocks", blocks)
    if len(stages) != len(lengths):
        raise ValueError(f"channels has {len(stages)} stages and blocks {len(lengths)}; expected a number of each")
    height, width = (n // 2 ** len(stages) for n in (height, width))
    require_size("residual", shape, height, width)
    layers = [*normalization(normalize, inputs), _convolution(inputs, stages[0], gain), neuron(leak)]
    inputs = stages[0]
    for stage, (outputs, length) in enumerate(zip(stages, lengths, strict=True)):
        for n in range(length):
            layers.append(ResidualBlock(inputs, outputs, pool(2) if stage and not n else None, leak, gain, branch))
            inputs = outputs
    readout = _readout(inputs * height * width, classes, dropout)
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), *readout)


class ShortcutLayer(nn.Module):
    """A layer of neurons whose input is added to what drives it: f(convolution(x) + x).

    Args:
        channels: of its input and output.
        leak: as in `compact_residual`.
        branch: as in `compact_residual`.
    """

    def __init__(self, channels: int, leak: float, branch: float) -> None:
        super().__init__()
        self.convolution = _convolution(channels, channels, branch)
        self.neuron = neuron(leak)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.convolution(x) + x)


def compact_residual(
    shape: Sequence[int] = (3, 32, 32),
    channels: Sequence[int] = (64, 128, 256),
    classes: int = 10,
    leak: float = 0.9,
    gain: float = 1.0,
    branch: float = 0.5,
    dropout: float = 0.0,
    pooling: str = "max",
    normalize: Normalization | None = None,
) -> nn.Sequential:
    """Stages of two convolutions (3x3), of which the second has a shortcut, and a linear readout.

    Each first convolution is pooled before its neurons, so that the second ones work on small images: at 32 x 32 with
    three channels 68 million products an image, where `vgg` has 154. The gains are smaller than in `vgg`: fewer neurons
    stand at their bounds, where no gradient passes. Held-out error of feedforward nets of half the width after three
    epochs of 15,000 images of CIFAR-10 (JPEG copies), trained by Muon: gain 1.5: 33.5 %, 1: 29.8 %; with the
    shortcuts, branch 1: 28.8 %, .5: 28.3 %.

    Args:
        shape: channels, height and width of an image.
        channels: of every stage.
        classes: outputs.
        leak: as in `vgg`.
        gain: of the standardized weights at the start.
        branch: the same, of the convolutions with a shortcut.
        dropout: share of its inputs that the readout does not see in training.
        pooling: "average" or "max".
        normalize: as in `convolutional_2c2fc`.

    Returns:
        The net, with neurons of snnTorch that hold their state.

    Raises:
        ValueError: an unknown pooling, a number that is not above 0, or an image too small for the poolings.
        TypeError: a number is of a wrong type.

    Example:
        >>> model = ep.convert(ep.models.compact_residual(), feedback=0.01)
    """
    inputs, height, width = image_shape(shape)
    pool = chosen("pooling", pooling, POOLS)
    stages = counts("channels", channels)
    height, width = (n // 2 ** len(stages) for n in (height, width))
    require_size("compact_residual", shape, height, width)
    layers = normalization(normalize, inputs)
    for outputs in stages:
        layers += [_convolution(inputs, outputs, gain), pool(2), neuron(leak), ShortcutLayer(outputs, leak, branch)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), *_readout(inputs * height * width, classes, dropout))


def _convolution(inputs: int, outputs: int, gain: float) -> nn.Conv2d:
    return standardized(nn.Conv2d(inputs, outputs, 3, padding=1), gain)


def _readout(inputs: int, classes: int, dropout: float) -> list[nn.Module]:
    return [*dropout_of(dropout), nn.Linear(inputs, count("classes", classes))]
