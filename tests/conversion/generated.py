"""Models of integrate-and-fire neurons, put together from parts: their rates are equilibria.

A model is how it reads the steps of its input, a graph of layers, what it makes of its record, and what it returns.
"""

from collections import namedtuple
from dataclasses import dataclass

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

STEPS = 200
WIDTH = 6

Pair = namedtuple("Pair", ["spikes", "extra"])

READS = {
    # name -> (axis of the steps in the input, None: a constant input; the steps)
    "constant": (None, lambda self, x: [x] * STEPS),
    "constant, unknown steps": (None, lambda self, x: (x for _ in range(STEPS))),
    "x[t]": (0, lambda self, x: (x[t] for t in range(x.size(0)))),
    "x[t, :]": (0, lambda self, x: (x[t, :, :] for t in range(x.shape[0]))),
    "x[:, t]": (1, lambda self, x: (x[:, t] for t in range(x.size(1)))),
    "x[:, t, ...]": (1, lambda self, x: (x[:, t, ...] for t in range(x.size(1)))),
    "x[..., t]": (-1, lambda self, x: (x[..., t] for t in range(x.size(-1)))),
    "for": (0, lambda self, x: iter(x)),
    "enumerate": (0, lambda self, x: (x_t for _, x_t in enumerate(x))),
    "zip": (0, lambda self, x: (x_t for x_t, _ in zip(x, range(STEPS), strict=False))),
    "unbind": (1, lambda self, x: x.unbind(1)),
    "torch.unbind": (0, lambda self, x: torch.unbind(x)),
    "select": (1, lambda self, x: (x.select(1, t) for t in range(x.size(1)))),
    "narrow": (1, lambda self, x: (x.narrow(1, t, 1).squeeze(1) for t in range(x.size(1)))),
    "slice": (1, lambda self, x: (x[:, t : t + 1].squeeze(1) for t in range(x.size(1)))),
    "slice, flattened": (1, lambda self, x: (x[:, t : t + 1].flatten(1) for t in range(x.size(1)))),
    "split": (1, lambda self, x: (x_t.squeeze(1) for x_t in x.split(1, dim=1))),
    "split, flattened": (0, lambda self, x: (x_t.squeeze(0) for x_t in torch.split(x, 1))),
    "chunk": (1, lambda self, x: (x_t.squeeze(1) for x_t in x.chunk(x.size(1), 1))),
    "permute": (1, lambda self, x: iter(x.permute(1, 0, 2))),
    "permute, last": (2, lambda self, x: iter(x.permute(2, 0, 1))),
    "transpose": (1, lambda self, x: (x.transpose(0, 1)[t] for t in range(x.size(1)))),
    "movedim": (-1, lambda self, x: iter(x.movedim(-1, 0))),
    "movedim, to 1": (-1, lambda self, x: x.movedim(-1, 1).unbind(1)),
    "swapaxes": (1, lambda self, x: x.swapaxes(0, 1).unbind()),
    "linear first": (1, lambda self, x: (h for h in torch.relu(self.first(x)).unbind(1))),
    "linear first, permuted": (0, lambda self, x: iter(self.first(x.permute(1, 0, 2)).transpose(0, 1))),
    "function first": (0, lambda self, x: iter(2 * torch.sigmoid(x) - 0.5)),
    "view": (0, lambda self, x: iter(x.view(x.size(0), x.size(1), -1))),
    "flatten": (0, lambda self, x: iter(x.flatten(2))),
    "unsqueeze": (0, lambda self, x: (x_t.squeeze(1) for x_t in x.unsqueeze(2))),
}

RECORDS = {
    "mean": lambda r: torch.stack(r).mean(0),
    "mean, named": lambda r: torch.stack(r, dim=0).mean(dim=0),
    "mean over 1": lambda r: torch.stack(r, dim=1).mean(1),
    "mean over -1": lambda r: torch.stack(r, -1).mean(-1),
    "kept": lambda r: torch.stack(r).mean(0, keepdim=True).squeeze(0),
    "sum": lambda r: torch.stack(r).sum(0) / len(r),
    "sum()": lambda r: sum(r) / len(r),
    "later": lambda r: torch.stack(r)[30:].mean(0),
    "between": lambda r: torch.stack(r)[10:-10].mean(0),
    "permuted": lambda r: torch.stack(r).permute(1, 0, 2).mean(1),
    "transposed": lambda r: torch.stack(r).transpose(0, 1).mean(dim=1),
    "movedim": lambda r: torch.stack(r).movedim(0, 2).mean(2),
    "cat": lambda r: torch.cat([s.unsqueeze(0) for s in r]).mean(0),
    "cat over 1": lambda r: torch.cat([s[:, None] for s in r], 1).mean(1),
    "torch.mean": lambda r: torch.mean(torch.stack(r), 0),
    "scaled": lambda r: (torch.stack(r) * 2 - torch.stack(r)).mean(0),
    "two records": lambda r: torch.cat([torch.stack(r)[:20], torch.stack(r)[20:]]).mean(0),
    "unbound": lambda r: sum(torch.stack(r, 1).unbind(1)) / len(r),
}


def _filled(r, axis):
    sizes = [len(r[0]), WIDTH]
    sizes.insert(axis, len(r))
    out = torch.zeros(sizes)
    for t, s in enumerate(r):
        if axis == 0:
            out[t] = s
        else:
            out[:, t] = s
    return out.mean(axis)


def _added(r):
    total = torch.zeros_like(r[0])
    for s in r:
        total += s
    return total / len(r)


RECORDS |= {"added up": _added, "filled": lambda r: _filled(r, 0), "filled over 1": lambda r: _filled(r, 1)}

RETURNS = {
    "output": lambda out, hidden: out,
    "tuple": lambda out, hidden: (out, hidden[-1]),
    "hidden first": lambda out, hidden: (hidden[0], out),
    "list": lambda out, hidden: [[hidden[0]], [out]],
    "dict": lambda out, hidden: {"hidden": hidden[0], "out": out},
    "named": lambda out, hidden: Pair(out, hidden[0]),
}


@dataclass(frozen=True)
class Layer:
    """A layer of neurons: `sources` are earlier layers (-1: the input), joined as `join` says, before its weights."""

    sources: tuple[int, ...]
    join: str = "sum"
    skip: int | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Recipe:
    read: str
    layers: tuple[Layer, ...]
    record: str
    returns: str
    readout: str
    seed: int = 0


class Generated(nn.Module):
    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.weights, self.neurons, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for layer in recipe.layers:
            inputs = len(layer.sources) if layer.join == "cat" else 1
            self.weights.append(nn.Linear(WIDTH * inputs, WIDTH))
            self.skips.append(nn.Linear(WIDTH, WIDTH, bias=False))
            self.neurons.append(
                snn.Leaky(beta=1.0, reset_mechanism="subtract", init_hidden=layer.hidden, threshold=0.9)
            )
        self.out = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    m.weight.uniform_(-0.8, 1.4).div_(m.in_features**0.5)
                    if m.bias is not None:
                        m.bias.uniform_(-0.05, 0.15)

    def step(self, x, mems):
        values = {-1: x}
        for l, layer in enumerate(self.recipe.layers):
            taken = [values[s] for s in layer.sources]
            joined = torch.cat(taken, 1) if layer.join == "cat" else sum(taken[1:], taken[0])
            current = self.weights[l](joined)
            if layer.join == "mean":
                current = current / len(taken)
            if layer.skip is not None:
                current = current + self.skips[l](values[layer.skip])
            if layer.hidden:
                values[l] = self.neurons[l](current)
            else:
                values[l], mems[l] = self.neurons[l](current, mems[l])
        return [values[l] for l in range(len(mems))]

    def forward(self, x):
        mems = []
        for layer, neuron in zip(self.recipe.layers, self.neurons, strict=True):
            mem = neuron.reset_mem()
            mems.append(None if layer.hidden else mem)
        records = []
        for x_t in READS[self.recipe.read][1](self, x):
            spikes = self.step(x_t, mems)
            records.append([*spikes, self.out(spikes[-1]) if self.recipe.readout == "each step" else spikes[-1]])
        *hidden, out = (RECORDS[self.recipe.record](list(r)) for r in zip(*records, strict=True))
        if self.recipe.readout == "at the end":
            out = self.out(out)
        return RETURNS[self.recipe.returns](out, hidden)


PATHS = {"output": None, "tuple": 0, "hidden first": 1, "list": (1, 0), "dict": "out", "named": "spikes"}
"""The output proper, as `convert` is told it."""


def output_of(returned, name):
    """The output proper of what a model returns."""
    return {
        "output": lambda r: r,
        "tuple": lambda r: r[0],
        "hidden first": lambda r: r[1],
        "list": lambda r: r[1][0],
        "dict": lambda r: r["out"],
        "named": lambda r: r.spikes,
    }[name](returned)


class Pictures(nn.Module):
    """One step of a convolutional net; `graph` says what a forward does with its parts."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.joined, self.fc = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(36, WIDTH)
        self.skip, self.wide = nn.Linear(36, WIDTH, bias=False), nn.Linear(72, WIDTH)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Linear(WIDTH, WIDTH)
        self.l1, self.l2, self.l3 = (
            snn.Leaky(beta=1.0, reset_mechanism="subtract", init_hidden=True, threshold=0.9) for _ in range(3)
        )
        with torch.no_grad():
            for m in self.modules():
                if isinstance(m, (nn.Linear, nn.Conv2d)):
                    m.weight.uniform_(-0.8, 1.4).div_(m.weight[0].numel() ** 0.5)
                    if m.bias is not None:
                        m.bias.uniform_(-0.05, 0.15)
            self.norm.running_mean.uniform_(-0.1, 0.1)
            self.norm.running_var.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, x):
        return self.graph(self, x)


def _head(net, h):
    return net.out(net.l3(net.fc(h.flatten(1))))


PICTURES = {
    "maxima of the drive": lambda n, x: _head(n, n.l1(F.max_pool2d(n.conv1(x), 2))),
    "average pooling": lambda n, x: _head(n, F.avg_pool2d(n.l2(n.conv2(n.l1(n.conv1(x)))), 2)),
    "adaptive pooling": lambda n, x: _head(n, F.adaptive_avg_pool2d(n.l2(n.conv2(n.l1(n.conv1(x)))), 3)),
    "normalization": lambda n, x: _head(n, F.avg_pool2d(n.l2(n.norm(n.conv2(n.l1(n.norm(n.conv1(x)))))), 2)),
    "a skip": lambda n, x: _head(n, F.avg_pool2d((s := n.l1(n.conv1(x))) + n.l2(n.conv2(s) - 0.5 * s), 2)),
    "two ways": lambda n, x: n.out(
        n.l3(n.fc((a := F.avg_pool2d(n.l1(n.conv1(x)), 2)).flatten(1)) + n.skip(n.l2(n.conv2(a)).view(len(x), -1)))
    ),
    "concatenated channels": lambda n, x: _head(
        n, F.avg_pool2d(n.l2(n.joined(torch.cat([s := n.l1(n.conv1(x)), n.conv2(s)], 1))), 2)
    ),
    "concatenated features": lambda n, x: n.out(
        n.l3(n.wide(torch.cat([(a := F.avg_pool2d(n.l1(n.conv1(x)), 2)).flatten(1), n.l2(n.conv2(a)).flatten(1)], -1)))
    ),
    "stacked and summed": lambda n, x: _head(
        n, torch.stack([a := F.avg_pool2d(n.l1(n.conv1(x)), 2), n.l2(n.conv2(a))]).sum(0)
    ),
    "the input to two layers": lambda n, x: _head(n, F.avg_pool2d(n.l2(n.conv2(n.l1(n.conv1(x))) + n.conv1(x)), 2)),
    "padded and cropped": lambda n, x: _head(
        n, F.avg_pool2d(n.l1(F.pad(n.conv1(x), (1, 1, 1, 1))), 2, ceil_mode=True)[:, :, :3, :3]
    ),
    "functions of the drive": lambda n, x: _head(n, n.l1(torch.tanh(F.avg_pool2d(n.conv1(x), 2)) * 1.2 + 0.1)),
    "features of two layers read": lambda n, x: (
        n.out(n.skip((a := F.avg_pool2d(n.l1(n.conv1(x)), 2)).flatten(1)))
        - n.out(n.l3(n.fc(n.l2(n.conv2(a)).flatten(1))))
    ),
}
