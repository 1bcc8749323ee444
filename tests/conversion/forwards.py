"""Rows of the table of models: forwards as people write them, by how they read time, and what they return and keep."""

import snntorch as snn
import torch
from models import BETA, Row, flat, to_one
from snntorch import spikegen
from torch import nn


class Dense(nn.Module):
    """Two layers and a readout; subclasses say what a forward does with them."""

    def __init__(self, hidden=50):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, hidden), snn.Leaky(beta=BETA)
        self.fc2, self.lif2 = nn.Linear(hidden, 40), snn.Leaky(beta=BETA)
        self.out = nn.Linear(40, 10)

    def states(self):
        return [self.lif1.reset_mem(), self.lif2.reset_mem()]

    def step(self, x, mems):
        spk1, mems[0] = self.lif1(self.fc1(x), mems[0])
        spk2, mems[1] = self.lif2(self.fc2(spk1), mems[1])
        return spk1, spk2


class Audio(Dense):
    """[batch, time, features], as audio comes."""

    def forward(self, x):
        mems, record = self.states(), []
        for t in range(x.size(1)):
            record.append(self.out(self.step(x[:, t], mems)[1]))
        return torch.stack(record, dim=1).mean(dim=1)


class Permuted(Dense):
    """Time is brought to the front, and back."""

    def forward(self, x):
        mems, record = self.states(), []
        for x_t in x.permute(1, 0, 2):
            record.append(self.step(x_t, mems)[1])
        return self.out(torch.stack(record).permute(1, 0, 2)).max(1).values


class Layered(Dense):
    """All steps of a layer before the next one."""

    def forward(self, x):
        first = torch.stack([self.lif1(h)[0] for h in self.fc1(x).unbind(1)], 1)
        second = torch.stack([self.lif2(h)[0] for h in self.fc2(first).unbind(1)], 1)
        return self.out(second).mean(1)


class Slices(Dense):
    """Steps as slices of length one."""

    def forward(self, x):
        mems, total = self.states(), 0
        for t in range(x.shape[1]):
            total = total + self.out(self.step(x[:, t : t + 1].flatten(1), mems)[1])
        return total / x.shape[1]


class Preallocated(Dense):
    """A record that is made before the loop, for a known number of steps."""

    def forward(self, x):
        mems = self.states()
        record = torch.zeros(x.size(0), 20, 40, device=x.device)
        for t in range(20):
            record[:, t] = self.step(x, mems)[1]
        return self.out(record[:, 5:].mean(1))


class Events(nn.Module):
    """Event frames with time last, through convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 8, 3, stride=2), snn.Leaky(beta=BETA, init_hidden=True)
        self.fc, self.lif2 = nn.Linear(72, 10), snn.Leaky(beta=BETA, init_hidden=True)

    def forward(self, x):
        for neuron in (self.lif1, self.lif2):
            neuron.reset_mem()
        return torch.stack([self.lif2(self.fc(self.lif1(self.conv(x[..., t])).flatten(1))) for t in range(x.size(-1))])


class HiddenFirst(Dense):
    """Every layer's record, the hidden one's first."""

    def forward(self, x):
        mems, first, second = self.states(), [], []
        for _ in range(10):
            spk1, spk2 = self.step(x, mems)
            first.append(spk1)
            second.append(self.out(spk2))
        return torch.stack(first), torch.stack(second)


class Named(Dense):
    """A dictionary, for logging."""

    def forward(self, x):
        mems = self.states()
        for _ in range(10):
            spk1, spk2 = self.step(x, mems)
        return {"hidden": spk1, "logits": self.out(spk2), "membranes": mems}


class Keyword(Dense):
    """The number of steps as an argument by keyword."""

    def forward(self, x, *, num_steps=10):
        mems = self.states()
        return sum(self.out(self.step(x, mems)[1]) for _ in range(num_steps)) / num_steps


class Keeping(Dense):
    """Membranes and spikes kept on the model; the loop is outside."""

    def __init__(self):
        super().__init__()
        self.mems, self.spikes = None, []

    def forward(self, x):
        if self.mems is None:
            self.mems = self.states()
        spk1, spk2 = self.step(x, self.mems)
        self.spikes.append(spk1)
        return self.out(spk2)


class Checked(Dense):
    """Asks for the shape of its input."""

    def forward(self, x):
        if x.dim() == 4:
            x = x.flatten(1)
        assert x.shape[1] == 64, "digits of 8 x 8"
        return self.out(self.step(x, self.states())[1])


class Coded(Dense):
    """Spikes are drawn in forward."""

    def forward(self, x):
        mems = self.states()
        return torch.stack([self.out(self.step(x_t, mems)[1]) for x_t in spikegen.rate(x, num_steps=10)])


class Normed(Dense):
    """A batch normalization for every step."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(50) for _ in range(10))

    def forward(self, x):
        record = []
        for norm in self.norms:
            spk1, _ = self.lif1(norm(self.fc1(x)))
            record.append(self.out(self.lif2(self.fc2(spk1))[0]))
        return torch.stack(record).mean(0)


class Differences(Dense):
    """What changed since the step before."""

    def forward(self, x):
        mems = self.states()
        for t in range(1, x.size(0)):
            spk = self.step(x[t] - x[t - 1], mems)[1]
        return self.out(spk)


class Late(Dense):
    """Another gain after the first steps."""

    def forward(self, x):
        mems = self.states()
        for t in range(10):
            spk = self.step(x if t < 5 else 2 * x, mems)[1]
        return self.out(spk)


class Remembering(Dense):
    """Spikes of the last call come back."""

    def __init__(self):
        super().__init__()
        self.last, self.back = None, nn.Linear(40, 64)

    def forward(self, x):
        if self.last is not None:
            x = x + self.back(self.last)
        self.last = self.step(x, self.states())[1]
        return self.out(self.last)


def wrapped():
    return torch.compile(Keyword())


FORWARDS = {
    "time second": Row(Audio, input=flat),
    "time permuted, maxima over it": Row(Permuted, input=flat),
    "layer after layer": Row(Layered, input=flat),
    "slices of the input": Row(Slices, input=flat),
    "preallocated record": Row(Preallocated, input=flat),
    "time last": Row(Events, to_one),
    "hidden layer returned first": Row(HiddenFirst, input=flat),
    "dictionary": Row(Named, input=flat),
    "steps by keyword": Row(Keyword, input=flat),
    "compiled": Row(wrapped, input=flat),
    "states kept on the model": Row(Keeping, input=flat),
    "shapes asked for": Row(
        Checked, refusal="the number of axes.*example_input", options={"example_input": torch.rand(2, 1, 8, 8)}
    ),
    "spikes drawn in forward": Row(Coded, refusal="a random draw in forward.*probabilities", converts=False),
    "norms a step": Row(Normed, refusal="differs between steps: 'norms.0' at one step, 'norms.1'", converts=False),
    "differences of frames": Row(Differences, refusal="differs between steps: an index of the input", converts=False),
    "a branch on the step": Row(Late, refusal="differs between steps", converts=False),
    "spikes of the last call": Row(Remembering, refusal="receives something else the second time", converts=False),
}
