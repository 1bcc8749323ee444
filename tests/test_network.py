"""The door: what a network refuses, before any relaxation; its settings, and its copies."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, by_hand, convolutional, perceptron
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


def test_what_the_readout_does_not_take():
    """A length that only the readout notices, other layers read, and weights of several types: both ways in."""
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    for change, message in (
        (lambda m: setattr(m, "read", (0,)), r"input of shape \[3, 12\], layer 0 of the shape \[3, \d+\]: mat1 and"),
        (
            lambda m: setattr(m, "readout", nn.Sequential(m.readout, nn.Linear(3, 3).double())),
            "the readout has weights of several types",
        ),
    ):
        model, _ = perceptron()
        change(model)
        for call in (lambda m=model: m(x), lambda m=model: m.nudged_phase(x, y, F.cross_entropy)):
            with pytest.raises(ValueError, match=message):
                call()


def test_no_memory_is_no_misfit():
    """Neither of the input nor of what the readout sees."""

    class Full(nn.Module):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes")

    for part in ("stem", "readout"):
        model, x = perceptron()
        setattr(model, part, Full())
        with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
            model(x)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        *(
            case
            for rule in (ep.EquilibriumPropagation, ep.FullPhaseEP)
            for case in (
                *((lambda b=b, rule=rule: rule(b), ValueError) for b in (0.0, -1.0, NAN, float("inf"))),
                (lambda rule=rule: rule(True), TypeError),
                (lambda rule=rule: rule(steps=0), ValueError),
                (lambda rule=rule: rule(steps=2.5), TypeError),
                (lambda rule=rule: rule(nudging="both"), ValueError),
            )
        ),
        (lambda: ep.ImplicitDifferentiation(tolerance=0.0), ValueError),
        (lambda: ep.ImplicitDifferentiation(max_steps=0), ValueError),
        (lambda: ep.AdaptiveDelta("each"), ValueError),
        *((lambda g=g: by_hand([(0, 1)], (3, 3), feedback=g), ValueError) for g in (0.0, 1.5, NAN, [0.1, 0.1])),
        (lambda: by_hand([(0, 1)], (3, 3), observe="spikes"), ValueError),
        (lambda: by_hand([(0, 1)], (3, 3), encoder="predictive"), ValueError),
        (lambda: by_hand([(0, 1)], (3, 3), time_varying=1), TypeError),
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
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer()], [], driven=(0, 0)), ValueError),
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer()], [], read=(1,)), ValueError),
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer()], [], read=()), ValueError),
        (lambda: ep.ConvergentNetwork(nn.Linear(2, 2), [ep.Layer()], [nn.Linear(2, 2)]), TypeError),
    ],
)
def test_settings(make, error):
    with pytest.raises(error):
        make()


def test_attributes_are_checked_when_set():
    model, _ = perceptron()
    with pytest.raises(TypeError, match="EquilibriumPropagation"):
        model.estimator = ep.BackpropThroughTime  # the class, not an instance
    with pytest.raises(TypeError, match="Relaxation"):
        model.relaxation = 20
    with pytest.raises(TypeError, match="encoder"):
        model.encoder = ep.Graded
    with pytest.raises(ValueError, match="feedback has 3 values; expected one number, or 1"):
        model.feedback = (0.1, 0.1, 0.1)
    assert model.encoder == ep.Graded()  # what is refused changes nothing


def test_settings_read_back_what_was_given():
    given = {
        "encoder": ep.AdaptiveDelta("power_of_two"),
        "observe": "membrane",
        "feedback": (0.1, 0.2),
        "relaxation": ep.Relaxation(7),
        "estimator": ep.FullPhaseEP(steps=3),
        "time_varying": True,
    }
    model, _ = by_hand([(0, 1), (1, 2)], **given)
    for name, value in given.items():
        assert getattr(model, name) == value
    assert by_hand([(0, 1)], (3, 3), feedback=[0.25])[0].feedback == (0.25,)
    plain = model.settings.plain()
    assert plain.keys() == given.keys()
    assert all(isinstance(value, (str, float, bool, list)) for value in plain.values())


def test_settings_where_none_are_given():
    model = ep.ConvergentNetwork(nn.Linear(3, 3), [ep.Layer()], [])
    assert model.encoder == ep.AdaptiveDelta()
    assert model.observe == "trace"
    assert model.feedback == 0.02
    assert model.estimator == ep.EquilibriumPropagation()
    assert model.relaxation == ep.Relaxation()
    assert model.time_varying is False


def test_threshold_must_fit_the_layer():
    model = ep.convert(nn.Sequential(nn.Linear(4, 3), ep.ConvergentLeaky(threshold=torch.ones(5)), nn.Linear(3, 2)))
    with pytest.raises((ValueError, RuntimeError), match=r"threshold|broadcast"):
        model(torch.rand(2, 4))


def test_a_bare_callable_has_no_energy():
    model = ep.convert(nn.Sequential(nn.Linear(4, 3), ep.ConvergentLeaky(activation=torch.sigmoid), nn.Linear(3, 2)))
    model(torch.rand(2, 4)).sum().backward()
    with pytest.raises(ValueError, match="no potential"):
        model.energy([torch.rand(2, 3)], torch.rand(2, 4))


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


@pytest.mark.parametrize("hidden", [1, 2, 3, 4])
def test_feedback_where_none_is_asked_for(hidden):
    """One number for networks of any depth: weak enough for weights that have grown in training."""
    layers = [ep.Layer() for _ in range(hidden)]
    connections = [ep.Connection(nn.Linear(3, 3), l, l + 1) for l in range(hidden - 1)]
    model = ep.ConvergentNetwork(nn.Linear(3, 3), layers, connections, None)
    assert model.feedback == 0.02
    assert model.system(torch.rand(1, 3)).scales == pytest.approx([50.0**l for l in reversed(range(hidden))])


class Drives(nn.Module):
    """As many drives as there are modules."""

    def __init__(self, *sizes):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(4, size) for size in sizes)

    def forward(self, x):
        return tuple(m(x) for m in self.maps)


@pytest.mark.parametrize(
    ("stem", "driven", "message"),
    [
        (Drives(3), (0, 1), "the stem gives 1 drives; expected 2, one a driven layer"),
        (Drives(3, 3, 3), (0, 1), "the stem gives 3 drives; expected 2"),
        (Drives(3, 3), (0,), "the stem gives 2 drives; expected 1"),
        (nn.Linear(4, 3), (0, 1), "the stem gives 1 drives; expected 2"),
        (Drives(3, 5), (0, 1), r"connection 0 -> 1 gives the shape \[3\]; expected \[5\]"),
    ],
)
def test_drives_of_the_wrong_number_or_shape(stem, driven, message):
    connections = [ep.Connection(nn.Linear(3, 3), 0, 1)]
    model = ep.ConvergentNetwork(stem, [ep.Layer(), ep.Layer()], connections, driven=driven)
    with pytest.raises(ValueError, match=message):
        model(torch.rand(2, 4))


def test_a_tuple_of_one_drive_is_one_drive():
    model = ep.ConvergentNetwork(Drives(3), [ep.Layer()], [])
    assert model(torch.rand(2, 4)).shape == (2, 3)


def test_without_a_readout_the_states_are_the_output():
    model, x = PROBLEMS["several_read"]()
    plain = ep.ConvergentNetwork(
        model.stem, list(model.layers), list(model.connections), read=(0, 2), encoder="graded", feedback=0.3
    )
    first, last = plain(x)
    e = plain.free_phase(x)
    assert torch.equal(first, e.traces[0])
    assert torch.equal(last, e.traces[2])
    assert torch.equal(plain.variant(observe="membrane")(x)[0], e.states[0])


def tanh_network(**settings):
    layers = [ep.Layer(activation=torch.tanh) for _ in range(2)]
    return ep.ConvergentNetwork(nn.Linear(4, 3), layers, [ep.Connection(nn.Linear(3, 3), 0, 1)], **settings)


@pytest.mark.parametrize("encoder", ["sigma_delta", "predictive_sigma_delta", "bernoulli"])
def test_binary_spikes_cannot_tell_negative_states(encoder):
    """The refusal names the layer and ways out, and each of them works."""
    with pytest.raises(ValueError, match=r'layer 0 may be negative \(down to -1\).*"adaptive_delta" or "graded"'):
        tanh_network(encoder=encoder)
    x = torch.rand(2, 4)
    for fit in ("adaptive_delta", "graded"):
        model = tanh_network(encoder=fit)
        with torch.no_grad():
            model.stem.bias.fill_(-1.0)
        states = model.free_phase(x).states
        assert states[0].min() < -0.1
        model(x).sum().backward()
        with pytest.raises(ValueError, match="binary spikes cannot tell"):
            model.encoder = encoder
        assert model.encoder != encoder
    # Or an activation of states of 0 or more.
    layers = [ep.Layer(activation=torch.sigmoid) for _ in range(2)]
    ep.ConvergentNetwork(nn.Linear(4, 3), layers, [ep.Connection(nn.Linear(3, 3), 0, 1)], encoder=encoder)(x)


def pooled(**settings):
    connection = ep.Connection(nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)), 0, 1)
    layers = [ep.Layer(), ep.Layer(activation=settings.pop("activation", "hard_sigmoid"))]
    return ep.ConvergentNetwork(nn.Conv2d(1, 2, 3), layers, [connection], **settings)


def test_max_pooling_and_full_phases_of_spikes_warn():
    """By default nothing warns; the way out that the warning names is the default."""
    match = r"max pooling before layer 1 and full phases of spikes.*EquilibriumPropagation\(\)"
    for encoder in ("adaptive_delta", "predictive_sigma_delta"):
        with pytest.warns(UserWarning, match=match):
            pooled(estimator=ep.FullPhaseEP(), encoder=encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = pooled()
        pooled(estimator=ep.FullPhaseEP(), encoder="graded")
        model(torch.rand(2, 1, 8, 8)).sum().backward()
    with pytest.warns(UserWarning, match=match):
        model.estimator = ep.FullPhaseEP()
    with pytest.warns(UserWarning, match="and the network never settle"):
        pooled(activation=torch.tanh)


@pytest.mark.parametrize("training", [True, False])
def test_a_variant_shares_everything_but_its_settings(training):
    model, x = convolutional()
    model.train(training)
    before = model.settings
    output = model(x)
    changes = {
        "encoder": ep.AdaptiveDelta(),
        "observe": "membrane",
        "feedback": 0.1,
        "relaxation": ep.Relaxation(3),
        "estimator": ep.BackpropThroughTime(),
    }
    other = model.variant(**changes)
    for name, value in changes.items():
        assert getattr(other, name) == value
    assert other.time_varying == model.time_varying
    assert other.training is training
    assert all(m.training is training for m in other.modules() if m not in (other.layers, other.connections))
    parameters = dict(model.named_parameters())
    assert dict(other.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in other.named_parameters())
    assert other.state_dict().keys() == model.state_dict().keys()
    # The original is as it was, and a variant of a variant is it again.
    assert model.settings == before
    other(x).sum().backward()
    assert torch.equal(model(x), output)
    back = other.variant(**{name: getattr(before, name) for name in changes})
    assert torch.equal(back(x), output)
    assert back.settings == before


def test_a_variant_of_a_network_of_several_inputs_and_outputs():
    for name in ("several_driven", "several_read", "lateral"):
        model, x = PROBLEMS[name]()
        assert torch.equal(model.variant(relaxation=ep.Relaxation(400))(x), model(x))


def test_a_variant_in_evaluation_finds_no_event_weights():
    model, x = by_hand([(0, 1)], (5, 4))
    other = model.eval().variant(encoder=ep.AdaptiveDelta("fixed"))
    with pytest.raises(ValueError, match="have not been found"):
        other(x)
    other.train()(x)
    assert not model.training


def test_variants_of_what_there_is_not_are_refused():
    model, _ = perceptron()
    for unknown in ({"gradient": ep.BackpropThroughTime()}, {"readout": nn.Identity()}, {"steps": 3}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            model.variant(**unknown)
    with pytest.raises(ValueError, match="expected one of 'trace', 'membrane'"):
        model.variant(observe="spikes")


# (Norse's recurrent weight has a hook that takes a neuron's gradient from itself away, and PyTorch copies no hooks.)
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p != "norse_recurrent"])
def test_copies_are_networks_of_their_own(problem):
    """Deep copies and pickles give the same outputs and gradients, and share nothing."""
    model, x = PROBLEMS[problem]()
    model = model.variant(relaxation=ep.Relaxation(5), estimator=ep.EquilibriumPropagation(0.1, 3))
    y = torch.arange(len(x)) % 5

    def outcome(network):
        output = network(x)
        gradients = torch.autograd.grad(F.cross_entropy(output, y), list(network.parameters()))
        return [output, *gradients]

    expected = outcome(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.settings == model.settings
        assert all(torch.equal(a, b) for a, b in zip(outcome(other), expected, strict=True))
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.1)
    assert all(torch.equal(a, b) for a, b in zip(outcome(model), expected, strict=True))


def test_functions_are_applied_to_all_modules():
    model, x = convolutional()
    seen = []
    assert model.apply(lambda m: seen.append(type(m))) is model
    assert {ep.ConvergentNetwork, ep.Layer, ep.Connection, nn.Conv2d} <= set(seen)

    def zero(m):
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(m.weight)
            nn.init.zeros_(m.bias)

    assert model.apply(zero)(x).count_nonzero() == 0  # readout included


def test_a_change_of_the_weights_between_forward_and_backward_is_an_error():
    model, x = perceptron()
    loss = model(x).sum()
    with torch.no_grad():
        model.connections[0].module[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_learned_threshold_must_stay_positive():
    model, x = perceptron()
    with torch.no_grad():
        model.layers[1].threshold.fill_(-0.1)
    with pytest.raises(ValueError, match="learnable threshold has fallen to 0 or below"):
        model(x)


@pytest.mark.parametrize("encoder", ["graded", "adaptive_delta"])
def test_a_readout_that_writes_into_its_argument_changes_no_equilibrium(encoder):
    readout = nn.Sequential(nn.Hardtanh(-0.1, 0.3, inplace=True), nn.Linear(8, 3))
    for estimator in (ep.BackpropThroughTime(), ep.EquilibriumPropagation(), ep.ImplicitDifferentiation()):
        model = ep.ConvergentNetwork(nn.Linear(6, 8), [ep.Layer()], [], readout, encoder=encoder, estimator=estimator)
        x = torch.rand(4, 6)
        _, found = model(x, return_equilibrium=True)
        expected = model.free_phase(x)
        assert torch.equal(found.states[0], expected.states[0])
        assert torch.equal(found.residual, expected.residual)
