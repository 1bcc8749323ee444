"""Standardized weights, and the deep nets that are made with them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from problems import SMOOTH
from snntorch import utils
from torch import nn
from torch.nn.utils import parametrize

import ep_plugin as ep
from ep_plugin.models import StandardizedWeight, convolutional_2c2fc, residual, vgg


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (4, 7)])
def test_standardized_weights_have_no_mean_and_a_learned_norm(shape):
    standardize = StandardizedWeight(shape[0], gain=1.5)
    weight = 3 + 7 * torch.randn(shape)
    found = standardize(weight).flatten(1)
    assert found.sum(1).abs().max() < 1e-5
    torch.testing.assert_close(found.norm(dim=1), torch.full((shape[0],), 1.5))
    torch.testing.assert_close(standardize(5 + 0.1 * weight).flatten(1), found, rtol=1e-4, atol=1e-5)
    by_definition = 1.5 * (weight.flatten(1) - weight.flatten(1).mean(1, True))
    by_definition /= weight.flatten(1).std(1, correction=0, keepdim=True) * weight[0].numel() ** 0.5
    torch.testing.assert_close(found, by_definition)
    with torch.no_grad():
        standardize.gain[1] = 4.0
    assert standardize(weight)[1].norm().item() == pytest.approx(4)


def test_drives_have_the_variance_of_the_inputs_times_the_gain_squared():
    inputs = torch.rand(5000, 300)
    conv = nn.Linear(300, 50, bias=False)
    parametrize.register_parametrization(conv, "weight", StandardizedWeight(50, gain=2.0))
    assert conv(inputs).var(0).mean().item() == pytest.approx(4 / 12, rel=0.03)
    assert conv(inputs).mean(0).abs().max() < 0.6  # without taking the mean off it is about 7


def test_a_weight_of_one_number_is_refused():
    conv = nn.Conv2d(1, 4, 1)
    with pytest.raises(
        ValueError, match=r"weight \[4, 1, 1, 1\] has one number an output.*expected two or more inputs"
    ):
        parametrize.register_parametrization(conv, "weight", StandardizedWeight(4))
    parametrize.register_parametrization(nn.Conv2d(2, 4, 1), "weight", StandardizedWeight(4))


def test_a_weight_of_equal_numbers_stays_finite():
    weight = torch.ones(2, 5, requires_grad=True)
    found = StandardizedWeight(2)(weight)
    assert torch.equal(found, torch.zeros(2, 5))
    found.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(("setting", "value"), [("gain", 0), ("epsilon", -1.0)])
def test_numbers_of_standardized_weights_are_checked(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}; expected a number above 0"):
        StandardizedWeight(3, **{setting: value})


def small(make, **settings):
    """Nine layers and more, narrow, for images of 8 x 8 pixels."""
    sizes = {
        vgg: {"channels": (3, 3, 3, 4, 4, 4, 5, 5), "hidden": 6},
        residual: {"channels": (3, 4, 5), "blocks": (1, 2, 1)},
    }
    return make((2, 8, 8), classes=5, **sizes[make], **settings)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [vgg, residual])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_gradients_are_exact_through_states_that_have_settled(make, pooling):
    """Those of weights under their standardization, of gains and of biases."""
    net = small(make, pooling=pooling, gain=2.0)
    model = ep.convert(net, activation="sigmoid", **SMOOTH | {"feedback": 0.1, "relaxation": ep.Relaxation(120)})
    x, y = torch.rand(4, 2, 8, 8), torch.randint(5, (4,))
    assert model.free_phase(x).residual.max() < 1e-12

    def gradients(estimator):
        return torch.autograd.grad(F.cross_entropy(model.variant(estimator=estimator)(x), y), list(net.parameters()))

    exact = gradients(ep.ImplicitDifferentiation())
    for found, limit in (
        (gradients(ep.BackpropThroughTime()), 1e-9),
        (gradients(ep.EquilibriumPropagation(1e-4, 120, "symmetric")), 1e-6),
    ):
        for (name, _), a, b in zip(net.named_parameters(), found, exact, strict=True):
            assert b.norm() > 0, name
            assert (a - b).norm() <= limit * b.norm(), name


def test_implicit_differentiation_of_a_residual_net_stops_at_rounding():
    """Its warning, an error here, tells of iterations that go on."""
    torch.manual_seed(0)
    net = residual((3, 16, 16), channels=(8, 16, 32))
    implicit = ep.ImplicitDifferentiation(max_steps=15)
    model = ep.convert(net, encoder="graded", relaxation=ep.Relaxation(60), estimator=implicit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.cross_entropy(model(torch.rand(16, 3, 16, 16)), torch.randint(10, (16,))).backward()


@pytest.mark.parametrize(
    ("net", "shape", "layers"),
    [
        (lambda: vgg(channels=(4, 4, 8, 8, 8), hidden=16), (3, 32, 32), 6),
        (lambda: vgg((1, 28, 28), channels=(4, 4, 4, 8, 8, 8, 8, 8), hidden=16), (1, 28, 28), 9),
        (lambda: residual((3, 20, 33), channels=(4, 6, 8), blocks=(1, 1, 2)), (3, 20, 33), 9),
        (lambda: residual(channels=(4, 6, 8), blocks=(2, 2, 2), pooling="average"), (3, 32, 32), 13),
        (lambda: convolutional_2c2fc((4, 4), 8, shape=(3, 32, 20)), (3, 32, 20), 3),
    ],
)
def test_any_size_and_number_of_channels(net, shape, layers):
    model = ep.convert(net())
    output, equilibrium = model(torch.rand(2, *shape), return_equilibrium=True)
    assert output.shape == (2, 10)
    assert len(model.layers) == layers
    assert max(model.levels) + 1 == layers
    assert all(s.min() >= 0 and s.max() <= 1 for s in equilibrium.states)


@pytest.mark.parametrize("make", [vgg, residual])
def test_neurons_differ_from_image_to_image_in_every_layer_at_the_start(make):
    """PyTorch's own initialization leaves a deviation of .01 in the last of nine layers."""
    model = ep.convert(make((3, 32, 32)), encoder="graded")
    states = model.free_phase(torch.rand(8, 3, 32, 32)).states
    assert min(s.std(0).mean() for s in states) > 0.02


@pytest.mark.parametrize("make", [vgg, residual])
def test_the_same_net_is_trained_by_snntorch(make):
    """25 steps, as a loop of one's own has them; every parameter has a gradient."""
    net = make((3, 16, 16), normalize=(0.5, 0.25))
    x, y = torch.rand(1, 3, 16, 16), torch.tensor([1])
    task = ep.BPTTLightningModule(net, 25)
    output = task(x)
    utils.reset(net)
    by_hand = torch.stack([net(x) for _ in range(25)]).mean(0)
    torch.testing.assert_close(output, by_hand)
    F.cross_entropy(output, y).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


@pytest.mark.parametrize("make", [vgg, residual])
def test_a_net_is_copied_and_loaded_with_its_gains(make):
    first, second = small(make), small(make)
    x = torch.rand(3, 2, 8, 8)
    second.load_state_dict(first.state_dict())
    a, b, c = (ep.convert(net)(x) for net in (first, second, copy.deepcopy(first)))
    assert torch.equal(a, b)
    assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vgg((3, 32)), r"the shape is \[3, 32\]; expected channels, height and width"),
        (lambda: vgg((3, 32, 0)), r"a number of shape \[3, 32, 0\] is 0"),
        (
            lambda: vgg((3, 8, 7), channels=(4, 8, 16, 32)),
            r"vgg leaves 0 x 0 of an image of the shape \[3, 8, 7\]; .*fewer",
        ),
        (lambda: vgg(channels=()), r"channels is \[\]; expected one or more whole numbers"),
        (lambda: vgg(channels=(4, 0)), r"a number of channels \[4, 0\] is 0; expected a whole number, 1 or more"),
        (lambda: vgg(pooling="mean"), r"pooling is 'mean'; expected one of 'average', 'max'"),
        (lambda: vgg(gain=0), r"gain is 0; expected a number above 0"),
        (lambda: vgg(hidden=0), r"hidden is 0"),
        (
            lambda: vgg(normalize=([0.5, 0.5], 0.2)),
            r"mean is \[0.5, 0.5\]; expected one number, or one for each of the 3",
        ),
        (lambda: residual((3, 7, 19)), r"residual leaves 0 x 2 of an image of the shape \[3, 7, 19\]"),
        (lambda: residual(blocks=(1, 2)), r"channels has 3 stages and blocks 2; expected a number of each"),
        (lambda: residual(branch=-1), r"branch is -1|gain is -1"),
        (lambda: convolutional_2c2fc(shape=(1, 15, 28)), r"2C2FC leaves 0 x 4 of an image of the shape \[1, 15, 28\]"),
    ],
)
def test_sizes_are_checked_at_the_door(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_normalization_takes_a_number_or_one_a_channel():
    x = torch.rand(4, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = vgg((3, 8, 8), channels=(4,), hidden=4, normalize=(mean, std))[0](x)
    torch.testing.assert_close(found, (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(vgg((3, 8, 8), channels=(4,), hidden=4, normalize=(0.1, 0.5))[0](x), (x - 0.1) / 0.5)


@pytest.mark.parametrize("make", [vgg, residual])
def test_deep_nets_learn_digits_from_the_first_epoch(make):
    sizes = {
        vgg: {"channels": (16, 16, 16, 16, 32, 32), "hidden": 32},
        residual: {"channels": (16, 32), "blocks": (2, 2)},
    }
    model = ep.convert(make((1, 8, 8), **sizes[make]))
    data = ep.DigitsDataModule(validation="test")
    data.setup()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for x, y in data.train_dataloader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.6


def test_the_initialization_fills_what_a_parametrized_weight_is_made_from():
    net = convolutional_2c2fc((3, 4), 8, centered=True)
    before = [p.clone() for p in net.parameters()]
    ep.initialize_(net, 2.0)
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    original = net[3].parametrizations.weight.original
    assert 0.9 * 2 / 75**0.5 < original.abs().max() <= 2 / 75**0.5
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with pytest.raises(
        ValueError, match=r"weight of a .*Linear is computed from several parameters.*initialize the net"
    ):
        ep.initialize_(weighted)
    nn.utils.parametrizations.weight_norm(ep.initialize_(nn.Linear(4, 3)))


def test_large_rows_in_half_precision_are_standardized_too():
    torch.manual_seed(0)
    rows = torch.nn.Parameter(300 * torch.randn(4, 16))
    exact, half = StandardizedWeight(4, 1.0), StandardizedWeight(4, 1.0).half()
    torch.testing.assert_close(half(rows.half()), exact(rows).half(), rtol=1e-2, atol=1e-3)
