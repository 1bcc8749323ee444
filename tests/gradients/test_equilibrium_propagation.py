"""What the rule promises beside exactness: scale, zero forces, memory, and nothing on the graph."""

import pytest
import torch
import torch.nn.functional as F
from problems import convolutional, perceptron
from torch import nn

import ep_plugin as ep
from ep_plugin.encoders import ENCODERS
from ep_plugin.gradients.equilibrium_propagation import NUDGINGS


def gradients(model, x, y, factor):
    torch.manual_seed(1)
    return torch.autograd.grad(factor * F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("nudging", NUDGINGS)
def test_scale_of_the_loss_bit_for_bit(nudging, encoder):
    model, x = convolutional()
    model.relaxation = ep.Relaxation(15)
    model.encoder, model.gradient = encoder, ep.EquilibriumPropagation(1.0, 8, nudging)
    y = torch.randint(5, (len(x),))
    plain = gradients(model, x, y, 1.0)
    for factor in (2.0**14, 1 / 64):
        for a, b in zip(gradients(model, x, y, factor), plain, strict=True):
            assert torch.equal(a, b * factor)


def test_a_sample_without_error_gets_no_gradient():
    model, x = perceptron()
    model.encoder = "predictive"
    out = model(x)
    out.sum().mul(0).backward()
    for p in model.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))


def test_nudged_phases_run_only_for_a_backward_pass(monkeypatch):
    from ep_plugin.gradients import equilibrium_propagation as rule

    calls = []
    original = rule.observe_phase
    monkeypatch.setattr(rule, "observe_phase", lambda *a: calls.append(1) or original(*a))
    model, x = perceptron()
    loss = model(x).sum()
    assert not calls
    loss.backward()
    assert calls == [1]


def test_double_backward_is_an_error():
    model, x = perceptron()
    parameters = list(model.parameters())
    grads = torch.autograd.grad(model(x).pow(2).sum(), parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


def test_one_sided_gradient_needs_the_continuation():
    """Half-way to equilibrium the contrast must not hold what the free phase still moves."""
    model, x = perceptron()
    model.relaxation = ep.Relaxation(3, step_size=0.2)
    y = torch.randint(5, (len(x),))
    found = {}
    for nudging in ("symmetric", "positive"):
        model.gradient = ep.EquilibriumPropagation(0.1, 20, nudging)
        found[nudging] = gradients(model, x, y, 1.0)
    for a, b in zip(found["positive"], found["symmetric"], strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("observe", ["membrane", "trace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_of_one_odd_sizes_and_types(encoder, observe, dtype):
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), ep.ConvergentLeaky(), nn.Flatten(), nn.Linear(36, 4), ep.ConvergentLeaky(),
        nn.Linear(4, 3),
    ).to(dtype)  # fmt: skip
    x = torch.rand(1, 1, 11, 9, dtype=dtype)
    model = ep.convert(net, encoder=encoder, observe=observe)
    out = model(x)
    assert out.shape == (1, 3)
    assert out.dtype == dtype
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu():
    model, x = convolutional()
    y = torch.randint(5, (len(x),))
    on_cpu = gradients(model, x, y, 1.0)
    on_gpu = gradients(model.cuda(), x.cuda(), y.cuda(), 1.0)
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-5)


def test_autocast_keeps_states_in_float32():
    model, x = convolutional()
    model.gradient = ep.EquilibriumPropagation(1.0, 8)
    y = torch.randint(5, (len(x),))
    with torch.autocast("cpu", torch.bfloat16):
        output, equilibrium = model.infer(x)
        loss = F.cross_entropy(output, y)
    loss.backward()
    assert {s.dtype for s in equilibrium.states} == {torch.float32}
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_not_a_number_stops_the_training():
    model, x = perceptron()
    with torch.no_grad():
        model.connections[0].module[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="0 -> 1"):
        model(x)
    model, x = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(RuntimeWarning, match=r"loss or readout\) in 6 of 6 samples"):
        (model(x).sum() * float("inf")).backward()
    optimizer.step()
    with pytest.raises(FloatingPointError, match="weights of 0 -> 1"):
        model(x)


ESTIMATORS = {
    "EP": ep.EquilibriumPropagation(),
    "BPTT": ep.BackpropThroughTime(),
    "implicit": ep.ImplicitDifferentiation(),
}


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_sample_that_is_no_number_stays_its_own(estimator, value):
    model, x = convolutional()
    model.relaxation, model.gradient = ep.Relaxation(15), ESTIMATORS[estimator]
    x.requires_grad_()

    def gradients_of(weight):
        out = model(x)
        return torch.autograd.grad((out.pow(2).sum(1) * weight).sum(), [x, *model.parameters()])

    whole = gradients_of(torch.ones(len(x)))
    torn = gradients_of(torch.tensor([1.0, value, 1.0, 1.0]))
    assert not torn[0][1].isfinite().all()
    torch.testing.assert_close(torn[0][[0, 2, 3]], whole[0][[0, 2, 3]])
    assert all(not g.isfinite().all() for g in torn[1:])  # every parameter tells a scaler


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_scaler_skips_steps_that_overflow_float16(estimator):
    model, x = convolutional()
    model.encoder, model.relaxation, model.gradient = "predictive", ep.Relaxation(15), ESTIMATORS[estimator]
    y = torch.randint(5, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21)
    moved = []
    for _ in range(6):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)))
    assert moved[0] is False  # 2^21 is more than float16 holds
    assert moved[-1] is True
    assert moved == sorted(moved)
    assert scaler.get_scale() == 2.0 ** (21 - moved.count(False))
