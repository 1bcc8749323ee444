"""Models as the libraries' tutorials write them, sized for 8 x 8 digits, with their own initialization."""

from collections.abc import Callable
from dataclasses import dataclass, field

import snntorch as snn
import torch
import torch.nn.functional as F
from norse import torch as norse
from norse.torch.models.conv import ConvNet
from snntorch import surrogate
from torch import nn

BETA = 0.9


def quickstart():
    """snnTorch's quickstart."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.MaxPool2d(2),
        snn.Leaky(beta=BETA, spike_grad=surrogate.fast_sigmoid(), init_hidden=True),
        nn.Conv2d(8, 16, 3),
        nn.MaxPool2d(2),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 10),
        snn.Leaky(beta=BETA, init_hidden=True, output=True),
    )


class Tutorial5(nn.Module):
    """Fully connected; membranes passed by hand, the loop over steps inside."""

    def __init__(self, num_steps=25):
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(64, 100)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(100, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Tutorial6(nn.Module):
    """Convolutions with functional pooling; one step a call."""

    def __init__(self, batch_size=64):
        super().__init__()
        self.batch_size = batch_size
        self.conv1 = nn.Conv2d(1, 12, 3)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=25))
        self.conv2 = nn.Conv2d(12, 32, 3)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=25))
        self.fc1 = nn.Linear(32 * 2 * 2, 10)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=25))

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        cur1 = F.max_pool2d(self.conv1(x), 2)
        spk1, mem1 = self.lif1(cur1, mem1)
        cur2 = F.max_pool2d(self.conv2(spk1), 2)
        spk2, mem2 = self.lif2(cur2, mem2)
        cur3 = self.fc1(spk2.view(self.batch_size, -1))
        spk3, mem3 = self.lif3(cur3, mem3)
        return spk3, mem3


def tutorial7():
    """Two polarities of events; pooling behind the neurons."""
    grad = surrogate.atan()
    return nn.Sequential(
        nn.Conv2d(2, 12, 3),
        snn.Leaky(beta=BETA, spike_grad=grad, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 32, 3),
        snn.Leaky(beta=BETA, spike_grad=grad, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
        snn.Leaky(beta=BETA, spike_grad=grad, init_hidden=True, output=True),
    )


def population():
    """Several output neurons a class."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Linear(128, 50),
        snn.Leaky(beta=BETA, init_hidden=True, output=True),
    )


class Regression(nn.Module):
    """Leaks and thresholds a neuron, a recurrent layer, and a membrane that never resets as the output."""

    def __init__(self, hidden=40):
        super().__init__()
        grad = surrogate.fast_sigmoid()
        self.fc_in = nn.Linear(64, hidden)
        self.lif_in = snn.Leaky(torch.rand(hidden), threshold=torch.rand(hidden), learn_beta=True, spike_grad=grad)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.rlif = snn.RLeaky(
            beta=torch.rand(hidden), linear_features=hidden, learn_beta=True, learn_threshold=True, spike_grad=grad
        )
        self.fc_out = nn.Linear(hidden, 1)
        self.li_out = snn.Leaky(
            torch.full((1,), 0.5), threshold=1.0, learn_beta=True, spike_grad=grad, reset_mechanism="none"
        )

    def forward(self, x):
        mem_1 = self.lif_in.init_leaky()
        spk_2, mem_2 = self.rlif.init_rleaky()
        mem_3 = self.li_out.init_leaky()
        mem_3_rec = []
        for step in range(x.size(0)):
            cur_in = self.fc_in(x[step, :, :])
            spk_in, mem_1 = self.lif_in(cur_in, mem_1)
            cur_hidden = self.fc_hidden(spk_in)
            spk_2, mem_2 = self.rlif(cur_hidden, spk_2, mem_2)
            cur_out = self.fc_out(spk_2)
            _, mem_3 = self.li_out(cur_out, mem_3)
            mem_3_rec.append(mem_3)
        return torch.stack(mem_3_rec)


def encoder():
    """The spiking auto-encoder's encoder: strided convolutions with batch normalization."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2),
        nn.BatchNorm2d(16),
        snn.Leaky(beta=BETA, init_hidden=True, threshold=1),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        snn.Leaky(beta=BETA, init_hidden=True, threshold=1),
        nn.Flatten(1, end_dim=3),
        nn.Linear(32 * 2 * 2, 10),
        snn.Leaky(beta=BETA, init_hidden=True, output=True, threshold=1),
    )


def norse_introduction():
    """The net of Norse's introduction."""
    return norse.SequentialState(
        nn.Conv2d(1, 10, 3, 1),
        norse.LIFCell(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(10, 20, 3, 1),
        norse.LIFCell(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(80, 10),
        norse.LICell(),
    )


def norse_convnet():
    """Norse's own class, for digits of 16 x 16."""
    return ConvNet(feature_size=16)


def norse_readout():
    """A leaky integrator as the readout."""
    return norse.SequentialState(
        nn.Linear(64, 100),
        norse.LIFCell(),
        nn.Linear(100, 50),
        norse.LIFBoxCell(),
        nn.Linear(50, 10),
        norse.LICell(),
    )


class Residual(nn.Module):
    """Blocks whose spikes are added to those before them."""

    def __init__(self, channels=12):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, stride=2)
        self.lif0 = snn.Leaky(beta=BETA, init_hidden=True)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.lif1 = snn.Leaky(beta=BETA, init_hidden=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.lif2 = snn.Leaky(beta=BETA, init_hidden=True)
        self.fc = nn.Linear(4 * channels, 10)

    def forward(self, x):
        x = self.lif0(self.stem(x))
        x = self.lif1(self.bn1(self.conv1(x))) + x
        x = self.lif2(self.conv2(x) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


def to_one(output, y):
    """Mean square distance of every class's rate from 1 for the label, 0 for the others."""
    return F.mse_loss(output, F.one_hot(y, 10).to(output.dtype))


def to_one_population(output, y):
    return to_one(output.unflatten(1, (10, -1)).mean(2), y)


def regression(output, y):
    """The label itself, in [0, 1]."""
    return F.mse_loss(output.squeeze(1), y.to(output.dtype) / 9)


def flat(x):
    return x.flatten(1)


def polarities(x):
    x = large(x)
    return torch.cat([x, 1 - x], 1)


def large(x):
    return F.interpolate(x, scale_factor=2.0)


@dataclass
class Row:
    """A model and how it converts.

    Args:
        make: the model.
        loss: (output, labels) -> scalar.
        input: of `[B, 1, 8, 8]` digits.
        options: of `convert`.
        refusal: what `convert` without them says, where there is no energy of the model as it is.
        lr: Adam's learning rate with which it learns.
        turns: max pooling stands before weights, which may feed back to a winner that it be less: then two
            inputs take turns in winning, and the network settles but for what one winner feeds back.
        converts: False if it is refused with any options.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    input: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    options: dict = field(default_factory=dict)
    refusal: str | None = None
    lr: float = 5e-3
    turns: bool = False
    converts: bool = True


FROZEN = {"options": {"learnable_leak": "freeze"}, "refusal": "learnable leak.*does not depend"}
AVERAGED = {"options": {"max_pooling": "average"}}

MODELS = {
    "snntorch quickstart": Row(quickstart, to_one, large, lr=1e-2),
    "snntorch quickstart, average pooling": Row(quickstart, to_one, large, **AVERAGED, lr=1e-2),
    "snntorch tutorial 5": Row(Tutorial5, to_one, flat),
    "snntorch tutorial 6": Row(Tutorial6, to_one, large, lr=1e-2),
    "snntorch tutorial 7": Row(tutorial7, to_one, polarities, turns=True),
    "snntorch tutorial 7, average pooling": Row(tutorial7, to_one, polarities, **AVERAGED),
    "snntorch population": Row(population, to_one_population),
    "snntorch regression": Row(Regression, regression, flat, **FROZEN),
    "snntorch auto-encoder": Row(encoder, to_one),
    "norse introduction": Row(norse_introduction, input=large, turns=True),
    # Its second convolution is multiplied by 10, so what it feeds back is too.
    "norse ConvNet": Row(norse_convnet, input=large, options={"feedback": [0.001, 0.01]}, lr=5e-4, turns=True),
    "norse LICell readout": Row(norse_readout, input=flat),
    "residual": Row(Residual, lr=1e-2),
}
