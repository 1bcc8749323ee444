"""Rows of the table of models: concatenations, pieces, weights of one's own, and none."""

import norse.torch as norse
import snntorch as snn
import torch
import torch.nn.functional as F
from models import BETA, Row, flat, to_one
from torch import nn

import ep_plugin as ep


def lif():
    return snn.Leaky(beta=BETA, init_hidden=True)


class UNet(nn.Module):
    """Down and up again, with what was there before beside it."""

    def __init__(self):
        super().__init__()
        self.down, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), lif()
        self.bottom, self.lif2 = nn.Conv2d(8, 16, 3, padding=1), lif()
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge, self.lif3 = nn.Conv2d(16, 8, 3, padding=1), lif()
        self.out = nn.Linear(8 * 16, 10)

    def forward(self, x):
        skip = self.lif1(self.down(x))
        low = self.lif2(self.bottom(F.avg_pool2d(skip, 2)))
        s = self.lif3(self.merge(torch.cat([skip, self.up(low)], dim=1)))
        return self.out(F.avg_pool2d(s, 2).flatten(1))


class DenseNet(nn.Module):
    """Each layer sees the features of all before it."""

    def __init__(self, growth=6, layers=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        widths = [8 + growth * k for k in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in widths)
        self.neurons = nn.ModuleList(lif() for _ in widths)
        self.convs = nn.ModuleList(nn.Conv2d(n, growth, 3, padding=1) for n in widths)
        self.last = lif()
        self.out = nn.Linear((8 + growth * layers) * 4, 10)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, neuron, conv in zip(self.norms, self.neurons, self.convs, strict=True):
            features.append(conv(neuron(norm(torch.cat(features, 1)))))
        return self.out(F.adaptive_avg_pool2d(self.last(torch.cat(features, 1)), 2).flatten(1))


class Inception(nn.Module):
    """Branches of several kernels, joined."""

    def __init__(self):
        super().__init__()
        self.stem, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), lif()
        self.one, self.three, self.five = (nn.Conv2d(8, 6, k, padding=k // 2) for k in (1, 3, 5))
        self.lif2, self.out = lif(), nn.Linear(18 * 16, 10)

    def forward(self, x):
        s = self.lif1(self.stem(x))
        s = self.lif2(F.avg_pool2d(torch.cat([self.one(s), self.three(s), self.five(s)], 1), 2))
        return self.out(s.flatten(1))


class Shortcut(nn.Module):
    """The input beside the spikes of every layer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(64, 50), lif(), nn.Linear(114, 40), lif()
        self.fc3, self.lif3 = nn.Linear(154, 10), snn.Leaky(beta=BETA, init_hidden=True, output=True)

    def forward(self, x):
        s1 = self.lif1(self.fc1(x))
        s2 = self.lif2(self.fc2(torch.cat([x, s1], -1)))
        return self.lif3(self.fc3(torch.cat([x, s1, s2], -1)))


class Shuffled(nn.Module):
    """Half of the channels goes on as it is; then the halves are shuffled."""

    def __init__(self):
        super().__init__()
        self.stem, self.lif1 = nn.Conv2d(1, 12, 3, padding=1), lif()
        self.conv, self.lif2, self.out = nn.Conv2d(6, 6, 3, padding=1), lif(), nn.Linear(12 * 16, 10)

    def forward(self, x):
        kept, sent = self.lif1(self.stem(x)).chunk(2, dim=1)
        s = torch.cat([kept, self.conv(sent)], 1)
        s = s.unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2)
        return self.out(F.avg_pool2d(self.lif2(s), 2).flatten(1))


class OwnWeights(nn.Module):
    """Weights as parameters of the model, with a mask and a learned mixture."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.empty(64, 60)), nn.Parameter(torch.zeros(60))
        self.w2, self.w3 = nn.Parameter(torch.empty(60, 60)), nn.Parameter(torch.empty(60, 10))
        for w in (self.w1, self.w2, self.w3):
            nn.init.kaiming_uniform_(w.mT)
        self.register_buffer("mask", (torch.rand(60, 60) < 0.5).float())
        self.mix, self.lif1, self.lif2 = nn.Parameter(torch.tensor(0.0)), lif(), lif()

    def forward(self, x):
        s1 = self.lif1(x @ self.w1 + self.b1)
        share = torch.sigmoid(self.mix)
        s2 = self.lif2(share * (s1 @ (self.w2 * self.mask)) + (1 - share) * s1)
        return s2 @ self.w3


class Binary(torch.autograd.Function):
    """The sign, times the mean size; the gradient goes straight through. Of the old style."""

    @staticmethod
    def forward(ctx, weight):
        return weight.sign() * weight.abs().mean()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class BinaryLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, Binary.apply(self.weight), self.bias)


ep.register_linear(BinaryLinear)


def quantized():
    """Binary weights between neurons."""
    return nn.Sequential(nn.Linear(64, 60), lif(), BinaryLinear(60, 60), lif(), nn.Linear(60, 10))


def pooled_neurons():
    """Neurons behind a pool alone, as event cameras' nets have them."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), lif(), nn.AvgPool2d(2), lif()),
        *(nn.Conv2d(12, 16, 3, padding=1), lif(), nn.AvgPool2d(2), lif(), nn.Flatten(), nn.Linear(64, 10)),
    )


def raw_input():
    """The pixels drive neurons."""
    return nn.Sequential(nn.Flatten(), lif(), nn.Linear(64, 60), lif(), nn.Linear(60, 10))


def encoded():
    return norse.SequentialState(norse.PoissonEncoder(20), norse.Lift(nn.Linear(64, 10)), norse.LIF())


GRAPHS = {
    "U-Net": Row(UNet, lr=1e-2),
    "DenseNet": Row(DenseNet, lr=1e-2),
    "Inception": Row(Inception, lr=1e-2),
    "the input beside the spikes": Row(Shortcut, to_one, flat),
    "ShuffleNet": Row(Shuffled, lr=1e-2),
    "weights of its own": Row(OwnWeights, input=flat),
    "binary weights": Row(quantized, input=flat),
    "neurons behind a pool": Row(pooled_neurons, lr=1e-2),
    "neurons on the pixels": Row(raw_input),
    "norse encoder": Row(encoded, refusal="encode outside of the model and convert with time_varying", converts=False),
}
