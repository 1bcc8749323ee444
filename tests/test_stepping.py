"""The fast path (in place, channels last) against the plain one, on random networks, to the last bit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, by_hand
from torch import nn

import ep_plugin as ep
from ep_plugin import connections, maps, network, relaxation, stepping
from ep_plugin.models import convolutional_2c2fc
from ep_plugin.stepping import _OutOfPlace

ENCODERS = ["graded", "sigma_delta", "predictive"]


def outcome(model, x, half=False):
    """Everything that a training step yields."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output, equilibrium = model.infer(x)
    output = output.float() if half else output
    gradients = torch.autograd.grad(F.cross_entropy(output, torch.arange(len(x)) % 5), [x, *model.parameters()])
    return [output, *equilibrium.states, *equilibrium.traces, equilibrium.residual, *gradients]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_in_place_equals_out_of_place(name, encoder, order, half, monkeypatch):
    torch.manual_seed(0)
    model, x = PROBLEMS[name]()
    model.encoder, model.relaxation = encoder, ep.Relaxation(9, order=order)
    model.gradient = ep.EquilibriumPropagation(0.5, 6)
    fast = outcome(model, x, half)
    monkeypatch.setattr(relaxation, "stepper", _OutOfPlace_from_stepper)
    plain = outcome(model, x, half)
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def _OutOfPlace_from_stepper(dynamics, values, neurons, force=None):
    return _OutOfPlace(dynamics, values, neurons, force)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    skips=st.booleans(),
    activation=st.sampled_from(["hard_sigmoid", "sigmoid", "relu6"]),
    encoder=st.sampled_from(ENCODERS),
    observe=st.sampled_from(["membrane", "trace"]),
    steps=st.integers(1, 12),
    step_size=st.sampled_from([0.3, 1.0]),
    half=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_in_place_equals_out_of_place_on_random_graphs(
    sizes, skips, activation, encoder, observe, steps, step_size, half, seed
):
    torch.manual_seed(seed)
    edges = [(l, l + 1) for l in range(len(sizes) - 1)]
    if skips and len(sizes) > 2:
        edges.append((0, len(sizes) - 1))
    model, x = by_hand(
        edges,
        sizes,
        activation=activation,
        encoder=encoder,
        observe=observe,
        relaxation=ep.Relaxation(steps, step_size=step_size),
        gradient=ep.EquilibriumPropagation(0.5, steps),
    )
    fast = outcome(model, x, half)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relaxation, "stepper", _OutOfPlace_from_stepper)
        plain = outcome(model, x, half)
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_the_fast_path_is_taken_without_a_graph_only(monkeypatch):
    taken = []
    monkeypatch.setattr(stepping, "_InPlace", lambda *a: taken.append(1) or _OutOfPlace(*a))
    model, x = PROBLEMS["perceptron"]()
    model.gradient, model.relaxation = ep.BackpropThroughTime(), ep.Relaxation(3)
    model(x)
    assert not taken
    model.relax(x)
    assert taken


def test_the_layout_changes_no_gradient(monkeypatch):
    """Channels last against PyTorch's default layout: graded, in float64, so that rounding is all that differs."""
    torch.manual_seed(0)
    model = ep.convert(convolutional_2c2fc(classes=5).double(), encoder="graded")
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    fast = outcome(model, x)
    for module in (network, connections, maps):
        monkeypatch.setattr(module, "laid_out", lambda t: t)
    for a, b in zip(fast, outcome(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_neurons_of_the_free_phase_are_left_as_they_are():
    """Two backward passes from one free phase give the same gradient."""
    model = ep.convert(nn.Sequential(nn.Linear(6, 5), *_leaky(), nn.Linear(5, 4), *_leaky(), nn.Linear(4, 3)))
    loss = F.cross_entropy(model(torch.rand(4, 6)), torch.tensor([0, 1, 2, 0]))
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _leaky():
    import snntorch as snn

    return [snn.Leaky(beta=0.5)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_autocast_rounds_products_alone(name, monkeypatch):
    """Products in bfloat16: states are off by its rounding, contrasts and gradients stay float32."""
    torch.manual_seed(0)
    model, x = PROBLEMS[name]()
    model.relaxation, model.gradient = ep.Relaxation(40), ep.EquilibriumPropagation(3.0, 30)
    seen = set()
    apply = connections.Connection.apply

    def watched(self, tensors, x):
        seen.add((x.dtype, torch.is_grad_enabled()))
        return apply(self, tensors, x)

    monkeypatch.setattr(connections.Connection, "apply", watched)
    exact, seen_exactly = outcome(model, x), set(seen)
    seen.clear()
    rounded = outcome(model, x, half=True)
    assert seen_exactly == {(torch.float32, False), (torch.float32, True)}
    assert seen == {(torch.bfloat16, False), (torch.float32, True)}  # relaxations, contrast
    states = len(model.layers)
    for a, b in zip(rounded[1 : 1 + states], exact[1 : 1 + states], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    for a, b in zip(rounded[2 + 2 * states :], exact[2 + 2 * states :], strict=True):
        assert a.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98
