"""The door: what a network refuses, before any relaxation."""

import pytest
import torch
from problems import by_hand, convolutional, perceptron
from torch import nn

import ep_plugin as ep

NAN = float("nan")


@pytest.mark.parametrize(
    ("problem", "x", "error", "message"),
    [
        (
            convolutional,
            torch.rand(1, 15, 15),
            ValueError,
            r"\[1, 15, 15\]; expected \[batch, 1, size, size\]",
        ),
        (convolutional, torch.rand(2, 3, 15, 15), ValueError, r"expected \[batch, 1, size, size\]"),
        (convolutional, torch.rand(2, 1, 28, 28), ValueError, "connection 1 -> 2 does not fit"),
        (
            convolutional,
            torch.rand(2, 1, 2, 2),
            ValueError,
            "does not fit the modules before the first neuron",
        ),
        (perceptron, torch.rand(12), ValueError, r"expected \[batch, 12\]"),
        (perceptron, torch.rand(3, 11), ValueError, r"expected \[batch, 12\]"),
        (perceptron, torch.rand(5, 3, 12), ValueError, r"expected \[batch, 12\]"),
        (perceptron, torch.rand(0, 12), ValueError, "empty batch"),
        (perceptron, torch.ones(3, 12, dtype=torch.long), TypeError, "floating point"),
        (perceptron, torch.full((3, 12), NAN), ValueError, "NaN"),
        (perceptron, [[0.0] * 12], TypeError, "expected a tensor"),
    ],
)
def test_inputs(problem, x, error, message):
    model, _ = problem()
    with pytest.raises(error, match=message):
        model(x)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        *((lambda b=b: ep.EquilibriumPropagation(b), ValueError) for b in (0.0, -1.0, NAN, float("inf"))),
        (lambda: ep.EquilibriumPropagation(steps=0), ValueError),
        (lambda: ep.EquilibriumPropagation(steps=2.5), TypeError),
        (lambda: ep.EquilibriumPropagation(nudging="both"), ValueError),
        (lambda: ep.Relaxation(0), ValueError),
        (lambda: ep.Relaxation(1.5), TypeError),
        *((lambda s=s: ep.Relaxation(5, step_size=s), ValueError) for s in (0.0, 1.1, NAN)),
        (lambda: ep.Relaxation(5, order="random"), ValueError),
        (lambda: ep.Relaxation(5, tolerance=-1.0), ValueError),
        (lambda: ep.PredictiveSigmaDelta(rate=2.0), ValueError),
        (lambda: ep.SigmaDelta(exponent=-1.0), ValueError),
        (lambda: ep.ConvergentLeaky(step_size=0.0), ValueError),
        (lambda: ep.Layer(-1.0), ValueError),
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [], []), ValueError),
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer(), ep.Layer()], []), ValueError),
        (
            lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer()], [ep.Connection(nn.Linear(2, 2), 0, 1)]),
            ValueError,
        ),
        (lambda: ep.Layer(nn.Parameter(torch.ones(())), torch.sigmoid), ValueError),
    ],
)
def test_settings(make, error):
    with pytest.raises(error):
        make()


def test_attributes_are_checked_when_set():
    model, _ = perceptron()
    with pytest.raises(TypeError, match="EquilibriumPropagation"):
        model.gradient = ep.BackpropThroughTime  # the class, not an instance
    with pytest.raises(TypeError, match="Relaxation"):
        model.relaxation = 20
    with pytest.raises(TypeError, match="encoder"):
        model.encoder = ep.Graded


def test_threshold_must_fit_the_layer():
    model = ep.convert(nn.Sequential(nn.Linear(4, 3), ep.ConvergentLeaky(threshold=torch.ones(5)), nn.Linear(3, 2)))
    with pytest.raises((ValueError, RuntimeError), match=r"threshold|broadcast"):
        model(torch.rand(2, 4))


def test_a_bare_callable_has_no_energy():
    model = ep.convert(nn.Sequential(nn.Linear(4, 3), ep.ConvergentLeaky(activation=torch.sigmoid), nn.Linear(3, 2)))
    model(torch.rand(2, 4)).sum().backward()
    with pytest.raises(ValueError, match="no potential"):
        model.energy([torch.rand(2, 3)], torch.rand(2, 3))


def test_state_dict_round_trip(tmp_path):
    model, x = convolutional()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other, _ = convolutional()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("shape", [(5,), (4, 8), (1, 1, 8)])
def test_a_threshold_that_does_not_fit_its_layer(shape):
    model = ep.ConvergentNetwork(nn.Linear(3, 8), [ep.Layer(torch.ones(shape))], [])
    with pytest.raises(ValueError, match="threshold of layer 0 has the shape"):
        model(torch.rand(2, 3))


def test_layers_in_any_order():
    """A layer may be reached through ones that stand behind it in the list."""
    model, x = by_hand([(3, 4), (1, 3), (0, 2), (2, 1)], (8, 7, 6, 5, 4))
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("hidden", "expected"), [(1, ()), (2, (0.05,)), (3, (0.05, 0.05)), (4, (0.126,) * 3)])
def test_feedback_where_none_is_asked_for(hidden, expected):
    layers = [ep.Layer() for _ in range(hidden)]
    connections = [ep.Connection(nn.Linear(3, 3), l, l + 1) for l in range(hidden - 1)]
    model = ep.ConvergentNetwork(nn.Linear(3, 3), layers, connections, None)
    assert model.feedback == pytest.approx(expected, abs=1e-3)
