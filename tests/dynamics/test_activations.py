"""One step of a neuron's state."""

import pytest
import torch

from ep_plugin.dynamics.activations import ACTIVATIONS


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("step_size", [1.0, 0.3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_step_goes_its_share_of_the_way(name, step_size, graph, float64):
    activation = ACTIVATIONS[name]
    state, drive = torch.tensor([0.1, 0.5, 0.9, 0.4]), torch.tensor([2.0, 0.2, -3.0, 0.7])
    stays, comes = (1 - step_size) * state, step_size * drive
    expected = activation.value(stays + comes) if activation.projection else stays + step_size * activation.value(drive)
    with torch.set_grad_enabled(graph):
        torch.testing.assert_close(activation.step(state, drive, step_size), expected)
        if not graph:
            torch.testing.assert_close(activation.step(state, drive, step_size, out=drive), expected)
