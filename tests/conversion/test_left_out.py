"""What was left out of a converted model without a word: what states are made of, and what a forward tries."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")


class Stepwise(nn.Module):
    """Hands its first neuron a membrane that `change` makes."""

    def __init__(self, change):
        super().__init__()
        self.fc1, self.l1, self.rec = nn.Linear(8, 6), snn.Leaky(beta=0.9), nn.Linear(6, 6)
        self.fc2, self.l2, self.change = nn.Linear(6, 3), snn.Leaky(beta=0.9), change

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, count = torch.zeros_like(self.fc1(x[0])), x.new_zeros(x.size(1), 3), 0
        for xt in x:
            spk1, mem1 = self.l1(self.fc1(xt), mem1)
            spk2, mem2 = self.l2(self.fc2(spk1), mem=mem2.detach().clone())
            mem1 = self.change(self, mem1, spk1, spk2, xt)
            count = count + spk2
        return count / len(x)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda net, mem, spk1, spk2, x: mem - net.rec(spk1), r"module 'rec' \(Linear\)"),
        (lambda net, mem, spk1, spk2, x: mem - spk2.sum(1, keepdim=True), r"module 'l2' \(Leaky\)"),
        (lambda net, mem, spk1, spk2, x: mem + x[:, :6], "the input"),
    ],
)
def test_a_state_that_depends_on_something_else_is_refused(change, what):
    """States that are passed by hand fall away, and so did the connections by them."""
    with pytest.raises(ValueError, match=rf"module 'l1' \(Leaky\) is handed a state that depends on {what}"):
        convert(Stepwise(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda net, mem, spk1, spk2, x: mem,
        lambda net, mem, spk1, spk2, x: mem.detach().clamp(min=0),
        lambda net, mem, spk1, spk2, x: mem - spk1 * net.l1.threshold,
        lambda net, mem, spk1, spk2, x: torch.zeros_like(net.fc1(x)),
    ],
)
def test_a_state_of_the_neuron_itself_falls_away(change):
    assert convert(Stepwise(change))(torch.rand(4, 8)).shape == (4, 3)


def test_what_a_forward_tries_is_not_taken_for_a_failure():
    """`except Exception` caught the refusal, and the model was converted with what it does instead."""

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(8, 6), snn.Leaky(beta=0.9)

        def forward(self, x):
            try:
                if x.shape[0] > 2:
                    x = 0.5 * x
            except Exception:
                x = 0 * x
            return self.lif(self.fc(x))[0]

    with pytest.raises(ValueError, match="compares a size of the input"):
        convert(Tries())
    x = torch.rand(4, 8)
    assert "Scale(0.5)" in str(convert(Tries(), example_input=x).stem)


def test_dropout_of_a_weight_is_a_draw():
    """It converted, and failed when the model was called, by a type of the package's own."""

    class DropConnect(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.l1 = nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True)
            self.fc2, self.l2 = nn.Linear(6, 3), snn.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x):
            weight = F.dropout(self.fc2.weight, 0.5, self.training)
            return self.l2(F.linear(self.l1(self.fc1(x)), weight, self.fc2.bias))

    net, x = DropConnect(), torch.rand(4, 8)
    with pytest.raises(ValueError, match="dropout of a parameter"):
        convert(net)
    plain = nn.Sequential(net.fc1, net.l1, net.fc2, net.l2)
    torch.testing.assert_close(convert(net.eval())(x), convert(plain)(x), rtol=0, atol=1e-5)
