"""The energy never rises in alternating order with full steps, and its gradient is the drive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import by_hand

import ep_plugin as ep

GRAPHS = {
    "chain": ([(0, 1), (1, 2), (2, 3)], None),
    "skip": ([(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)], None),
    "lateral": ([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)], (0, 1, 1, 2)),
    "backward": ([(0, 1), (1, 2), (2, 3), (3, 1)], None),
}


@pytest.mark.parametrize("activation", ["hard_sigmoid", "sigmoid", "relu6"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_energy_never_rises(graph, activation, float64):
    @settings(max_examples=10, deadline=None)
    @given(st.floats(0.05, 1), st.floats(0.5, 6), st.integers(0, 10**6))
    def check(feedback, gain, seed):
        torch.manual_seed(seed)
        edges, levels = GRAPHS[graph]
        model, x = by_hand(
            edges,
            (6, 5, 5, 4),
            levels,
            feedback=feedback,
            relaxation=ep.Relaxation(1, step_size=1.0),
            activation=activation,
        )
        ep.initialize_(model, gain)
        dynamics, values = model.dynamics(), model._values(x)
        neurons = dynamics.rest(values)
        before = model.energy([n.membrane for n in neurons], values.drive)
        for time in range(1, 40):
            neurons, _ = dynamics.sweep(neurons, values, time)
            after = model.energy([n.membrane for n in neurons], values.drive)
            assert (after <= before + 1e-12 * before.abs().clamp_min(1)).all()
            before = after

    with torch.no_grad():
        check()


@pytest.mark.parametrize("graph", GRAPHS)
def test_equilibrium_is_stationary(graph, float64):
    """dE/dr = 0 where the relaxation ends: with the scaled feedback it is the gradient of one energy."""
    edges, levels = GRAPHS[graph]
    model, x = by_hand(edges, (6, 5, 5, 4), levels, feedback=0.4)
    equilibrium = model.relax(x)
    states = [s.requires_grad_() for s in equilibrium.states]
    energy = model.energy(states, model.stem(x).detach()).sum()
    for gradient in torch.autograd.grad(energy, states):
        assert gradient.abs().max() < 1e-9


def test_feedback_by_level(float64):
    model, x = by_hand([(0, 1), (1, 2), (0, 2)], feedback=[0.2, 0.5])
    assert model.dynamics().scales == pytest.approx((10.0, 2.0, 1.0))
    assert model.relax(x).residual.max() < 1e-9
