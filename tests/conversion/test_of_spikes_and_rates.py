"""What is one thing for spikes of 0 and 1, or over many steps, and another for a rate at an equilibrium."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.conversion.faithfulness import compare

pytestmark = pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")

X = torch.rand(4, 8)


class OverTime(nn.Module):
    """Norse's neurons over time, read by a function of the record of all steps."""

    def __init__(self, read):
        super().__init__()
        parts = norse.Lift(nn.Linear(8, 6)), norse.LIF(), norse.Lift(nn.Linear(6, 3)), norse.LI()
        self.layers, self.read = norse.SequentialState(*parts), read

    def forward(self, x):
        return self.read(self.layers(x)[0])


def test_a_sum_over_unknown_steps_is_told_as_their_mean():
    """It was 37 times the mean, the length that stands for the unknown one."""
    net = OverTime(lambda record: record.mean(0))
    mean = ep.convert(net)(X)
    net.read = lambda record: record.sum(0)
    with pytest.warns(ep.ConversionWarning, match="is a sum over the input's steps, of which .* returns the mean"):
        summed = ep.convert(net)
    torch.testing.assert_close(summed(X), mean)
    torch.testing.assert_close(ep.convert(net, example_input=X.expand(6, 4, 8))(X), 6 * mean)
    assert compare(summed, net, X).difference is None
    net.read = lambda record: 2 * record.sum(0) / len(record)
    torch.testing.assert_close(ep.convert(net)(X), 2 * mean)


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (
            lambda record: record[40],
            r"step 40 of a record of 37 steps.*37 stand for a number of steps that is not known",
        ),
        (lambda record: record[50:].mean(0), r"none of the 37 steps of a record.*convert\(net, example_input=x\)"),
        (lambda record: record[10:].sum(0), r"a size of the input, which is not known.*example_input=x"),
        (lambda record: record.sum(0).log_softmax(-1), r"a size of the input, which is not known"),
    ],
)
def test_what_needs_the_number_of_steps_asks_for_an_example(read, why):
    net = OverTime(read)
    with pytest.raises(ValueError, match=why):
        ep.convert(net)
    assert ep.convert(net, example_input=X.expand(60, 4, 8))(X).shape == (4, 3)


class Loop(nn.Module):
    """`read` of the spikes of every step; the mean over the steps is `told`."""

    def __init__(self, read, told=lambda mean: mean):
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(8, 6), snn.Leaky(beta=1.0), nn.Linear(6, 3)
        self.read, self.told = read, told

    def forward(self, x):
        mem, total = self.lif.reset_mem(), 0
        for _ in range(6):
            spk, mem = self.lif(self.fc(x), mem)
            total = total + self.read(self, spk)
        return self.told(total / 6)


STEPS = {
    "gt": lambda net, spk: net.out((spk > 0.5).float()),
    "ge": lambda net, spk: net.out((spk >= 1).to(spk.dtype)),
    "eq": lambda net, spk: net.out((spk == 1).float()),
    "sign": lambda net, spk: net.out(torch.sign(spk)),
    "round": lambda net, spk: net.out(spk.round()),
    "bool": lambda net, spk: net.out(spk.bool().float()),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_spikes_is_refused(name):
    """Of spikes it is the spikes themselves; of rates it is another net, in which nothing before it is trained."""
    with pytest.raises(ValueError, match=rf"what 'out' receives is made by {name}\(\) of what neuron 'lif' sends"):
        ep.convert(Loop(STEPS[name]))
    model = ep.convert(Loop(lambda net, spk: net.out(spk)))
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_predictions_of_the_outputs_are_left_alone():
    assert ep.convert(Loop(lambda net, spk: net.out(spk), lambda mean: mean.argmax(1)))(X).shape == (4,)
    assert ep.convert(Loop(lambda net, spk: net.out(spk), lambda mean: mean > 0))(X).dtype == torch.bool


def test_a_mask_that_is_drawn_in_forward_is_a_draw():
    def masked(net, spk):
        return net.out(spk * F.dropout(torch.ones(1, 6), 0.5, net.training))

    with pytest.raises(ValueError, match="a random draw in forward"):
        ep.convert(Loop(masked))
    assert ep.convert(Loop(masked).eval())(X).shape == (4, 3)


def test_indices_beside_values_are_named():
    class Unpools(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif, self.last = (
                nn.Conv2d(2, 4, 3),
                snn.Leaky(beta=1.0, init_hidden=True),
                nn.Conv2d(4, 1, 1),
            )
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x):
            return self.last(self.unpool(*self.pool(self.lif(self.conv(x)))))

    with pytest.raises(ValueError, match=r"'pool' \(MaxPool2d\), which returns indices.*expected return_indices=False"):
        ep.convert(Unpools(), example_input=torch.rand(2, 2, 8, 8))


@pytest.mark.parametrize("swap", ["view", "reshape"])
def test_a_view_that_swaps_samples_and_steps_is_refused_without_an_example(swap):
    class Swaps(Loop):
        def forward(self, x):
            x = getattr(x, swap)(x.shape[1], x.shape[0], -1)
            mem, total = self.lif.reset_mem(), 0
            for t in range(x.shape[0]):
                spk, mem = self.lif(self.fc(x[t]), mem)
                total = total + self.out(spk)
            return total

    with pytest.raises(ValueError, match=r"mixes samples; expected the batch's size first \(permute and"):
        ep.convert(Swaps(None), time_varying=True)


def test_spikes_of_ones_own_are_refused():
    def converted(neuron):
        return ep.convert(nn.Sequential(nn.Linear(8, 6), neuron, nn.Linear(6, 3)))

    for surrogate in (snn.surrogate.atan(), snn.surrogate.sigmoid(), snn.surrogate.straight_through_estimator()):
        converted(snn.Leaky(beta=0.9, spike_grad=surrogate, init_hidden=True))
    converted(snn.Leaky(beta=0.9, surrogate_disable=True, init_hidden=True))

    signed = snn.Leaky(beta=0.9, spike_grad=lambda u: (u > 0).float() - (u < -1).float(), init_hidden=True)
    with pytest.raises(ValueError, match=r"has a spike_grad that gives \[-1.0, 0.0, 1.0, 1.0\].*surrogate gradient"):
        converted(signed)
    for name in ("fire", "state_function"):
        own = snn.Leaky(beta=0.9, init_hidden=True)
        setattr(own, name, lambda mem: mem)
        with pytest.raises(ValueError, match=f"has a {name} of its own, which the converted neuron has not; remove it"):
            converted(own)
        delattr(own, name)
        if name == "fire":
            converted(own)
