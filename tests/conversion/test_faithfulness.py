"""A net that was read wrongly is told, by the original itself with its neurons at their rates."""

import sys
import warnings

import pytest
import snntorch as snn
import torch
from test_effects import Net
from torch import nn
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.cli import app
from ep_plugin.conversion.faithfulness import Comparison, compare

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")


class Scaled(Net):
    """A number that is changed after the conversion, which no tensor tells."""

    def __init__(self):
        super().__init__(lambda net, x: net.layers(net.fc1(x), lambda h: h * net.factor))
        self.factor = 1.0


def test_where_they_part():
    net = Scaled()
    model = ep.convert(net)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert compare(model, net, X) == Comparison()
    net.factor = 0.5
    assert compare(model, net, X).difference.startswith("from lif2 on, whose states are off by ")
    assert net.training
    assert all("forward" not in vars(m) for m in net.modules())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    net.factor, net.loop = 1.0, lambda net, x: 2 * net.layers(net.fc1(x))
    assert compare(model, net, X).difference.startswith("behind the neurons, in outputs that are off by ")


@pytest.mark.parametrize(
    "loop",
    [
        lambda net, x: torch.stack([net.layers(net.fc1(x)) for _ in range(3)]),
        lambda net, x: sum(net.layers(net.fc1(x_t)) for x_t in x),
        lambda net, x: torch.stack([net.layers(net.fc1(x[t])) for t in range(x.size(0))], 1),
        lambda net, x: {"a": x, "b": net.layers(nn.functional.dropout(net.fc1(x)))},
    ],
)
def test_records_sums_and_draws_are_no_faults(loop):
    net = Net(loop)
    assert compare(ep.convert(net), net, X).difference is None


def test_a_buffer_that_a_call_changes_is_given_back():
    net = Net(lambda net, x: net.layers(net.fc1(x)) + 0 * net.mean.mul_(0.5).sum())
    model = ep.convert(net)
    before = net.mean.clone()
    compare(model, net, X)
    assert torch.equal(net.mean, before)


@pytest.mark.parametrize("key", ["values", "items", "a"])
def test_an_output_by_its_key(key):
    net = Net(lambda net, x: {key: net.factor * net.layers(net.fc1(x))})
    net.factor = 1.0
    model = ep.convert(net)
    net.factor = 2.0
    assert compare(model, net, X).difference is not None


class Raising(Net):
    """It takes states for zeros and ones."""

    def __init__(self):
        super().__init__(lambda net, x: net.layers(net.fc1(x), net.only_spikes))

    def only_spikes(self, spikes):
        if type(spikes) is torch.Tensor and not set(spikes.unique().tolist()) <= {0.0, 1.0}:
            raise ValueError("expected\n spikes")
        return spikes


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif = nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.out = nn.Linear(6, 3), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        mem = self.out.init_leaky()
        for _ in range(4):
            _, mem = self.out(self.fc2(self.lif(self.fc1(x))), mem)
        return mem


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Raising, "with its neurons at their rates it raises ValueError: expected spikes"),
        (Reading, "it has neurons that are no layers of the network, such as one that reads out by its membrane"),
        (
            lambda: nn.Sequential(nn.Linear(8, 6), snn.RLeaky(beta=0.9, linear_features=6, init_hidden=True)),
            "it has recurrent neurons",
        ),
        (
            lambda: Net(lambda net, x: net.layers(nn.functional.dropout(net.fc1(x)))),
            "it draws random numbers in evaluation mode",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(made, why):
    net = made()
    assert compare(ep.convert(net), net, X) == Comparison(left_out=why)


def test_an_example_is_looked_at(monkeypatch):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ep.convert(Scaled(), example_input=X)
        assert not any("WRONGLY" in str(w.message) for w in warned)
    monkeypatch.setattr("ep_plugin.conversion.compare", lambda *_: Comparison("from lif2 on"))
    with pytest.warns(ep.ConversionWarning, match="WRONGLY, as it seems: .*, from lif2 on. Write what is unusual"):
        ep.convert(Scaled(), example_input=X)


@pytest.mark.parametrize(
    "loop",
    [
        lambda net, x: net.layers(net.fc1(x)) / x.size(0),
        lambda net, x: net.layers(net.fc1(torch.cat([x[:, :4], net.mean[:4].expand(x.size(0), -1)], 1))),
    ],
)
def test_the_batch_of_an_example_is_not_to_count(loop):
    with pytest.warns(ep.ConversionWarning, match="WRONGLY, as it seems"):
        ep.convert(Net(loop), example_input=X)


CHANGING = """
import snntorch as snn
from torch import nn


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 3)
        self.record = type("Record", (list,), {"calls": 0})()

    def forward(self, x):
        type(self.record).calls += 1  # out of a trace's sight
        return self.fc2(self.lif1(self.fc1(x * (1 if type(self.record).calls < 4 else 0.2))))
"""


def test_the_command_tells_it(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text(CHANGING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(app, ["check", "changing:Changing", "--shape", "8"])
    assert done.exit_code == 1
    assert "the conversion has misread it" in " ".join(done.output.split())


RECURRENT = """
import snntorch as snn
from torch import nn

net = nn.Sequential(nn.Linear(8, 6), snn.RLeaky(beta=0.9, linear_features=6, init_hidden=True), nn.Linear(6, 3))
"""


def test_the_command_tells_what_it_did_not_compare(tmp_path, monkeypatch):
    (tmp_path / "recurrent.py").write_text(RECURRENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(app, ["check", "recurrent:net", "--shape", "8"])
    assert "not compared with those of your model: it has recurrent neurons." in " ".join(done.output.split())
