"""What is timed: one training step, that is the loss and the gradients of all parameters, of one batch.

A contender takes a net and a batch size and returns that step as a function without arguments.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import utils
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.connections import Connection
from ep_plugin.maps import laid_out
from ep_plugin.models import REFERENCE_NETS

Step = Callable[[], None]


@dataclass(frozen=True)
class Net:
    make: Callable[[], nn.Sequential]
    shape: tuple[int, ...]

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        return torch.rand(size, *self.shape), torch.randint(10, (size,))


def deeper() -> nn.Sequential:
    """Three convolutions, 128-256-512 channels, and a linear readout."""
    modules: list[nn.Module] = []
    for before, after in pairwise((3, 128, 256, 512)):
        modules += [nn.Conv2d(before, after, 3, padding=1), nn.AvgPool2d(2), snn.Leaky(beta=0.5, init_hidden=True)]
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(512 * 4 * 4, 10))


NETS = {
    **{name: Net(*REFERENCE_NETS[name]) for name in ("2c2fc", "perceptron")},
    "deeper": Net(deeper, (3, 32, 32)),
}
BATCHES = (1, 64, 256)


def bfloat16(enabled: bool) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def equilibrium_propagation(net: Net, size: int, encoder: str = "predictive", half: bool = False) -> Step:
    """This package at its default settings."""
    model = ep.convert(ep.initialize_(net.make()), encoder=encoder)
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        with bfloat16(half):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    return step


def groups(model: nn.Sequential) -> tuple[list[nn.Sequential], list[nn.Module], nn.Sequential]:
    """The linear modules before each layer of neurons, the neurons, and what comes after the last."""
    linear, neurons, own = [], [], []
    for module in model:
        if isinstance(module, snn.Leaky):
            linear.append(nn.Sequential(*own))
            neurons.append(module)
            own = []
        else:
            own.append(module)
    return linear, neurons, nn.Sequential(*own)


def autograd_of_the_primitive_function(net: Net, size: int) -> Step:
    """Graded EP as existing code writes it: s <- clip(dPhi/ds) by autograd at every step of every phase.

    The input's drive is computed anew in every step, pooling is a module of its own, and one nudged
    phase follows the other. As many steps as this package takes by default.
    """
    model = ep.initialize_(net.make())
    linear, _, readout = groups(model)
    x, y = net.batch(size)
    free, nudged, beta = ep.Relaxation().steps, ep.EquilibriumPropagation().steps, ep.EquilibriumPropagation().beta
    shapes = []
    with torch.no_grad():
        below = x[:1]
        for group in linear:
            below = group(below)
            shapes.append(below.shape[1:])

    def primitive(states: list[Tensor]) -> Tensor:
        below = [x, *states]
        return sum((group(s) * r).sum() for group, s, r in zip(linear, below, states, strict=False))

    def settle(states: list[Tensor], steps: int, force: float) -> list[Tensor]:
        for _ in range(steps):
            states = [s.detach().requires_grad_() for s in states]
            phi = primitive(states)
            if force:
                phi = phi - force * F.cross_entropy(readout(states[-1]), y, reduction="sum")
            states = [g.clamp(0, 1) for g in torch.autograd.grad(phi, states)]
        return [s.detach() for s in states]

    def step() -> None:
        model.zero_grad()
        start = settle([torch.zeros(size, *shape) for shape in shapes], free, 0.0)
        above, below = settle(start, nudged, beta), settle(start, nudged, -beta)
        ((primitive(below) - primitive(above)) / (2 * beta * size)).backward()
        F.cross_entropy(readout(start[-1]), y).backward()

    return step


def backpropagation(net: Net, size: int, steps: int, half: bool = False) -> Step:
    """snnTorch BPTT as people write it: the whole net at every step."""
    model = net.make()
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        utils.reset(model)
        with bfloat16(half):
            record = [model(x) for _ in range(steps)]
            loss = F.cross_entropy(torch.stack(record).mean(0), y)
        loss.backward()

    return step


def folded_backpropagation(net: Net, size: int, steps: int, half: bool = False) -> Step:
    """The same gradients for less: pooling folded, the input's drive and the readout once, channels last."""
    model = net.make()
    linear, neurons, readout = groups(model)
    connections = [Connection(group, 0, 1) for group in linear]
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        utils.reset(model)
        with bfloat16(half):
            weights = [tuple(laid_out(t.bfloat16() if half else t) for t in c.tensors()) for c in connections]
            drive = laid_out(connections[0].apply(weights[0], x))
            total = None
            for _ in range(steps):
                spikes = neurons[0](drive)
                for connection, own, neuron in zip(connections[1:], weights[1:], neurons[1:], strict=True):
                    spikes = neuron(connection.apply(own, spikes))
                total = spikes if total is None else total + spikes
            loss = F.cross_entropy(readout(total / steps), y)
        loss.backward()

    return step


def arithmetic(net: Net, size: int) -> Step:
    """The limit: the convolutions and matrix products of this package's step and nothing else."""
    model = ep.convert(ep.initialize_(net.make()))
    x, _ = net.batch(size)
    dynamics, values = model.dynamics(), model._values(x)
    stem, *_ = groups(net.make())[0]
    first = Connection(stem, 0, 0)
    plain = values.detach()
    ready = dynamics.prepared(plain)
    states = {n: [laid_out(torch.rand(n, *shape)) for shape in dynamics.shapes(plain)] for n in (size, 2 * size)}
    # Graphs that are made once, so that only the products of their backward passes are timed.
    leaves = [[t.detach().requires_grad_() for t in own] for own in (first.tensors(), *plain.weights)]
    inputs = [x, *(states[2 * size][c.source] for c in dynamics.connections)]
    outputs = [c.apply(tuple(own), s) for c, own, s in zip((first, *dynamics.connections), leaves, inputs, strict=True)]
    logits = model.readout(states[size][-1])
    upward = [torch.rand_like(o) for o in (*outputs, logits)]

    def phase(n: int, steps: int) -> None:
        for _ in range(steps):
            for connection, weights in zip(dynamics.connections, ready.weights, strict=True):
                below, above = states[n][connection.source], states[n][connection.target]
                connection.apply(weights, below)
                connection.adjoint(weights, above, below)

    def step() -> None:
        with torch.no_grad():
            first.apply(tuple(leaves[0]), x)
            phase(size, model.relaxation.steps)
            phase(2 * size, model.gradient.steps)
        wanted = [t for own in leaves for t in own] + list(model.readout.parameters())
        torch.autograd.grad([*outputs, logits], wanted, upward, retain_graph=True)

    return step


EP, BPTT, FOLDED = equilibrium_propagation, backpropagation, folded_backpropagation
CONTENDERS: dict[str, Callable[[Net, int], Step]] = {
    "ep-spiking": EP,
    "ep-spiking-bfloat16": partial(EP, half=True),
    "ep-graded": partial(EP, encoder="graded"),
    "ep-by-autograd": autograd_of_the_primitive_function,
    "bptt-5": partial(BPTT, steps=5),
    "bptt-25": partial(BPTT, steps=25),
    "bptt-25-bfloat16": partial(BPTT, steps=25, half=True),
    "bptt-50": partial(BPTT, steps=50),
    "bptt-25-folded": partial(FOLDED, steps=25),
    "bptt-25-folded-bfloat16": partial(FOLDED, steps=25, half=True),
    "arithmetic": arithmetic,
}
TIME_STEPS = {name: int(name.split("-")[1]) for name in CONTENDERS if name.startswith("bptt")}


def saved_bytes(net: Net) -> int:
    """What autograd keeps of one sample in one time step of BPTT."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    step = backpropagation(net, 64, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return sum(kept.values()) // 64
