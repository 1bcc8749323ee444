"""Every step of a phase, for whoever wants to look at it."""

import os

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, by_hand, convolutional

import ep_plugin as ep
from ep_plugin.dynamics.encoders import ENCODERS

BINARY = ["sigma_delta", "predictive_sigma_delta", "bernoulli"]


def settling(problem, encoder, steps=6, **settings):
    model, x = PROBLEMS[problem]()
    return model.variant(encoder=encoder, relaxation=ep.Relaxation(steps), **settings), x


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("problem", ["convolutional", "lateral", "max_pooling", "several_driven"])
def test_a_free_phase_step_by_step(problem, encoder):
    model, x = settling(problem, encoder, steps=7)
    torch.manual_seed(1)
    plain = model.free_phase(x)
    assert plain.trajectory is None
    torch.manual_seed(1)
    e = model.free_phase(x, record=True)
    found = e.trajectory
    for l, (states, traces) in enumerate(zip(found.states, found.traces, strict=True)):
        assert states.shape == traces.shape == (7, *e.states[l].shape)
        # What is read is the last step or, of binary spikes, the mean over the last half.
        last = slice(3, None) if encoder in BINARY else slice(-1, None)
        torch.testing.assert_close(states[last].mean(0), e.states[l])
        torch.testing.assert_close(traces[last].mean(0), e.traces[l])
    for a, b in zip(e.states + e.traces, plain.states + plain.traces, strict=True):
        assert torch.equal(a, b)  # looking changes nothing
    if encoder == "graded":
        assert found.spikes is None
        assert e.spikes is None
        return
    for l, spikes in enumerate(found.spikes):
        digits = 1 if encoder in BINARY else ep.AdaptiveDelta().digits
        assert spikes.shape == (7 * digits, *e.states[l].shape)
        assert set(spikes.unique().tolist()) <= ({0.0, 1.0} if encoder in BINARY else {-1.0, 0.0, 1.0})
        assert torch.equal(spikes.abs().flatten(2).sum((0, 2)), e.spikes[l])


@pytest.mark.parametrize("digits", [1, 3])
@pytest.mark.parametrize("event_weight", ["sample", "power_of_two"])
def test_a_trace_is_the_sum_of_its_weighted_events(event_weight, digits, float64):
    """Every change of a layer's trace is one number a sample times a whole number of ternary digits; they add up."""
    model, x = settling("convolutional", ep.AdaptiveDelta(event_weight, digits), steps=9)
    found = model.free_phase(x, record=True).trajectory
    for traces, spikes in zip(found.traces, found.spikes, strict=True):
        changes = traces.diff(dim=0, prepend=torch.zeros_like(traces[:1]))
        slots = spikes.unflatten(0, (9, digits))
        places = 3.0 ** torch.arange(digits - 1, -1, -1).view(-1, *[1] * (spikes.dim() - 1))
        numbers = (slots * places).sum(1)
        weights = changes.abs().flatten(2).amax(2) / numbers.abs().flatten(2).amax(2)
        rebuilt = (numbers * weights.view(*weights.shape, *[1] * (spikes.dim() - 2))).cumsum(0)
        torch.testing.assert_close(rebuilt, traces, rtol=0, atol=1e-12)
        assert (weights > 0).all()  # somebody speaks as long as there is an error


def test_steps_of_a_recorded_phase_are_those_of_shorter_ones(float64):
    model, x = settling("skip", "adaptive_delta", steps=6)
    found = model.free_phase(x, record=True).trajectory
    for steps in range(1, 7):
        model.relaxation = ep.Relaxation(steps)
        for l, state in enumerate(model.free_phase(x).states):
            assert torch.equal(found.states[l][steps - 1], state)


@pytest.mark.parametrize("observe", ["trace", "membrane"])
@pytest.mark.parametrize("nudging", ["positive", "symmetric"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_nudged_phase_step_by_step(encoder, nudging, observe):
    """Deviations from the free phase's end; binary encoders tell them by signed events."""
    model, x = convolutional()
    model = model.variant(
        encoder=encoder,
        relaxation=ep.Relaxation(6),
        observe=observe,
        estimator=ep.EquilibriumPropagation(0.1, 5, nudging),
    )
    y = torch.arange(len(x)) % 5

    def phase(record):
        torch.manual_seed(1)
        return model.nudged_phase(x, y, F.cross_entropy, record=record)

    plain, found = phase(False), phase(True)
    assert plain.trajectory is None
    batch = len(x) * (2 if nudging == "symmetric" else 1)
    steps = found.trajectory
    for l, value in enumerate(found.values):
        assert torch.equal(value, plain.values[l])
        assert steps.states[l].shape == steps.traces[l].shape == (5, batch, *value.shape[1:])
        assert steps.states[l].abs().sum() > 0
        if observe == "trace":
            assert torch.equal(steps.traces[l][-1], value)
    if encoder == "graded":
        assert found.spikes is None
        assert steps.spikes is None
        return
    for l, spikes in enumerate(steps.spikes):
        assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert torch.equal(spikes.abs().flatten(2).sum((0, 2)), found.spikes[l])


def test_the_two_phases_of_symmetric_nudging_mirror_each_other(float64):
    """Where no neuron meets a bound: one phase's samples, then the other's."""
    model, x = settling("perceptron", "graded", 200, estimator=ep.EquilibriumPropagation(1e-6, 50, "symmetric"))
    for value in model.nudged_phase(x, torch.arange(len(x)) % 5, F.cross_entropy).values:
        positive, negative = value.chunk(2)
        torch.testing.assert_close(positive, -negative, rtol=1e-4, atol=1e-12)


def test_a_nudge_lowers_the_loss(float64):
    """The force is -dC/dr: deviations of the read layer point where the loss falls."""
    model, x = settling("output_inside", "graded", 200, estimator=ep.EquilibriumPropagation(0.01, 50))
    y = torch.arange(len(x)) % 5
    deviation = model.nudged_phase(x, y, F.cross_entropy).values[-1]
    states = model.free_phase(x).states[-1]
    assert F.cross_entropy(model.readout(states + deviation), y) < F.cross_entropy(model.readout(states), y)


def test_without_deviations_there_is_no_such_phase():
    """And what the refusal names works."""
    model, x = by_hand([(0, 1)], (5, 4), estimator=ep.FullPhaseEP())
    y = torch.arange(len(x)) % 5
    with pytest.raises(ValueError, match=r"FullPhaseEP, which has no phase of deviations.*variant\(estimator"):
        model.nudged_phase(x, y, F.cross_entropy)
    model.variant(estimator=ep.EquilibriumPropagation()).nudged_phase(x, y, F.cross_entropy)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the free memory can be told on POSIX systems only")
@pytest.mark.parametrize("phase", ["free", "nudged"])
def test_a_record_that_does_not_fit_is_refused(phase, monkeypatch):
    """Before anything is run; without a record it runs, and so does a record of fewer samples."""
    model, x = settling("convolutional", "graded", 50, estimator=ep.EquilibriumPropagation(steps=50))
    y = torch.arange(len(x)) % 5

    def run(x, y, record):
        return model.free_phase(x, record) if phase == "free" else model.nudged_phase(x, y, F.cross_entropy, record)

    pages, size = "SC_AVPHYS_PAGES", "SC_PAGE_SIZE"
    neurons = sum(s[0].numel() for s in model.free_phase(x).states)
    room = 3 * 4 * 50 * 2 * neurons * (1 if phase == "free" else 2)  # for two samples
    monkeypatch.setattr(os, "sysconf", {pages: room // 4096 + 1, size: 4096}.__getitem__)
    with pytest.raises(ValueError, match=r"a record of .* steps .* takes .* GiB.*record fewer samples"):
        run(x, y, record=True)
    run(x, y, record=False)
    assert run(x[:2], y[:2], record=True).trajectory is not None
