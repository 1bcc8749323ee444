"""Random nets of images, put together from `image_parts`: a graph of values, of which each is made of those before.

With `Rates` in place of its neurons a net computes its equilibrium without feedback, exactly. A seed is a net.
"""

import random
from dataclasses import dataclass, field

import norse.torch as norse
import snntorch as snn
import torch
import torch.nn.functional as F
from image_parts import BENT, OFTEN, PARTS, flattened
from torch import nn

CLASSES = 6
BATCH = 3

READS = {
    # name -> (axis of the steps in the input, None: a constant input; the steps)
    "one step": (None, lambda self, x: [x]),
    "constant": (None, lambda self, x: [x] * self.steps),
    "x[t]": (0, lambda self, x: (x[t] for t in range(x.size(0)))),
    "x[t, ...]": (0, lambda self, x: (x[t, ...] for t in range(len(x)))),
    "x[:, t]": (1, lambda self, x: (x[:, t] for t in range(x.shape[1]))),
    "x[:, t, :]": (1, lambda self, x: (x[:, t, :, :] for t in range(x.shape[1]))),
    "x[:, :, t]": (2, lambda self, x: (x[:, :, t] for t in range(x.size(2)))),
    "x[..., t]": (-1, lambda self, x: (x[..., t] for t in range(x.size(-1)))),
    "for": (0, lambda self, x: iter(x)),
    "unbind": (1, lambda self, x: x.unbind(1)),
    "split": (1, lambda self, x: (x_t.squeeze(1) for x_t in x.split(1, dim=1))),
    "select": (1, lambda self, x: (x.select(1, t) for t in range(x.size(1)))),
    "transpose": (1, lambda self, x: iter(x.transpose(0, 1))),
    "permute": (1, lambda self, x: iter(x.permute(1, 0, *range(2, 3 + self.dims)))),
    "movedim": (-1, lambda self, x: iter(x.movedim(-1, 0))),
    "function first": (1, lambda self, x: iter((2 * x - 0.1).clamp(0, 1).transpose(0, 1))),
    "half of each": (1, lambda self, x: (x[:, t] / 2 for t in range(x.size(1)))),
}


@dataclass(frozen=True)
class Step:
    """How a value is made: `kind` is the name of a part or a join, or "neuron"."""

    kind: str
    takes: tuple[int, ...]
    at: int  # of its part among the net's functions, or of its neuron


@dataclass
class Plan:
    """What is drawn."""

    read: str
    shape: tuple[int, ...]
    hidden: bool
    cell: str
    example: bool
    steps: list[Step] = field(default_factory=list)


JOINS = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - 0.5 * b,
    "mean": lambda a, b: torch.stack([a, b]).mean(0),
    "cat": lambda a, b: torch.cat([a, b], 1),
}


class Rates(nn.Module):
    """What a neuron that integrates and fires settles at."""

    def __init__(self, threshold, bare):
        super().__init__()
        self.threshold, self.bare = threshold, bare

    def forward(self, current, state=None):
        if self.threshold is None:  # such that rates of all sizes are there
            self.threshold = 0.8 * current.max().clamp(min=0.1).item()
        rate = (current / self.threshold).clamp(0, 1)
        return rate if self.bare else (rate, None)


class Called(nn.Module):
    """A function as a module of the user's."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Images(nn.Module):
    """The net of a seed, in evaluation."""

    steps = 3  # of a loop over a constant input

    def __init__(self, seed):
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.dims = rng.choice([1, 2, 2])
        shape = (rng.choice([1, 2, 4]), *rng.sample([8, 9, 6], self.dims))
        read = rng.choice([r for r in READS if (r, self.dims) != ("x[:, t, :]", 1)])
        cell = rng.choice(["snntorch", "snntorch", "norse"])
        hidden = read == "one step" or (cell == "snntorch" and rng.random() < 0.5)
        self.plan = Plan(read, shape, hidden, "snntorch" if read == "one step" else cell, rng.random() < 0.3)
        self.parts, self.neurons, self.functions = nn.ModuleDict(), nn.ModuleList(), []
        with torch.no_grad():
            self.eval()._draw(rng, torch.rand(BATCH, *shape))
        self.eval()

    # Drawing

    @torch.no_grad()
    def _draw(self, rng, x):
        self.values, self.spiking = [x], [False]
        last, blocks = 0, rng.choice([1, 2, 2, 3, 3, 4])
        for block in range(blocks):
            h = last if rng.random() < 0.8 else rng.choice(self._ends)
            if rng.random() < 0.4 and block:
                h = self._joined(rng, h, rng.choice([0, *self._ends]))
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                h = self._part(rng, h)
            if rng.random() < 0.85 or block == blocks - 1:
                h = self._add("neuron", (h,), None)
            last = h
            self._ends.append(h)
        h = self._add("flattened", (last,), flattened(rng, self._shape(last)))
        for neuron in rng.choice([(False,), (True,), (True, False)]):
            h = self._add("linear", (h,), nn.Linear(self.values[h].size(1), CLASSES))
            if neuron:
                h = self._add("neuron", (h,), None)
        self.bent = [s for s in self.plan.steps if s.kind in BENT and self.spiking[s.takes[0]]]
        del self.values, self.spiking

    @property
    def _ends(self):
        return self.__dict__.setdefault("ends", [0])

    def _shape(self, h):
        return tuple(self.values[h].shape[1:])

    def _part(self, rng, h):
        """A part that fits."""
        shape = self._shape(h)
        while True:
            kind = rng.choices(list(PARTS), [OFTEN.get(k, 1) for k in PARTS])[0]
            try:
                made = PARTS[kind](rng, shape)
                out = _called(made)(self.values[h])
            except (RuntimeError, ValueError, IndexError, AttributeError, NotImplementedError):
                continue
            if out.dim() == 2 + self.dims and 0 < out[0].numel() < 600 and out.size(1) <= 12:
                return self._add(kind, (h,), made)

    def _joined(self, rng, a, b):
        """Two values side by side or summed, the second one pooled and mixed until it fits."""
        join = rng.choice(list(JOINS))
        one, two = self._shape(a), self._shape(b)
        if one[1:] != two[1:]:
            pool = getattr(F, f"adaptive_avg_pool{self.dims}d")
            b = self._add("adaptive_average", (b,), lambda h: pool(h, one[1:]))
        if "cat" not in join and one[0] != two[0]:
            b = self._add("conv", (b,), getattr(nn, f"Conv{self.dims}d")(two[0], one[0], 1))
        return self._add(join, (a, b), JOINS[join])

    def _add(self, kind, takes, made):
        """A step, and its value."""
        at = len(self.functions)
        if kind == "neuron":
            at = len(self.neurons)
            rates = Rates(None, self.plan.hidden)
            rates(self.values[takes[0]])
            self.neurons.append(self._neuron(rates.threshold))
            out = Rates(rates.threshold, True)(self.values[takes[0]])
        else:
            module, function = made if isinstance(made, tuple) else (made, made)
            if isinstance(module, nn.Module):
                _weighted(module.eval())
                self.parts[f"{kind}_{at}"] = module
            self.functions.append(f"{kind}_{at}" if module is function and isinstance(module, nn.Module) else function)
            out = self._function(at)(*(self.values[h] for h in takes))
        self.plan.steps.append(Step(kind, takes, at))
        self.values.append(out)
        self.spiking.append(kind == "neuron" or any(self.spiking[h] for h in takes))
        return len(self.values) - 1

    def _neuron(self, threshold):
        if self.plan.cell == "norse":
            return norse.IAFCell(norse.IAFParameters(v_th=torch.as_tensor(threshold)))
        return snn.Leaky(1.0, threshold, reset_mechanism="subtract", init_hidden=self.plan.hidden)

    # Running

    def forward(self, x):
        states = [None] * len(self.neurons)
        for k, neuron in enumerate(self.neurons):
            if hasattr(neuron, "reset_mem") and self.plan.read != "one step":
                states[k] = neuron.reset_mem()
        total = []
        for x_t in READS[self.plan.read][1](self, x):
            total.append(self._step(x_t, states))
        return total[0] if self.plan.read == "one step" else torch.stack(total).mean(0)

    def _step(self, x, states):
        values = [x]
        for step in self.plan.steps:
            taken = [values[h] for h in step.takes]
            if step.kind != "neuron":
                values.append(self._function(step.at)(*taken))
            elif self.plan.hidden:
                values.append(self.neurons[step.at](*taken))
            else:
                spikes, states[step.at] = self.neurons[step.at](*taken, states[step.at])
                values.append(spikes)
        return values[-1]

    def _function(self, at):
        made = self.functions[at]
        return self.parts[made] if isinstance(made, str) else made

    def chain(self):
        """The net as a sequence of its parts and neurons; None if it is none."""
        steps = self.plan.steps
        straight = all(s.takes == (k,) and s.kind != "by_function" for k, s in enumerate(steps))
        as_it_is = self.plan.read not in ("function first", "half of each")
        if not (straight and as_it_is and (self.plan.hidden or self.plan.cell == "norse")):
            return None
        made = [self.neurons[s.at] if s.kind == "neuron" else self._function(s.at) for s in steps]
        modules = [m if isinstance(m, nn.Module) else Called(m) for m in made]
        return (norse.SequentialState if self.plan.cell == "norse" else nn.Sequential)(*modules)

    def rates(self):
        """Rates in place of the neurons, one by one."""
        return nn.ModuleList(
            Rates(float(n.p.v_th if self.plan.cell == "norse" else n.threshold), self.plan.hidden) for n in self.neurons
        )

    def over_time(self, x, steps):
        """A constant input at every step, as the forward takes it."""
        axis = READS[self.plan.read][0]
        return x if axis is None else torch.stack([x] * steps, axis)


def _called(made):
    """The callable of a part."""
    if isinstance(made, tuple):
        made[0].eval()
        return made[1]
    return made.eval() if isinstance(made, nn.Module) else made


def _weighted(part):
    """Weights that are neither small nor of one sign."""
    for m in part.modules():
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)):
            fan = m.weight[0].numel() if not getattr(m, "transposed", False) else m.weight[:, 0].numel() / 2
            m.weight.uniform_(-0.8, 1.4).div_(fan**0.5)
            if m.bias is not None:
                m.bias.uniform_(-0.05, 0.15)
