"""What is changed in the original after the conversion counts, or is refused."""

import copy
import pickle

import pytest
import snntorch as snn
import torch
from changed_nets import Doubled, Twice, convolutions, gradients, plain_net
from torch import nn

import ep_plugin as ep


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


def swap_threshold(net):
    net[1].threshold = torch.tensor(0.3)


def swap_parameter(net):
    net[1].threshold = nn.Parameter(torch.tensor(9.0))


def load_by_assignment(net):
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(saved | {"1.threshold": torch.tensor(1.5)}, assign=True)


def swap_neuron(net):
    net[1] = snn.Leaky(beta=0.5, threshold=3.0, init_hidden=True)


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
