"""Parts of a network may be set later; those that do not fit are refused."""

import numpy as np
import pytest
import snntorch as snn
import torch
from changed_nets import plain_net
from torch import nn

import ep_plugin as ep


@pytest.mark.parametrize(
    ("name", "meant"), [("encodr", "encoder"), ("feedbak", "feedback"), ("estimater", "estimator")]
)
def test_a_misspelled_setting_is_refused(name, meant):
    model = ep.convert(plain_net())
    with pytest.raises(AttributeError, match=f"no setting '{name}'; expected '{meant}'"):
        setattr(model, name, 1)
    model.note = "an attribute of the user's own"
    assert model.note


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
        requires_grad = is_meta = False

        def min(self):
            return threshold.min()

        def __gt__(self, other):
            asked.append(1)
            return threshold > other

        def is_inference(self):
            return False

        @property
        def _version(self):
            return threshold._version

    layer._buffers["threshold"] = OnDevice()
    assert layer.not_positive() is None
    assert layer.not_positive() is None
    assert len(asked) == 1
    threshold[1] = -1.0
    assert layer.not_positive() == ("threshold", -1.0)
    assert layer.not_positive() == ("threshold", -1.0)


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
    "more to read": (
        put(itself, "read", (0, 1)),
        ValueError,
        r"read is \(0, 1\), and .* readout, Sequential.*, does not take 2 arguments; expected one argument per layer",
    ),
    "a readout of two": (put(itself, "readout", nn.Bilinear(8, 5, 3)), ValueError, r"Bilinear.* not take 1 argument;"),
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
    "of the layers": (put(itself, "activation", "relu6"), AttributeError, r"layers\[i\]\.activation = \.\.\."),
    "of convert": (put(itself, "max_pooling", "keep"), AttributeError, r"ep\.convert\(net, max_pooling=\.\.\.\)"),
    "of a variant": (lambda model: model.variant(steps=3), TypeError, "no setting 'steps'; expected one of encoder, "),
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
    model.read, model.readout = (0, 1), nn.Bilinear(8, 5, 3)
    assert model(x).shape == (4, 3)
    model.read, model.readout = (0,), None
    model.layers.append(ep.Layer())
    model.connections.append(ep.Connection(nn.Linear(5, 2), 1, 2))
    assert [s.shape[1] for s in model.free_phase(x).states] == [8, 5, 2]
    model.note = model.layers[0].note = model.connections[0].note = "of the user's own"


@pytest.mark.parametrize("source", ["3", 0.5, -1, None])
def test_a_connection_has_whole_numbers(source):
    with pytest.raises((TypeError, ValueError), match=r"the source of a connection is .*expected a whole number"):
        ep.Connection(nn.Linear(2, 2), source, 1)


@pytest.mark.parametrize("name", ["threshold", "gain"])
@pytest.mark.parametrize("value", ["a", None, [[1.0], [1.0, 2.0]], {}])
def test_a_layer_has_numbers(name, value):
    with pytest.raises(TypeError, match=rf"^{name} is .*; expected a number above 0, or a tensor"):
        ep.Layer(**{name: value})


def test_a_threshold_that_no_optimizer_would_know_is_refused():
    raw = nn.Parameter(torch.ones(3))
    for threshold in (raw.exp(), torch.tensor(0.7, requires_grad=True)):
        with pytest.raises(ValueError, match=r"threshold is a tensor that requires a gradient and is no nn\.Parameter"):
            ep.Layer(threshold)
        layer = ep.Layer()
        with pytest.raises(ValueError, match=r"expected nn\.Parameter"):
            layer.threshold = threshold


def test_a_number_is_written_into_a_learnable_threshold():
    layer = ep.Layer(nn.Parameter(torch.ones(3)))
    own = layer.threshold
    layer.threshold = 0.25
    assert layer.threshold is own
    assert own.tolist() == [0.25] * 3
    with pytest.raises(ValueError, match="threshold is -1; expected a number above 0"):
        layer.threshold = -1


@pytest.mark.parametrize("first", [True, False], ids=["double, then converted", "converted, then double"])
def test_a_network_in_float64_has_thresholds_of_that_precision(first):
    def made():
        torch.manual_seed(0)
        parts = [(nn.Linear(8, 8), snn.Leaky(0.9, threshold=0.7, init_hidden=True)) for _ in range(3)]
        return nn.Sequential(*(m for pair in parts for m in pair), nn.Linear(8, 3))

    settled = {"encoder": "graded", "relaxation": ep.Relaxation(100, tolerance=1e-13)}
    model = ep.convert(made().double(), **settled) if first else ep.convert(made(), **settled).double()
    found = model.free_phase(torch.rand(4, 8, dtype=torch.float64))
    assert model.layers[0].threshold.dtype == torch.float64
    assert found.residual.max() < 1e-12
    assert bool(found.converged.all())


def test_a_threshold_in_float64_leaves_a_network_in_float32():
    threshold = torch.full((5,), 0.7, dtype=torch.float64)
    model = ep.convert(nn.Sequential(nn.Linear(4, 5), snn.Leaky(0.9, threshold=threshold, init_hidden=True)))
    assert model(torch.rand(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("value", [-1.0, 0.0, float("inf"), float("nan")])
def test_a_gain_that_is_not_above_zero_and_finite_is_refused(value):
    model = ep.ConvergentNetwork(nn.Linear(6, 8), [ep.Layer()], [], nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"gain is .*; expected finite numbers above 0"):
        model.layers[0].gain = torch.tensor(value)
    model.layers[0].gain = 2.0
    model.layers[0].gain.fill_(value)
    with pytest.raises((ValueError, FloatingPointError), match=r"the (gain|threshold) of layer 0"):
        model(torch.rand(2, 6))
