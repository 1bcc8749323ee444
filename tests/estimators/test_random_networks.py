"""1,000 different random networks: three ways to the same gradient, and differences of the loss itself.

    pytest -m slow -s tests/estimators/test_random_networks.py

prints what was drawn and what was discarded. A failure names its seed; the same draws come again by
EP_PLUGIN_SEED=<seed> before that line.
"""

import math
import os
import random
from collections import Counter
from itertools import product

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, settings
from linear.cases import CASES
from random_networks import ACTIVATION_KINDS, LOSSES, Problem, problems

import ep_plugin as ep
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.dynamics.network_state import NetworkState

pytestmark = pytest.mark.filterwarnings("error:implicit differentiation has not converged:UserWarning")

MOST = 1e-5  # the largest relative error of any gradient; what follows puts theory well below it
BETA, FULL_BETA = 1e-5, 3e-4  # errors of beta squared; full phases take a difference of whole states
SETTLED = 1e-12  # residual
EPSILON = 1e-6  # of the differences of the loss, whose third derivative may be 1e6 and more
MARGIN = 4.0  # so many times as far as a nudge moves it a neuron stands from its kinks
EDGES = ["chain", "branch", "skip", "lateral", "own", "backward", "shared weights", "layers of one level"]


def gradients(problem: Problem, estimator) -> list[torch.Tensor]:
    model = problem.model.variant(estimator=estimator)
    wanted = [t for t in (problem.x, *model.parameters()) if t.requires_grad]
    found = torch.autograd.grad(LOSSES[problem.loss](model(problem.x), problem.y), wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def worst(found, exact, zero: float) -> float:
    """The largest relative error of a tensor; of one below `zero` times the largest of all, as if it stood there."""
    rest = zero * torch.stack([g.norm() for g in exact]).max()
    errors = [
        (a - b).norm() / torch.maximum(b.norm(), rest).clamp_min(1e-30) for a, b in zip(found, exact, strict=True)
    ]
    return torch.stack(errors).max().item()


@torch.no_grad()
def piece(system, traces, shift=0.0) -> list[torch.Tensor]:
    """On which piece of every clip, and of every piecewise linear module, the network is at these traces."""
    state = NetworkState.at(system, list(traces), Graded())
    found = []
    for l, activation in enumerate(system.activations):
        if activation.projection is not None:
            low, high = activation.projection
            h = (state.drives[l] + (shift if l in system.read else 0.0)) / system.values.thresholds[l]
            found += [h < low, h > high]
    for c, trace in zip(system.bound, [traces[c.source] for c in system.connections], strict=True):
        found += [p.tensors[0] for p in c.at(trace)[0].parts if not p.map.is_linear]
    return found


def same(a, b) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def reach(problem: Problem, traces) -> float:
    """The largest beta of which a nudge MARGIN times as long, to either side, moves nothing over a kink: of two."""
    small = 1e-7
    model = problem.model.variant(estimator=ep.EquilibriumPropagation(small, problem.model.estimator.steps))
    system = model.system(problem.x).detach()
    moved = model.nudged_phase(problem.x, problem.y, LOSSES[problem.loss]).values
    here = piece(system, traces)

    def stays(beta):
        far = MARGIN * beta
        for side, shift in product((-far, far), (-far, 0, far)):
            there = [u + side / small * d / c for u, d, c in zip(traces, moved, system.scales, strict=True)]
            if not same(here, piece(system, there, shift)):
                return False
        return True

    return max([beta for beta in (BETA, FULL_BETA) if stays(beta)], default=0.0)


@torch.no_grad()
def difference(problem: Problem, exact) -> tuple[float, float] | None:
    """d loss along a direction, as the gradient says and as two losses do; None over a kink."""
    model = problem.model
    leaves = [t for t in (problem.x, *model.parameters()) if t.requires_grad]
    along = [unit(unit(g) + unit(torch.randn_like(g))) for g in exact]
    values, pieces = [], []
    kept = [t.clone() for t in leaves]
    for side in (1, -1):
        for t, k, d in zip(leaves, kept, along, strict=True):
            t.copy_(k + side * EPSILON * d)
        output, settled = model(problem.x, return_equilibrium=True)
        if settled.residual.max() >= SETTLED:  # to and fro over a kink, where the feedback jumps
            values.append(output.new_tensor(math.nan))
        else:
            values.append(LOSSES[problem.loss](output, problem.y))
        pieces.append(piece(model.system(problem.x), settled.traces))
    for t, k in zip(leaves, kept, strict=True):
        t.copy_(k)
    if not same(*pieces) or any(v.isnan() for v in values):
        return None
    expected = sum((g * d).sum() for g, d in zip(exact, along, strict=True))
    return expected.item(), ((values[0] - values[1]) / (2 * EPSILON)).item()


def weakest(model) -> float:
    """How much of the highest layer's nudge feedback brings to the lowest one."""
    return math.prod(model.settings.between(max(model.levels)))


def unit(t):
    return t / t.norm().clamp_min(1e-30)


def check(problem: Problem, counts: Counter) -> None:
    """One network, by all ways."""

    def counted(reason, condition):
        counts[reason] += not condition
        assume(condition)

    model = problem.model
    model.relaxation = ep.Relaxation(600, tolerance=1e-14)
    settled = model.free_phase(problem.x)
    counted("discarded: not settled", settled.residual.max() < SETTLED)
    steps = settled.steps + 16
    model.estimator = ep.EquilibriumPropagation(BETA, steps, "symmetric")
    reached = reach(problem, settled.traces)
    counted("discarded: near a kink", reached >= BETA)
    exact = gradients(problem, ep.ImplicitDifferentiation())
    compared = difference(problem, exact)
    counted("discarded: a kink between two losses", compared is not None)
    # The gradient itself, against no formula but the loss's: rounding of its values stands at 1e-10.
    size = max(sum(g.norm().item() for g in exact), 1e-4)
    assert abs(compared[0] - compared[1]) <= MOST * size
    error = worst(gradients(problem, model.estimator), exact, zero=1e-9)
    counts["error"] = max(counts["error"], error)
    assert error <= MOST, f"deviations: {error:.1e}"
    counts["checked"] += 1
    counts["of these without a gradient before the readout"] += not any(
        g.any() for g in exact[: 1 + 2 * len(model.driven)]
    )
    counts.update(k for k, n in problem.kinds.items() if n)
    full = ep.FullPhaseEP(FULL_BETA, steps)
    if reached < FULL_BETA:
        counts["without full phases, near a kink of their larger nudge"] += 1
        return
    leaves = [t for t in (problem.x, *model.parameters()) if t.requires_grad]
    for layer in model.layers:  # full phases learn no threshold without a potential
        if layer.activation.potential is None:
            layer.threshold.requires_grad_(False)
    exact = [g for g, t in zip(exact, leaves, strict=True) if t.requires_grad]
    # The difference of whole states over beta leaves their rounding, 1e-15, over what reaches the lowest level of beta:
    # also where the gradient is zero. That is told from an error only above it.
    rounding = 1e-15 / (FULL_BETA * weakest(model))
    error = worst(gradients(problem, full), exact, zero=max(1e-5, rounding / MOST))
    counts["error of full phases"] = max(counts["error of full phases"], error)
    assert error <= MOST, f"full phases: {error:.1e}"
    counts["full phases too"] += 1


def check_many(draws: int, seed: int) -> Counter:
    """All that are different of so many draws; those that were discarded are counted."""
    seen: set[str] = set()
    counts: Counter = Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=draws,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate],  # they are small, and a smaller one takes minutes to find
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(problems())
    def each(problem):
        name = repr(problem)
        if name not in seen:  # hypothesis varies a draw's numbers before it makes another
            check(problem, counts)
            seen.add(name)

    try:
        each()
    except BaseException as error:
        error.add_note(f"the same draws again: EP_PLUGIN_SEED={seed} pytest (and what follows)")
        raise
    return counts


@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
def test_some_random_networks(float64):
    assert check_many(20, seed=0)["checked"] >= 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
def test_a_thousand_random_networks(float64):
    seed = int(os.environ.get("EP_PLUGIN_SEED") or random.randrange(2**32))
    counts = check_many(3000, seed)
    print(f"seed {seed}")
    for k, n in counts.items():
        print(f"{n:>12.3g}  {k if isinstance(k, str) else k.__name__}")
    assert counts["checked"] >= 1000
    assert sum(n for k, n in counts.items() if isinstance(k, str) and k.startswith("discarded")) <= 100
    assert counts["full phases too"] >= 700
    assert not {*CASES, *ACTIVATION_KINDS, *EDGES, "several driven", "several read"} - set(counts)
