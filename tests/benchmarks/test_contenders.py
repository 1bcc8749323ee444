"""The contenders do what they are said to do: a comparison of unlike things is worth nothing."""

import pytest
import torch
import torch.nn.functional as F
from contenders import NETS, autograd_of_the_primitive_function, backpropagation, folded_backpropagation

import ep_plugin as ep


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
    plain = gradients(backpropagation, NETS[name], steps=7)
    folded = gradients(folded_backpropagation, NETS[name], steps=7)
    for key in plain:
        torch.testing.assert_close(plain[key], folded[key], rtol=1e-3, atol=1e-5)


def test_the_reference_is_equilibrium_propagation(float64):
    """Same phases, graded, full feedback: its gradient is this package's, up to the normalised force."""
    net = NETS["perceptron"]
    theirs = gradients(autograd_of_the_primitive_function, net)
    torch.manual_seed(1)
    made = ep.initialize_(net.make())
    x, y = net.batch(3)
    model = ep.convert(made, encoder="graded", feedback=1.0, gradient=ep.EquilibriumPropagation(0.1))
    F.cross_entropy(model(x), y).backward()
    for name, p in made.named_parameters():
        assert F.cosine_similarity(p.grad.flatten(), theirs[name].flatten(), dim=0) > 0.9, name
