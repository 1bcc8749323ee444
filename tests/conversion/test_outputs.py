"""Which of several outputs is converted, and what is told of it."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_tracing import Net

import ep_plugin as ep

GRADED = {"encoder": "graded", "relaxation": ep.Relaxation(60, step_size=1.0)}
Named = namedtuple("Named", ["spikes", "logits"])


@dataclass
class Fields:
    hidden: Any
    final: Any


class Returning(Net):
    """Spikes of both layers, the output, and a membrane that has no steady value."""

    def __init__(self, arrange):
        super().__init__()
        self.arrange = arrange

    def forward(self, x):
        first, _ = self.lif1(self.fc1(x))
        second, membrane = self.lif2(self.fc2(first))
        return self.arrange(first, second, self.out(second), membrane)


ARRANGED = {
    # name -> (what forward returns, which of (first, second, logits) is taken, the path as it is told)
    "plain": (lambda a, b, c, m: b, 1, None),
    "spikes and membrane": (lambda a, b, c, m: (b, m), 1, "output=0"),
    "membrane and spikes": (lambda a, b, c, m: (m, b), 1, "output=1"),
    "hidden first": (lambda a, b, c, m: (a, b), 1, "output=1"),
    "hidden last": (lambda a, b, c, m: (c, b, a), 2, "output=0"),
    "nested": (lambda a, b, c, m: [(a, m), (b, m)], 1, r"output=\(1, 0\)"),
    "dictionary": (lambda a, b, c, m: {"hidden": a, "logits": c}, 2, "output='logits'"),
    "nested dictionary": (lambda a, b, c, m: {"spikes": [a, b]}, 1, r"output=\('spikes', 1\)"),
    "named": (lambda a, b, c, m: Named(a, c), 2, "output='logits'"),
    "fields": (lambda a, b, c, m: Fields(a, [b]), 1, r"output=\('final', 0\)"),
    "with constants": (lambda a, b, c, m: (None, 3, b), 1, None),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_the_first_that_depends_on_the_most_neurons(name):
    arrange, taken, told = ARRANGED[name]
    net, x = Returning(arrange), torch.rand(4, 8)
    if told is None:
        model = ep.convert(net, **GRADED)
    else:
        with pytest.warns(ep.ConversionWarning, match=f"outputs it returns {told}.*choose by convert"):
            model = ep.convert(net, **GRADED)
    same = Returning(lambda *values: values[taken])
    same.load_state_dict(net.state_dict())
    torch.testing.assert_close(model(x), ep.convert(same, **GRADED)(x))


def test_what_is_left_out_is_named():
    net = Returning(lambda a, b, c, m: (b, c))
    with pytest.warns(ep.ConversionWarning, match="of 2 outputs it returns output=0, so that out is left out"):
        model = ep.convert(net, **GRADED)
    assert not any(p is net.out.weight for p in model.parameters())
    with pytest.warns(ep.ConversionWarning, match=r"returns output=0, so that fc2, lif2, out are left out"):
        ep.convert(net2 := Returning(lambda a, b, c, m: (a, c)), **GRADED, output=0)
    assert any(p is net2.out.weight for p in ep.convert(net2, output=1).parameters())


@pytest.mark.parametrize(
    ("output", "taken"),
    [(0, 0), (-1, 2), (1, 1), ((1, "b"), 1), ((1, 0), 1), ((-1,), 2)],
)
def test_the_user_chooses(output, taken):
    net, x = Returning(lambda a, b, c, m: (a, {"b": b}, c)), torch.rand(4, 8)
    same = Returning(lambda *values: values[taken])
    same.load_state_dict(net.state_dict())
    torch.testing.assert_close(ep.convert(net, **GRADED, output=output)(x), ep.convert(same, **GRADED)(x))


def test_a_place_that_is_none_is_refused_with_those_that_are():
    net = Returning(lambda a, b, c, m: {"a": a, "rest": [b, c]})
    with pytest.raises(ValueError, match=r"output='q' is not among.*expected one of 'a', \('rest', 0\), \('rest', 1\)"):
        ep.convert(net, output="q")
    assert ep.convert(net, output=("rest", 1))(torch.rand(2, 8)).shape == (2, 3)
    for bad in (1.5, True, (0, None)):
        with pytest.raises(TypeError, match="output is"):
            ep.convert(net, output=bad)
    with pytest.raises(ValueError, match="is read by its membrane"):
        ep.convert(Returning(lambda a, b, c, m: (b, m)), output=1)
    with pytest.raises(ValueError, match="returns no tensor"):
        ep.convert(Returning(lambda a, b, c, m: None))


def test_a_sequence_has_one_output():
    net = Returning(lambda a, b, c, m: b)
    for neuron in (net.lif1, net.lif2):
        neuron.init_hidden = True
    net.lif2.output = True
    sequence, x = torch.nn.Sequential(net.fc1, net.lif1, net.fc2, net.lif2), torch.rand(3, 8)
    torch.testing.assert_close(ep.convert(sequence, **GRADED, output=0)(x), ep.convert(sequence, **GRADED)(x))
    with pytest.raises(ValueError, match="read by its membrane"):
        ep.convert(sequence, output=1)
