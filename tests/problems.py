"""Networks that the tests share: small, random, with smooth activations where gradients are compared."""

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep

SMOOTH = {
    "encoder": "graded",
    "feedback": 0.3,
    "relaxation": ep.Relaxation(400),
    "estimator": ep.EquilibriumPropagation(beta=1e-3, steps=250, nudging="symmetric"),
}


def leaky(threshold: float = 1.0) -> snn.Leaky:
    return snn.Leaky(beta=0.5, threshold=threshold, learn_threshold=True)


def perceptron() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    net = nn.Sequential(nn.Linear(12, 9), leaky(0.8), nn.Linear(9, 7), leaky(1.2), nn.Linear(7, 5))
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(6, 12)


def output_inside() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    net = nn.Sequential(nn.Linear(12, 9), leaky(0.8), nn.Linear(9, 5), leaky(1.2))
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(6, 12)


def convolutional() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), leaky(0.9)),
        *(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), leaky(1.1)),
        *(nn.Flatten(), nn.Linear(16, 8), leaky(), nn.Linear(8, 5)),
    )
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(4, 1, 15, 13 + 2)


def strided() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    net = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, stride=2, padding=1), leaky(0.9)),
        *(nn.Conv2d(3, 4, 3, stride=2, padding=1), leaky(1.1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), leaky()),
        nn.Linear(5, 5),
    )
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(4, 2, 11, 10)


def grouped() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), leaky(0.9)),
        *(nn.Conv2d(4, 4, 3, groups=2, dilation=2, bias=False), leaky(1.1)),
        *(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 2, groups=4), leaky()),
        *(nn.Flatten(), nn.Linear(4, 5)),
    )
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(4, 2, 9, 9)


def by_hand(edges, sizes=(8, 7, 6), levels=None, **settings) -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """A graph of linear connections between layers of the given sizes, with a threshold a neuron."""
    levels = levels or range(len(sizes))
    activation = settings.pop("activation", "sigmoid")
    model = ep.ConvergentNetwork(
        nn.Linear(10, sizes[0]),
        [
            ep.Layer(nn.Parameter(0.7 + 0.5 * torch.rand(size)), activation, level=level)
            for size, level in zip(sizes, levels, strict=True)
        ],
        [ep.Connection(nn.Linear(sizes[i], sizes[j]), i, j) for i, j in edges],
        nn.Linear(sizes[-1], 5),
        **SMOOTH | settings,
    )
    return model, torch.rand(5, 10)


def skip() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    return by_hand([(0, 1), (1, 2), (0, 2)])


def lateral() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """Two layers of one level that see each other, and a layer that sees itself."""
    model, x = by_hand([(0, 1), (0, 2), (1, 2), (2, 2), (1, 3), (2, 3)], (8, 6, 6, 7), (0, 1, 1, 2))
    with torch.no_grad():
        model.connections[3].module.weight.mul_(0.3)  # so that the layer's own loop has one equilibrium
    return model, x


class Residual(nn.Module):
    """Spikes added to those before them, and what follows the sum; a batch normalization; a shared convolution."""

    def __init__(self):
        super().__init__()
        self.conv0, self.lif0 = nn.Conv2d(1, 3, 3), leaky(0.9)
        self.conv1, self.lif1 = nn.Conv2d(3, 3, 3, padding=1), leaky(1.1)
        self.norm = nn.BatchNorm2d(3)
        self.fc, self.lif2, self.out = nn.Linear(12, 8), leaky(), nn.Linear(8, 5)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        mem0, mem1, mem2 = self.lif0.reset_mem(), self.lif1.reset_mem(), self.lif2.reset_mem()
        for _ in range(3):
            spk0, mem0 = self.lif0(self.conv0(x), mem0)
            spk1, mem1 = self.lif1(self.norm(self.conv1(spk0)) - 0.5 * spk0, mem1)
            pooled = F.avg_pool2d(self.norm(self.conv1(spk1 + spk0)), 2)
            spk2, mem2 = self.lif2(self.fc(pooled.view(x.size(0), -1)), mem2)
        return self.out(spk2)


def residual() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    return ep.convert(Residual(), activation="sigmoid", **SMOOTH), torch.rand(4, 1, 6, 6)


def recurrent() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """Lateral weights that are not symmetric, in both libraries' neurons, with a gain and a learnable threshold."""
    net = nn.Sequential(
        nn.Linear(12, 9),
        snn.RSynaptic(0.3, 0.5, linear_features=9, threshold=torch.linspace(1.5, 2.5, 9), learn_threshold=True),
        nn.Linear(9, 7),
        snn.RLeaky(0.5, V=torch.linspace(-0.5, 0.5, 7), all_to_all=False),
        nn.Linear(7, 5),
    )
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(6, 12)


def norse_recurrent() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    import norse.torch as norse

    cell = norse.LIFRecurrentCell(9, 7)
    with torch.no_grad():
        cell.recurrent_weights.mul_(0.05)
        cell.input_weights.mul_(0.2)
    p = norse.LIFBoxParameters(v_th=nn.Parameter(torch.tensor(0.7)))
    net = norse.SequentialState(nn.Linear(12, 9), norse.LIFBoxCell(p), cell, nn.Linear(7, 5), norse.LICell())
    return ep.convert(net, activation="sigmoid", **SMOOTH), torch.rand(6, 12)


def max_pooling() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """Max pooling between neurons: overlapping, in two kinds, and a piecewise linear module."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), leaky(0.9)),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), leaky(1.1)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(16, 8)),
        *(leaky(), nn.Linear(8, 5)),
    )
    # Under a strong feedback winners may change places for ever.
    return ep.convert(net, activation="sigmoid", **SMOOTH | {"feedback": 0.05}), torch.rand(4, 1, 10, 11)


class _Drives(nn.Module):
    """The input's drives of two layers."""

    def __init__(self, inputs: int, first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, first), nn.Linear(inputs, second)

    def forward(self, x):
        return self.first(x), self.second(x)


class _Heads(nn.Module):
    """A readout of two layers."""

    def __init__(self, first: int, second: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(first, outputs), nn.Linear(second, outputs)

    def forward(self, a, b):
        return self.first(a) + self.second(b).tanh()


def _several(driven=(0,), read=(2,)) -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    sizes = (8, 7, 6)
    model = ep.ConvergentNetwork(
        _Drives(10, 8, 7) if len(driven) > 1 else nn.Linear(10, 8),
        [ep.Layer(nn.Parameter(0.7 + 0.5 * torch.rand(size)), "sigmoid") for size in sizes],
        [ep.Connection(nn.Linear(sizes[i], sizes[j]), i, j) for i, j in [(0, 1), (1, 2), (0, 2)]],
        _Heads(8, 6, 5) if len(read) > 1 else nn.Linear(6, 5),
        driven=driven,
        read=read,
        **SMOOTH,
    )
    return model, torch.rand(5, 10)


def several_driven() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    return _several(driven=(0, 1))


def several_read() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    return _several(read=(0, 2))


def deep() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """Twelve layers under a weak feedback: the nudge reaches the first by a factor of 4e-9."""
    sizes = (6,) * 12
    model, x = by_hand([(l, l + 1) for l in range(11)], sizes, feedback=0.17)
    return ep.initialize_(model, 4.0), x


def backward() -> tuple[ep.ConvergentNetwork, torch.Tensor]:
    """An edge from a later layer to an earlier one."""
    model, x = by_hand([(0, 1), (1, 2), (2, 3), (3, 1)], (6, 5, 5, 4))
    with torch.no_grad():
        model.connections[3].module.weight.mul_(0.1)  # its adjoint comes back 11 times as strongly
    return model, x


PROBLEMS = {
    f.__name__: f
    for f in (
        *(perceptron, output_inside, convolutional, strided, grouped, skip, lateral),
        *(residual, recurrent, norse_recurrent),
        *(max_pooling, several_driven, several_read, deep, backward),
    )
}
