"""Counts of operations of nets that are not converted, against counts made by hand and against NeuroBench."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep


def leaky(threshold=1.0):
    return snn.Leaky(beta=0.5, threshold=threshold, init_hidden=True)


def rows(counts, phase):
    return {row.name: row for row in counts.rows if row.phase == phase}


def test_a_plain_net_in_numbers():
    """Ten steps of Linear(2, 3) - Leaky - Linear(3, 1), whose neurons fire at every second step."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), snn.Leaky(beta=1.0, init_hidden=True), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(0.4)
        net[2].weight.fill_(1.0)
    x, y = torch.tensor([[1.5, 0.0], [0.0, 0.0]]), torch.zeros(2, 1)
    counts = ep.count_operations(net, x, y, F.mse_loss, num_steps=10)
    forward, backward, update = (rows(counts, phase) for phase in ("forward", "backward", "weight update"))
    spikes = torch.tensor([(0.6 * t) // 1 for t in range(1, 11)]).diff(prepend=torch.zeros(1)).sum().item()
    assert forward["1 Leaky"].spikes == pytest.approx(3 * spikes / 2, abs=1.5)
    assert forward["1 Leaky"].neuron_updates == 30
    assert forward["0 Linear"].multiply_adds == 10 * 3 / 2  # one of two pixels, in one of two samples
    assert forward["0 Linear"].dense == 60
    assert forward["2 Linear"].synaptic_operations == forward["1 Leaky"].spikes
    assert forward["2 Linear"].multiply_adds == 0
    assert (backward["0 Linear"].multiply_adds, backward["2 Linear"].multiply_adds) == (0, 30)  # no gradient of pixels
    assert (update["0 Linear"].multiply_adds, update["2 Linear"].multiply_adds) == (60, 30)
    assert sum(row.weight_updates for row in counts.rows) == 9
    assert counts.memory.training > 0


class Looped(nn.Module):
    """As NeuroBench wants it: (spikes, membrane) at every step."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        spikes = self.net(x)
        return spikes, spikes


PLAIN = [
    lambda: (nn.Sequential(nn.Linear(20, 30), leaky(), nn.Linear(30, 5), leaky()), torch.rand(4, 20)),
    lambda: (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), leaky(), nn.Conv2d(4, 6, 3, stride=2, groups=2), leaky()),
            *(nn.Flatten(), nn.Linear(54, 5), leaky()),
        ),
        torch.rand(4, 1, 8, 8),
    ),
    lambda: (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), leaky(), nn.Conv2d(4, 6, 2), nn.MaxPool2d(2), leaky()),
            *(nn.Flatten(), nn.Linear(6, 5), leaky()),
        ),
        torch.rand(4, 1, 8, 8),
    ),
]


@pytest.mark.parametrize("make", PLAIN)
def test_synaptic_operations_are_those_of_neurobench(make):
    metrics = pytest.importorskip("neurobench.metrics.workload")
    models = pytest.importorskip("neurobench.models")
    net, x = make()
    ep.initialize_(net, 2.0)
    counts = ep.count_operations(net, x, num_steps=6).inference
    model = models.SNNTorchModel(Looped(net).eval())
    metric = metrics.SynapticOperations()
    model.register_hooks()
    predicted = model(x.unsqueeze(1).expand(4, 6, *x.shape[1:]))
    found = metric(model, predicted, (x, None))
    assert counts.synaptic_operations == pytest.approx(found["Effective_ACs"], rel=1e-3)
    assert counts.multiply_adds == pytest.approx(found["Effective_MACs"], rel=1e-3)
    assert counts.dense == pytest.approx(found["Dense"], rel=1e-3)
    print(counts.synaptic_operations, counts.multiply_adds, counts.dense, found)
