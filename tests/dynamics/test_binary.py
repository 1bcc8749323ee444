"""What binary spikes add up to."""

import pytest
import torch

import ep_plugin as ep


@pytest.mark.parametrize("maximum", [1.0, 6.0])
def test_spikes_of_the_quantizer_follow_the_sum_of_the_states_to_half_a_spike(maximum, float64):
    signal = maximum * torch.linspace(0, 1, 37)
    encoder = ep.SigmaDelta()
    state, sent = encoder.start(signal, 0), 0
    for time in range(1, 30):
        sent = sent + encoder.encode(signal, state, time, maximum).events
        assert (maximum * sent - time * signal).abs().max() <= maximum / 2 + 1e-9


@pytest.mark.parametrize("maximum", [1.0, 6.0])
def test_random_spikes_have_the_states_as_their_mean(maximum, float64):
    torch.manual_seed(0)
    signal = maximum * torch.tensor([0.0, 0.25, 0.7, 1.0]).expand(20_000, 4)
    encoder = ep.Bernoulli()
    mean = encoder.encode(signal, encoder.start(signal, 0), 1, maximum).events.mean(0)
    assert (mean - signal[0] / maximum).abs().max() < 0.02  # six standard deviations
