"""Indices by tensors, values beside places, sizes handed on, sums over steps divided in the loop, one neuron twice."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")


def lif(**constants):
    return snn.Leaky(beta=1.0, reset_mechanism="subtract", init_hidden=True, **constants)


def rates(net, x, steps=400):
    with torch.no_grad():
        return sum(net(x) for _ in range(steps)) / steps


class Picked(nn.Module):
    def __init__(self, pick):
        super().__init__()
        self.fc1, self.l1, self.fc2, self.l2 = nn.Linear(8, 6), lif(), nn.Linear(6, 3), lif()
        self.register_buffer("places", torch.tensor([5, 3, 1, 0, 2, 4]))
        self.pick = pick
        for module in (self.fc1, self.fc2):
            nn.init.uniform_(module.weight, 0, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.fc2(self.pick(self.l1(self.fc1(x)), self.places)))


@pytest.mark.parametrize(
    "pick",
    [
        lambda s, places: s[:, places],
        lambda s, places: s[..., places],
        lambda s, places: s.index_select(1, places),
        lambda s, places: s[:, places[:3]].repeat(1, 2),
    ],
)
def test_places_may_be_a_buffer(pick):
    """An index of a slice and a tensor raised a TypeError: slices have no hash."""
    net, x = Picked(pick), torch.rand(4, 8)
    found = convert(net, encoder="graded", feedback=1e-6)(x)
    torch.testing.assert_close(found, rates(net, x), rtol=0, atol=0.02)


class Head(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(8, 6), lif(), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lif(self.fc(x)))


@pytest.mark.parametrize(
    ("head", "of_rates"),
    [
        (lambda s: torch.max(s, dim=1).values, lambda r: r.amax(1)),
        (lambda s: s.topk(2, dim=1).values, lambda r: r.topk(2, dim=1)[0]),
        (lambda s: s.topk(2, dim=1)[0][:, -1:], lambda r: r.topk(2, dim=1)[0][:, -1:]),
        (lambda s: torch.sort(s, dim=1)[0], lambda r: r.sort(dim=1)[0]),
    ],
)
def test_values_beside_places_may_head_a_net(head, of_rates):
    """The first of two values was taken for the first sample, and `.values` was refused."""
    net, x = Head(head), torch.rand(4, 8)
    rate = convert(nn.Sequential(net.fc, net.lif))(x)
    torch.testing.assert_close(convert(net)(x), of_rates(rate), rtol=0, atol=1e-5)


def test_sizes_handed_on_are_refused_with_the_way_out():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.l1, self.c, self.l2 = nn.Conv2d(1, 2, 3, 2, 1), lif(), nn.Conv2d(2, 1, 1), lif()

        def forward(self, x):
            return self.l2(self.c(F.interpolate(self.l1(self.down(x)), size=x.shape[-2:])))

    x = torch.rand(2, 1, 6, 6)
    with pytest.raises(ValueError, match="uses the sizes of a value, which are not known"):
        convert(Up())
    assert convert(Up(), example_input=x)(x).shape == (2, 1, 6, 6)


def test_what_is_summed_in_parts_of_the_steps_number_is_the_mean():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(8, 6), snn.Leaky(beta=0.9)

        def forward(self, x):
            mem, mean = self.lif.init_leaky(), 0
            for xt in x.unbind(0):
                spk, mem = self.lif(self.fc(xt), mem)
                mean = mean + spk / x.shape[0]
            return mean

    net, x = Mean(), torch.rand(4, 8)
    rate = convert(nn.Sequential(net.fc, snn.Leaky(beta=0.9)))(x)
    torch.testing.assert_close(convert(net)(x), rate, rtol=0, atol=1e-5)


def test_a_neuron_of_two_parts_of_the_input_is_said_to_need_another():
    class Siamese(nn.Module):
        def __init__(self, neurons):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 6), nn.Linear(12, 3)
            self.neurons = nn.ModuleList([lif() for _ in range(neurons)])

        def forward(self, x):
            one = self.neurons[0](self.fc(x[:, :4]))
            two = self.neurons[-1](self.fc(x[:, 4:]))
            return self.out(torch.cat([one, two], 1))

    with pytest.raises(ValueError, match="needs a neuron for each"):
        convert(Siamese(1))
    net, x = Siamese(2), torch.rand(4, 8)
    torch.testing.assert_close(convert(net, encoder="graded")(x), rates(net, x), rtol=0, atol=0.05)


def test_tokens_before_a_linear_layer_are_known_by_an_example():
    """Samples of more than one axis were refused before a linear layer, whatever the model was converted with."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.l1, self.fc, self.l2 = nn.Linear(6, 8), lif(), nn.Linear(8, 3), lif()
            self.position = nn.Parameter(torch.rand(1, 9, 8) * 0.1)

        def forward(self, x):
            return self.l2(self.fc(self.l1(self.embed(x) + self.position)))[:, 0]

    net, x = Tokens(), torch.rand(4, 9, 6)
    with pytest.raises(ValueError, match="convert with example_input=x"):
        convert(net)(x)
    model = convert(net, example_input=x, encoder="graded", feedback=1e-6)
    torch.testing.assert_close(model(x), rates(net, x), rtol=0, atol=0.02)
    with pytest.raises(ValueError, match=r"expected \[batch, size, 6\]"):
        model(x[:, 0])


def test_an_example_of_steps_is_one_of_more_axes_than_a_step():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 3), snn.Leaky(beta=0.9)

        def forward(self, x):
            mem, count = self.lif.init_leaky(), 0
            for xt in x:
                spk, mem = self.lif(self.fc(xt), mem)
                count = count + spk
            return count / len(x)

    x = torch.rand(5, 4, 6)
    assert convert(Steps(), example_input=x)(x[0]).shape == (4, 3)
    assert convert(Steps(), example_input=x, time_varying=True)(x).shape == (4, 3)
    with pytest.raises(ValueError, match=r"expected \[batch, 6\]"):
        convert(Steps(), example_input=x)(x)
    over_time = norse.SequentialState(norse.Lift(nn.Linear(6, 3)), norse.LIF())
    assert convert(over_time, example_input=x)(x[0]).shape == (4, 3)
