"""Nets that tests change after their conversion."""

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 8), snn.Leaky(beta=0.5, init_hidden=True)),
        *(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(5, 3)),
    )


def gradients(model):
    torch.manual_seed(1)
    x, y = torch.rand(4, 6), torch.randint(3, (4,))
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def convolutions():
    torch.manual_seed(0)
    leaky = {"beta": 0.5, "init_hidden": True}
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), snn.Leaky(**leaky), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)),
        *(nn.LeakyReLU(-0.1, inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        *(nn.AvgPool2d(1), snn.Leaky(**leaky), nn.Flatten(), nn.Linear(36, 3)),
    )
    nn.init.constant_(net[2].bias, -0.5)
    return net


class Twice(nn.Module):
    """One convolution of two signals: of the second the network has the linear part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        self.between, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(72, 3)
        self.blocks = nn.ModuleList([snn.Leaky(beta=0.5), snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)])

    def forward(self, x):
        first, _ = self.blocks[0](self.a(x), None)
        second, _ = self.blocks[1](self.b(x), None)
        spikes, _ = self.blocks[2](self.between(first + second), None)
        return self.out(spikes.flatten(1))
