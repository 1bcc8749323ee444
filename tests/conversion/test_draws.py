"""Draws in a forward, and dropout as a function."""

import random

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import spikegen
from test_tracing import Net
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "relaxation": ep.Relaxation(60, step_size=1.0)}


class Plain(Net):
    def forward(self, x):
        return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x))[0]))[0])


class Drawing(Net):
    """Draws in forward; `draw` says how."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        for x_t in self.draw(x):
            out = self.out(self.lif1(self.fc1(x_t))[0])
        return out


DRAWS = {
    "bernoulli": lambda x: (torch.bernoulli(x) for _ in range(5)),
    "a method": lambda x: (x.clone().bernoulli_() for _ in range(5)),
    "compared": lambda x: ((torch.rand_like(x) < x).float() for _ in range(5)),
    "of a constant": lambda x: (x + torch.rand(8) for _ in range(5)),
    "once": lambda x: [x + torch.randn(8)] * 5,
    "poisson": lambda x: (torch.poisson(x) for _ in range(5)),
    "spikegen.rate": lambda x: spikegen.rate(x, num_steps=5),
    "spikegen.rate_conv": lambda x: (spikegen.rate_conv(x) for _ in range(5)),
    "a distribution": lambda x: (torch.distributions.Bernoulli(probs=x).sample() for _ in range(5)),
    "Python's": lambda x: (x * random.random() for _ in range(5)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_in_forward_are_refused(name):
    with pytest.raises(ValueError, match=r"a random draw in forward.*probabilities themselves.*time_varying=True"):
        ep.convert(Drawing(DRAWS[name]))


def test_the_ways_out_of_a_draw():
    """The probabilities; a loop over what was drawn outside; a module without neurons."""
    x = torch.rand(4, 8)
    given = ep.convert(Drawing(lambda x: [x] * 5), **GRADED)
    assert given(x).shape == (4, 3)
    drawn = ep.convert(Drawing(lambda x: x), **GRADED, time_varying=True)
    assert drawn(spikegen.rate(x, num_steps=20)).shape == (4, 3)

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    net = Drawing(lambda x: [net.noise(x)] * 5)
    net.noise = Noise()
    noisy = ep.convert(net, **GRADED)
    assert not torch.equal(noisy(x), noisy(x))


def test_a_draw_that_nothing_depends_on_is_none():
    class Started(Net):
        def forward(self, x):
            self.lif1(self.fc1(x), torch.rand(6))
            return self.out(self.lif1(self.fc1(x), torch.rand(4, 6))[0])

    ep.convert(Started())


class Dropping(Net):
    def __init__(self, place, training):
        super().__init__()
        self.place, self.always = place, training

    def drop(self, place, x):
        if place != self.place:
            return x
        return F.dropout(x, 0.5, self.training if self.always is None else self.always)

    def forward(self, x):
        s1, _ = self.lif1(self.drop("stem", self.fc1(x)))
        s2, _ = self.lif2(self.drop("between", self.fc2(s1)))
        return self.drop("readout", self.out(s2))


@pytest.mark.parametrize("converted_in", [True, False])
@pytest.mark.parametrize("place", ["stem", "between", "readout"])
def test_functional_dropout_follows_the_mode(place, converted_in):
    model = ep.convert(Dropping(place, None).train(converted_in), **GRADED)
    x = torch.rand(4, 8)
    assert any(m.training is converted_in for m in model.modules() if "Dropout" in type(m).__name__)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("place", ["stem", "readout"])
def test_functional_dropout_that_is_always_on_or_off(place):
    x = torch.rand(4, 8)
    always = ep.convert(Dropping(place, True), **GRADED).eval()
    assert not torch.equal(always(x), always(x))
    never = ep.convert(Dropping(place, False), **GRADED).train()
    assert torch.equal(never(x), never(x))


class AlwaysDropping(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, True)


def test_dropout_between_neurons_that_ignores_the_mode_is_refused_with_a_way_out():
    reason = r"does not follow the model's mode.*F\.dropout\(x, p, training=self\.training\)"
    with pytest.raises(ValueError, match=reason):
        ep.convert(Dropping("between", True), **GRADED)
    own = nn.Sequential(nn.Linear(8, 6), snn.Leaky(beta=0.5), AlwaysDropping(), nn.Linear(6, 5), snn.Leaky(beta=0.5))
    with pytest.raises(ValueError, match="does not follow the model's mode"):
        ep.convert(own, **GRADED)
    ep.convert(Dropping("between", None), **GRADED)
    own[2] = nn.Dropout()
    ep.convert(own, **GRADED)


def test_a_branch_on_the_mode_is_told():
    class Branching(Net):
        def forward(self, x):
            return Plain.forward(self, 2 * x if self.training else x)

    with pytest.warns(ep.ConversionWarning, match=r"self.training, and is converted as it is in evaluation mode"):
        ep.convert(Branching().eval())
