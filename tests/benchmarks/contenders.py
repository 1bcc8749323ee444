"""What is timed: one training step, that is the loss and the gradients of all parameters, of one batch.

A contender takes a net and a batch size and returns that step as a function without arguments.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import utils
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.linear.base import laid_out
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


def deep8() -> nn.Sequential:
    """Eight hidden layers: seven 3x3 convolutions of 16 channels and a linear one, and a linear readout."""

    def neuron() -> nn.Module:
        return snn.Leaky(beta=0.5, init_hidden=True)

    between = [m for _ in range(6) for m in (nn.Conv2d(16, 16, 3, padding=1), neuron())]
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.AvgPool2d(2), neuron()),
        *between,
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(784, 64), neuron(), nn.Linear(64, 10)),
    )


NETS = {
    **{name: Net(*REFERENCE_NETS[name]) for name in ("2c2fc", "perceptron")},
    "deep8": Net(deep8, (1, 28, 28)),
    "deeper": Net(deeper, (3, 32, 32)),
}
BATCHES = (1, 64, 256)


def bfloat16(enabled: bool) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def equilibrium_propagation(net: Net, size: int, half: bool = False, **settings: Any) -> Step:
    """This package, at its default settings but for those that are given."""
    model = ep.convert(ep.initialize_(net.make()), **settings)
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        with bfloat16(half):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    return step


FULL_PHASES: dict[str, Any] = {  # arXiv:2405.02546 with predictive spikes
    "encoder": "predictive_sigma_delta",
    "observe": "membrane",
    "feedback": 0.05,
    "relaxation": ep.Relaxation(15, step_size=0.85, order="alternating"),
    "estimator": ep.FullPhaseEP(),
}


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
    phase follows the other. As many steps as full phases take in this package.
    """
    model = ep.initialize_(net.make())
    linear, _, readout = groups(model)
    x, y = net.batch(size)
    free, nudged, beta = FULL_PHASES["relaxation"].steps, ep.FullPhaseEP().steps, ep.FullPhaseEP().beta
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


class Folded:
    """What stands before each layer of neurons, with its pooling folded into it and its weights with channels last."""

    def __init__(self, group: nn.Sequential) -> None:
        self.connection = ep.Connection(group, 0, 1)

    def weights(self, half: bool = False) -> tuple[Tensor, ...]:
        """On the graph of the parameters; to be made once for all time steps."""
        return tuple(laid_out(t.bfloat16() if half else t) for t in self.connection.tensors())

    def __call__(self, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return self.connection.bound(weights, x.shape[1:]).affine(x)


def folded_backpropagation(net: Net, size: int, steps: int, half: bool = False) -> Step:
    """The same gradients for less: pooling folded, the input's drive and the readout once, channels last."""
    model = net.make()
    linear, neurons, readout = groups(model)
    first, *others = (Folded(group) for group in linear)
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        utils.reset(model)
        with bfloat16(half):
            drive = laid_out(first(first.weights(half), x))
            weights = [folded.weights(half) for folded in others]
            total = None
            for _ in range(steps):
                spikes = neurons[0](drive)
                for folded, own, neuron in zip(others, weights, neurons[1:], strict=True):
                    spikes = neuron(folded(own, spikes))
                total = spikes if total is None else total + spikes
            loss = F.cross_entropy(readout(total / steps), y)
        loss.backward()

    return step


def feedforward(net: Net, size: int) -> Step:
    """Backpropagation through the net without feedback, its neurons replaced by clip(., 0, 1), as people write it."""
    made = ep.initialize_(net.make())
    model = nn.Sequential(*(nn.Hardtanh(0, 1) if isinstance(m, snn.Leaky) else m for m in made))
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return step


def folded_feedforward(net: Net, size: int) -> Step:
    """The same gradients for less: pooling folded, channels last."""
    model = ep.initialize_(net.make())
    linear, _, readout = groups(model)
    layers = [Folded(group) for group in linear]
    x, y = net.batch(size)

    def step() -> None:
        model.zero_grad()
        states = x
        for folded in layers:
            states = folded(folded.weights(), laid_out(states)).clamp(0, 1)
        F.cross_entropy(readout(states), y).backward()

    return step


def products_alone(net: Net, size: int) -> Step:
    """The limit: the convolutions and matrix products of this package's default step and nothing else.

    Stem forward; of every connection `free` products up and down in the free phase, `nudged` down and one fewer up
    in the nudged one, and two gradients of its weights in the contrast; the readout and its gradients; and the
    gradient of the stem's weights.
    """
    made = ep.initialize_(net.make())
    model = ep.convert(made)
    free, nudged = model.steps
    x, _ = net.batch(size)
    system = model.system(x).detach()
    states = [laid_out(torch.rand(size, *shape)) for shape in system.shapes]
    first = ep.Connection(groups(made)[0][0], 0, 0)
    stem = first.bound(tuple(laid_out(t.detach()) for t in first.tensors()), x.shape[1:])
    last = states[-1].clone().requires_grad_()
    scores = torch.rand(size, 10)

    def step() -> None:
        with torch.no_grad():
            stem.affine(x)
            for _ in range(free):
                for bound in system.bound:
                    bound.linear(states[bound.source])
                    bound.adjoint(states[bound.target])
            for n in range(nudged):
                for bound in reversed(system.bound):
                    bound.adjoint(states[bound.target])
                    if n:
                        bound.linear(states[bound.source])
            for bound in system.plain:
                bound.pullback(states[bound.source], states[bound.target])
                bound.pullback(states[bound.source], states[bound.target], offset=False)
            stem.pullback(x, states[0])
        torch.autograd.grad(model.readout(last), [last, *model.readout.parameters()], scores)

    return step


EP, BPTT, FOLDED = equilibrium_propagation, backpropagation, folded_backpropagation
ONE_DIGIT = {"encoder": ep.AdaptiveDelta(digits=1)}  # with the steps that it takes
DEFAULT, LIMIT = "EP, spiking", "products alone"
CONTENDERS: dict[str, Callable[[Net, int], Step]] = {
    DEFAULT: EP,
    "EP, spiking, bfloat16": partial(EP, half=True),
    "EP, spiking, one digit a step": partial(EP, **ONE_DIGIT),
    "EP, graded": partial(EP, encoder="graded"),
    "EP, full phases (predictive)": partial(EP, **FULL_PHASES),
    "EP by autograd": autograd_of_the_primitive_function,
    "BPTT, T = 5": partial(BPTT, steps=5),
    "BPTT, T = 25": partial(BPTT, steps=25),
    "BPTT, T = 25, bfloat16": partial(BPTT, steps=25, half=True),
    "BPTT, T = 50": partial(BPTT, steps=50),
    "BPTT, T = 5, folded": partial(FOLDED, steps=5),
    "BPTT, T = 25, folded": partial(FOLDED, steps=25),
    "BPTT, T = 25, folded, bfloat16": partial(FOLDED, steps=25, half=True),
    "feedforward backprop, as written": feedforward,
    "feedforward backprop, folded, channels last": folded_feedforward,
    LIMIT: products_alone,
}
TIME_STEPS = {name: int(name.split("T = ")[1].split(",")[0]) for name in CONTENDERS if "T = " in name}


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
