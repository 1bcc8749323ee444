"""Equilibrium propagation against autograd through time and the implicit function theorem."""

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS

import ep_plugin as ep


def gradients(model, estimator, x, y):
    model.gradient = estimator
    return torch.autograd.grad(F.cross_entropy(model(x), y), [x, *model.parameters()])


def relative_errors(a, b):
    return [((p - q).norm() / q.norm()).item() for p, q in zip(a, b, strict=True)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_gradient_is_exact(problem, float64):
    """Every parameter, every threshold and the input, at beta 1e-3; the error falls as theory says."""
    model, x = PROBLEMS[problem]()
    x.requires_grad_()
    y = torch.randint(5, (len(x),))
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    through_time = gradients(model, ep.BackpropThroughTime(), x, y)
    assert max(relative_errors(through_time, exact)) < 1e-9

    def error(beta, nudging="symmetric"):
        return relative_errors(gradients(model, ep.EquilibriumPropagation(beta, 250, nudging), x, y), exact)

    assert max(error(1e-3)) <= 1e-5
    # At 1e-2 and 2e-2, where the error stands well above rounding: beta squared, and beta.
    assert max(error(2e-2)) / max(error(1e-2)) == pytest.approx(4, rel=0.1)
    for nudging in ("positive", "negative"):
        assert max(error(2e-2, nudging)) / max(error(1e-2, nudging)) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("activation", ["hard_sigmoid", "relu6", torch.sigmoid])
def test_other_activations(activation, float64):
    from torch import nn

    model = ep.ConvergentNetwork(
        nn.Linear(12, 9),
        [ep.Layer(0.8, activation), ep.Layer(1.2, activation)],
        [ep.Connection(nn.Linear(9, 7), 0, 1)],
        nn.Linear(7, 5),
        encoder="graded",
        feedback=0.3,
        relaxation=ep.Relaxation(400),
    )
    with torch.no_grad():
        for p in (model.stem.bias, model.connections[0].module.bias):
            p.add_(0.3)
    x, y = torch.rand(6, 12, requires_grad=True), torch.randint(5, (6,))
    exact = gradients(model, ep.ImplicitDifferentiation(), x, y)
    found = gradients(model, ep.EquilibriumPropagation(1e-4, 250), x, y)
    assert max(relative_errors(found, exact)) < 1e-5


def test_slope_is_what_backpropagation_uses(float64):
    from ep_plugin.neurons.activations import ACTIVATIONS

    for activation in ACTIVATIONS.values():
        h = torch.linspace(-0.55, 7, 40, requires_grad=True)
        (by_autograd,) = torch.autograd.grad(activation.value(h).sum(), h)
        torch.testing.assert_close(activation.slope(h), by_autograd)
        r = activation.value(h.detach())
        inside = by_autograd > 1e-6
        r.requires_grad_()
        (inverse,) = torch.autograd.grad(activation.potential(r).sum(), r)
        torch.testing.assert_close(inverse[inside], h[inside], rtol=1e-6, atol=1e-6)
