"""What a connection refuses, and that every advice works."""

import re

import pytest
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
    with pytest.raises(ValueError, match=rf"a {name} is not known to be linear.*register_linear\({name}\)"):
        ep.Connection(module, 0, 1)


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
    with pytest.raises(ValueError, match="second derivative"):
        ep.Connection(nn.Sequential(nn.Linear(4, 4), module), 0, 1)


def test_a_normalization_without_statistics_is_refused():
    with pytest.raises(ValueError, match="track_running_stats=True"):
        FixedNormalization(nn.BatchNorm2d(3, track_running_stats=False))
