"""Settling: orders, tolerance, what an Equilibrium says, and no state between batches."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from problems import PROBLEMS, by_hand, convolutional, perceptron

import ep_plugin as ep
from ep_plugin.dynamics.encoders import ENCODERS, as_encoder
from ep_plugin.dynamics.relaxation import default_steps

BINARY = ["sigma_delta", "predictive_sigma_delta", "bernoulli"]


def test_orders_and_step_sizes_lead_to_one_equilibrium(float64):
    model, x = convolutional()
    reference = model.free_phase(x).states
    for order in ("sequential", "alternating", "simultaneous"):
        for step_size in (0.3, 1.0):
            model.relaxation = ep.Relaxation(600, step_size, order)
            for a, b in zip(model.free_phase(x).states, reference, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_in_sequential_order_a_step_is_a_forward_pass(float64):
    """After one step every layer has seen what the one below has made of the input in that step."""
    model, x = by_hand([(0, 1), (1, 2)], (4, 4, 4), activation="hard_sigmoid", relaxation=ep.Relaxation(1))
    r = x
    for l, module in enumerate([model.stem, model.connections[0].module, model.connections[1].module]):
        r = (module(r) / model.layers[l].threshold).clamp(0, 1)
    torch.testing.assert_close(model.free_phase(x).states[-1], r)
    model.relaxation = ep.Relaxation(1, order="simultaneous")
    assert not torch.allclose(model.free_phase(x).states[-1], r)


def test_alternating_groups_have_no_connection_among_them():
    model, x = PROBLEMS["lateral"]()
    system = model.system(x)
    groups = system.order("alternating")
    assert sorted(l for group in groups for l in group) == list(system.layers)
    pairs = {(c.source, c.target) for c in system.connections if c.source != c.target}
    assert not any((a, b) in pairs for group in groups for a in group for b in group)


def test_a_sample_stops_by_itself(float64):
    """With a tolerance, a sample's result does not depend on the batch that it is in."""
    model, x = perceptron()
    x[0] *= 20
    model.relaxation = ep.Relaxation(400, tolerance=1e-5)
    together = model.free_phase(x)
    assert together.steps < 400
    assert together.converged.all()
    assert (together.residual <= 1e-5).all()
    for i in range(len(x)):
        alone = model.free_phase(x[i : i + 1])
        for a, b in zip(together.states, alone.states, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=0, atol=1e-13)


def test_without_tolerance_nothing_is_called_converged():
    model, x = perceptron()
    assert model.free_phase(x).converged is None


@pytest.mark.parametrize("encoder", [*ENCODERS, ep.AdaptiveDelta("power_of_two")], ids=str)
def test_the_residual_is_how_far_traces_are_from_what_their_drives_ask_for(encoder, float64):
    """For every encoder: the largest |rho(h) - u|, with h what the traces of an `Equilibrium` drive."""
    model, x = by_hand([(0, 1)], (5, 4), feedback=0.3, relaxation=ep.Relaxation(7))
    model.encoder = encoder
    e = model.free_phase(x)
    weight, bias = model.connections[0].module.weight, model.connections[0].module.bias
    drives = [model.stem(x) + 0.3 * e.traces[1] @ weight, e.traces[0] @ weight.T + bias]
    differences = [
        (layer.activation(drive / layer.threshold) - trace).abs().amax(1)
        for layer, drive, trace in zip(model.layers, drives, e.traces, strict=True)
    ]
    torch.testing.assert_close(e.residual, torch.stack(differences).amax(0))
    assert (e.residual > 1e-3).all() or not model.encoder.averages  # seven steps leave noise to see


@pytest.mark.parametrize("encoder", BINARY)
def test_spiking_states_come_near_the_graded_ones(encoder):
    model, x = convolutional()
    graded = model.free_phase(x)
    assert graded.spikes is None
    model.encoder, model.relaxation = encoder, ep.Relaxation(3000)
    spiking = model.free_phase(x)
    for kind in ("states", "traces"):
        for a, b in zip(getattr(spiking, kind), getattr(graded, kind), strict=True):
            assert (a - b).abs().max() < 0.05
    assert spiking.spikes.shape == (3, len(x))
    # A rate of r in each step: the count is the sum of the states over the steps, within a quantum a neuron.
    for spikes, r in zip(spiking.spikes, graded.states, strict=True):
        assert spikes.sum() / 3000 == pytest.approx(r.sum().item(), rel=0.05)


@pytest.mark.parametrize("event_weight", ["sample", "power_of_two"])
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p != "max_pooling"])  # its winners may change for ever
def test_signed_events_settle_where_graded_states_do(problem, event_weight, float64):
    """To many digits, with few events, and then they fall silent: a rate of spikes would go on."""
    model, x = PROBLEMS[problem]()
    graded = model.free_phase(x)
    model.encoder, model.relaxation = ep.AdaptiveDelta(event_weight), ep.Relaxation(200)
    spiking = model.free_phase(x)
    for kind in ("states", "traces"):
        for a, b in zip(getattr(spiking, kind), getattr(graded, kind), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert (spiking.residual < 1e-9).all()
    assert spiking.spikes.shape == (len(model.layers), len(x))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_few_steps(steps):
    model, x = perceptron()
    for encoder in ENCODERS:
        model.encoder, model.relaxation = encoder, ep.Relaxation(steps)
        for estimator in (ep.EquilibriumPropagation(1.0, steps), ep.FullPhaseEP(1.0, steps)):
            model.estimator = estimator
            model(x).sum().backward()
        assert model.free_phase(x).steps == steps


def chain(levels):
    return SimpleNamespace(levels=range(levels), connections=())


def test_small_steps_and_loops_within_a_level_need_more_of_them():
    model, x = by_hand([(0, 1), (1, 2)], relaxation=ep.Relaxation(), encoder="graded")
    for step_size in (1.0, 0.9, 0.7, 0.5, 0.2):
        model.relaxation = ep.Relaxation(step_size=step_size)
        assert (1 - step_size) ** model.steps[0] <= 1e-4
        assert model.free_phase(x).residual.max() <= 0.01
    looped, _ = by_hand([(0, 1), (1, 2), (1, 1)], relaxation=ep.Relaxation(), estimator=ep.EquilibriumPropagation())
    for encoder in ENCODERS:
        free, nudged = looped.variant(encoder=encoder).steps
        assert free >= 14
        assert nudged >= 10


def test_steps_by_depth_where_none_are_given():
    """More for deeper networks, for spikes, and for the means of binary ones; `model.steps` says which."""
    for encoder in ENCODERS:
        found = [default_steps(chain(levels), as_encoder(encoder)) for levels in (1, 3, 8, 16, 40)]
        assert found == sorted(found)
        assert found[0] < found[-1]
    model, x = by_hand([(0, 1), (1, 2)], relaxation=ep.Relaxation(), estimator=ep.EquilibriumPropagation())
    for encoder in ENCODERS:
        other = model.variant(encoder=encoder)
        assert other.steps == default_steps(chain(3), as_encoder(encoder))
        assert other.free_phase(x).steps == other.steps[0]
    graded, events, means = (
        model.variant(encoder=name).steps for name in ("graded", "adaptive_delta", "predictive_sigma_delta")
    )
    assert graded == events < means  # a step of three digits tells as much as graded states settle in one
    steps = [model.variant(encoder=ep.AdaptiveDelta(digits=d)).steps for d in (1, 2, 3, 5)]
    assert steps == [(7, 5), (4, 3), (4, 3), (4, 3)]
    assert means[1] == events[1]  # what tells deviations is the same
    assert model.variant(relaxation=ep.Relaxation(9), estimator=ep.FullPhaseEP(steps=5)).steps == (9, 5)
    assert model.variant(estimator=ep.BackpropThroughTime()).steps == (graded[0], 0)


def test_a_layer_with_itself_takes_half_steps():
    """At full steps it could take turns for ever: r <- clip(2 - 2 r) does."""
    layer, own = ep.Layer(), torch.nn.Linear(1, 1, bias=False)
    model = ep.ConvergentNetwork(torch.nn.Linear(1, 1), [layer], [ep.Connection(own, 0, 0)], encoder="graded")
    with torch.no_grad():
        model.stem.weight.zero_(), model.stem.bias.fill_(2.0), own.weight.fill_(-1.0)  # it acts through K + K^T
    model.relaxation = ep.Relaxation(30)
    assert model.free_phase(torch.rand(2, 1)).residual.max() < 0.05
    model.relaxation = ep.Relaxation(30, step_size=1.0)
    assert model.free_phase(torch.rand(2, 1)).residual.max() == 1


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if e != "bernoulli"])
def test_nothing_survives_a_batch(encoder):
    model, x = convolutional()
    model.encoder, model.relaxation = encoder, ep.Relaxation(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = model(x)
    model(torch.rand_like(x)).sum().backward()
    model(x[:1])
    assert torch.equal(model(x), first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("encoder", [*(e for e in ENCODERS if e != "bernoulli"), ep.AdaptiveDelta("power_of_two")])
def test_inference_mode_and_copies(encoder):
    model, x = convolutional()
    model.encoder, model.relaxation = encoder, ep.Relaxation(6)
    with torch.inference_mode():
        inferred = model(x)
    assert torch.equal(inferred, model(x))
    assert torch.equal(copy.deepcopy(model)(x), inferred)
    # (Neurons of snnTorch do not pickle, and the network holds none.)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), inferred)


@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
@pytest.mark.parametrize("observe", ["trace", "membrane"])
@pytest.mark.parametrize("estimator", [ep.EquilibriumPropagation(steps=3), ep.FullPhaseEP(steps=3)], ids=repr)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("problem", ["perceptron", "max_pooling", "lateral"])
def test_an_equilibrium_is_nobody_else_s(problem, encoder, estimator, observe):
    """What is done to it later does not reach the gradient."""
    model, x = PROBLEMS[problem]()
    model = model.variant(encoder=encoder, relaxation=ep.Relaxation(5), estimator=estimator, observe=observe)

    def gradients(spoil):
        torch.manual_seed(2)
        output, equilibrium = model(x, return_equilibrium=True)
        if spoil:
            for t in (*equilibrium.states, *equilibrium.traces, equilibrium.residual):
                t.fill_(7.0)
        return torch.autograd.grad(output.pow(2).sum(), list(model.parameters()))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))
