"""Random small networks: every linear module, every activation, every kind of edge. Drawn by hypothesis.

Weights are scaled so that most networks settle: what goes around any loop becomes smaller.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from linear.cases import CASES, of_dimension, placed, trained_norm
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.dynamics.activations import ACTIVATIONS, as_activation
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.modules import FixedNormalization, Scale

Shape = tuple[int, ...]

# With and without a potential, a slope and a secant of their own; bounded and not; one that falls and rises.
ACTIVATION_KINDS = {
    **ACTIVATIONS,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "silu": ep.Activation(F.silu, minimum=-0.3, maximum=float("inf")),
    "wide clip": ep.Activation(lambda h: h.clamp(-1, 2), potential=lambda r: r * r / 2, projection=(-1.0, 2.0)),
}
LOSSES = {
    "cross entropy": F.cross_entropy,
    "squared error": lambda out, y: (out - F.one_hot(y, out.shape[1])).square().sum(1).mean(),
}
OUTPUTS = 3


@dataclass
class Problem:
    """A network, a batch, its targets and a loss."""

    model: ep.ConvergentNetwork
    x: Tensor
    y: Tensor
    loss: str
    kinds: Counter = field(default_factory=Counter)

    def __repr__(self) -> str:
        settings = {k: v for k, v in self.model.settings.plain().items() if k == "feedback"}
        return f"Problem({self.loss}, x{list(self.x.shape)}, {settings}, levels {self.model.levels}, {self.model})"


class Drives(nn.Module):
    """The input's drives of one layer or several."""

    def __init__(self, inputs: int, shapes: list[Shape]) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(inputs, math.prod(s)) for s in shapes)
        self.shapes = shapes

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(m(x).view(len(x), *s) for m, s in zip(self.each, self.shapes, strict=True))
        return found if len(found) > 1 else found[0]


class Heads(nn.Module):
    """A readout of one layer or several, smooth in each."""

    def __init__(self, shapes: list[Shape]) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(math.prod(s), OUTPUTS) for s in shapes)

    def forward(self, *states: Tensor) -> Tensor:
        return torch.stack([m(s.flatten(1)).tanh() for m, s in zip(self.each, states, strict=True)]).sum(0)


def dense(source: Shape, target: Shape) -> nn.Module:
    """Everything to everything."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(source), math.prod(target)), nn.Unflatten(1, target))


@st.composite
def behind_a_dense_one(draw, source):
    """A module of any registered kind, with settings of its own, before which a linear module makes its input."""
    kind = draw(st.sampled_from(list(CASES)))
    module, shape = draw(CASES[kind])
    return [dense(source, tuple(shape)), module]


@st.composite
def direct(draw, source):
    """What nets are mostly made of, from the states themselves: these fold into each other."""
    dim = len(source) - 1
    if not 1 <= dim <= 3 or min(source[1:]) < 3:
        n = math.prod(source)
        if draw(st.booleans()):
            return [nn.Flatten(), nn.Linear(n, draw(st.integers(2, 6)), bias=draw(st.booleans()))]
        others = draw(st.integers(1, 3))
        part = draw(st.integers(0, 1))
        shapes = [(n,), (others,)][:: 1 if part == 0 else -1]
        return [nn.Flatten(), placed(part, 1, *shapes), nn.Linear(n + others, draw(st.integers(2, 6)))]
    channels = draw(st.integers(2, 3))
    found = [of_dimension("Conv", dim)(source[0], channels, draw(st.integers(1, 3)), bias=draw(st.booleans()))]
    if draw(st.booleans()):
        found.append(FixedNormalization(trained_norm(dim, channels)))
    after = draw(st.sampled_from(["", "Avg", "Max", "ReLU", "LeakyReLU"]))
    if after in ("Avg", "Max") and min(source[1:]) - found[0].kernel_size[0] >= 1:
        found.append(of_dimension(f"{after}Pool", dim)(2, draw(st.integers(1, 2))))
    elif after.endswith("ReLU"):
        found.append(getattr(nn, after)())
    return found


def norm(connection: Connection, shape: Shape) -> float:
    """How much the connection makes longer what it is given, at most (of its linear part near a state)."""
    with torch.no_grad():
        bound = connection.bound(connection.tensors(), shape)
        bound = bound if bound.is_linear else bound.at(torch.rand(1, *shape))[0]
        u = torch.randn(1, *shape)
        for _ in range(12):
            u = bound.adjoint(bound.linear(u / u.norm().clamp_min(1e-30)))
        return u.norm().sqrt().item()


@torch.no_grad()
def shrink(connection: Connection, shape: Shape, most: float) -> None:
    """Scales the connection's weights so that it makes nothing longer than `most` times; a scale is appended if it
    has none that would do."""
    found = norm(connection, shape)
    if found <= most:
        return
    weights = [m.weight for m in connection.modules() if isinstance(m, nn.Linear)]
    if weights:
        weights[0].mul_(most / found)
    if norm(connection, shape) > 1.01 * most:
        connection.module = nn.Sequential(connection.module, Scale(most / norm(connection, shape)))


@st.composite
def problems(draw) -> Problem:
    """A network whose layers are each reached from earlier ones, with skips, lateral, own and backward edges."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kinds: Counter = Counter()
    shapes: list[Shape] = [draw(st.sampled_from([(4,), (6,), (2, 5), (1, 5, 4), (2, 4, 4), (1, 4, 3, 4)]))]
    edges: list[tuple[nn.Module, int, int, float]] = []  # with how strong each may be

    def edge(kind, module, source, target, most=1.2):
        kinds[kind] += 1
        kinds.update(type(m) for m in module.modules())
        edges.append((module, source, target, most))

    depth = draw(st.integers(1, 4))
    for l in range(1, depth):
        source = l - 1 if draw(st.integers(0, 3)) else draw(st.integers(0, l - 1))
        template = draw(st.sampled_from([direct, behind_a_dense_one, behind_a_dense_one]))
        module = nn.Sequential(*draw(template(shapes[source])))
        shapes.append(Connection(module, 0, 1).shapes(shapes[source])[-1])
        edge("chain" if source == l - 1 else "branch", module, source, l)
    levels = list(range(depth))
    if depth > 2 and draw(st.booleans()):  # two neighbours of one level, and all above one lower
        twin = draw(st.integers(1, depth - 1))
        levels = [k - (k >= twin) for k in levels]
        kinds["layers of one level"] += 1
    steps = max(levels)
    feedback = draw(
        st.one_of(st.floats(0.08, 0.4), st.tuples(*[st.floats(0.08, 0.4)] * steps) if steps else st.just(0.3))
    )
    between = (feedback,) * steps if isinstance(feedback, float) else feedback
    for _ in range(draw(st.integers(0, 2))):
        i, j = draw(st.integers(0, depth - 1)), draw(st.integers(0, depth - 1))
        same = shapes[i] == shapes[j] and i != j and draw(st.booleans())
        module = Scale(0.5) if same else dense(shapes[i], shapes[j])
        if levels[i] > levels[j]:
            edge("backward", module, i, j, 0.3 * math.sqrt(math.prod(between[levels[j] : levels[i]])))
        else:
            kind = "own" if i == j else "lateral" if levels[i] == levels[j] else "skip"
            edge(kind, module, i, j, {"own": 0.25, "lateral": 0.5, "skip": 0.8}[kind])
    if depth > 2 and draw(st.integers(0, 3)) == 0:  # one module that two connections share
        n, target = math.prod(shapes[0]) + math.prod(shapes[1]), depth - 1
        shared = nn.Linear(n, math.prod(shapes[target]))
        for part in (0, 1):
            if part != target:
                flat = [(math.prod(s),) for s in shapes[:2]]
                parts = (nn.Flatten(), placed(part, 1, *flat), shared, nn.Unflatten(1, shapes[target]))
                edge("shared weights", nn.Sequential(*parts), part, target, 0.6)
    connections = []
    for module, source, target, most in edges:
        connections.append(Connection(module, source, target))
        shrink(connections[-1], shapes[source], most)
    driven = tuple(l for l in range(depth) if l == 0 or draw(st.integers(0, 4)) == 0)
    read = tuple(l for l in range(depth) if l == depth - 1 or draw(st.integers(0, 4)) == 0)
    kinds["several driven"] += len(driven) > 1
    kinds["several read"] += len(read) > 1
    # Behind max pooling states are not negative, as the package advises: else winners may change places for ever.
    maxima = {c.target for c in connections if c.pools_maxima}
    layers = [draw(layer(shapes[l], levels[l], l in maxima, kinds)) for l in range(depth)]
    stem = Drives(5, [shapes[l] for l in driven])
    with torch.no_grad():
        for m in stem.each:
            m.bias.add_(0.3)  # within the range of those that clip
    model = ep.ConvergentNetwork(
        *(stem, layers, connections, Heads([shapes[l] for l in read])),
        **{"driven": driven, "read": read, "feedback": feedback, "encoder": "graded"},
    )
    batch = draw(st.integers(1, 4))
    x = torch.rand(batch, 5, requires_grad=True)
    return Problem(model, x, torch.randint(OUTPUTS, (batch,)), draw(st.sampled_from(list(LOSSES))), kinds)


@st.composite
def layer(draw, shape, level, positive, kinds):
    name = draw(
        st.sampled_from([n for n, a in ACTIVATION_KINDS.items() if not positive or as_activation(a).least >= 0])
    )
    kinds[name] += 1
    size = draw(st.sampled_from([(), shape[-1:], shape]))
    threshold = 0.7 + torch.rand(size)
    if draw(st.booleans()):
        kinds["learned threshold"] += 1
        threshold = nn.Parameter(threshold)
    gain = draw(st.sampled_from([1.0, 1.0, 0.8]))
    return ep.Layer(threshold, ACTIVATION_KINDS[name], level=level, gain=gain)
