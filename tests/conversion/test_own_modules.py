"""Modules of the user's between neurons, with a forward of their own that reads places of what they are given."""

import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "feedback": 1e-7, "relaxation": ep.Relaxation(20, step_size=1.0)}
FEATURES = 6


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, s):
        return self.function(s)


def around(function):
    """A net with the function in a module of its own, and what its output is without feedback."""
    width = function(torch.zeros(2, FEATURES)).shape[1]
    a, b, out = nn.Linear(FEATURES, FEATURES), nn.Linear(width, 4), nn.Linear(4, 3)
    net = nn.Sequential(a, _neuron(), Own(function), b, _neuron(), out)
    return net, lambda x: out(b(function(a(x).clamp(0, 1))).clamp(0, 1))


def _neuron():
    return snn.Leaky(beta=1.0, init_hidden=True)


READ = {
    "one place": lambda s: s[:, 3].unsqueeze(1),
    "a slice of length one": lambda s: s[:, 1:2] - 2 * s[:, 4:5],
    "narrowed": lambda s: s.narrow(1, 1, 4),
    "halves swapped": lambda s: torch.cat([s[:, 3:], s[:, :3]], 1),
    "places in another order": lambda s: torch.stack([s[:, i] for i in (1, 0, 3, 2, 5, 4)], 1),
    "some of the places": lambda s: torch.stack([s[:, i] for i in (4, 1)], 1),
    "places summed up": lambda s: sum(s[:, i : i + 1] for i in range(3)),
}


@pytest.mark.parametrize("name", READ)
def test_places_are_those_that_it_reads(name):
    net, expected = around(READ[name])
    x = torch.rand(3, FEATURES)
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), expected(x))


BY_SIZE = {
    "a size as a factor": lambda s: s * s.size(1),
    "all places in turn": lambda s: torch.stack([s[:, i] for i in range(s.size(1))], 1),
    "all places from the last on": lambda s: torch.stack([s[:, i] for i in range(s.size(1) - 1, -1, -1)], 1),
    "a sum of all pieces": lambda s: sum(s.unbind(1)).unsqueeze(1),
}


@pytest.mark.parametrize("name", BY_SIZE)
def test_what_depends_on_a_size_is_not_guessed(name):
    net, expected = around(BY_SIZE[name])
    with pytest.raises(ValueError, match=r"'2' \(Own\) cannot be converted.*not known to be linear.*register_linear"):
        ep.convert(net)
    ep.register_linear(Own)
    try:
        x = torch.rand(3, FEATURES)
        torch.testing.assert_close(ep.convert(net, **GRADED)(x), expected(x))
    finally:
        del ep.linear.base.REGISTRY[Own]


def test_places_of_the_input_that_a_module_reads_are_no_steps():
    """Such a module before a loop over the input's steps says nothing of the steps."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Own(lambda x: torch.stack([x[:, 1], x[:, 0]], 1))
            self.fc, self.lif = nn.Linear(FEATURES, 4), snn.Leaky(beta=0.9)

        def forward(self, x):
            mem = self.lif.reset_mem()
            for x_t in self.first(x).unbind(1):
                spikes, mem = self.lif(self.fc(x_t), mem)
            return spikes

    with pytest.raises(ValueError, match=r"'lif' \(Leaky\) receives.*an index of what 'first' gives"):
        ep.convert(Net(), example_input=torch.rand(3, 2, FEATURES))
