"""Arguments, parameters, sizes, values and states that a forward may not read, and the ways out, followed."""

import functools

import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn
from ways_out import Net, Noted, X, with_part, works

import ep_plugin as ep

SIZES = r"example_input=x\)"


class Second(Net):
    def forward(self, x, context):
        return self.out(self.n(self.a(x) + context)[0])


def test_a_second_argument_is_given_or_joined():
    with pytest.raises(ValueError, match=r"'n' \(Leaky\) depends on the argument 'context'.*partial.*context=.*cat"):
        ep.convert(Second(None))
    net = Second(None)
    net.forward = functools.partial(net.forward, context=torch.ones(6))
    works(net)
    works(Net(lambda net, x: net.out(net.n(net.a(x[:, :8]) + x[:, 8:])[0])), torch.rand(4, 14))


def test_a_forward_without_an_input_is_given_one():
    class Closed(Net):
        def forward(self):
            return self.step(X)

    with pytest.raises(ValueError, match="it takes no argument; expected the input as the first one"):
        ep.convert(Closed(None))
    works(Net(lambda net, x: net.step(x)))


@pytest.mark.parametrize("held", ["as it is", "in a sum"])
def test_parameters_are_attributes(held):
    """In a list of Python's the model does not know them."""

    def of(kind):
        net = Net(lambda net, x: net.out(net.n(net.a(x) + (net.own[0] if held == "as it is" else 2 * net.own[0]))[0]))
        net.own = kind([nn.Parameter(torch.ones(6))])
        return net

    with pytest.raises(ValueError, match=r"a .*parameters? that .* attributes? of the model's modules.*ParameterList"):
        ep.convert(of(list))
    works(of(nn.ParameterList))


# What depends on sizes that are not known without an example.
SIZED = {
    "compares a size": lambda net, x: net.step(x if x.size(0) > 1 else -x),
    "the remainder of a size": lambda net, x: net.step(x * (1 + x.size(0) % 2)),
    "goes through the sizes": lambda net, x: net.step(x / sum(x.shape)),
    "number of axes of the input": lambda net, x: net.step(x * len(x.shape)),
    "number of axes of a value": lambda net, x: net.step(x * x.dim()),
    "compares the shape": lambda net, x: net.step(x if x.shape == (4, 8) else -x),
    "number of a value's entries": lambda net, x: net.step(x / x.numel()),
    "number of the input's entries": lambda net, x: net.step(x / x.shape.numel()),
    r"'n' \(Leaky\) depends on a size of the input": lambda net, x: net.step(x / x.size(1)),
    r"'m' \(Leaky\) depends on interpolate\(\) with a size of the input": lambda net, x: net.behind(
        F.interpolate(net.b(net.first(x)).unsqueeze(1), size=x.shape[1] - 2).squeeze(1)
    ),
}


@pytest.mark.parametrize("what", SIZED)
def test_an_example_has_the_sizes(what):
    with pytest.raises(ValueError, match=f"{what}.*not known; .*{SIZES}"):
        ep.convert(Net(SIZED[what]))
    works(Net(SIZED[what]), example_input=X)


# What depends on values, which no example tells: outside, or in a module without neurons.
VALUED = {
    "a value that depends on the input decides": lambda x: -x if x.sum() > 100 else x,
    "an attribute of a value that depends on the input decides": lambda x: x if x.grad_fn else 2 * x,
    "a value that depends on the input is used as a number": lambda x: x / float(x.max()),
}


@pytest.mark.parametrize("what", VALUED)
def test_what_depends_on_values_stands_in_a_module_of_its_own(what):
    function = VALUED[what]
    with pytest.raises(ValueError, match=rf"{what}.*outside, or in a module without neurons.*\(line \d+"):
        ep.convert(Net(lambda net, x: net.step(function(x))))
    works(Net(lambda net, x: net.step(x)), function(X))
    works(with_part(Noted(function), lambda net, x: net.step(net.part(x)))())


def test_what_cannot_be_traced_stands_in_a_module_of_its_own():
    def through_numpy(x):
        return torch.from_numpy(np.sqrt(np.asarray(x)))

    with pytest.raises(ValueError, match=r"Expected neurons and modules.*or into a module without neurons"):
        ep.convert(Net(lambda net, x: net.step(through_numpy(x))))
    works(with_part(Noted(through_numpy), lambda net, x: net.step(net.part(x)))())


def test_cells_beside_neurons_over_time():
    """Lifted, or all of them over time, or all in a loop."""

    def of(cell, last, run):
        net = Net(run)
        net.cell, net.last = cell, last
        return net

    def whole(net, x):
        return net.last(net.b(net.cell(net.a(x))[0]))[0].mean(0)

    def looped(net, x):
        one = two = None
        for x_t in x:
            s, one = net.cell(net.a(x_t), one)
            s, two = net.last(net.b(s), two)
        return net.out(s)

    with pytest.raises(ValueError, match=r"'cell' \(LIFCell\) depends on a record.*norse\.Lift"):
        ep.convert(of(norse.LIFCell(), norse.LIF(), whole))
    works(of(norse.Lift(norse.LIFCell()), norse.LIF(), whole))
    with pytest.raises(ValueError, match=r"one of the input's steps.*cells that take one \(norse.LIFCell\), or"):
        ep.convert(
            of(norse.LIFCell(), norse.LIF(), lambda net, x: net.last(net.b(x))[0][-1] + net.cell(net.a(x[0]))[0])
        )
    works(of(norse.LIFCell(), norse.LIFCell(), looped))
    works(of(norse.LIF(), norse.LIF(), whole))
    unused = Net(lambda net, x: net.step(x))
    unused.last = norse.LIF()  # a neuron that nobody calls
    works(unused)


def test_a_record_of_steps_is_made_behind_the_neurons():
    def looped(net, x):
        for h in torch.stack([net.a(x_t) for x_t in x]):
            s, _ = net.n(h)
        return net.out(s)

    def skipping(net, x):
        record = torch.stack([net.a(x_t) + net.b(net.first(x_t)) for x_t in x])
        return [net.behind(h) for h in record][-1]

    def inside(net, x):
        for x_t in x:
            output = net.behind(net.a(x_t) + net.b(net.first(x_t)))
        return output

    with pytest.raises(ValueError, match=r"'n' \(Leaky\) depends on one of the input's steps.*a stack holds.*one loop"):
        ep.convert(Net(looped))
    with pytest.raises(
        ValueError, match=r"'m' \(Leaky\) depends on a record of the input's steps; call it inside the loop"
    ):
        ep.convert(Net(skipping))
    works(Net(inside))


def test_neurons_over_time_have_the_steps_first():
    def of(between):
        net = Net(lambda net, x: net.last(net.between(net.a(x)))[0].mean(0))
        net.last, net.between = norse.LIF(), between
        return net

    with pytest.raises(ValueError, match=r"'last' \(LIF\), which takes all time steps.*first axis.*norse\.Lift"):
        ep.convert(of(Noted(lambda h: h.transpose(0, 1))))
    works(of(nn.Identity()))
    works(of(norse.Lift(Noted(lambda h: h.flip(1)))))


def test_states_that_are_not_read():
    def of(neuron, which):
        net = Net(lambda net, x: net.out(net.last(net.b(net.first(x)))[which]))
        net.last = neuron
        return net

    with pytest.raises(ValueError, match=r"depends on the synapse of 'last'.*expected its spikes to be read"):
        ep.convert(of(snn.Synaptic(alpha=0.5, beta=0.5), 1))
    works(of(snn.Synaptic(alpha=0.5, beta=0.5), 0))
    with pytest.raises(ValueError, match=r"depends on the state of 'last'.*the first value that it returns"):
        ep.convert(of(norse.LICell(), 1))
    works(of(norse.LICell(), 0))
