"""Pictures show what they are given."""

import io

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


@pytest.fixture(scope="module")
def trained():
    """A small spiking net that has learned a little, and digits."""
    torch.manual_seed(0)
    data = ep.DigitsDataModule(batch_size=64)
    data.setup()
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), snn.Leaky(0.5), nn.Linear(24, 12), snn.Leaky(0.5), nn.Linear(12, 10)
    )
    model = ep.convert(ep.initialize_(net))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, y in data.train_dataloader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_raster_shows_every_event(trained):
    model, x, y = trained
    free, nudged = (
        model.free_phase(x[:1], record=True),
        model.nudged_phase(x[:1], y[:1], nn.functional.cross_entropy, record=True),
    )
    events = torch.cat([free.trajectory.spikes[1], nudged.trajectory.spikes[1]]).flatten(1)
    axis = plots.raster(model, x[:1], y[:1], layer=1)
    plus, minus = (collection.get_offsets() for collection in axis.collections)
    assert len(plus) == (events == 1).sum()
    assert len(minus) == (events == -1).sum()
    assert sorted(set(plus[:, 0].tolist())) == [s + 1 for s in range(len(events)) if (events[s] == 1).any()]
    assert axis.get_title().startswith(f"layer 1:\n{int(free.spikes[1].sum())} events free")
    assert len(axis.lines) == sum(model.steps) - 1


def test_states_end_where_the_phases_end(trained):
    model, x, y = trained
    axis = plots.states(model, x[:1], y[:1], layer=0, neurons=2)
    free = model.free_phase(x[:1]).states[0].flatten()
    lines = [line for line in axis.lines if list(line.get_xdata())[:1] == [1]]
    assert len(lines) == 4  # two neurons, and what is known of them
    for line in lines[::2]:
        assert min(abs(free - line.get_ydata()[-1])) < 1e-6
    axis.figure.savefig(io.BytesIO())


def test_deviations_of_every_layer_over_the_steps(trained):
    model, x, y = trained
    axis = plots.deviations(model, x, y)
    assert len(axis.lines) == 2
    first, last = (line.get_ydata() for line in axis.lines)
    assert len(first) == model.steps[1]
    assert last[-1] > 5 * first[-1] > 0  # by the feedback, 0.02, times what the weights do


def test_energy_of_graded_states_falls(trained):
    model, x, _ = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own, graded, _ = plots.energy(model, x, steps=8).lines
    assert (graded.get_ydata()[:-1] >= graded.get_ydata()[1:]).all()
    assert own.get_ydata()[-1] < own.get_ydata()[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


def test_angles_are_those_of_the_cosines(trained):
    model, x, y = trained
    axis = plots.angles(model, x, y)
    assert [label.get_text() for label in axis.get_xticklabels()][-1].startswith("readout")
    heights = [bar.get_height() for bar in axis.patches]
    assert len(heights) == 3
    assert all(0 <= h < 18 for h in heights[:2])
    assert heights[2] < 5


@pytest.mark.parametrize("draw", [plots.raster, plots.states])
@pytest.mark.parametrize(
    ("samples", "layer", "message"), [(2, 0, "holds 2 samples"), (1, 2, "layer is 2; expected 0 to 1")]
)
def test_one_sample_and_a_layer_that_is_there(trained, draw, samples, layer, message):
    model, x, y = trained
    with pytest.raises(ValueError, match=message):
        draw(model, x[:samples], y[:samples], layer)


def test_graded_neurons_have_no_raster(trained):
    model, x, y = trained
    with pytest.raises(ValueError, match="graded neurons send no events"):
        plots.raster(model.variant(encoder="graded"), x[:1], y[:1])
