"""The same function, with its arguments by position or by keyword; and channels that are repeated."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "feedback": 1e-7, "relaxation": ep.Relaxation(20, step_size=1.0)}


class Net(nn.Module):
    """What is spelled stands between neurons, and before the first one."""

    def __init__(self, spelled):
        super().__init__()
        self.spelled = spelled
        self.a, self.b, self.out = nn.LazyLinear(16), nn.LazyLinear(4), nn.Linear(4, 3)
        self.lif1, self.lif2 = (snn.Leaky(beta=1.0, init_hidden=True) for _ in range(2))

    def forward(self, x):
        return self.run(x, self.lif1, self.lif2)

    def run(self, x, first, second):
        s = first(self.a(self.spelled(x).flatten(1)))
        return self.out(second(self.b(self.spelled(s.unflatten(1, (1, 4, 4))).flatten(1))))


SPELLED = {
    "flatten": lambda h: h.flatten(start_dim=1),
    "torch.flatten": lambda h: torch.flatten(h, start_dim=1, end_dim=-1),
    "the tensor of a flatten": lambda h: torch.flatten(input=h, start_dim=1),
    "a shape": lambda h: h.reshape(shape=(h.size(0), -1)),
    "the tensor and a shape": lambda h: torch.reshape(input=h, shape=(len(h), -1)),
    "average pooling": lambda h: F.avg_pool2d(input=h, kernel_size=2),
    "max pooling": lambda h: F.max_pool2d(input=h, kernel_size=2, stride=2),
    "a rectifier": lambda h: F.relu(input=h - 0.2, inplace=True),
    "a concatenation": lambda h: torch.cat(tensors=[h, 2 * h], dim=1),
    "a stack": lambda h: torch.stack(tensors=(h, 2 * h), dim=1),
    "a sum": lambda h: torch.add(input=h, other=h, alpha=0.5),
    "a difference": lambda h: torch.sub(h, other=h.flip(-1)),
    "a quotient": lambda h: torch.div(input=h, other=2),
    "pieces": lambda h: torch.unbind(input=h, dim=2)[1],
}


@pytest.mark.parametrize("name", SPELLED)
def test_arguments_by_keyword(name):
    net, x = Net(SPELLED[name]), torch.rand(3, 1, 4, 4)
    with torch.no_grad():
        expected = net.run(x, *[lambda h: h.clamp(0, 1)] * 2)
    for options in ({}, {"example_input": x}):
        torch.testing.assert_close(ep.convert(net, **GRADED, **options)(x), expected)


@pytest.mark.parametrize(
    "repeated", [lambda x: torch.stack([x] * 3, 1), lambda x: torch.cat([x.unsqueeze(1), x.unsqueeze(1)], dim=1)]
)
def test_an_image_for_every_channel_is_no_record_of_steps(repeated):
    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(repeated(torch.zeros(1, 4, 4)).shape[1], 2, 3)
            self.lif, self.out = snn.Leaky(beta=1.0), nn.Linear(8, 3)

        def forward(self, x):
            mem = self.lif.reset_mem()
            for t in range(x.size(0)):
                spikes, mem = self.lif(self.conv(repeated(x[t])), mem)
            return self.out(spikes.flatten(1))

    net, x = Colours(), torch.rand(3, 4, 4)
    expected = net.out(net.conv(repeated(x)).clamp(0, 1).flatten(1))
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), expected)


def test_a_place_of_the_input_depends_on_no_size():
    class Cropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.out = nn.Linear(4, 4), snn.Leaky(beta=1.0), nn.Linear(16, 3)

        def forward(self, x):
            return self.out(self.lif(self.fc(x[:, 1]))[0].reshape(x.size(0), -1))

    net, x = Cropped(), torch.rand(3, 2, 4, 4)
    expected = net.out(net.fc(x[:, 1]).clamp(0, 1).flatten(1))
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), expected)
