"""Forwards that are refused, with the place and the reason."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from test_tracing import Net

import ep_plugin as ep


class Delayed(Net):
    """The second layer's spikes come back in the next step."""

    def forward(self, x):
        mem1, mem2, spk2 = self.lif1.reset_mem(), self.lif2.reset_mem(), torch.zeros(1, 6)
        for _ in range(3):
            spk1, mem1 = self.lif1(self.fc1(x) + spk2, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return self.out(spk2)


class Reused(Net):
    def forward(self, x):
        spk1, mem = self.lif1(self.fc1(x))
        spk2, mem = self.lif1(self.fc2(spk1), mem)
        return self.out(spk2)


class SecondInput(Net):
    def forward(self, x, context):
        return self.out(self.lif1(self.fc1(x) + context)[0])


class InputRead(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.out(spk1) + self.out(self.fc1(x))


class StepAndWhole(Net):
    """The mean over time beside the steps."""

    def forward(self, x):
        for step in range(x.size(0)):
            spk1, _ = self.lif1(self.fc1(x[step]) + self.fc1(x.mean(0)))
        return self.out(spk1)


class RectifiedSum(Net):
    def forward(self, x):
        h = self.fc1(x)
        spk1, _ = self.lif1(h)
        return self.lif2(F.relu(self.fc2(spk1) + h))[0]


class JoinedAlongTheBatch(Net):
    def forward(self, x):
        h = self.fc1(x)
        spk1, _ = self.lif1(h)
        return self.lif2(self.fc2(torch.cat([spk1, h])))[0]


class Product(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spk1) * spk1)[0]


class MembraneInside(Net):
    def forward(self, x):
        _, mem1 = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(mem1))[0]


class Nonlinear(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.lif2(torch.tanh(self.fc2(spk1)))[0]


class Powered(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.lif2(torch.square(self.fc2(spk1)))[0]


class Sized(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.lif2(F.interpolate(self.fc2(spk1).unsqueeze(1), size=x.shape[1]))[0]


class ByHand(Net):
    """A recurrence that is written out."""

    def forward(self, x):
        spk1, mem1 = torch.ones(x.size(0), 6), self.lif1.reset_mem()
        for _ in range(3):
            spk1, mem1 = self.lif1(self.fc1(x) + self.fc2(spk1), mem1)
        return self.out(spk1)


class DependsOnSizes(Net):
    def forward(self, x):
        return self.lif1(self.fc1(x) if x.size(0) > 1 else x)[0]


class DependsOnValues(Net):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.lif1(self.fc1(x))[0]


class NoNeuronRead(Net):
    def forward(self, x):
        self.lif1(self.fc1(x))
        return self.fc1(x)


class DropoutOfASum(Net):
    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        spk2, _ = self.lif2(self.fc2(spk1))
        return self.out(self.lif3(self.fc2(F.dropout(spk1 + spk2, training=self.training)))[0])

    def __init__(self):
        super().__init__()
        self.lif3 = snn.Leaky(beta=0.5)


REFUSED = {
    Delayed: r"'lif1' \(Leaky\) receives something else the second time.*step before.*Connection",
    Reused: r"'lif1' \(Leaky\) receives something else the second time.*a neuron for each",
    SecondInput: r"'lif1' \(Leaky\) depends on .*'context'",
    InputRead: r"the output reads the input beside module 'lif1' \(Leaky\).*nothing but their equilibria.*add",
    StepAndWhole: r"both step by step and as a whole",
    RectifiedSum: r"'relu' \(ReLU\).*sum of several signals.*only piece by piece.*before the sum",
    JoinedAlongTheBatch: r"concatenation of 2 signals before module 'lif2' \(Leaky\).*along the batch.*dim=1",
    Product: r"'lif2' \(Leaky\) depends on mul\(\) of several tensors",
    MembraneInside: r"'lif1' \(Leaky\) is read by its membrane",
    Nonlinear: r"'tanh' \(Tanh\) cannot be converted: it is smooth and not linear",
    Powered: r"the function square\(\) between two neurons cannot be converted.*not known to be linear",
    Sized: r"'lif2' \(Leaky\) depends on interpolate\(\) with a size of the input",
    ByHand: r"'lif1' \(Leaky\) receives something else the second time.*step before",
    DependsOnValues: r"DependsOnValues cannot be traced",
    DependsOnSizes: r"DependsOnSizes cannot be traced: it compares",
    NoNeuronRead: r"the output depends on no neuron",
    DropoutOfASum: r"follows a sum of several signals.*a mask of its own",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda k: k.__name__)
def test_refusals_say_where_and_why(kind):
    with pytest.raises(ValueError, match=REFUSED[kind]):
        ep.convert(kind())
