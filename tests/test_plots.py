"""Pictures show what they are given."""

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin import plots
from ep_plugin.analysis.agreement import _compare


def test_operations_module_by_module():
    net = nn.Sequential(
        *(nn.Linear(6, 5), snn.Leaky(beta=0.9, init_hidden=True)),
        *(nn.Linear(5, 4), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(4, 3)),
    )
    x, y = torch.rand(4, 6), torch.arange(4) % 3
    counts = {
        "EP": ep.count_operations(ep.convert(net), x, y),
        "BPTT": ep.count_operations(net, x, y, num_steps=10),
    }
    axis = plots.operations(counts)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0 Linear", "2 Linear", "4 Linear"]
    assert axis.get_ylim()[0] == 0
    assert axis.get_yscale() == "linear"
    inference, training, _, backprop = [[bar.get_height() for bar in bars] for bars in axis.containers]
    sizes = {
        (r.phase, r.name): (r.feedback_operations, r.synaptic_operations, r.multiply_adds + r.neuron_updates)
        for r in counts["EP"].rows
    }
    up = sizes["free phase", "layer 0"][1]  # all of it: layer 0 has nobody below
    down, both, updates = sizes["free phase", "layer 1"]
    assert both == down
    assert inference[1] == pytest.approx(up + down + updates)
    for name, own, bars in (("EP", counts["EP"].training, training), ("BPTT", counts["BPTT"].training, backprop)):
        whole = own.synaptic_operations + own.multiply_adds + own.neuron_updates
        assert sum(bars) == pytest.approx(whole), name
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels] == [
        f"{name}, {what}" for name in counts for what in ("inference", "training step")
    ]
    alone = plots.operations({"EP": counts["EP"]})
    assert [label.get_text() for label in alone.get_xticklabels()] == ["stem", "0 -> 1", "readout"]
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


def test_energy_of_several_encoders(trained):
    model, x, _ = trained
    axis = plots.energy(model, x, steps=4, encoders=["adaptive_delta", "predictive_sigma_delta"])
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["adaptive_delta", "predictive_sigma_delta", "graded"]
    assert torch.equal(
        torch.tensor(axis.lines[0].get_ydata()), torch.tensor(plots.energy(model, x, steps=4).lines[0].get_ydata())
    )


def test_feedback_angles_of_a_network_and_of_a_training():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), snn.Leaky(0.5), nn.Linear(8, 8), snn.Leaky(0.5))
    model = ep.convert(net, feedback_weights="separate")
    (angle,) = ep.chips.feedback_angles(model).values()
    axis = plots.feedback_angles(model)
    assert [bar.get_height() for bar in axis.patches] == [pytest.approx(angle)]
    assert [label.get_text() for label in axis.get_xticklabels()] == list(ep.chips.feedback_angles(model))
    axis = plots.feedback_angles({"feedback_angle/a": [90.0, 60.0, 30.0], "b": [80.0, 70.0, 60.0]}, [0, 5, 10])
    _, first, _ = axis.lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0, 5, 10], [90, 60, 30])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert axis.get_ylim()[0] == 0
    assert plots.feedback_angles(model, axis=axis) is axis
    with pytest.raises(ValueError, match="has 2 angles, and there are 1 steps"):
        plots.feedback_angles({"a": [1.0, 2.0]}, [1])
    with pytest.raises(ValueError, match=r'expected ep.convert\(net, feedback_weights="separate"\)'):
        plots.feedback_angles(ep.convert(net))


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


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        *(("agreement", 39), ("depth", 16), ("pooling", 4), ("memory", 3), ("cost", 6), ("energy", 9)),
        *(("operations", 0), ("curves", 16), ("strengths", 6)),
    ],
)
def test_figures_are_drawn_from_their_tables(name, lines, monkeypatch):
    """examples/figures.py --redraw, on the committed numbers."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import figure_drawings

    figure = getattr(figure_drawings, name)(pd.read_csv(EXAMPLES / "results" / f"{name}.csv"))
    assert sum(len(axis.lines) for axis in figure.axes) == lines
    assert len(figure.axes[0].patches) == (16 if name == "operations" else 0)  # four modules; EP and BPTT, twice each
    figure.savefig(io.BytesIO())
    for module in ("figure_drawings", "figure_networks"):
        sys.modules.pop(module, None)


def test_training_curves_are_drawn_of_recipes_with_another_method_beside_them(monkeypatch):
    """Of each seed the newest run: here two seeds of one recipe, one of which ran twice; minutes of the first seed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import figure_drawings

    runs = [("own", 0, "1"), ("own", 0, "2"), ("own", 1, "1"), ("own-feedforward", 0, "1"), ("alone", 0, "1")]
    table = pd.DataFrame(
        {"name": name, "seed": seed, "started": started, "epoch": n, "epochs": 3, "error": 10 / n, "seconds": 60 * n}
        for name, seed, started in runs
        for n in (1, 2, 3)
    )
    epochs, minutes = figure_drawings.training(table).axes
    assert [len(axis.lines) for axis in (epochs, minutes)] == [3, 2]
    assert [line.get_xdata().tolist() for line in minutes.lines] == [[1, 2, 3]] * 2
    assert [text.get_text() for text in epochs.get_legend().get_texts()] == [
        "spiking EP",
        "feedforward backpropagation",
    ]
    for module in ("figure_drawings", "figure_networks"):
        sys.modules.pop(module, None)


def test_deployment_is_drawn_beside_what_bptt_has_recorded(monkeypatch, tmp_path):
    """examples/deployment.py --redraw; a line of BPTT as `RecordErrors` writes it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import deployment

    line = {"name": "mnist-2c2fc-max-bptt-snntorch", "epoch": 12, "epochs": 12, "watched": "test", "error": 0.7}
    recorded = [line | {"estimator": "BPTTLightningModule(25)"}, line | {"name": "another", "epoch": 3}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in recorded))
    table = pd.read_csv(EXAMPLES / "results" / "deployment.csv")
    figure = deployment.picture(table, tmp_path / "results.jsonl")
    assert len(figure.axes) == table.network.nunique()
    (dot,) = [l for axis in figure.axes for l in axis.lines if "BPTT" in l.get_label()]
    assert dot.get_xydata().tolist() == [[25.0, 0.7]]
    sys.modules.pop("deployment", None)


def test_without_feedback_the_gradient_is_that_of_backpropagation(monkeypatch):
    """examples/gradients.py."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import gradients

    torch.manual_seed(0)
    exact = {"encoder": "graded", "estimator": ep.EquilibriumPropagation(beta=1e-4)}
    model = ep.convert(ep.initialize_(ep.models.small_convolutional(), 2.0), feedback=1e-6, **exact).eval()
    images = [(torch.rand(16, 1, 8, 8), torch.arange(16) % 10) for _ in range(2)]
    rows = pd.DataFrame(gradients.cosines_of(model, images))
    least = rows.groupby(["feedback", "reference"]).cosine.min()
    assert set(least.index) == {(1e-6, "settled"), (1e-6, "feedforward"), (0.01, "feedforward"), (0.02, "feedforward")}
    assert least[1e-6, "settled"] > 0.999
    assert least[1e-6, "feedforward"] > 0.999
    assert least[0.02, "feedforward"] < least[0.01, "feedforward"] < least[1e-6, "feedforward"]
    for module in ("gradients", "figure_networks"):
        sys.modules.pop(module, None)


def test_a_weight_without_a_gradient_is_as_wrong_as_can_be(trained, monkeypatch):
    """Its cosine is 0 where the exact gradient is not zero; where both are there is none, and no label."""
    zero, one = torch.zeros(3), torch.ones(3)
    found = [_compare("a", zero, one), _compare("b", one, zero), _compare("c", zero, zero)]
    monkeypatch.setattr("ep_plugin.plots.gradients.gradient_agreement", lambda *_: found)
    axis = plots.angles(*trained)
    assert [text.get_text() for text in axis.texts] == ["90.0", "90.0", ""]
