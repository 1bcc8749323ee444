"""What a connection refuses, and that every advice works."""

import re

import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin.linear import modules
from ep_plugin.linear.base import REGISTRY
from ep_plugin.linear.modules import FixedNormalization


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr("ep_plugin.linear.base.REGISTRY", before := dict(REGISTRY))
    monkeypatch.setattr("ep_plugin.linear.connection.REGISTRY", before)


class Reversed(nn.Module):
    """Affine: the input from behind, a learned factor, and an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return x.flip(-1) * self.factor + 0.1


class Doubled(ep.LinearMap):
    """A map of one's own, of the least that it needs."""

    def __init__(self, module) -> None:
        self.module = module

    def affine(self, tensors, x):
        return 2 * x


@pytest.mark.parametrize("module", [Reversed(), nn.Tanh(), nn.Softmax(1), nn.Sequential(nn.Linear(4, 4), Reversed())])
def test_unknown_modules_are_refused(module):
    name = type(module[-1] if isinstance(module, nn.Sequential) else module).__name__
    with pytest.raises(
        ValueError, match=rf"a {name} is not known to be.*register_linear\({name}\), otherwise use a mod"
    ):
        ep.Connection(module, 0, 1)
    for affine in (nn.Linear(4, 4), nn.ReLU(), nn.MaxPool1d(2)):
        ep.Connection(affine, 0, 1)


def test_the_advice_to_register_works(own_registry):
    """Then it connects neurons, and its own parameter is trained: with the gradient of backpropagation."""
    with pytest.raises(ValueError, match="register_linear"):
        ep.Connection(Reversed(), 0, 1)
    ep.register_linear(Reversed)
    module = Reversed()
    model = ep.ConvergentNetwork(
        nn.Linear(4, 5), [ep.Layer(), ep.Layer()], [ep.Connection(module, 0, 1)], encoder="graded"
    )
    x, y = torch.rand(3, 4), torch.rand(3, 5)

    def gradient(**settings):
        return torch.autograd.grad((model.variant(**settings)(x) - y).pow(2).sum(), module.factor)[0]

    settled = {"relaxation": ep.Relaxation(60)}
    found = gradient(estimator=ep.EquilibriumPropagation(1e-3, 60, "symmetric"), **settled)
    expected = gradient(estimator=ep.BackpropThroughTime(), **settled)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_map_of_ones_own(own_registry):
    ep.register_linear(Reversed, Doubled)
    connection = ep.Connection(Reversed(), 0, 1)
    x = torch.rand(3, 4)
    bound = connection.bound(connection.tensors(), (4,))
    assert torch.equal(bound.affine(x), 2 * x)
    assert torch.equal(bound.linear(x), 2 * x)
    assert torch.equal(bound.adjoint(x), 2 * x)


def test_a_subclass_is_registered_by_itself(own_registry):
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x).sigmoid()

    with pytest.raises(ValueError, match=r"register_linear\(Other\)"):
        ep.Connection(Other(4, 4), 0, 1)


@pytest.mark.parametrize("given", [nn.Linear(2, 2), "Linear", torch.relu, int])
def test_only_types_of_modules_are_registered(given):
    with pytest.raises(TypeError, match=r"expected a subclass of nn\.Module"):
        ep.register_linear(given)


@pytest.mark.parametrize("module", [nn.BatchNorm1d(4), nn.Dropout(), nn.Dropout1d()])
def test_what_changes_from_step_to_step_is_refused(module):
    """And what the refusal names in its place is taken."""
    with pytest.raises(ValueError, match=r"ep_plugin\.linear\.modules\.") as refused:
        ep.Connection(nn.Sequential(nn.Linear(4, 4), module), 0, 1)
    (name,) = re.findall(r"ep_plugin\.linear\.modules\.(\w+)\(module\)", str(refused.value))
    ep.Connection(nn.Sequential(nn.Linear(4, 4), getattr(modules, name)(module)), 0, 1)


@pytest.mark.parametrize("module", [nn.LayerNorm(4), nn.GroupNorm(1, 4), nn.LocalResponseNorm(2)])
def test_statistics_of_the_states_are_refused(module):
    """And a fixed batch normalization is taken, and the module itself outside of the connections."""
    with pytest.raises(
        ValueError, match=r"second derivative.*modules\.FixedNormalization\), or move it before the first"
    ):
        ep.Connection(nn.Sequential(nn.Linear(4, 4), module), 0, 1)
    connection = ep.Connection(nn.Sequential(nn.Linear(4, 4), FixedNormalization(nn.BatchNorm1d(4))), 0, 1)
    if isinstance(module, nn.LocalResponseNorm):  # it takes channels and a place
        module = nn.Sequential(nn.Unflatten(1, (4, 1)), module, nn.Flatten())
    for stem, readout in ((nn.Sequential(nn.Linear(4, 4), module), None), (nn.Linear(4, 4), module)):
        model = ep.ConvergentNetwork(stem, [ep.Layer(), ep.Layer()], [connection], readout)
        assert model(torch.rand(3, 4)).shape == (3, 4)


def test_a_normalization_without_statistics_is_refused():
    with pytest.raises(ValueError, match="track_running_stats=True"):
        FixedNormalization(nn.BatchNorm2d(3, track_running_stats=False))
    FixedNormalization(nn.BatchNorm2d(3, track_running_stats=True))


class Rounded(torch.autograd.Function):
    """To quarters, with the gradient straight through: of the old style, without setup_context."""

    @staticmethod
    def forward(ctx, weight):
        return (4 * weight).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class QuantizedLinear(nn.Linear):
    """With a parameter that it does not use."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.nn.functional.linear(x, Rounded.apply(self.weight), self.bias)


class Overwriting(nn.Module):
    """It writes into what it is given."""

    def forward(self, x):
        return x.mul_(3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_old_autograd_functions_and_unused_parameters(own_registry, mode):
    """What goes back is what autograd sends back, in inference mode too."""
    ep.register_linear(QuantizedLinear)
    module = QuantizedLinear(4, 3)
    connection = ep.Connection(module, 0, 1)
    point = torch.rand(5, 4, requires_grad=True)
    y = torch.rand(5, 3)
    back, weight, bias = torch.autograd.grad(module(point), (point, module.weight, module.bias), y)
    assert back.norm() > 0.1
    with mode():
        bound = connection.bound(tuple(t.detach() for t in connection.tensors()), (4,))
        torch.testing.assert_close(bound.adjoint(y), back)
        torch.testing.assert_close(bound.pullback(point.detach(), y), [weight, bias, None])


def test_what_comes_back_may_be_differentiated(own_registry):
    """Backpropagation through a relaxation needs the adjoint's own gradient, in what it sends and in the weights."""
    ep.register_linear(QuantizedLinear)
    module, y = QuantizedLinear(4, 3), torch.rand(5, 3, requires_grad=True)
    connection = ep.Connection(module, 0, 1)
    back = connection.bound(connection.tensors(), (4,)).adjoint(y)
    found = torch.autograd.grad(back.pow(2).sum(), (y, module.weight))
    expected = torch.autograd.grad((y @ Rounded.apply(module.weight)).pow(2).sum(), (y, module.weight))
    torch.testing.assert_close(found, expected)


def test_a_module_may_write_into_its_input(own_registry):
    ep.register_linear(Overwriting)
    bound = ep.Connection(Overwriting(), 0, 1).bound((), (4,))
    y = torch.rand(2, 4)
    kept = y.clone()
    torch.testing.assert_close(bound.adjoint(y), 3 * y)
    torch.testing.assert_close(bound.affine(y), 3 * kept)
    assert torch.equal(y, kept)


def test_a_quantized_network_trains_straight_through(own_registry):
    """Between neurons: the gradient of backpropagation, and no fault where nothing but the value is asked for."""
    ep.register_linear(QuantizedLinear)
    hidden = QuantizedLinear(6, 5)
    net = nn.Sequential(nn.Linear(4, 6), snn.Leaky(0.5), hidden, snn.Leaky(0.5), nn.Linear(5, 3)).double()
    model = ep.convert(net, encoder="graded", activation="sigmoid", feedback=0.3, relaxation=ep.Relaxation(200))
    x, y = torch.rand(7, 4, dtype=torch.float64), torch.rand(7, 3, dtype=torch.float64)
    with torch.inference_mode():
        assert model.free_phase(x).residual.max() < 1e-9
    weights = (net[0].weight, hidden.weight, hidden.bias)
    found, expected = (
        torch.autograd.grad((model.variant(estimator=e)(x) - y).pow(2).sum(), weights)
        for e in (ep.EquilibriumPropagation(1e-5, 150, "symmetric"), ep.BackpropThroughTime())
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
