"""ConvergentLeaky, in a loop of one's own and against the network."""

import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep


# The network averages 200 float32 states, hence 1e-5 and not the last bit.
@pytest.mark.parametrize("encoder", ["graded", "adaptive_delta", "sigma_delta", "predictive_sigma_delta"])
@pytest.mark.parametrize("threshold", [0.7, 1.0, torch.tensor([0.5, 1.0, 2.0, 1.5])])
def test_loop_settles_where_the_network_does(encoder, threshold):
    lif = ep.ConvergentLeaky(beta=0.9, threshold=threshold, encoder=encoder)
    current = torch.randn(5, 4)
    mem, count, steps = lif.reset_mem(), 0, 400
    for _ in range(steps):
        spk, mem = lif(current, mem)
        count = count + spk
    model = ep.ConvergentNetwork(
        nn.Identity(), [ep.Layer(threshold)], [], encoder=encoder, relaxation=ep.Relaxation(steps, step_size=0.85)
    )
    equilibrium = model.free_phase(current)
    torch.testing.assert_close(mem.membrane / threshold, equilibrium.states[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(equilibrium.states[0], (current / threshold).clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(count / steps, equilibrium.states[0], rtol=0, atol=0.02)


def test_quantizer_is_an_integrate_and_fire_neuron():
    """Sigma-delta spikes are those of snn.Leaky(beta=1) at the same constant rate, but for the onset."""
    rate = torch.rand(1, 50)
    lif = snn.Leaky(beta=1.0)
    mem, theirs = lif.reset_mem(), 0
    ours, state = 0, None
    neuron = ep.ConvergentLeaky(encoder="sigma_delta", step_size=1.0)
    for _ in range(300):
        spk, mem = lif(rate, mem)
        theirs = theirs + spk
        spk, state = neuron(rate, state)
        ours = ours + spk
    assert (ours - theirs).abs().max() <= 1


def test_state_must_fit():
    lif = ep.ConvergentLeaky()
    _, mem = lif(torch.rand(3, 4))
    with pytest.raises(ValueError, match="mem=None"):
        lif(torch.rand(2, 4), mem)
    with pytest.raises(TypeError, match="mem is a Tensor"):
        lif(torch.rand(2, 4), torch.zeros(2, 4))


def test_integrate_and_fire_rate_is_the_equilibrium():
    """snn.Leaky(beta=1) under constant current fires at the rate that its conversion settles at."""
    current, steps = torch.rand(4, 8), 500
    lif = snn.Leaky(beta=1.0)
    mem, count = lif.reset_mem(), 0
    for _ in range(steps):
        spk, mem = lif(current, mem)
        count = count + spk
    net = nn.Sequential(nn.Linear(8, 8, bias=False), lif)
    nn.init.eye_(net[0].weight)
    rate = ep.convert(net, encoder="graded", relaxation=ep.Relaxation(60))(current)
    torch.testing.assert_close(count / steps, rate, rtol=0, atol=0.01)


@pytest.mark.parametrize("activation", ["hard_sigmoid", "relu6"])
def test_a_spike_stands_for_the_largest_state(activation):
    neuron = ep.ConvergentLeaky(threshold=2.0, activation=activation, encoder="sigma_delta")
    state, spikes = None, []
    for _ in range(400):
        sent, state = neuron(torch.full((1, 1), 1.5), state)
        spikes.append(sent)
    assert torch.stack(spikes).mean().item() == pytest.approx(0.75, abs=0.02)
