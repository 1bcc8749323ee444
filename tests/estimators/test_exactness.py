"""Equilibrium propagation against autograd through time and the implicit function theorem."""

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, by_hand
from torch import nn

import ep_plugin as ep
from ep_plugin.dynamics.activations import ACTIVATIONS
from ep_plugin.dynamics.deviations import contrast, nudge
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState
from ep_plugin.dynamics.relaxation import Point


def gradients(model, estimator, x, y):
    model = model.variant(estimator=estimator)
    return torch.autograd.grad(F.cross_entropy(model(x), y), [x, *model.parameters()])


def relative_errors(a, b):
    assert all(q.norm() > 0 for q in b)  # a gradient of zero would show nothing
    return [((p - q).norm() / q.norm()).item() for p, q in zip(a, b, strict=True)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_gradient_is_exact(problem, float64):
    """Every parameter, every threshold and the input, at beta 1e-3 and 1e-5; the error falls as theory says."""
    model, x = PROBLEMS[problem]()
    x.requires_grad_()
    y = torch.randint(5, (len(x),))
    assert model.free_phase(x).residual.max() < 1e-12
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    through_time = gradients(model, ep.BackpropThroughTime(), x, y)
    assert max(relative_errors(through_time, exact)) < 1e-9

    def error(beta, nudging="symmetric"):
        return relative_errors(gradients(model, ep.EquilibriumPropagation(beta, 250, nudging), x, y), exact)

    assert max(error(1e-3)) <= 1e-5
    assert max(error(1e-5)) <= 1e-9
    # Where the error stands well above rounding: beta squared, and beta.
    assert max(error(2e-2)) / max(error(1e-2)) == pytest.approx(4, rel=0.1)
    for nudging in ("positive", "negative"):
        assert max(error(2e-2, nudging)) / max(error(1e-2, nudging)) == pytest.approx(2, rel=0.1)


def test_the_adjoint_iteration_ends_at_its_tolerance(float64):
    """Neither before, nor long after: a coarser tolerance saves iterations, and what they would have added is small."""
    model, x = PROBLEMS["perceptron"]()
    x.requires_grad_()
    y = torch.randint(5, (len(x),))
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    errors = [max(relative_errors(gradients(model, ep.ImplicitDifferentiation(t), x, y), exact)) for t in (1e-2, 1e-5)]
    assert 1e-5 < errors[0] < 1e-1
    assert 1e-9 < errors[1] < 1e-4


# The winners of max pooling change in full phases, and so does what is compared; in twelve layers the nudge is lost
# in the difference of whole states.
FULL = [p for p in PROBLEMS if p not in ("max_pooling", "deep")]


@pytest.mark.parametrize("problem", FULL)
def test_full_phases_are_exact_for_graded_neurons(problem, float64):
    model, x = PROBLEMS[problem]()
    x.requires_grad_()
    y = torch.randint(5, (len(x),))
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)

    def error(beta, nudging="symmetric"):
        return relative_errors(gradients(model, ep.FullPhaseEP(beta, 250, nudging), x, y), exact)

    assert max(error(1e-3)) <= 1e-5
    assert max(error(2e-2)) / max(error(1e-2)) == pytest.approx(4, rel=0.1)
    for nudging in ("positive", "negative"):
        assert max(error(2e-2, nudging)) / max(error(1e-2, nudging)) == pytest.approx(2, rel=0.1)


def two_layers(activation):
    """Thresholds are learned, of any activation."""
    model = ep.ConvergentNetwork(
        nn.Linear(12, 9),
        [ep.Layer(nn.Parameter(torch.tensor(theta)), activation) for theta in (0.8, 1.2)],
        [ep.Connection(nn.Linear(9, 7), 0, 1)],
        nn.Linear(7, 5),
        encoder="graded",
        feedback=0.3,
        relaxation=ep.Relaxation(400),
    )
    with torch.no_grad():
        for p in (model.stem.bias, model.connections[0].module.bias):
            p.add_(0.3)
    return model, torch.rand(6, 12, requires_grad=True), torch.randint(5, (6,))


@pytest.mark.parametrize("activation", ["hard_sigmoid", "relu6", torch.sigmoid, torch.tanh, F.softplus])
def test_other_activations(activation, float64):
    model, x, y = two_layers(activation)
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    found = gradients(model, ep.EquilibriumPropagation(1e-4, 250, "symmetric"), x, y)
    assert max(relative_errors(found, exact)) < 1e-6


@pytest.mark.parametrize("activation", ["hard_sigmoid", "relu6"])
def test_clips_are_exact_at_any_beta_that_moves_nothing_over_a_bound(activation, float64):
    model, x, y = two_layers(activation)
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    for beta in (1e-3, 1e-12):
        found = gradients(model, ep.EquilibriumPropagation(beta, 250, "symmetric"), x, y)
        assert max(relative_errors(found, exact)) < 1e-12


def test_a_threshold_in_full_phases_needs_a_potential(float64):
    model, x, _ = two_layers(torch.sigmoid)
    model.estimator = ep.FullPhaseEP()
    with pytest.raises(ValueError, match=r"layer 0 has a learnable threshold.*EquilibriumPropagation\(\)"):
        model(x)


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("edges", [[(0, 1), (1, 2)], [(0, 1), (1, 2), (0, 2)]])
def test_from_anywhere_it_is_the_gradient_of_the_net_that_stays_there(edges, activation, float64):
    """At any u: the exact gradient of the network whose neurons keep the mismatch e = u - rho(h(u)), whatever u is."""
    model, x = by_hand(edges, activation=activation)
    y = torch.randint(5, (len(x),))
    system = model.system(x)
    u = [0.2 + 0.6 * torch.rand(len(x), *shape) for shape in system.shapes]
    fixed = system.detach()
    with torch.no_grad():
        point = Point.of(NetworkState.at(fixed, u, Graded()))

    # Exact: the fixed point r = rho(h(r)) + e, which u is by construction, by implicit differentiation.
    flat = system.values.flat()
    states = [s.clone().requires_grad_() for s in u]
    state = NetworkState.at(system, states, Graded())
    asked = [
        system.activations[l](state.drives[l] / system.values.thresholds[l]) for l in range(len(u))
    ]  # d(rho + e) = d rho
    read = u[-1].clone().requires_grad_()
    (source,) = torch.autograd.grad(F.cross_entropy(model.readout(read), y), read)
    adjoint = [*(torch.zeros_like(s) for s in u[:-1]), source]
    start = adjoint
    for _ in range(400):
        back = torch.autograd.grad(asked, states, adjoint, retain_graph=True)
        adjoint = [s + b for s, b in zip(start, back, strict=True)]
    exact = torch.autograd.grad(asked, flat, adjoint)

    direction = source.flatten(1) / source.flatten(1).norm(dim=1, keepdim=True)
    length = source.flatten(1).norm(dim=1)
    with torch.no_grad():
        first, second = (
            nudge(fixed, point, {2: -sign * 1e-6 * direction}, Graded(), 400, "sequential").values for sign in (1, -1)
        )
        found = contrast(fixed, point, first, second, length / 2e-6, [True] * len(flat))
    assert max(relative_errors(found, exact)) < 1e-8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_potential_and_secant(name, float64):
    activation = ACTIVATIONS[name]
    h = torch.linspace(-0.55, 7, 40, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(activation.value(h).sum(), h)
    torch.testing.assert_close(activation.slope(h), by_autograd)
    r = activation.value(h.detach())
    inside = by_autograd > 1e-6
    r.requires_grad_()
    (inverse,) = torch.autograd.grad(activation.potential(r).sum(), r)
    torch.testing.assert_close(inverse[inside], h[inside], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), ep.Activation(torch.tanh), ep.Activation(F.softplus)])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_a_deviation_is_the_difference_of_states(activation, scale, float64):
    """For large changes as a difference says, for small ones as the slope does, and never NaN."""
    h, theta = torch.linspace(-3, 9, 200).repeat(7, 1), torch.tensor(1.3)
    change = torch.tensor([-300.0, -1.0, -1e-2, 1e-4, 0.1, 2.0, 300.0]).view(-1, 1).expand_as(h)
    start, deviate = activation.deviation(h, theta, scale)
    found = deviate(start + change * scale, torch.empty_like(h)) / scale
    assert found.isfinite().all()
    wanted = activation.value((h + change) / theta) - activation.value(h / theta)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)
    tiny = deviate(start + 1e-25, torch.empty_like(h))
    assert tiny.isfinite().all()
    if activation.projection is None:
        slope = torch.func.jvp(activation.value, (h / theta,), (torch.ones_like(h),))[1]
        torch.testing.assert_close(tiny, slope * 1e-25 / theta, rtol=1e-6, atol=1e-36)


def test_a_sigmoid_that_is_deep_in_saturation_stays_finite():
    """float32, where 1 - s is 0 and expm1 would overflow."""
    sigmoid = ACTIVATIONS["sigmoid"]
    for h in (-60.0, 0.0, 60.0):
        for change in (-1e4, -1e-20, 1e-20, 1e4):
            deviate = sigmoid.deviation(torch.tensor([h]), torch.tensor(1.0), 1.0)[1]
            found = deviate(torch.tensor([change]), torch.empty(1))
            assert found.isfinite().all()
            assert found * change >= 0
