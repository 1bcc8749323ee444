"""What nothing else would say: inputs without influence, parameters that are not trained, random numbers."""

import sys

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.analysis.diagnosis import diagnose
from ep_plugin.analysis.influence import without_influence
from ep_plugin.analysis.randomness import random_modules
from ep_plugin.analysis.untrained import left_out, without_gradient
from ep_plugin.cli import app
from ep_plugin.loading import random_batch


class Select(nn.Module):
    """The first frame of `[B, T, n]`."""

    def forward(self, x):
        return x[:, 0]


class MeanOverTime(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Columns(nn.Module):
    """Thresholds, which have no slope, of all columns but 4, 5 and 9."""

    def forward(self, x):
        kept = (x > 0.5).float()
        return kept * torch.tensor([float(i not in (4, 5, 9)) for i in range(12)])


class Corner(nn.Module):
    """All but the first three of the 4 x 4 entries' first row."""

    def forward(self, x):
        mask = torch.ones(4, 4)
        mask[0, :3] = 0
        return (x * mask).flatten(1)


class Half(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :10], torch.zeros_like(x[:, 10:])], 1)


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)


class NoiseInTraining(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.rand_like(x) if self.training else x


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale.detach()


class Branches(nn.Module):
    """Frames `[B, T, 20]` one after the other, as snnTorch's users write it."""

    def __init__(self):
        super().__init__()
        self.first, self.neurons, self.last = nn.Linear(20, 30), snn.Leaky(beta=0.9), nn.Linear(30, 4)

    def forward(self, x):
        mem, record = self.neurons.init_leaky(), []
        for t in range(x.shape[1]):
            spikes, mem = self.neurons(self.first(x[:, t]), mem)
            record.append(self.last(spikes))
        return torch.stack(record).mean(0)


def net_of(*stem, features=20, after=()):
    neurons = snn.Leaky(beta=0.9, init_hidden=True)
    return ep.initialize_(nn.Sequential(*stem, nn.Linear(features, 30), neurons, nn.Linear(30, 4), *after))


def of_first_frame(net):
    """A network that reads only the first of the frames that the net reads."""
    stem = nn.Sequential(Select(), net.first)
    return ep.ConvergentNetwork(stem, [ep.Layer()], [], net.last).eval()


INFLUENCE = {
    "all": (lambda: net_of(), (20,), []),
    "one frame": (lambda: net_of(Select()), (10, 20), ["9 of the 10 slices along axis 1 (1 to 9)"]),
    "all frames": (lambda: net_of(MeanOverTime()), (10, 20), []),
    "columns": (lambda: net_of(Columns(), features=12), (12,), ["3 of the 12 slices along axis 1 (4 to 5, 9)"]),
    "entries": (
        lambda: net_of(Corner(), features=16), (4, 4), ["3 of 16 entries here and there, such as [0, 0, 0]"]
    ),
    "pixels beyond the last window": (
        lambda: net_of(nn.MaxPool2d(2), nn.Flatten(), features=9), (1, 7, 7),
        ["1 of the 7 slices along axis 2 (6)", "1 of the 7 slices along axis 3 (6)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INFLUENCE)
def test_parts_of_the_input_without_influence_are_named(case):
    make, shape, expected = INFLUENCE[case]
    net = make()
    model, x = ep.convert(net).eval(), torch.rand(16, *shape)
    before = torch.get_rng_state()
    assert without_influence(model, x) == expected
    # The original reads no more of it either, which cannot be told for want of slopes where it has a threshold.
    assert without_influence(model, x, net) == (expected if case == "columns" else [])
    assert torch.equal(before, torch.get_rng_state())


def test_only_what_the_original_reads_is_missed():
    net, x = Branches(), torch.rand(8, 10, 20)
    expected = ["9 of the 10 slices along axis 1 (1 to 9)"]
    assert without_influence(of_first_frame(net), x, net) == expected
    assert without_influence(of_first_frame(net), x, nn.Bilinear(2, 2, 2)) == expected  # it takes another input
    found = diagnose(of_first_frame(net), x, torch.randint(4, (8,)), original=net).advice
    (advice,) = [a for a in found if "all steps" in a]
    assert "of shape [8, 10, 20]: 9 of the 10 slices along axis 1 (1 to 9) have no influence" in advice
    # The way out: the axis is time.
    model = ep.ConvergentNetwork(net.first, [ep.Layer()], [], net.last, time_varying=True).eval()
    assert without_influence(model, x.transpose(0, 1).repeat_interleave(2, 0)) == []


def test_nothing_counts():
    model = ep.ConvergentNetwork(nn.Linear(5, 3), [ep.Layer()], [], nn.Linear(3, 2)).eval()
    nn.init.zeros_(model.readout.weight)
    assert without_influence(model, torch.rand(4, 5)) == ["all of its entries"]


def test_parameters_that_are_not_trained_have_their_owners_names():
    net = net_of(Detached())
    net.add_module("unused", nn.Linear(3, 3))
    net.forward = nn.Sequential(*list(net)[:-1]).forward
    model = ep.convert(nn.Sequential(*list(net)[:-1])).eval()
    assert left_out(model, net) == ["unused.weight", "unused.bias"]
    x, y = torch.rand(16, 20), torch.randint(4, (16,))
    assert without_gradient(model, x, y, F.cross_entropy, net) == ["0.scale"]
    assert without_gradient(model, x, y, F.cross_entropy) == ["stem.0.scale"]
    advice = diagnose(model, x, y, original=net).advice
    assert any("none of the network's" in a and "unused.weight, unused.bias" in a for a in advice)
    assert any("exactly zero, or none, in 0.scale" in a for a in advice)
    for p in (*net.unused.parameters(), net[0].scale):  # the way out
        p.requires_grad_(False)
    assert diagnose(model, x, y, original=net).advice == []


def test_random_numbers_in_evaluation_mode_are_found_where_they_are_drawn():
    net = net_of(Noise(), nn.Dropout(), after=(nn.Sequential(nn.Identity(), Noise()),))
    model, x = ep.convert(net).eval(), torch.rand(16, 20)
    assert random_modules(model, x, net) == ["0", "5.1"]
    (advice,) = [a for a in diagnose(model, x, torch.randint(4, (16,)), original=net).advice if "Random" in a]
    assert "in 0, 5.1: two inferences of one input differ. Draw only in training mode" in advice
    other = net_of(NoiseInTraining(), nn.Dropout())
    assert random_modules(ep.convert(other).eval(), x, other) == []
    assert random_modules(ep.convert(other, encoder="bernoulli").eval(), x, other) == []  # spikes may be random


class Dropped(nn.Module):
    def __init__(self, always):
        super().__init__()
        self.first, self.neurons, self.last = nn.Linear(20, 30), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(30, 4)
        self.always = always

    def forward(self, x):
        return self.last(self.neurons(F.dropout(self.first(x), 0.5, self.always or self.training)))


def test_functional_dropout_that_forgets_the_mode():
    x, y = torch.rand(16, 20), torch.randint(4, (16,))
    found = [diagnose(ep.convert(ep.initialize_(Dropped(always))).eval(), x, y).advice for always in (True, False)]
    assert "Random numbers are drawn in evaluation mode, in stem.1" in found[0][0]
    assert "F.dropout(x, p, self.training)" in found[0][0]
    assert found[1] == []


def test_draws_that_are_not_pytorch_s_are_found_too():
    class Counts(nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return x + 0.1 * self.calls

    net = net_of(Counts())
    assert random_modules(ep.convert(net).eval(), torch.rand(4, 20), net) == ["0"]


def test_an_input_that_changes_over_time_is_diagnosed_at_the_mean_of_its_frames():
    net = net_of()
    model = ep.convert(net, time_varying=True).eval()
    x, y = torch.rand(7, 16, 20), torch.randint(4, (16,))
    found = diagnose(model, x, y, original=net)
    assert found.advice == []
    alone = diagnose(model.variant(time_varying=False), x.mean(0), y)
    assert (found.settling, found.agreement, found.activity) == (alone.settling, alone.agreement, alone.activity)
    unread = ep.ConvergentNetwork(nn.Sequential(Half(), net[0]), [ep.Layer()], [], net[2], time_varying=True).eval()
    assert without_influence(unread, x) == ["10 of the 20 slices along axis 2 (10 to 19)"]


def test_frames_along_the_model_s_own_axis():
    net = ep.initialize_(Branches())
    model = ep.convert(net, time_varying=True).eval()
    assert model.time_axis == 1
    x, y = torch.rand(16, 7, 20), torch.randint(4, (16,))
    assert without_influence(model, x, net) == []
    assert diagnose(model, x, y, original=net).advice == []
    assert random_batch(model, (7, 20), 5)[0].shape == (5, 7, 20)


SOURCE = """
import snntorch as snn, torch, ep_plugin as ep
from torch import nn

class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)

class Select(nn.Module):
    def forward(self, x):
        return x[:, 0]

def noisy():
    return nn.Sequential(Noise(), nn.Linear(20, 30), snn.Leaky(beta=0.5), nn.Linear(30, 4))

def over_time():
    net = nn.Sequential(nn.Linear(20, 30), snn.Leaky(beta=0.5), nn.Linear(30, 4))
    return ep.convert(ep.initialize_(net), time_varying=True)

def unused():
    net = nn.Sequential(nn.Linear(20, 30), snn.Leaky(beta=0.5), nn.Linear(30, 4))
    net[0].register_parameter("gain", nn.Parameter(torch.ones(3)))
    return net
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Exit code and output, on one line, of the command for a net of the source."""
    (tmp_path / "silent_nets_of_a_user.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")

    def run(net, *options):
        done = CliRunner().invoke(app, ["check", f"silent_nets_of_a_user:{net}", *options])
        return done.exit_code, " ".join(done.output.split())

    return run


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("noisy", "Random numbers are drawn in evaluation mode, in 0:"),
        ("unused", "The gradient is exactly zero, or none, in 0.gain,"),
    ],
)
def test_the_command_says_so_and_exits_with_1(net, words, check):
    code, said = check(net, "--shape", "20")
    assert code == 1, said
    assert words in said


def test_the_command_shows_frames(check):
    code, said = check("over_time", "--shape", "7,20")
    assert code == 0, said
    assert "Nothing to mend" in said
    code, said = check("over_time")
    assert code == 2
    assert "the input changes over time, in a number of steps that the net does not tell; give its shape" in said
