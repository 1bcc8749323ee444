"""Random nets of images against what they are converted to: the output, the feedback, and the gradients of weights.

`Images` computes the expected output with rates in place of its neurons, exactly; that those are what its neurons fire
at shows in 200 steps of the original, where nothing between them bends what single spikes add up to.
"""

import re
import traceback
from pathlib import Path

import pytest
import torch
from generated_images import BATCH, READS, Images
from image_parts import BENT, PARTS
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "feedback": 1e-7, "relaxation": ep.Relaxation(40, step_size=1.0)}
STEPS = 200
FRAMES = 16  # of an input over time: more than there are layers
ROUNDING = 2e-4

REASONS = {
    # what a refusal says -> parts, one of which is there
    "it follows a sum of several signals.*only piece by piece": BENT,
    "it follows a sum of several signals.*a mask of its own": {"scaled"},
    "has windows without an entry": BENT,
    "it is smooth and not linear": {"smooth"},
    r"amax\(\).* not known to be linear": {"smooth"},
    r"batch_norm\(\).*(not known to be linear|several tensors)": {"by_function"},
}


def rates_of(net, x):
    """The output at the equilibrium without feedback."""
    neurons, net.neurons = net.neurons, net.rates()
    try:
        with torch.no_grad():
            return net(net.over_time(x, 2))
    finally:
        net.neurons = neurons


def spiking_mean(net, x, steps=STEPS):
    """The mean output of the original over many steps; None if it is not that of rates."""
    if net.bent or net.plan.cell == "norse":  # the latter's neurons forget what is above the threshold
        return None
    with torch.no_grad():
        if net.plan.read == "one step":
            for neuron in net.neurons:
                neuron.reset_mem()
            return sum(net(x) for _ in range(steps)) / steps
        net.steps = steps
        return net(net.over_time(x, steps))


def close(a, b):
    return a.shape == b.shape and bool((a - b).abs().max() <= ROUNDING * max(1.0, b.abs().max()))


def feedback_is_right(model, x):
    """Every connection's adjoint and gradients are those that autograd has for its module."""
    states = model.free_phase(x).states
    for c in model.connections:
        state = states[c.source].detach().requires_grad_()
        value = c.module(state)
        y = torch.randn_like(value)
        weights = [p for p in c.module.parameters() if p.requires_grad]
        back, *expected = torch.autograd.grad(value, [state, *weights], y, allow_unused=True)
        tensors = c.tensors()
        here, again = c.bound(tensors, state.shape[1:]).at(state.detach())
        assert close(again, value)
        assert close(here.adjoint(y), back), c
        pairs = zip(tensors, here.pullback(state.detach(), y), strict=True)
        product = sum((t * g.detach()).sum() for t, g in pairs if g is not None and t.requires_grad)
        found = torch.autograd.grad(product, weights, materialize_grads=True) if weights else ()
        for a, b in zip(found, expected, strict=True):
            assert close(a, torch.zeros_like(a) if b is None else b), c


def compare(net):
    """The converted model does what the original does. Says whether rates of spikes were looked at."""
    x, axis = torch.rand(BATCH, *net.plan.shape), READS[net.plan.read][0]
    options = {"example_input": net.over_time(x, 5)} if net.plan.example else {}
    model, expected = ep.convert(net, **GRADED, **options), rates_of(net, x)
    with torch.no_grad():
        found = model(x)
        assert close(found, expected), (found - expected).abs().max()
        assert close(model(x[:1]), found[:1])
    feedback_is_right(model, x)
    if (chain := net.chain()) is not None:
        assert close(ep.convert(chain.eval(), **GRADED)(x).detach(), expected)
    if axis is not None:
        over_time = {"relaxation": ep.Relaxation(FRAMES, step_size=1.0), "time_varying": True}
        varying = ep.convert(net, **GRADED | over_time, **options)
        assert close(varying(net.over_time(x, FRAMES)).detach(), expected)
    mean = spiking_mean(net, x)
    if mean is None:
        return False
    *_, last = (m for m in net.parts.values() if isinstance(m, nn.Linear))
    # A neuron's first spike may be late by as many steps as there are between two of them.
    allowed = 0.03 * (1 + len(net.neurons)) * max(1.0, last.weight.abs().sum(1).max().item())
    error = (mean - expected).abs().max()
    if error > allowed:  # many late spikes in a sum: a number of them that does not grow with the steps
        assert (spiking_mean(net, x, 5 * STEPS) - expected).abs().max() <= error / 4, (mean - expected, allowed)
    return True


class Share:
    """What became of random nets."""

    def __init__(self):
        self.tried, self.spiking, self.refused, self.parts = 0, 0, {}, set()

    def compare(self, seed):
        net, self.tried = Images(seed), self.tried + 1
        kinds = {step.kind for step in net.plan.steps}
        try:
            self.spiking += compare(net)
            self.parts |= kinds
        except Exception as error:
            if not _is_refusal(error, kinds):
                raise AssertionError(f"the net of the seed {seed}: {net.plan}") from error
            self.refused[seed] = str(error)


def _is_refusal(error, kinds):
    """Whether the package itself has raised an error, for a reason that is there."""
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    own = isinstance(error, ValueError) and Path(ep.__file__).parent in raised.parents
    return own and any(re.search(reason, str(error)) and kinds & causes for reason, causes in REASONS.items())


def test_random_nets_of_images():
    share = Share()
    for seed in range(24):
        share.compare(seed)
    assert len(share.refused) <= share.tried / 5, share.refused
    assert share.spiking > share.tried / 4


@pytest.mark.slow
def test_many_random_nets_of_images():
    share, first = Share(), int(torch.seed() % 2**31)
    print(f"\nseeds from {first}")
    for seed in range(first, first + 400):
        share.compare(seed)
    print(f"{share.tried} nets, {len(share.refused)} refused, {share.spiking} compared in spikes too")
    assert len(share.refused) <= share.tried / 5, share.refused
    assert share.spiking > share.tried / 4
    assert share.parts >= {*PARTS, "sum", "difference", "mean", "cat", "flattened"}
