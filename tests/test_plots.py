"""Pictures show what they are given."""

import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin import plots


def test_operations_a_layer():
    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(5, 3))
    x, y = torch.rand(4, 6), torch.arange(4) % 3
    counts = {
        "EP": ep.count_operations(ep.convert(net), x, y),
        "BPTT": ep.count_operations(net, x, y, num_steps=10),
    }
    axis = plots.operations(counts)
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["stem", "layer 0", "readout", "0 Linear", "1 Leaky", "2 Linear"]
    heights = [bar.get_height() for bar in axis.patches]
    row = next(r for r in counts["EP"].rows if r.name == "layer 0")
    assert heights[1] == pytest.approx(row.synaptic_operations + row.neuron_updates)
    assert [t.get_text().splitlines()[0] for t in axis.texts] == ["EP", "BPTT"]
    assert plots.operations(counts, axis) is axis
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.operations({})
