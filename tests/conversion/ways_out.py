"""Nets for refusals whose ways out are followed."""

import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
STEPS = torch.rand(5, 4, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers and what a forward may do with them; `run` is the forward."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.a, self.n = nn.Linear(8, 6), snn.Leaky(beta=0.5)
        self.b, self.m = nn.Linear(6, 6), snn.Leaky(beta=0.5)
        self.out = nn.Linear(6, 3)
        self.register_buffer("shift", torch.full((6,), 0.1))

    def forward(self, x):
        return self.run(self, x)

    def first(self, x):
        return self.n(self.a(x))[0]

    def step(self, x):
        """Of one step."""
        return self.out(self.m(self.b(self.first(x)))[0])

    def behind(self, h):
        """What the second neuron makes of `h`."""
        return self.out(self.m(h)[0])

    def steps(self, x, number=5):
        return [self.step(x) for _ in range(number)]


def works(net, x=X, **options):
    """It converts, settles, and every parameter has a gradient."""
    model = ep.convert(net, **options)
    output = model(x)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Noted(nn.Module):
    """Calls what it is given, which may be anything that contains no neuron."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def with_part(module, run):
    """A net with one more module, `part`."""

    def make():
        net = Net(run)
        net.part = module() if isinstance(module, type) else module
        return net

    return make


def of(run):
    return lambda: Net(run)
