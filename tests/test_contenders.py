"""The benchmarks' contenders do what they are said to do: a comparison of unlike things is worth nothing."""

from collections import Counter

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from contenders import (
    CONTENDERS,
    NETS,
    autograd_of_the_primitive_function,
    backpropagation,
    equilibrium_propagation,
    feedforward,
    folded_backpropagation,
    folded_feedforward,
)
from torch.profiler import ProfilerActivity, profile

import ep_plugin as ep


@pytest.fixture(autouse=True)
def alone():
    """snnTorch's `utils.reset` resets all neurons of the process, which are those of all tests so far."""
    snn.SpikingNeuron.init()


def gradients(contender, net, **options):
    """What the step leaves on the parameters of the net that the contender makes."""
    made = []

    def make():
        torch.manual_seed(1)
        made.append(net.make())
        return made[-1]

    step = contender(type(net)(make, net.shape), 3, **options)
    step()
    return {name: p.grad for name, p in made[0].named_parameters()}


@pytest.mark.parametrize("name", NETS)
def test_folding_and_caching_are_exact_for_bptt(name):
    # In float32, as snnTorch's spikes always are.
    plain = gradients(backpropagation, NETS[name], steps=4)
    folded = gradients(folded_backpropagation, NETS[name], steps=4)
    for key in plain:
        torch.testing.assert_close(plain[key], folded[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_folding_is_exact_for_feedforward_backprop(name):
    plain = gradients(feedforward, NETS[name])
    folded = gradients(folded_feedforward, NETS[name])
    for key in plain:
        torch.testing.assert_close(plain[key], folded[key], rtol=1e-3, atol=1e-5)


def test_without_feedback_ep_is_feedforward_backprop():
    """As the feedback vanishes the nets are the same: what is timed side by side learns the same thing."""
    net = NETS["2c2fc"]
    plain = gradients(feedforward, net)
    found = gradients(
        equilibrium_propagation, net, encoder="graded", feedback=1e-4, estimator=ep.EquilibriumPropagation(1e-3)
    )
    for key in plain:
        assert F.cosine_similarity(found[key].flatten(), plain[key].flatten(), dim=0) > 0.995, key


def test_the_reference_is_equilibrium_propagation(float64):
    """Same phases, graded, full feedback: its gradient is this package's, up to the normalized force."""
    net = NETS["perceptron"]
    theirs = gradients(autograd_of_the_primitive_function, net)
    torch.manual_seed(1)
    made = ep.initialize_(net.make())
    x, y = net.batch(3)
    model = ep.convert(made, encoder="graded", feedback=1.0, estimator=ep.FullPhaseEP(0.1))
    F.cross_entropy(model(x), y).backward()
    for name, p in made.named_parameters():
        assert F.cosine_similarity(p.grad.flatten(), theirs[name].flatten(), dim=0) > 0.9, name


def products(contender, net):
    """How often convolutions and matrix products run in a step, by kind."""
    step = CONTENDERS[contender](NETS[net], 2)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    kinds = ("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm")
    return {event.key: event.count for event in found.key_averages() if event.key in kinds}


@pytest.mark.parametrize("net", ["perceptron", "2c2fc", "deep8"])
def test_products_alone_are_the_products_of_a_default_step(net):
    """Kind by kind, but for one product per connection: of a single sample of zeros, for its offset."""
    alone, step = Counter(products("products alone", net)), Counter(products("EP, spiking", net))
    assert not alone - step
    more = step - alone
    assert more.keys() <= {"aten::convolution", "aten::addmm"}
    assert more.total() == len(ep.convert(NETS[net].make()).connections)
