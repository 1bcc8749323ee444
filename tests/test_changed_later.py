"""What is changed after the conversion works, or is refused."""

import copy
import pickle

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import ep_plugin as ep


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 8), snn.Leaky(beta=0.5, init_hidden=True)),
        *(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(5, 3)),
    )


def gradients(model):
    torch.manual_seed(1)
    x, y = torch.rand(4, 6), torch.randint(3, (4,))
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


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


def test_a_module_replaced_in_the_original_is_refused():
    net = plain_net()
    model = ep.convert(net)
    alone = copy.deepcopy(model)
    net[4] = nn.Linear(7, 5)
    for own in (model, model.variant(encoder="graded")):
        with pytest.raises(ValueError, match=r"module '4' of the original was replaced .* convert the model again"):
            own(torch.rand(4, 6))
    for other in (alone, pickle.loads(pickle.dumps(model)), ep.convert(net)):
        other(torch.rand(4, 6))


def test_parameters_replaced_in_the_original_count():
    net = plain_net()
    model = ep.convert(net)
    net[4].weight = nn.Parameter(torch.zeros(5, 7))
    assert not model.connections[0].tensors()[2].any()


def test_apply_reaches_every_module():
    seen = []
    model = ep.convert(plain_net())
    assert model.apply(seen.append) is model
    assert set(seen) == set(model.modules())


@pytest.mark.parametrize(
    ("name", "meant"), [("encodr", "encoder"), ("feedbak", "feedback"), ("estimater", "estimator")]
)
def test_a_misspelled_setting_is_refused(name, meant):
    model = ep.convert(plain_net())
    with pytest.raises(AttributeError, match=f"no setting '{name}'; expected '{meant}'"):
        setattr(model, name, 1)
    model.note = "an attribute of the user's own"
    assert model.note


@pytest.mark.parametrize("training", [True, False])
def test_a_net_starts_in_the_mode_of_its_original(training):
    net = plain_net()
    net.insert(3, nn.Dropout())
    model = ep.convert(net.train(training))
    assert {m.training for m in model.modules()} == {training}
    mixed = plain_net().eval()
    mixed[0].train()
    model = ep.convert(mixed)
    assert model.stem[0].training
    assert not model.training


def test_a_converted_network_is_not_converted_again():
    with pytest.raises(ValueError, match=r"ConvergentNetwork already.*model\.variant"):
        ep.convert(ep.convert(plain_net()))


SCALARS = [np.float64, np.float32, torch.tensor, lambda n: np.asarray(n)]


@pytest.mark.parametrize("scalar", SCALARS, ids=["float64", "float32", "tensor", "array"])
def test_scalars_of_numpy_and_pytorch_are_numbers(scalar):
    number, whole = scalar(0.5), np.int64(3) if scalar in (np.float32, np.float64) else scalar(3)
    for made, expected in (
        (ep.Relaxation(whole, step_size=number), ep.Relaxation(3, step_size=0.5)),
        (ep.EquilibriumPropagation(number, whole), ep.EquilibriumPropagation(0.5, 3)),
        (ep.FullPhaseEP(number, whole), ep.FullPhaseEP(0.5, 3)),
        (ep.ImplicitDifferentiation(number, whole), ep.ImplicitDifferentiation(0.5, 3)),
        (ep.AdaptiveDelta(digits=whole), ep.AdaptiveDelta(digits=3)),
        (ep.PredictiveSigmaDelta(number), ep.PredictiveSigmaDelta(0.5)),
    ):
        assert repr(made) == repr(expected)
    assert ep.convert(plain_net(), feedback=number).feedback == 0.5
    with pytest.raises(TypeError, match="expected a whole number"):
        ep.Relaxation(number)
    with pytest.raises(TypeError, match="expected a number"):
        ep.EquilibriumPropagation(np.array([0.1, 0.2]))


def test_an_input_of_another_type_or_with_a_bad_sample_is_named():
    model = ep.convert(plain_net())
    with pytest.raises(
        ValueError, match=r"the input has the type torch\.float64 and the network's weights torch\.float32"
    ):
        model(torch.rand(4, 6).double())
    model(torch.rand(4, 6).double().to(torch.float32))
    x = torch.rand(4, 6)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values in sample 2 of 4 \(1 in all\)"):
        model(x)


def swap_threshold(net):
    net[1].threshold = torch.tensor(0.3)


def swap_parameter(net):
    net[1].threshold = nn.Parameter(torch.tensor(9.0))


def load_by_assignment(net):
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(saved | {"1.threshold": torch.tensor(1.5)}, assign=True)


def swap_neuron(net):
    net[1] = snn.Leaky(beta=0.5, threshold=3.0, init_hidden=True)


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def parametrize_threshold(net):
    torch.nn.utils.parametrize.register_parametrization(net[1], "threshold", Doubled())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_threshold, r"threshold of module '1' \(Leaky\) of the original has changed .*from 1 to 0.3.*layers\[0\]"),
        (swap_parameter, r"threshold of module '1' \(Leaky\) of the original has changed .*from 1 to 9"),
        (load_by_assignment, r"threshold of module '1' \(Leaky\) of the original has changed .*from 1 to 1.5"),
        (swap_neuron, "module '1' of the original was replaced"),
        (parametrize_threshold, r"module '1' \(ParametrizedLeaky\) of the original was a Leaky"),
    ],
    ids=["tensor", "parameter", "load_state_dict", "neuron", "parametrized"],
)
def test_a_threshold_replaced_in_the_original_is_refused(change, message, learned):
    net = plain_net()
    net[1] = snn.Leaky(beta=0.5, threshold=1.0, learn_threshold=learned, init_hidden=True)
    model = ep.convert(net)
    model(torch.rand(4, 6))
    if learned and change is not parametrize_threshold:
        message = r"'1(\.threshold)?' of the original was replaced"
        if change is swap_threshold:
            del net[1].threshold
    change(net)
    for run in (model, model.variant(encoder="graded"), model.free_phase):
        with pytest.raises(ValueError, match=message):
            run(torch.rand(4, 6))


def test_what_a_layer_has_of_its_neuron_may_be_written_and_set():
    net, x = plain_net(), torch.rand(4, 6)
    model = ep.convert(net, encoder="graded")
    net[1].threshold.fill_(0.7)
    torch.testing.assert_close(model(x), ep.convert(net, encoder="graded")(x))
    net[1].threshold = torch.tensor(0.3)
    model.layers[0].threshold = torch.tensor(0.3)
    torch.testing.assert_close(model(x), ep.convert(net, encoder="graded")(x))
    net[1].threshold.fill_(0.4)
    with pytest.raises(ValueError, match=r"threshold of module '1' .* has changed"):
        model(x)
    model.layers[0].threshold = torch.tensor(2.0)
    model(x)
    net[1](x[:, :1])  # its own state is none of the network's business
    model(x)


def test_a_change_of_type_changes_no_threshold():
    net, x = plain_net(), torch.rand(4, 6)
    net[1].threshold.fill_(0.3)
    model = ep.convert(net)
    for module in (net, model):
        module.double()
        assert model(x.double()).dtype == torch.float64
        module.float()
        model(x)
    net[1].threshold.fill_(2.0)
    with pytest.raises(ValueError, match=r"threshold of module '1' .* has changed"):
        model(x)


def convolutions():
    torch.manual_seed(0)
    leaky = {"beta": 0.5, "init_hidden": True}
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), snn.Leaky(**leaky), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)),
        *(nn.LeakyReLU(-0.1, inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        *(nn.AvgPool2d(1), snn.Leaky(**leaky), nn.Flatten(), nn.Linear(36, 3)),
    )
    nn.init.constant_(net[2].bias, -0.5)
    return net


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


@pytest.mark.parametrize("shape", [(), (8,)])
@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_threshold_that_is_not_above_zero_is_refused(value, shape):
    net = plain_net()
    net[1] = snn.Leaky(beta=0.5, threshold=torch.ones(shape), init_hidden=True)
    model = ep.convert(net)
    model(torch.rand(4, 6))
    model.layers[0].threshold.view(-1)[-1:].fill_(value)
    for run in (model, model.free_phase):
        with pytest.raises(ValueError, match=f"threshold .* {value:g}.*expected numbers above 0|has the threshold"):
            run(torch.rand(4, 6))
    by_hand = ep.ConvergentNetwork(nn.Linear(6, 8), [ep.Layer(torch.ones(shape))], [])
    by_hand.layers[0].threshold.data.view(-1)[-1:].fill_(value)
    with pytest.raises(ValueError, match=f"the threshold of layer 0 is {value:g}, where a neuron has no equilibrium"):
        by_hand(torch.rand(4, 6))


def test_a_device_is_asked_for_a_threshold_only_after_a_change(monkeypatch):
    """Each question waits for the device."""
    layer = ep.Layer(torch.ones(4))
    threshold = layer.threshold
    asked = []

    class OnDevice:
        device = torch.device("cuda")

        def __gt__(self, other):
            asked.append(1)
            return threshold > other

        def is_inference(self):
            return False

        @property
        def _version(self):
            return threshold._version

    layer._buffers["threshold"] = OnDevice()
    assert layer.has_positive_threshold()
    assert layer.has_positive_threshold()
    assert len(asked) == 1
    threshold[1] = -1.0
    assert not layer.has_positive_threshold()
    assert not layer.has_positive_threshold()


class Twice(nn.Module):
    """One convolution of two signals: of the second the network has the linear part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        self.between, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(72, 3)
        self.blocks = nn.ModuleList([snn.Leaky(beta=0.5), snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)])

    def forward(self, x):
        first, _ = self.blocks[0](self.a(x), None)
        second, _ = self.blocks[1](self.b(x), None)
        spikes, _ = self.blocks[2](self.between(first + second), None)
        return self.out(spikes.flatten(1))


def extend(net):
    net.append(nn.Linear(3, 2))


def pool_more(net):
    net[3].kernel_size = 1


def average_pooled():
    return ep.convert(net := convolutions(), max_pooling="average"), net, torch.rand(5, 1, 8, 8)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (lambda: (ep.convert(net := plain_net()), net, torch.rand(4, 6)), extend, "'7' of the original was added"),
        (average_pooled, pool_more, r"module '3' \(MaxPool2d\) of the original has other settings"),
        (
            lambda: (ep.convert(net := Twice()), net, torch.rand(4, 1, 8, 8)),
            lambda net: net.blocks.append(nn.Identity()),
            "module 'blocks.3' of the original was added",
        ),
        (
            lambda: (ep.convert(net := Twice()), net, torch.rand(4, 1, 8, 8)),
            lambda net: setattr(net, "forward", lambda x: net.out(x)),
            "the model of the original was given a hook or a forward of its own",
        ),
    ],
    ids=["append", "average pooling", "module list", "forward"],
)
def test_what_the_network_does_not_have_of_the_original_is_watched(make, change, message):
    model, net, x = make()
    model(x)
    change(net)
    with pytest.raises(ValueError, match=message):
        model(x)


def test_what_does_not_change_the_original_is_none_of_the_networks_business():
    net, x = Twice(), torch.rand(4, 1, 8, 8)
    model = ep.convert(net)
    net.note, net.loss, net.converted = "a note", nn.MSELoss(), model
    model(x)


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


def fixed_events():
    torch.manual_seed(0)
    net = plain_net()
    net.insert(3, nn.Dropout())
    model = ep.convert(net, encoder=ep.AdaptiveDelta(event_weight="fixed"))
    for _ in range(3):
        gradients(model)
    return net, model


def moves(model):
    """Whether a batch moves the constants of fixed events."""
    before = model.event_weights.values.clone()
    model(5 * torch.rand(4, 6))
    return not torch.equal(model.event_weights.values, before)


def test_the_originals_mode_reaches_the_network():
    net, model = fixed_events()
    for mode in (False, True, False):
        net.train(mode)
        assert moves(model) is mode
        assert {m.training for m in model.modules()} == {mode}
    model.train()
    assert moves(model)
    model.eval()
    net.train()  # which never was in evaluation itself
    assert moves(model)


def test_a_variants_mode_is_that_of_its_network():
    _, model = fixed_events()
    by_hand = ep.ConvergentNetwork(nn.Linear(6, 8), [ep.Layer()], [])
    for own in (model, copy.deepcopy(model), by_hand):
        other = own.eval().variant(observe="membrane")
        for switched, follows in ((own, other), (other, own)):
            for mode in (True, False):
                switched.train(mode)
                follows(torch.rand(4, 6))
                assert {m.training for m in follows.modules()} == {mode}
    model.eval()
    assert not moves(model.variant(observe="membrane"))


def test_mixed_modes_stay():
    net, model = fixed_events()
    model.train()
    net[3].eval()
    assert moves(model)
    assert not net[3].training
    assert model.training
    model.event_weights.eval()
    assert not moves(model)
    net.eval()
    net[3].train()  # dropout as a measure of doubt
    model.eval()
    model.connections[0].module[1].train()
    assert not moves(model)
    assert net[3].training
    assert not model.training


def append_layer(model):
    model.layers.append(model.layers[0])


def delete(name, place):
    def change(model):
        del getattr(model, name)[place]

    return change


def put(owner, name, value):
    return lambda model: setattr(owner(model), name, value)


def itself(model):
    return model


def first_layer(model):
    return model.layers[0]


def first_connection(model):
    return model.connections[0]


GRAPHS = {
    "a layer gone": (delete("layers", 0), ValueError, r"read is \(1,\); expected one or more different layers of 0..0"),
    "a connection gone": (delete("connections", 0), ValueError, "no connection leads from the driven layers"),
    "a layer more": (append_layer, ValueError, r"no connection leads .* to layer 2"),
    "driven": (put(itself, "driven", (1,)), ValueError, "no connection leads .* to layer 0"),
    "driven number": (put(itself, "driven", 1), TypeError, r"driven is 1; expected the numbers of"),
    "read": (put(itself, "read", (4,)), ValueError, r"read is \(4,\)"),
    "no layer": (lambda model: model.layers.__setitem__(0, nn.Identity()), TypeError, r"layers\[0\] is Identity"),
    "no list": (put(itself, "layers", None), TypeError, "the layers are None; expected a list"),
    "stem": (put(itself, "stem", None), TypeError, r"the stem is None; expected an nn\.Module"),
    "levels": (put(itself, "levels", (0, 0)), AttributeError, r"set model\.layers\[i\]\.level"),
    "settings": (put(itself, "settings", 1), TypeError, "settings is 1; expected Settings"),
    "beginning": (put(itself, "relax", 1), AttributeError, "no setting 'relax'; expected 'relaxation'"),
    "of the estimator": (
        put(itself, "beta", 1),
        AttributeError,
        r"no setting 'beta'; set model\.estimator = EquilibriumPropagation\(beta=\.\.\.\)",
    ),
    "of a layer": (put(first_layer, "thresold", 2), AttributeError, "no attribute 'thresold'; expected 'threshold'"),
    "of a connection": (put(first_connection, "sorce", 2), AttributeError, "no attribute 'sorce'; expected 'source'"),
    "activation": (put(first_layer, "activation", "relu"), ValueError, "activation is 'relu'; expected one of"),
    "level": (put(first_layer, "level", "2"), TypeError, "level is '2'; expected a whole number"),
    "threshold": (put(first_layer, "threshold", -2.0), ValueError, "threshold is -2.0; expected a number above 0"),
    "source": (put(first_connection, "source", -1), ValueError, "source of a connection is -1; expected"),
    "source name": (put(first_connection, "source", "3"), TypeError, "source of a connection is '3'; expected a whole"),
    "far source": (put(first_connection, "source", 3), ValueError, "names a layer that is not there"),
    "module": (put(first_connection, "module", None), TypeError, "the module of a connection is None"),
}


@pytest.mark.parametrize(("change", "error", "message"), GRAPHS.values(), ids=GRAPHS)
def test_parts_of_a_network_that_do_not_fit_are_refused(change, error, message):
    model = ep.convert(plain_net())

    def run():
        change(model)
        model(torch.rand(4, 6))

    with pytest.raises(error, match=message):
        run()


def test_parts_of_a_network_that_fit_count():
    model, x = ep.convert(plain_net(), encoder="graded"), torch.rand(4, 6)
    model.readout = None
    assert model(x).shape == (4, 5)
    model.layers[0].threshold = 2
    assert model.layers[0].threshold.dtype == torch.float32
    model.layers[0].activation = "sigmoid"
    model.layers[1].level = np.int64(3)
    assert model.levels == (0, 3)
    model.layers[1].level = None
    model.read = [0]
    assert model(x).shape == (4, 8)
    model.layers.append(ep.Layer())
    model.connections.append(ep.Connection(nn.Linear(5, 2), 1, 2))
    assert [s.shape[1] for s in model.free_phase(x).states] == [8, 5, 2]
    model.note = model.layers[0].note = model.connections[0].note = "of the user's own"


@pytest.mark.parametrize("source", ["3", 0.5, -1, None])
def test_a_connection_has_whole_numbers(source):
    with pytest.raises((TypeError, ValueError), match=r"the source of a connection is .*expected a whole number"):
        ep.Connection(nn.Linear(2, 2), source, 1)


def test_types_that_do_not_go_together_are_named():
    model = ep.convert(plain_net())
    model.connections[0].module[2].half()
    message = r"0 -> 1 has weights of several types, 'module\.0\.weight' torch\.float32 and 'module\.2\.weight'"
    with pytest.raises(ValueError, match=message):
        model(torch.rand(4, 6))
    with pytest.raises(TypeError, match=r"the input is sparse .*x\.to_dense\(\)"):
        ep.convert(plain_net())(torch.rand(4, 6).to_sparse())
    net = plain_net()
    model = ep.convert(net)
    for part in net:
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.complex64)
    for run in (lambda: model(torch.rand(4, 6)), lambda: ep.convert(net)):
        with pytest.raises(TypeError, match="weights are complex"):
            run()
