"""What a step costs: one product where something was sent and none elsewhere, and no memory beside its products."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ep_plugin as ep
from ep_plugin.dynamics.deviations import nudge
from ep_plugin.dynamics.relaxation import relax
from ep_plugin.linear.connection import BoundConnection

LAYERS = 4
UP, DOWN, AT = "linear", "adjoint", "at"


@pytest.fixture
def products(monkeypatch):
    """How often each connection has multiplied, upwards and downwards."""
    counted = Counter()

    def count(method):
        original = getattr(BoundConnection, method)

        def counting(self, *args):
            counted[method, self.source, self.target] += 1
            return original(self, *args)

        monkeypatch.setattr(BoundConnection, method, counting)

    for method in (UP, DOWN, AT):
        count(method)
    return counted


def chain(module=lambda: nn.Linear(6, 6), **settings):
    model = ep.ConvergentNetwork(
        nn.Linear(5, 6),
        [ep.Layer() for _ in range(LAYERS)],
        [ep.Connection(module(), l, l + 1) for l in range(LAYERS - 1)],
        **settings,
    )
    return ep.initialize_(model), torch.rand(3, 5)


def each(up, down):
    """So many products of every connection of the chain."""
    links = [(l, l + 1) for l in range(LAYERS - 1)]
    found = {(UP, *link): up for link in links} | {(DOWN, *link): down for link in links}
    return {key: n for key, n in found.items() if n}


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("encoder", ["adaptive_delta", "graded", "sigma_delta"])
def test_a_free_phase_multiplies_once_a_step_each_way(products, encoder, steps):
    """n steps: n products up and n down a connection, and what drives neurons at the end costs nothing more."""
    model, x = chain(encoder=encoder, relaxation=ep.Relaxation(steps))
    system = model.system(x).detach()
    with torch.no_grad():
        relax(system, model.encoder, model.relaxation, "trace")
    extra = 1 if encoder == "sigma_delta" else 0  # their mean traces, once
    assert products == each(steps + extra, steps + extra)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("encoder", ["adaptive_delta", "graded"])
@pytest.mark.parametrize(("observe", "last"), [("trace", 0), ("membrane", 1)])
def test_a_nudged_phase_sends_nothing_that_nobody_reads(products, encoder, steps, observe, last):
    """m steps: m products down and, of traces, m - 1 up: in the last step nobody above moves again."""
    model, x = chain(
        encoder=encoder, observe=observe, estimator=ep.EquilibriumPropagation(steps=steps), relaxation=ep.Relaxation(3)
    )
    loss = model(x).pow(2).sum()
    products.clear()
    loss.backward()
    assert products == each(steps - 1 + last, steps)


@pytest.mark.parametrize("read", [0, 1, 3])
def test_layers_that_no_nudge_has_reached_send_nothing(products, read):
    """From above, a step carries it to all layers below, and one layer up."""
    model, x = chain(encoder="graded", read=(read,), relaxation=ep.Relaxation(3))
    for steps in (1, 2, 3):
        model.estimator = ep.EquilibriumPropagation(steps=steps)
        loss = model(x).pow(2).sum()
        products.clear()
        loss.backward()
        expected = Counter()
        reached = {read}
        for step in range(steps):
            order = [l for l in reversed(range(LAYERS)) if l in reached or l < read]
            for l in order:
                reached.add(l)
                last = step + 1 == steps
                if l > 0:  # the layer below moves after this one
                    expected[DOWN, l - 1, l] += 1
                if l + 1 < LAYERS and not last:
                    expected[UP, l, l + 1] += 1
                    reached.add(l + 1)
        assert products == expected


def test_no_force_no_event():
    """A sample without error sends nothing in the nudged phase."""
    model, x = chain(estimator=ep.EquilibriumPropagation(steps=4))
    found = model.nudged_phase(x, torch.tensor([1.0, 0.0, 1.0]), lambda output, y: (output.sum(1) * y).sum())
    assert (found.spikes[:, [0, 2]] > 0).all()
    assert not found.spikes[:, 1].any()
    assert not any(value[1].any() for value in found.values)


def test_max_pooling_looks_for_its_winners_once_a_step(products):
    def module():
        return nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (1, 12)), nn.MaxPool1d(2), nn.Flatten())

    model, x = chain(module, relaxation=ep.Relaxation(5), estimator=ep.EquilibriumPropagation(steps=3))
    loss = model(x).pow(2).sum()
    links = [(l, l + 1) for l in range(LAYERS - 1)]
    # Feedback goes down through the winners of the present: when the layer below moves, from the second step on,
    # and at the end.
    assert products == {(AT, *link): 5 for link in links} | {(DOWN, *link): 5 for link in links}
    products.clear()
    loss.backward()
    assert products == each(2, 3)  # under the free phase's winners


PRODUCTS = {"convolution", "mm", "addmm"}
POOLS = {"max_pool2d_with_indices", "max_pool2d_with_indices_backward", "gather", "empty"}


class Allocations(TorchDispatchMode):
    """Counts new tensors of a layer's size or more, by the operation that makes them."""

    def __init__(self, smallest):
        super().__init__()
        self.smallest, self.found = smallest, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(result):
            new = isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given
            if new and t.numel() >= self.smallest:
                self.found[func._schema.name.removeprefix("aten::")] += 1
        return result


def a_step_makes(phase, few=3, many=8):
    """The tensors that `phase(steps)` makes in steps after the first. (Phases of training, in which nobody counts.)"""
    counts = []
    for steps in (few, many):
        with torch.no_grad(), Allocations(smallest=3 * 20) as log:
            phase(steps)
        counts.append(log.found)
    assert any(counts[0].values())
    return {op for op in counts[1] if counts[1][op] > counts[0][op]}


def convolutional(pool, **settings):
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 5), pool(2), ep.ConvergentLeaky()),
        *(nn.Conv2d(4, 6, 5), pool(2), ep.ConvergentLeaky()),
        *(nn.Flatten(), nn.Linear(96, 20), ep.ConvergentLeaky(), nn.Linear(20, 10)),
    )
    return ep.convert(net, **settings), torch.rand(3, 1, 28, 28)


ENCODERS = {
    "adaptive_delta": ep.AdaptiveDelta(),
    "powers of two": ep.AdaptiveDelta("power_of_two"),
    "graded": ep.Graded(),
}


@pytest.mark.parametrize(("pool", "allowed"), [(nn.AvgPool2d, set()), (nn.MaxPool2d, POOLS)])
@pytest.mark.parametrize("step_size", [1.0, 0.5])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_of_the_free_phase_makes_no_tensor_but_products(encoder, step_size, pool, allowed):
    model, x = convolutional(pool, encoder=ENCODERS[encoder])
    system = model.system(x).detach()
    made = a_step_makes(lambda n: relax(system, model.encoder, ep.Relaxation(n, step_size), "trace", counted=False))
    assert made >= {"convolution", "mm"}
    assert made - PRODUCTS <= allowed


@pytest.mark.parametrize(("pool", "allowed"), [(nn.AvgPool2d, set()), (nn.MaxPool2d, POOLS)])
@pytest.mark.parametrize("observe", ["trace", "membrane"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_of_a_nudged_phase_makes_no_tensor_but_products(encoder, observe, pool, allowed):
    model, x = convolutional(pool, encoder=ENCODERS[encoder])
    system = model.system(x).detach()
    with torch.no_grad():
        point = relax(system, model.encoder, ep.Relaxation(4), observe).point
    forces = {2: 0.01 * torch.randn(3, 20)}
    made = a_step_makes(lambda n: nudge(system, point, forces, model.encoder, n, "sequential", observe, counted=False))
    assert made >= {"convolution", "mm"}
    assert made - PRODUCTS <= allowed


@pytest.mark.parametrize("encoder", ["sigma_delta", "predictive_sigma_delta"])
def test_a_step_of_binary_spikes_makes_no_tensor_but_products(encoder):
    """The means over the last half included."""
    model, x = convolutional(nn.AvgPool2d, encoder=encoder)
    system = model.system(x).detach()
    made = a_step_makes(lambda n: relax(system, model.encoder, ep.Relaxation(n), "trace"))
    assert made == {"convolution", "mm"}


def test_the_count_sees_what_is_made():
    """So the claims above can fail: on a graph every operation makes a tensor."""
    model, x = convolutional(nn.AvgPool2d)
    system = model.system(x)
    with Allocations(smallest=60) as log:
        relax(system, model.encoder, ep.Relaxation(2), "trace")
    assert {"clone", "sub", "add"} <= set(log.found)
