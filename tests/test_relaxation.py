"""Settling: orders, tolerance, what an Equilibrium says, and no state between batches."""

import copy

import pytest
import torch
from problems import convolutional, perceptron

import ep_plugin as ep


def test_orders_and_step_sizes_lead_to_one_equilibrium(float64):
    model, x = convolutional()
    reference = model.relax(x).states
    for order in ("alternating", "simultaneous"):
        for step_size in (0.3, 1.0):
            model.relaxation = ep.Relaxation(600, step_size, order)
            for a, b in zip(model.relax(x).states, reference, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_sample_stops_by_itself(float64):
    """With a tolerance, a sample's result does not depend on the batch that it is in."""
    model, x = perceptron()
    x[0] *= 20
    model.relaxation = ep.Relaxation(400, tolerance=1e-5)
    together = model.relax(x)
    assert together.steps < 400
    assert together.converged.all()
    assert (together.residual <= 1e-5).all()
    for i in range(len(x)):
        alone = model.relax(x[i : i + 1])
        for a, b in zip(together.states, alone.states, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=0, atol=1e-13)


def test_without_tolerance_nothing_is_called_converged():
    model, x = perceptron()
    assert model.relax(x).converged is None


@pytest.mark.parametrize("encoder", ["sigma_delta", "predictive", "bernoulli"])
def test_spiking_states_come_near_the_graded_ones(encoder):
    model, x = convolutional()
    graded = model.relax(x)
    assert graded.spikes is None
    model.encoder, model.relaxation = encoder, ep.Relaxation(3000)
    spiking = model.relax(x)
    for kind in ("states", "traces"):
        for a, b in zip(getattr(spiking, kind), getattr(graded, kind), strict=True):
            assert (a - b).abs().max() < 0.05
    assert spiking.spikes.shape == (3, len(x))
    # A rate of r in each step: the count is the sum of the states over the steps, within a quantum a neuron.
    for spikes, r in zip(spiking.spikes, graded.states, strict=True):
        assert spikes.sum() / 3000 == pytest.approx(r.sum().item(), rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_few_steps(steps):
    model, x = perceptron()
    for encoder in ("graded", "predictive"):
        model.encoder, model.relaxation = encoder, ep.Relaxation(steps)
        model.gradient = ep.EquilibriumPropagation(1.0, steps)
        model(x).sum().backward()
        assert model.relax(x).steps == steps


def test_nothing_survives_a_batch():
    model, x = convolutional()
    model.encoder = "predictive"
    first = model(x)
    model(torch.rand_like(x)).sum().backward()
    model(x[:1])
    assert torch.equal(model(x), first)


def test_inference_mode_and_copies():
    model, x = convolutional()
    model.encoder = "predictive"
    with torch.inference_mode():
        inferred = model(x)
    assert torch.equal(inferred, model(x))
    assert torch.equal(copy.deepcopy(model)(x), inferred)
