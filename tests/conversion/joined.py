"""Nets of concatenations, pieces, functions and constants between neurons, and of neurons without weights."""

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep

FEEDBACK = 0.1
WEAK = 0.005  # under a strong feedback the winners of a pool may take turns for ever
SETTLED = {"encoder": "graded", "activation": "sigmoid", "relaxation": ep.Relaxation(600, tolerance=1e-13)}


def leaky():
    return snn.Leaky(beta=0.9, threshold=0.7, learn_threshold=True)


class Net(nn.Module):
    """Subclasses say by `run` what the model computes, where `neuron(k, drive)` gives the spikes of the k-th neuron."""

    shape: tuple[int, ...] = (8,)
    neurons = 3
    feedback = FEEDBACK

    def __init__(self):
        super().__init__()
        self.lif = nn.ModuleList(leaky() for _ in range(self.neurons))

    def forward(self, x):
        return self.run(x, lambda k, drive: self.lif[k](drive)[0])

    def drives(self, x, states):
        """What each neuron receives, and the output, where the neurons are at these states."""
        received = {}

        def neuron(k, drive):
            received[k] = drive
            return states[k]

        output = self.run(x, neuron)
        return [received[k] for k in range(self.neurons)], output


class Joined(Net):
    """Spikes of two layers, joined before a linear module."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(11, 4), nn.Linear(4, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.cat([s1, s2], 1))))


class WithTheInput(Net):
    """The input in the middle, by another name of the function, along the last dimension; a sum inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(4, 3)
        self.c = nn.Linear(6 + 8 + 6, 4)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.concat((s1 - 0.5 * s2, x, s2), dim=-1))))


class Twice(Net):
    """The same signal twice, a concatenation of a concatenation, and one that no weights follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 4), nn.Linear(4, 2), nn.Linear(10, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1) - 0.1)
        inner = torch.cat([s1, s2], -1)
        return self.out(neuron(2, torch.cat([inner, s1], 1) - 0.2))


class UNet(Net):
    """Pooled, raised again, and joined with what was there before; the input's features too."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.down, self.below = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv2d(3 + 2 + 1, 2, 3, padding=1)
        self.out = nn.Conv2d(2, 1, 1)

    def run(self, x, neuron):
        s1 = neuron(0, self.down(x))
        s2 = neuron(1, self.below(F.avg_pool2d(s1, 2)))
        return self.out(neuron(2, self.last(torch.cat([s1, self.up(s2), x], dim=1))))


class Dense(Net):
    """Each block joins its features to all before it; a normalization and a pool behind the concatenations."""

    shape = (2, 8, 8)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(7, 3, 3, padding=1),
        )
        self.norm, self.between = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1, bias=False)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.out = nn.Linear(16, 3)

    def run(self, x, neuron):
        h = self.first(x)
        s = neuron(0, h)
        h = torch.cat([h, self.one(s)], 1)
        s = neuron(1, h)
        h = torch.cat([h, self.two(s)], 1)
        s = neuron(2, self.norm(h))
        s = neuron(3, F.avg_pool2d(self.between(s), 4))
        return self.out(s.flatten(1))


class Inception(Net):
    """Branches through pools of their own, joined, flattened and read by one linear module."""

    feedback = WEAK
    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.narrow, self.wide = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.fc, self.out = nn.Linear((2 + 3 + 3) * 16, 5), nn.Linear(5, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        joined = torch.cat([self.narrow(F.avg_pool2d(s, 2)), F.avg_pool2d(self.wide(s), 2), F.max_pool2d(s, 2)], 1)
        s = neuron(1, self.fc(joined.flatten(1)))
        return self.out(neuron(2, s))


class PooledTogether(Net):
    """Max pooling and a ReLU behind a concatenation do to each part what they do to the whole."""

    feedback = WEAK
    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 2, 3)
        self.out = nn.Linear(8, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        s3 = neuron(2, self.c(F.max_pool2d(F.relu(torch.cat([s2, s1], -3)), 2)))
        return self.out(s3.flatten(1))


class Stacked(Net):
    """Stacks that are summed or averaged, one that is flattened, and one of which a member is taken."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 6)
        self.out = nn.Linear(6, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        mean = torch.stack([s1, s2]).mean(0) + torch.stack([s2, s1], dim=-1).sum(dim=-1)
        flat = torch.stack((s1, s2), 2).flatten(1)
        return self.out(neuron(2, self.c(mean) + self.d(flat) + torch.stack([s1, s2], 0)[1]))


class Pieces(Net):
    """Chunks, splits and slices of spikes; channels in another order, and every second one."""

    shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.c, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        one, two = s.chunk(2, 1)
        three = torch.split(s, [4, 2], dim=1)[1]
        drive = self.a(one - two.flip(1) + s[:, ::2]) + self.b(three) + s[:, [5, 1, 2, 0]] - s.narrow(1, 2, 4)
        s = neuron(1, drive).mean((2, 3)).roll(1, 1)
        return self.out(neuron(2, self.c(torch.cat([s, s[:, -2:]], 1)) + s[..., :4]))


class Rearranged(Net):
    """A sample's own axes in another order."""

    shape = (2, 4, 6)

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(2, 3, 1), nn.Linear(4, 5), nn.Linear(3 + 3, 2)
        self.out = nn.Linear(2 * 6 * 5, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        s = neuron(1, self.a(s.transpose(2, 3)))
        joined = torch.cat([s.permute(0, 2, 3, 1), s.permute(0, 2, 3, 1).flip(1)], -1)
        return self.out(neuron(2, self.b(joined)).flatten(1))


class AlongAnotherAxis(Net):
    """Joined along an axis that the linear module behind it does not see."""

    shape = (3, 6)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Conv1d(3, 3, 2), nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(24, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.cat([s1, s2], 1))).flatten(1))


class NoWeights(Net):
    """Neurons on the raw input, behind a pool alone, and on other spikes as they are."""

    shape = (2, 4, 4)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 5), nn.Linear(5, 3)

    def run(self, x, neuron):
        s = neuron(0, x)
        s = neuron(1, F.avg_pool2d(s, 2))
        s = neuron(2, self.fc(s.flatten(1)))
        return self.out(neuron(3, s))


class OwnWeights(Net):
    """Parameters that forward uses itself, between neurons, before the first and after the last."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 8) / 3), nn.Parameter(torch.randn(6) / 3)
        self.w2, self.w3 = nn.Parameter(torch.randn(6, 5) / 3), nn.Parameter(torch.randn(5, 6) / 3)
        self.b2, self.scale = nn.Parameter(torch.randn(5)), nn.Parameter(torch.rand(5) + 0.5)
        self.alpha, self.out = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(5, 3))
        self.offsets = nn.ParameterList([torch.randn(3)])
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
        self.fixed = torch.linspace(0.5, 1, 6)

    def run(self, x, neuron):
        s1 = neuron(0, F.linear(x * torch.exp(self.alpha), self.w1, self.b1) * self.fixed)
        s2 = neuron(1, s1 @ self.w2 * self.scale + self.b2)
        drive = torch.sigmoid(self.alpha) * s2 + (1 - self.alpha.sigmoid()) * F.linear(s1, self.w3 * self.mask[:, None])
        s3 = neuron(2, drive - self.b2[None] * torch.tensor(0.1))
        return torch.tanh(s3 @ self.out) + self.offsets[0]


class TiedWeights(Net):
    """A module's weight used again, transposed; one of two concatenations in one weight; convolutions of functions."""

    shape = (2, 6, 6)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.kernel, self.fc = nn.Parameter(torch.randn(3, 2, 3, 3) / 3), nn.Linear(12, 5)
        self.shift, self.gain = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.ones(3))
        self.out = nn.Linear(12, 3)

    def run(self, x, neuron):
        s = neuron(0, F.conv2d(x, self.kernel, padding=1))
        s = neuron(1, F.conv_transpose2d(s, self.kernel, stride=1) + F.pad(s[:, :2], (1, 1, 1, 1)) * self.gain[0])
        s = F.avg_pool2d(F.conv2d(s, self.kernel) * self.gain.view(-1, 1, 1) + self.shift, 3).flatten(1)
        s = neuron(2, self.fc(s))
        return self.out(neuron(3, s @ self.fc.weight))


LINEAR = [
    *(Joined, WithTheInput, Twice, UNet, Dense, Inception, PooledTogether, Stacked, Pieces, Rearranged),
    *(AlongAnotherAxis, NoWeights, OwnWeights, TiedWeights),
]


def example(kind, batch=5):
    torch.manual_seed(2)
    return kind().eval(), torch.rand(batch, *kind.shape)


def settled(net, model, x):
    """Where the states lead that the energy asks for.

    Its gradient with respect to a layer is what the layer receives, and what it feeds: that of sum_j c_j <r_j, d_j>.
    """
    shapes = [s.shape for s in model.free_phase(x).states]
    states = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scale = [net.feedback**-level for level in model.levels]
    value = model.layers[0].activation.value
    for _ in range(1000):
        drives, _ = net.drives(x, states)
        energy = sum((d * r.detach()).sum() / c for d, r, c in zip(drives, states, scale, strict=True))
        back = torch.autograd.grad(energy, states, allow_unused=True)
        asked = [
            value((d.detach() + (0 if b is None else c * b)) / lif.threshold).detach()
            for d, b, c, lif in zip(drives, back, scale, net.lif, strict=True)
        ]
        states = [(0.5 * (r.detach() + a)).requires_grad_() for r, a in zip(states, asked, strict=True)]
    return [r.detach() for r in states]
