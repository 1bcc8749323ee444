"""What is changed in a connection after the conversion counts."""

import copy

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from changed_nets import Doubled, Twice, convolutions, gradients, plain_net
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import ep_plugin as ep

CHANGES = {
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "weight norm": parametrizations.weight_norm,
    "old weight norm": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
    "hooked": lambda module: module.register_forward_hook(lambda _, args, out: 2 * out),
    "hooked before": lambda module: module.register_forward_pre_hook(lambda _, args: (args[0] / 2,)),
    "frozen": lambda module: module.weight.requires_grad_(False),
}


@pytest.mark.parametrize("place", [0, 2, 4, 6])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_module_changed_later_counts_as_if_changed_before(change, place):
    before, after = plain_net(), plain_net()
    torch.manual_seed(2)
    change(before.eval()[place])
    expected = gradients(ep.convert(before, encoder="graded"))
    model = ep.convert(after.eval(), encoder="graded")
    unchanged = gradients(model)
    model.zero_grad()
    torch.manual_seed(2)
    change(after[place])
    after.eval()
    found = gradients(model)
    assert list(found) == list(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    assert any(g is None or not torch.equal(g, unchanged.get(name, torch.zeros(0))) for name, g in found.items())


def test_a_module_replaced_inside_a_connection_is_the_one_that_counts():
    model = ep.convert(plain_net())
    new = nn.Linear(8, 7)
    model.connections[0].module[0] = new
    assert gradients(model)["connections.0.module.0.weight"].norm() > 0
    assert model.connections[0].tensors()[0] is new.weight
    model.connections[0].module[1] = nn.LayerNorm(7)
    with pytest.raises(ValueError, match="LayerNorm between neurons is smooth"):
        model(torch.rand(4, 6))


def test_apply_reaches_every_module():
    seen = []
    model = ep.convert(plain_net())
    assert model.apply(seen.append) is model
    assert set(seen) == set(model.modules())


def test_a_converted_network_is_not_converted_again():
    with pytest.raises(ValueError, match=r"ConvergentNetwork already.*model\.variant"):
        ep.convert(ep.convert(plain_net()))


SETTINGS = {
    "dilation": (2, {"dilation": (2, 2), "padding": (2, 2)}),
    "padding mode": (2, {"padding_mode": "circular"}),
    "bias": (2, {"bias": None}),
    "stride": (2, {"stride": (1, 2), "padding": (1, 4)}),
    "groups": (2, {"groups": 2, "weight": nn.Parameter(torch.rand(4, 2, 3, 3))}),
    "slope": (4, {"negative_slope": -0.9}),
    "epsilon": (5, {"eps": 10.0}),
    "kernel": (7, {"kernel_size": 3, "stride": 1, "padding": 1}),
}


@pytest.mark.parametrize(("place", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_of_a_module_changed_later_counts_as_if_changed_before(place, settings):
    x = torch.rand(5, 1, 8, 8)

    def change(net):
        for name, value in settings.items():
            setattr(net[place], name, value)

    net, other = convolutions().eval(), convolutions().eval()
    model = ep.convert(net, encoder="graded")
    unchanged = model(x)
    change(net)
    change(other)
    found, expected = model(x), ep.convert(other, encoder="graded")(x)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, unchanged)


def nested_net():
    torch.manual_seed(0)
    leaky = {"beta": 0.5, "init_hidden": True}
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 8)), snn.Leaky(**leaky), nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 5))),
        *(snn.Leaky(**leaky), nn.Sequential(nn.Linear(5, 3))),
    )


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_hook_on_a_sequence_counts_before_the_conversion_and_is_refused_after_it(place):
    net, x = nested_net(), torch.rand(4, 6)
    model = ep.convert(net, encoder="graded")
    net[place].register_forward_hook(lambda module, args, out: 0 * out)
    with pytest.raises(ValueError, match=rf"module '{place}' \(Sequential\) of the original was given a hook"):
        model(x)
    silent = nested_net()
    for parameter in silent[place][-1].parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(ep.convert(net, encoder="graded")(x), ep.convert(silent, encoder="graded")(x))


def test_a_hook_on_what_a_connection_calls_counts():
    net, doubled = nested_net(), nested_net()
    with torch.no_grad():
        for parameter in doubled[2][1].parameters():
            parameter *= 2
    model = ep.convert(net, encoder="graded")
    model.connections[0].module.register_forward_hook(lambda module, args, out: 2 * out)
    expected = gradients(ep.convert(doubled, encoder="graded"))
    for name, gradient in gradients(model).items():
        factor = 2 if name.startswith("connections.0.module.1") else 1
        torch.testing.assert_close(gradient, factor * expected[name])


def hook(module):
    module.register_forward_hook(lambda *_: None)


def hook_before(module):
    module.register_forward_pre_hook(lambda *_: None)


def hook_backward(module):
    module.register_full_backward_hook(lambda *_: None)


def patch(module):
    module.forward = lambda *args: type(module).forward(module, *args)


@pytest.mark.parametrize("change", [hook, hook_before, hook_backward, patch])
@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda net, model: net, "the model of the original was given a hook"),
        (lambda net, model: net[1], r"module '1' \(Leaky\) of the original was given a hook"),
        (lambda net, model: model.layers[1], r"layers\[1\] has a hook .*never calls its layers; remove it"),
        (lambda net, model: model.connections[0], r"connections\[0\] has a hook .*never calls its connections"),
        (lambda net, model: net[3], "a ReLU between neurons has a (hook|backward hook)"),
        (lambda net, model: net[4], "a BatchNorm1d between neurons has a (hook|backward)|a FixedNormalization"),
        (lambda net, model: net[5], "a Dropout between neurons has a (hook|backward)|a SharedDropout"),
    ],
    ids=["original", "neuron", "layer", "connection", "piecewise linear", "normalization", "dropout"],
)
def test_a_hook_that_would_not_be_called_is_refused(find, message, change):
    net = plain_net()
    net.insert(4, nn.BatchNorm1d(7))
    net.insert(5, nn.Dropout())
    model = ep.convert(net)
    model(torch.rand(4, 6))
    change(find(net, model))
    with pytest.raises(ValueError, match=message):
        model(torch.rand(4, 6))


def test_backward_hooks_later():
    net, called = plain_net(), []
    model = ep.convert(net)
    for place in (0, 6):
        net[place].register_full_backward_hook(lambda module, *_: called.append(module))
    gradients(model)
    assert set(called) == {net[0], net[6]}
    handle = net[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="a Linear between neurons has a backward hook"):
        model(torch.rand(4, 6))
    handle.remove()
    net[2].forward = lambda x: F.linear(x, 3 * net[2].weight, net[2].bias)
    other = plain_net()
    with torch.no_grad():
        other[2].weight *= 3
    torch.testing.assert_close(model(torch.ones(4, 6)), ep.convert(other)(torch.ones(4, 6)))


@pytest.mark.parametrize("p", [0.0, 0.9])
def test_a_dropouts_probability_and_mode_are_those_of_the_moment(p):
    x = torch.rand(5, 1, 8, 8)
    net, other = convolutions(), convolutions()
    model = ep.convert(net, encoder="graded")
    net[6].p = other[6].p = p
    expected = ep.convert(other, encoder="graded")
    for training in (True, False):
        for module in (net[6], other[6]):
            module.train(training)
        torch.manual_seed(3)
        found = model(x)
        torch.manual_seed(3)
        torch.testing.assert_close(found, expected(x))
    assert f"p={p}" in repr(model)


def shift(module):
    module.bias = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "padding_mode", "circular"),
        lambda module: setattr(module, "weight", nn.Parameter(torch.ones(2, 2, 3, 3))),
        shift,
        lambda module: module.register_forward_hook(lambda _, args, out: 2 * out),
        lambda module: torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled()),
    ],
    ids=["settings", "weight", "bias", "hook", "parametrized"],
)
def test_a_module_after_a_sum_is_followed_in_all_its_parts(change, bias):
    net, other, x = Twice(), Twice(), torch.rand(4, 1, 8, 8)
    if not bias:
        net.between.bias = other.between.bias = None
    model = ep.convert(net, encoder="graded")
    alone = copy.deepcopy(model)
    unchanged = model(x)
    change(net.between)
    change(other.between)
    expected = ep.convert(other, encoder="graded")(x)
    torch.testing.assert_close(model(x), expected)
    assert not torch.equal(expected, unchanged)
    torch.testing.assert_close(alone(x), unchanged)
    change(alone.connections[0].module[-1])
    torch.testing.assert_close(alone(x), expected)
