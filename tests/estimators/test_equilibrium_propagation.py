"""What every rule promises beside exactness: scale, zero forces, and nothing on the graph."""

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, by_hand, convolutional, perceptron
from torch import nn

import ep_plugin as ep
from ep_plugin.dynamics.encoders import ENCODERS
from ep_plugin.estimators import equilibrium_propagation, full_phases
from ep_plugin.estimators.force import NUDGINGS, normalized, strengths

pytestmark = pytest.mark.filterwarnings("error:the nudged phase runs away:RuntimeWarning")

RULES = {"deviations": ep.EquilibriumPropagation, "full phases": ep.FullPhaseEP}


def gradients(model, x, y, factor=1.0):
    torch.manual_seed(1)
    return torch.autograd.grad(factor * F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("encoder", [*ENCODERS, ep.AdaptiveDelta("power_of_two"), ep.AdaptiveDelta("fixed")])
@pytest.mark.parametrize("nudging", NUDGINGS)
@pytest.mark.parametrize("rule", RULES)
def test_scale_of_the_loss_bit_for_bit(rule, nudging, encoder):
    if encoder == ep.AdaptiveDelta("fixed") and rule == "full phases":
        pytest.skip("refused together")
    model, x = convolutional()
    model = model.variant(estimator=RULES[rule](0.5, 6, nudging), encoder=encoder, relaxation=ep.Relaxation(9))
    y = torch.randint(5, (len(x),))
    gradients(model, x, y)
    model.eval()  # (fixed event weights have been found)
    plain = gradients(model, x, y)
    assert all(g.isfinite().all() for g in plain)
    assert any(g.any() for g in plain)
    for factor in (2.0**14, 1 / 64):
        for a, b in zip(gradients(model, x, y, factor), plain, strict=True):
            assert torch.equal(a, b * factor)


def test_a_force_over_and_underflows_with_no_loss():
    """Its direction is the same for losses of any size that the dtype holds."""
    grads = [torch.randn(4, 7), torch.randn(4, 3)]
    directions, length = normalized(grads)
    for factor in (2.0**-110, 2.0**110):
        scaled, longer = normalized([g * factor for g in grads])
        assert all(torch.equal(a, b) for a, b in zip(scaled, directions, strict=True))
        assert torch.equal(longer, length * factor)
    whole = torch.cat([d.flatten(1) for d in directions], 1)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(length, torch.cat([g.flatten(1) for g in grads], 1).norm(dim=1))


def test_signs_are_drawn_for_each_sample():
    a, b = strengths("random_sign", 200, torch.empty(0))
    assert set(a.tolist()) == {-1.0, 1.0}
    assert 60 < (a > 0).sum() < 140
    assert not b.any()
    assert not torch.equal(a, strengths("random_sign", 200, torch.empty(0))[0])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_sample_without_error_gets_no_gradient(rule, encoder):
    """Exact zeros: for a loss that is zero everywhere, and for one sample among others."""
    model, x = perceptron()
    model = model.variant(encoder=encoder, estimator=RULES[rule](0.5, 5), relaxation=ep.Relaxation(8))
    x.requires_grad_()
    model(x).sum().mul(0).backward()
    for p in (x, *model.parameters()):
        assert torch.equal(p.grad, torch.zeros_like(p))
    x.grad = None
    (model(x).pow(2).sum(1) * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])).sum().backward()
    assert torch.equal(x.grad[2], torch.zeros(12))
    assert x.grad.any()


@pytest.mark.parametrize("rule", RULES)
def test_nudged_phases_run_only_for_a_backward_pass(rule, monkeypatch):
    calls = []
    module, name = {"deviations": (equilibrium_propagation, "nudge"), "full phases": (full_phases, "Means")}[rule]
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: calls.append(name) or original(*a))
    model, x = perceptron()
    model.estimator = RULES[rule](0.5, 5)
    loss = model(x).sum()
    with torch.no_grad():
        model(x)
    assert not calls
    loss.backward()
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
@pytest.mark.parametrize("encoder", ["adaptive_delta", "graded", "predictive_sigma_delta"])
@pytest.mark.parametrize(
    "estimator", [*(rule() for rule in RULES.values()), ep.ImplicitDifferentiation(1e-6)], ids=repr
)
@pytest.mark.parametrize("problem", ["convolutional", "max_pooling", "lateral"])
def test_two_backward_passes_give_the_same_gradient(problem, estimator, encoder):
    """What the free phase has left is only read: for one loss twice, and for two losses of one forward pass."""
    model, x = PROBLEMS[problem]()
    model = model.variant(estimator=estimator, encoder=encoder, relaxation=ep.Relaxation(8))
    parameters = list(model.parameters())
    output = model(x)
    first, other, second = (
        torch.autograd.grad(loss, parameters, retain_graph=True)
        for loss in (output.pow(2).sum(), output.sum(), output.pow(2).sum())
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("encoder", ["adaptive_delta", "graded"])
def test_an_unsettled_network_adds_nothing_to_the_contrast(encoder):
    """A deviation is the nudge's alone: half-way to equilibrium one phase and the mean of two agree."""
    model, x = perceptron()
    model = model.variant(encoder=encoder, relaxation=ep.Relaxation(3, step_size=0.2))
    y = torch.randint(5, (len(x),))
    assert model.free_phase(x).residual.min() > 0.05
    found = {}
    for nudging in ("symmetric", "positive", "negative"):
        model.estimator = ep.EquilibriumPropagation(0.02, 20, nudging)
        found[nudging] = gradients(model, x, y)
    for one_sided in ("positive", "negative"):
        for a, b in zip(found[one_sided], found["symmetric"], strict=True):
            assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


def test_one_sided_full_phases_need_the_continuation():
    """Half-way to equilibrium the contrast must not hold what the free phase still moves."""
    model, x = perceptron()
    model.relaxation = ep.Relaxation(3, step_size=0.2)
    y = torch.randint(5, (len(x),))
    found = {}
    for nudging in ("symmetric", "positive"):
        model.estimator = ep.FullPhaseEP(0.1, 20, nudging)
        found[nudging] = gradients(model, x, y)
    for a, b in zip(found["positive"], found["symmetric"], strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("encoder", [*ENCODERS, ep.AdaptiveDelta("power_of_two"), ep.AdaptiveDelta("fixed")])
@pytest.mark.parametrize("observe", ["membrane", "trace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_of_one_odd_sizes_and_types(encoder, observe, dtype):
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), ep.ConvergentLeaky(), nn.Flatten(), nn.Linear(36, 4), ep.ConvergentLeaky(),
        nn.Linear(4, 3),
    ).to(dtype)  # fmt: skip
    x = torch.rand(1, 1, 11, 9, dtype=dtype)
    model = ep.convert(net, encoder=encoder, observe=observe)
    for rule in RULES.values():
        if encoder == ep.AdaptiveDelta("fixed") and rule is ep.FullPhaseEP:
            continue
        model.estimator = rule()
        out = model(x)
        assert out.shape == (1, 3)
        assert out.dtype == dtype
        out.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())
        model.zero_grad()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("rule", RULES)
def test_cuda_agrees_with_the_cpu(rule, problem):
    model, x = PROBLEMS[problem]()
    model.estimator = RULES[rule](0.5, 30)
    y = torch.randint(5, (len(x),))
    on_cpu = gradients(model, x, y)
    on_gpu = gradients(model.cuda(), x.cuda(), y.cuda())
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("rule", RULES)
def test_autocast_keeps_states_in_float32(rule, encoder):
    model, x = convolutional()
    model = model.variant(estimator=RULES[rule](1.0, 8), encoder=encoder, relaxation=ep.Relaxation(8))
    y = torch.randint(5, (len(x),))
    with torch.autocast("cpu", torch.bfloat16):
        output, equilibrium = model(x, return_equilibrium=True)
        deviations = model.nudged_phase(x, y, F.cross_entropy) if rule == "deviations" else None
        loss = F.cross_entropy(output, y)
    loss.backward()
    assert {t.dtype for t in (*equilibrium.states, *equilibrium.traces)} == {torch.float32}
    assert deviations is None or {d.dtype for d in deviations.values} == {torch.float32}
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_not_a_number_stops_the_training(rule):
    """With the parameter's name, in the forward pass; a loss that is none warns, and the step after it stops."""
    model, x = perceptron()
    model.estimator = RULES[rule](0.5, 5)
    with torch.no_grad():
        model.connections[0].module[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"in 2\.weight"):
        model(x)
    model, x = perceptron()
    model.estimator = RULES[rule](0.5, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(RuntimeWarning, match=r"loss or readout\) in 6 of 6 samples"):
        (model(x).sum() * float("inf")).backward()
    optimizer.step()
    with pytest.raises(FloatingPointError, match=r"2\.weight"):
        model(x)


def test_a_state_that_is_no_number_is_named():
    layers = [ep.Layer(), ep.Layer(activation=lambda h: h.log())]
    model = ep.ConvergentNetwork(nn.Linear(3, 4), layers, [ep.Connection(nn.Linear(4, 2), 0, 1)], encoder="graded")
    with torch.no_grad():
        model.connections[0].module.bias.fill_(-10)
    with pytest.raises(FloatingPointError, match=r"state of a neuron became NaN or infinite in .*layer 1"):
        model(torch.rand(2, 3))


ESTIMATORS = {
    "EP": ep.EquilibriumPropagation(steps=8),
    "full phases": ep.FullPhaseEP(),
    "BPTT": ep.BackpropThroughTime(),
    "implicit": ep.ImplicitDifferentiation(),
}


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_sample_that_is_no_number_stays_its_own(estimator, value):
    model, x = convolutional()
    model.relaxation, model.estimator = ep.Relaxation(15), ESTIMATORS[estimator]
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
@pytest.mark.parametrize("encoder", ["adaptive_delta", "predictive_sigma_delta"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_scaler_skips_steps_that_overflow_float16(estimator, encoder):
    model, x = convolutional()
    model.encoder, model.relaxation, model.estimator = encoder, ep.Relaxation(15), ESTIMATORS[estimator]
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


def test_a_phase_that_runs_away_says_so():
    """Strong loops that have not settled, where a nudge grows from step to step; the advice helps."""
    model, x = by_hand([(0, 1), (1, 2)], (20, 20, 20), activation="relu6", feedback=1.0)
    ep.initialize_(model, 6.0)
    model = model.variant(estimator=ep.EquilibriumPropagation(1e-6, 12), relaxation=ep.Relaxation(2))
    with pytest.warns(RuntimeWarning, match="the nudged phase runs away: in layer .* use a weaker feedback"):
        model(x).pow(2).sum().backward()
    model.feedback = 0.001
    model(x).pow(2).sum().backward()  # no warning: they are errors here
