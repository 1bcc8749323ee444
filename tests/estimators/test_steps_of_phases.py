"""What single steps of the phases do, which nets that have settled do not show."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from problems import by_hand
from torch import nn

import ep_plugin as ep
from ep_plugin.dynamics.deviations import contrast
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState
from ep_plugin.dynamics.relaxation import Point

CHAIN = [(0, 1), (1, 2)]


def test_one_step_brings_a_nudge_from_the_last_layer_to_the_first():
    model, x = by_hand(CHAIN, estimator=ep.EquilibriumPropagation(0.1, 1), relaxation=ep.Relaxation(30))
    deviations = model.nudged_phase(x, torch.randint(5, (5,)), F.cross_entropy)
    assert all(d.flatten(1).any(1).all() for d in deviations.values)


@pytest.mark.parametrize("phases", [1, 2])
def test_a_contrast_is_the_difference_of_the_energy_s_own_derivatives(phases, float64):
    """Of deviations of any size, exactly: of what connections and the input contribute."""
    model, x = by_hand([*CHAIN, (0, 2)])
    system = model.system(x).detach()
    u = [torch.rand(len(x), *shape) for shape in system.shapes]
    point = Point.of(NetworkState.at(system, u, Graded()))
    first, second = ([c * torch.randn_like(s) for s, c in zip(u, system.scales, strict=True)] for _ in range(2))
    flat = [t.clone().requires_grad_() for t in system.values.flat()]
    own = system.with_values(system.values.like(flat))

    def coupling(deviations):
        return own.coupling([s + d / c for s, d, c in zip(u, deviations, system.scales, strict=True)]).sum()

    other = second if phases == 2 else None
    rest = coupling([torch.zeros_like(s) for s in u] if other is None else other)
    expected = torch.autograd.grad(coupling(first) - rest, flat, allow_unused=True)
    found = contrast(system, point, first, other, torch.ones(len(x)), [True] * len(flat))
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    assert len(pairs) == len(flat) - len(u)  # all but the thresholds, which contribute nothing to it
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@dataclass(frozen=True)
class Clocked(Graded):
    """It notes when it was asked."""

    times: list[int] = field(default_factory=list)

    def encode(self, signal, state, time, maximum):
        self.times.append(time)
        return super().encode(signal, state, time, maximum)


def test_the_clock_of_full_phases_goes_on_from_the_free_one():
    model, x = by_hand([(0, 1)], (5, 4), relaxation=ep.Relaxation(6), estimator=ep.FullPhaseEP(0.5, 3))
    model.encoder = Clocked()
    loss = model(x).sum()
    assert model.encoder.times == [t for t in range(1, 7) for _ in range(2)]
    model.encoder.times.clear()
    loss.backward()
    assert model.encoder.times == [t for t in range(7, 10) for _ in range(2)]


def test_full_phases_see_the_last_frames_again(monkeypatch):
    shown = []
    original = NetworkState.show
    monkeypatch.setattr(NetworkState, "show", lambda self, step: shown.append(step) or original(self, step))
    model, x = by_hand(
        [(0, 1)], (5, 4), relaxation=ep.Relaxation(8), estimator=ep.FullPhaseEP(0.5, 3), time_varying=True
    )
    model(x.expand(8, *x.shape)).sum().backward()
    assert shown == [*range(8), 5, 6, 7]


def test_what_has_stopped_in_the_free_phase_moves_when_it_is_nudged(float64):
    """Of graded neurons with a tolerance: the gradient that there is without one."""
    model, x = by_hand(CHAIN, estimator=ep.FullPhaseEP(1e-3, 100))
    y, parameters = torch.randint(5, (5,)), list(model.parameters())
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    model.relaxation = ep.Relaxation(400, tolerance=1e-12)
    found = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_a_tolerance_counts_how_far_a_neuron_has_to_go_and_not_how_far_it_goes_in_a_step(step_size):
    model, x = by_hand([(0, 1)], (5, 4), relaxation=ep.Relaxation(500, step_size=step_size, tolerance=1e-3))
    settled = model.free_phase(x)
    assert settled.steps < 200
    assert 1e-5 < settled.residual.max() < 3e-3


def test_errors_of_opposite_nudges_are_opposite(float64):
    """So that their mean is the symmetric gradient, whose error falls with the square of beta."""
    model, x = by_hand(CHAIN)
    y, found = torch.randint(5, (5,)), {}
    for nudging in ("positive", "negative", "symmetric"):
        model.estimator = ep.EquilibriumPropagation(1e-2, 200, nudging)
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        found[nudging] = torch.cat([g.flatten() for g in grads])
    apart = (found["positive"] - found["symmetric"]).norm()
    assert apart > 1e-5 * found["symmetric"].norm()
    mean = (found["positive"] + found["negative"]) / 2
    assert (mean - found["symmetric"]).norm() < 0.05 * apart


class Both(nn.Module):
    def forward(self, first, last):
        return first, last


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
@pytest.mark.parametrize("rule", [ep.EquilibriumPropagation, ep.FullPhaseEP])
def test_a_loss_that_is_no_number_at_one_of_two_layers_is_no_fault_of_the_gradient(rule):
    """As everywhere in autograd it becomes a gradient that is none, which a scaler skips."""
    layers = [ep.Layer(), ep.Layer()]
    model = ep.ConvergentNetwork(
        *(nn.Linear(4, 3), layers, [ep.Connection(nn.Linear(3, 2), 0, 1)], Both()),
        read=(0, 1),
        encoder="graded",
        estimator=rule(),
    )
    first, last = model(torch.rand(2, 4))
    (first.sum() + last.sum() * float("inf")).backward()
    assert not model.stem.weight.grad.isfinite().all()


@pytest.mark.parametrize("gain", [0.0, -1.0, float("inf"), float("nan")])
def test_a_gain_is_above_0(gain):
    with pytest.raises(ValueError, match=r"gain is .*; expected finite numbers above 0"):
        ep.Layer(gain=gain)


def test_a_gain_divides_the_threshold(float64):
    gain, drive = torch.tensor([0.5, 2.0]), torch.tensor([[0.3, 0.2]])
    layer = ep.Layer(0.8, gain=gain)
    torch.testing.assert_close(layer.activation(drive / layer.theta), (gain * drive / 0.8).clamp(0, 1))
