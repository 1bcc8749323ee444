"""Networks that the tests share: small, random, with smooth activations where gradients are compared."""

import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep

SMOOTH = {
    "encoder": "graded",
    "feedback": 0.3,
    "relaxation": ep.Relaxation(400),
    "gradient": ep.EquilibriumPropagation(beta=1e-3, steps=250),
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


PROBLEMS = {f.__name__: f for f in (perceptron, output_inside, convolutional, strided, grouped, skip, lateral)}
