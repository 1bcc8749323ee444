"""The coder alone: while there is an error somebody speaks, and every step leaves less of it."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import ep_plugin as ep
from ep_plugin.dynamics.activations import ACTIVATIONS
from ep_plugin.dynamics.network_state import NetworkState

EPS, SMALLEST = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).tiny


@torch.no_grad()
def follow(signal, steps=12, event_weight="sample", digits=3):
    """The errors before and after every step, the events and their weights, for a signal that stays."""
    encoder = ep.AdaptiveDelta(event_weight, digits)
    state = encoder.start(signal, 0)
    errors, events, weights = [signal - state.trace], [], []
    for time in range(1, steps + 1):
        message = encoder.encode(signal, state, time, maximum=1.0)
        slots = torch.stack(message.slots())
        places = 3.0 ** torch.arange(digits - 1, -1, -1).view(-1, *[1] * signal.dim())
        assert torch.equal((slots * places).sum(0), message.sent)  # balanced ternary
        assert torch.equal(slots.abs().flatten(2).sum((0, 2)), message.spikes())
        events.append(slots.clone())
        weights.append(message.weight.clone())
        errors.append(signal - state.trace)
    return errors, events, weights


# A step of so many digits leaves 3^-digits of the largest error at most, and twice that where weights are rounded up to
# powers of two. (One digit alone may stand for more than the error: what is over counts from the other side.)
DIGITS = [1, 2, 3, 5]


def assert_closes_in(signal, digits, event_weight="sample"):
    share = 3.0**-digits * (1 if event_weight == "sample" else 2)
    errors, events, _ = follow(signal, event_weight=event_weight, digits=digits, steps=36 // digits)
    rounding = 4 * EPS * signal.abs().amax(1)  # of the trace itself
    for before, after, q in zip(errors, errors[1:], events, strict=False):
        most = before.abs().amax(1)
        assert (after.abs().amax(1) <= share * most * (1 + 16 * EPS) + rounding).all()
        assert ((q != 0).any(0).any(1) | (most < 100 * SMALLEST)).all()  # somebody speaks
        assert set(q.unique().tolist()) <= {-1.0, 0.0, 1.0}
        first = q.sum(0)[(q != 0).sum(0) == 1]  # a lone event closes the gap
        assert (first * before[(q != 0).sum(0) == 1] >= 0).all()
    return errors


LAYERS = {
    "one neuron": [[0.37]],
    "one negative neuron": [[-0.37]],
    "equal errors": [[0.3] * 50],
    "equal sizes, both signs": [[0.3, -0.3] * 25],
    "saturated": [[1.0] * 100],
    "one of a hundred": [[1.0, *[0.0] * 99]],
    "an outlier": [[100.0, *torch.linspace(-1, 1, 99).tolist()]],
    "many far below one": [[1.0, *[1e-3] * 1000]],
    "geometric": [[2.0**-k for k in range(40)]],
    "tiny": [[1e-30, -3e-31, 2e-32]],
    "one tiny neuron": [[1e-30]],
    "huge": [[1e30, -3e29, 2e28]],
    "half of the largest and no more": [[1.0, 0.5, 0.25, 0.625]],
    "unlike samples": [[1e-30, 2e-30], [1e30, 1e29], [0.0, 0.0], [0.5, -0.5]],
}


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_errors_close(layer, digits):
    """To a third of the largest with every digit, so below 1e-5 of the start after 35."""
    errors = assert_closes_in(torch.tensor(layer), digits)
    assert (errors[-1].abs().amax(1) <= 1e-5 * errors[0].abs().amax(1)).all()


signals = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(signals, st.integers(-28, 30), st.sampled_from(DIGITS))
@example([1.0, 0.5], 0, 1)
@example([1.0, 0.5001], 0, 3)
def test_errors_close_for_any_layer(values, exponent, digits):
    signal = (torch.tensor([values], dtype=torch.float64) * 10.0**exponent).float()
    assume(signal.abs().max() > 1e-30)  # 36 digits further down nothing underflows
    errors = assert_closes_in(signal, digits)
    assert errors[-1].abs().max() <= 1e-5 * errors[0].abs().max()


@settings(max_examples=150, deadline=None)
@given(signals, st.integers(-28, 30), st.sampled_from(DIGITS))
def test_powers_of_two(values, exponent, digits):
    """Weights are powers of two, somebody speaks, and the largest error still falls in every step."""
    signal = (torch.tensor([values], dtype=torch.float64) * 10.0**exponent).float()
    assume(signal.abs().max() > 1e-30)
    assert_closes_in(signal, digits, event_weight="power_of_two")
    errors, _, weights = follow(signal, event_weight="power_of_two", digits=digits)
    for before, weight in zip(errors, weights, strict=False):
        speaks = before.abs().amax(1) >= 1000 * SMALLEST
        mantissa, _ = torch.frexp(weight)
        assert (mantissa == 0.5)[speaks].all()


def test_no_error_no_event():
    errors, events, weights = follow(torch.zeros(3, 5), steps=2)
    assert all((t == 0).all() for t in (*errors, *events, *weights))


@pytest.mark.parametrize("event_weight", ["sample", "power_of_two"])
@pytest.mark.parametrize("shape", [(40,), (3, 7, 5)])
def test_a_sample_s_events_do_not_depend_on_its_batch(event_weight, shape):
    """Nor on how its layer lies in memory."""
    signal = torch.randn(9, *shape) * 10.0 ** torch.arange(-4, 5).view(9, *[1] * len(shape))
    together = follow(signal, event_weight=event_weight)[1]
    for i in range(9):
        alone = follow(signal[i : i + 1], event_weight=event_weight)[1]
        assert all(torch.equal(a[:, i], b[:, 0]) for a, b in zip(together, alone, strict=True))
    if len(shape) == 3:
        channels_last = follow(signal.contiguous(memory_format=torch.channels_last), event_weight=event_weight)[1]
        assert all(torch.equal(a, b) for a, b in zip(together, channels_last, strict=True))


def test_on_a_graph_the_quantizer_passes_the_gradient_straight_through():
    signal = torch.randn(4, 6, requires_grad=True)
    encoder = ep.AdaptiveDelta()
    state = encoder.start(signal.detach(), 0)
    for time in (1, 2, 3):
        encoder.encode(signal, state, time, maximum=1.0)
    weight = torch.randn(4, 6)
    (found,) = torch.autograd.grad((state.trace * weight).sum(), signal)
    torch.testing.assert_close(found, weight)


@pytest.mark.parametrize("neurons", [1, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_of_one_layer_never_falls_silent(neurons, activation, float64):
    """One output neuron, or a saturated layer: the trace arrives where the drive asks for."""
    model = ep.ConvergentNetwork(torch.nn.Linear(4, neurons), [ep.Layer(activation=activation)], [])
    with torch.no_grad():
        model.stem.bias.fill_(1.5)
        x = torch.rand(3, 4)
        system = model.system(x)
        state = NetworkState(system, ep.AdaptiveDelta(), 1.0)
        for time in range(1, 60):
            state.sweep(((0,),), time)
        asked = model.layers[0].activation(model.stem(x))
        torch.testing.assert_close(state.traces[0], asked, rtol=1e-9, atol=1e-9)
        if activation == "hard_sigmoid":
            assert (asked == 1).any()


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="expected one of 'sample', 'power_of_two', 'fixed'"):
        ep.AdaptiveDelta("constant")


@pytest.mark.parametrize(("digits", "kind"), [(0, ValueError), (6, ValueError), (2.5, TypeError), ("3", TypeError)])
def test_a_number_of_digits_out_of_range_is_refused(digits, kind):
    with pytest.raises(kind, match="digits is"):
        ep.AdaptiveDelta(digits=digits)
