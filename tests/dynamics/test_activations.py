"""One step of a neuron's state."""

import pytest
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin.dynamics.activations import ACTIVATIONS, as_activation


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


IN_PLACE = {
    "relu": (nn.ReLU(inplace=True), nn.ReLU()),
    "leaky relu": (nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(0.2)),
    "silu": (nn.SiLU(inplace=True), nn.SiLU()),
    "function": (torch.relu_, torch.relu),
}


@pytest.mark.parametrize(("in_place", "plain"), IN_PLACE.values(), ids=IN_PLACE)
def test_an_activation_may_write_into_its_argument(in_place, plain, float64):
    torch.manual_seed(0)
    x, y = torch.rand(8, 6), torch.arange(8) % 3
    stem, between, readout = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def gradients(activation, estimator):
        layers = [ep.Layer(activation=activation) for _ in range(2)]
        relaxation = ep.Relaxation(60)
        model = ep.ConvergentNetwork(
            stem, layers, [ep.Connection(between, 0, 1)], readout, relaxation=relaxation, estimator=estimator
        )
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    expected = gradients(plain, ep.ImplicitDifferentiation())
    for estimator in (ep.EquilibriumPropagation(1e-4, 60), ep.ImplicitDifferentiation(), ep.BackpropThroughTime()):
        for found, true in zip(gradients(in_place, estimator), expected, strict=True):
            torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [nn.functional.silu, torch.tanh, nn.functional.softplus])
def test_a_callables_deviation_is_right_for_any_size_of_the_change(value, float64):
    drive, threshold = torch.linspace(-2, 2, 41), torch.tensor(0.7)
    for size in (1e-14, 1e-10, 1e-7, 1e-5, 1e-4, 1e-3, 1e-1, 1.0):
        change = torch.full_like(drive, size)
        _, deviate = ep.Activation(value).deviation(drive, threshold, scale=1.0)
        h, x = drive / threshold, change / threshold
        # The mean slope along the change, by Gauss-Legendre's rule of three points: off by x^6.
        slope = torch.func.grad(lambda t: value(t).sum())
        nodes = [(-(0.6**0.5), 5 / 18), (0.0, 8 / 18), (0.6**0.5, 5 / 18)]
        secant = sum(weight * slope(h + x / 2 * (1 + node)) for node, weight in nodes)
        expected = x * secant if size < 0.5 else value(h + x) - value(h)
        found = deviate(change, torch.empty_like(change))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * size)


@pytest.mark.parametrize("module", [nn.PReLU(), nn.RReLU(), nn.Sequential(nn.ReLU(), nn.Dropout(0.1))])
def test_an_activation_with_numbers_of_its_own_is_refused(module):
    with pytest.raises(ValueError, match=r"has numbers of its own, or draws them.*Expected a function"):
        ep.Layer(activation=module)
    with pytest.raises(ValueError, match="has numbers of its own, or draws them"):
        ep.Activation(module, minimum=-1.0)
    ep.Layer(activation=nn.LeakyReLU(0.1))


@pytest.mark.parametrize(
    ("activation", "least", "largest"),
    [
        (nn.ReLU(), 0, float("inf")),
        (nn.functional.silu, -0.278, float("inf")),
        (torch.tanh, -1, 1),
        (nn.ReLU6(), 0, 6),
        (nn.Softplus(), 0, float("inf")),
    ],
)
def test_the_range_of_a_callable_is_measured(activation, least, largest):
    made = as_activation(activation)
    assert made.minimum == pytest.approx(least, abs=1e-3)
    assert made.maximum == pytest.approx(largest)


@pytest.mark.parametrize("encoder", ["bernoulli", "sigma_delta", "predictive_sigma_delta"])
def test_states_without_a_bound_need_signed_events(encoder):
    net = [nn.Linear(6, 8), [ep.Layer(activation=nn.ReLU())], [], nn.Linear(8, 3)]
    with pytest.raises(ValueError, match=r"layer 0 have no bound.*encoder=\"adaptive_delta\" or \"graded\""):
        ep.ConvergentNetwork(*net, encoder=encoder)
    ep.ConvergentNetwork(*net, encoder="adaptive_delta")(torch.rand(2, 6))
    net[1] = [ep.Layer(activation="relu6")]
    ep.ConvergentNetwork(*net, encoder=encoder)(torch.rand(2, 6))
