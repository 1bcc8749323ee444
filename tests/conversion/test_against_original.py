"""Models run as they are, for 200 steps, against what they are converted to: silent faults of any kind show here.

All neurons integrate and fire without a leak and reset by subtraction, so that their rates under a constant input are
the equilibrium without feedback, to the accuracy of a rate of 200 steps.
"""

import pytest
import torch
from generated import (
    PATHS,
    PICTURES,
    READS,
    RECORDS,
    RETURNS,
    STEPS,
    WIDTH,
    Generated,
    Layer,
    Pictures,
    Recipe,
    output_of,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import ep_plugin as ep

GRADED = {"encoder": "graded", "feedback": 1e-7, "relaxation": ep.Relaxation(40, step_size=1.0)}
CHAIN = (Layer((-1,)), Layer((0,)))


def over_time(x, axis):
    """A constant input at every step."""
    return x if axis is None else torch.stack([x] * STEPS, axis)


def compare(recipe, batch=3, **options):
    """The mean output of the original is the converted model's, for two inputs that differ in one entry."""
    net, axis = Generated(recipe), READS[recipe.read][0]
    model = ep.convert(net, **GRADED | options)
    x = torch.rand(batch, WIDTH)
    other = x.clone()
    other[:, torch.randint(WIDTH, ())] = torch.rand(batch)
    each = [output_of(net(over_time(v, axis)), recipe.returns).detach() for v in (x, other)]
    found = [model(v).detach() for v in (x, other)]
    # Every layer's rate is off by 1 / 200 or two, times the weights behind it.
    allowed = 0.015 * (1 + len(recipe.layers)) * max(1.0, net.out.weight.abs().sum(1).max().item())
    for a, b in zip(each, found, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= allowed, (a, b)
    change = (each[1] - each[0]) - (found[1] - found[0])
    assert change.abs().max() <= allowed
    if axis is not None:
        frames, constant = over_time(x, axis), model(x)
        varying = ep.convert(net, **GRADED | {"relaxation": ep.Relaxation(STEPS)} | options, time_varying=True)
        assert (varying(frames) - constant).abs().max() <= 1e-4
        frames.select(axis, STEPS - 30).copy_(other)
        moved = (found[1] - found[0]).abs().max() > 1e-3
        assert (varying(frames) - constant).abs().max() > 1e-6 or not moved


@pytest.mark.parametrize("read", READS)
def test_ways_to_read_the_steps(read):
    compare(Recipe(read, CHAIN, "mean", "output", "each step"))


@pytest.mark.parametrize("record", RECORDS)
def test_ways_to_reduce_a_record(record):
    compare(Recipe("constant", CHAIN, record, "output", "at the end"))


@pytest.mark.parametrize("returns", RETURNS)
def test_ways_to_return(returns):
    compare(Recipe("x[t]", CHAIN, "mean", returns, "none"))
    compare(Recipe("constant", CHAIN, "mean", returns, "at the end", seed=1))


@pytest.mark.parametrize("name", PICTURES)
def test_convolutional_graphs(name):
    """Of one step, called 200 times."""
    net, x = Pictures(PICTURES[name]), torch.rand(3, 1, 6, 6)
    model = ep.convert(net, **GRADED).eval()
    for inputs in (x, x * (torch.rand_like(x) > 0.2)):
        for neuron in (net.l1, net.l2, net.l3):
            neuron.reset_mem()
        with torch.no_grad():
            expected = sum(net(inputs) for _ in range(STEPS)) / STEPS
            assert expected.std() > 0.02
            assert (expected - model(inputs)).abs().max() <= 0.04


layers = st.integers(1, 4).flatmap(
    lambda depth: st.tuples(
        *(
            st.builds(
                Layer,
                sources=st.lists(st.integers(-1 if l == 0 else 0, max(l - 1, -1)), min_size=1, max_size=3).map(tuple),
                join=st.sampled_from(["sum", "cat", "mean"]),
                skip=st.none() | st.integers(-1, l - 1),
                hidden=st.booleans(),
            )
            for l in range(depth)
        )
    )
)
recipes = st.builds(
    Recipe,
    read=st.sampled_from(sorted(READS)),
    layers=layers,
    record=st.sampled_from(sorted(RECORDS)),
    returns=st.sampled_from(sorted(RETURNS)),
    readout=st.sampled_from(["each step", "at the end", "none"]),
    seed=st.integers(0, 1000),
)
# No shrinking: a recipe is short as it is.
QUIET = {
    "deadline": None,
    "derandomize": False,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}


class Share:
    """How many models were refused."""

    def __init__(self):
        self.tried, self.refused = 0, []

    def compare(self, recipe):
        self.tried += 1
        try:
            compare(recipe, output=PATHS[recipe.returns])
        except ValueError as error:
            self.refused.append((recipe, str(error)))


def test_random_models():
    share = Share()
    seed(1)(settings(max_examples=20, **QUIET)(given(recipes)(share.compare)))()
    assert len(share.refused) <= share.tried / 5, share.refused[:3]


@pytest.mark.slow
def test_many_random_models():
    share, own = Share(), int(torch.seed() % 2**31)
    print(f"\nseed {own}")
    seed(own)(settings(max_examples=300, **QUIET)(given(recipes)(share.compare)))()
    print(f"{len(share.refused)} of {share.tried} refused")
    assert len(share.refused) <= share.tried / 5, share.refused[:3]
