"""The energy never rises in sequential and alternating order with full steps, and its gradient is the drive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import by_hand
from torch import nn

import ep_plugin as ep
from ep_plugin.dynamics.activations import ACTIVATIONS
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState

GRAPHS = {
    "chain": ([(0, 1), (1, 2), (2, 3)], None),
    "skip": ([(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)], None),
    "lateral": ([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)], (0, 1, 1, 2)),
    "backward": ([(0, 1), (1, 2), (2, 3), (3, 1)], None),
}
SIZES = (6, 5, 5, 4)


class Drives(nn.Module):
    """The input's drives of the first layer, the third and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(10, SIZES[l]) for l in (0, 2, 3))

    def forward(self, x):
        return tuple(m(x) for m in self.maps)


def several_driven(activation, **settings):
    edges = GRAPHS["skip"][0]
    model = ep.ConvergentNetwork(
        Drives(),
        [ep.Layer(0.7 + 0.5 * torch.rand(size), activation) for size in SIZES],
        [ep.Connection(nn.Linear(SIZES[i], SIZES[j]), i, j) for i, j in edges],
        driven=(0, 2, 3),
        encoder="graded",
        **settings,
    )
    return model, torch.rand(5, 10)


def pooled(activation, **settings):
    """Max pooling right before neurons whose states are 0 or more: winners change for the better only."""
    model = ep.ConvergentNetwork(
        nn.Conv1d(1, 2, 3),
        [ep.Layer(0.7 + 0.5 * torch.rand(()), activation) for _ in range(3)],
        [
            ep.Connection(nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2)), 0, 1),
            ep.Connection(nn.Sequential(nn.Conv1d(3, 2, 1), nn.MaxPool1d(3, 1, padding=1)), 1, 2),
        ],
        encoder="graded",
        **settings,
    )
    return model, torch.rand(5, 1, 12)


def network(graph, activation, **settings):
    if graph in GRAPHS:
        edges, levels = GRAPHS[graph]
        return by_hand(edges, SIZES, levels, activation=activation, **settings)
    return {"several driven": several_driven, "max pooling": pooled}[graph](activation, **settings)


@pytest.mark.parametrize("order", ["sequential", "alternating"])
@pytest.mark.parametrize("activation", ["hard_sigmoid", "sigmoid", "relu6"])
@pytest.mark.parametrize("graph", [*GRAPHS, "several driven", "max pooling"])
def test_energy_never_rises(graph, activation, order, float64):
    @settings(max_examples=6, deadline=None)
    @given(st.floats(0.05, 1), st.floats(0.5, 6), st.integers(0, 10**6))
    def check(feedback, gain, seed):
        torch.manual_seed(seed)
        model, x = network(graph, activation, feedback=feedback)
        for name, p in ep.initialize_(model, gain).named_parameters():
            if name.endswith("bias"):
                p.uniform_(-0.5, 0.5)
        system = model.system(x)
        state = NetworkState(system, Graded(), step_size=1.0)
        before = system.energy(state.membranes)
        for time in range(1, 40):
            state.sweep(system.order(order), time)
            after = system.energy(state.membranes)
            assert (after <= before + 1e-12 * before.abs().clamp_min(1)).all()
            before = after

    with torch.no_grad():
        check()


def test_all_at_once_it_may_rise(float64):
    """So the claim above can fail: two layers that inhibit each other wake and fall silent together, for ever."""
    model, x = by_hand([(0, 1)], (1, 1), activation="hard_sigmoid", feedback=1.0)
    with torch.no_grad():
        for p, value in ((model.stem.weight, 0.0), (model.connections[0].module.weight, -3.0)):
            p.fill_(value)
        for p in (model.stem.bias, model.connections[0].module.bias, *(layer.threshold for layer in model.layers)):
            p.fill_(1.0)
        system = model.system(x)
        state = NetworkState(system, Graded(), step_size=1.0)
        energies = []
        for time in range(1, 6):
            state.sweep(system.order("simultaneous"), time)
            energies.append(system.energy(state.membranes)[0].item())
    assert energies == pytest.approx([2.0, 0.0, 2.0, 0.0, 2.0])


@pytest.mark.parametrize("graph", [*GRAPHS, "several driven"])
def test_equilibrium_is_stationary(graph, float64):
    """dE/dr = 0 where the relaxation ends: with the scaled feedback it is the gradient of one energy."""
    model, x = network(graph, "sigmoid", feedback=0.4, relaxation=ep.Relaxation(400))
    states = [s.requires_grad_() for s in model.free_phase(x).states]
    for gradient in torch.autograd.grad(model.energy(states, x).sum(), states):
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("graph", [*GRAPHS, "several driven"])
def test_the_drive_is_the_energy_s_own(graph, float64):
    """Anywhere: drive_l - theta_l Omega'(r_l) = -(dE/dr_l) / c_l."""
    model, x = network(graph, "hard_sigmoid", feedback=0.4)
    system = model.system(x).detach()
    states = [torch.rand(len(x), *shape, requires_grad=True) for shape in system.shapes]
    gradients = torch.autograd.grad(system.energy(states).sum(), states)
    with torch.no_grad():
        drives = NetworkState.at(system, states, Graded()).drives
        for l, (drive, state, gradient) in enumerate(zip(drives, states, gradients, strict=True)):
            expected = drive - system.values.thresholds[l] * state
            torch.testing.assert_close(-gradient / system.scales[l], expected)


def test_feedback_by_level(float64):
    model, x = by_hand([(0, 1), (1, 2), (0, 2)], feedback=[0.2, 0.5])
    assert model.system(x).scales == pytest.approx((10.0, 2.0, 1.0))
    assert model.free_phase(x).residual.max() < 1e-9


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_traces_that_go_over_the_bounds_have_an_energy(name):
    """Signed events may overshoot; the potential, of which full phases take a threshold's gradient, stays finite."""
    activation = ACTIVATIONS[name]
    r = torch.tensor([activation.least - 0.01, activation.least, activation.maximum, activation.maximum + 0.01])
    assert activation.potential(r).isfinite().all()
