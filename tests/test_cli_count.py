"""`ep-plugin count`: EP's operations and BPTT's, for nets that are called once a step and nets with a loop."""

import sys

import pytest
import torch
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.cli import app

NETS = '''
import snntorch as snn
from torch import nn
import torch
import ep_plugin as ep

def digits():
    from ep_plugin.models import small_convolutional
    return ep.initialize_(small_convolutional())

def double():
    return digits().double()

def frozen():
    return digits().requires_grad_(False)

def one_output():
    net = digits()
    return nn.Sequential(*net, nn.Linear(10, 1)) if isinstance(net, nn.Sequential) else net

def converted():
    return ep.convert(digits())

def silent():
    net = digits()
    for p in net.parameters():
        nn.init.constant_(p, -0.01)
    return net

class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(6, 5), snn.Leaky(beta=0.9), nn.Linear(5, 3)

    def forward(self, x):
        mem, record = self.lif1.reset_mem(), []
        for step in range(7):
            spk, mem = self.lif1(self.fc1(x), mem)
            record.append(self.fc2(spk))
        return torch.stack(record)

class Hidden(nn.Module):
    """Its neurons hold their state, and the loop is in its forward all the same."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(6, 5), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(5, 3)

    def forward(self, x):
        return torch.stack([self.fc2(self.lif1(self.fc1(x))) for step in range(7)])
'''


@pytest.fixture
def count(tmp_path, monkeypatch):
    (tmp_path / "nets_to_count.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: CliRunner().invoke(app, ["count", *arguments])


def test_a_net_that_is_called_once_a_step(count, tmp_path):
    done = count("nets_to_count:digits", "--shape", "1,8,8", "--num-steps", "10", "--picture", "operations.png")
    assert done.exit_code == 0, done.output
    ours, theirs = done.output.split("BPTT, 10 steps")
    for word in (
        "free phase",
        "nudged phase",
        "weight update",
        "synaptic ops",
        "training step",
        "BPTT through the same steps",
    ):
        assert word in ours
    assert "backward" in theirs
    assert (tmp_path / "operations.png").stat().st_size > 10_000
    import nets_to_count

    torch.manual_seed(0)
    model = ep.convert(nets_to_count.digits()).eval()
    x = torch.rand(16, 1, 8, 8)
    own = next(r for r in ep.count_operations(model, x).rows if r.name == "layer 0")
    line = next(line for line in ours.splitlines() if line.startswith("free phase     layer 0"))
    assert f"{own.synaptic_operations:,.0f}" in line


def test_a_loop_of_its_own_and_a_converted_net(count):
    done = count("nets_to_count:Looped", "--shape", "6")
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if line.startswith("forward") and "lif1" in line)
    assert line.split()[3] == "5"  # neurons
    assert "35" in line  # seven steps of them
    done = count("nets_to_count:converted", "--shape", "1,8,8", "--batch-size", "4")
    assert done.exit_code == 0, done.output
    assert "\nBPTT," not in done.output


def test_a_loop_of_its_own_is_not_repeated(count):
    done = count("nets_to_count:Hidden", "--shape", "6")
    assert done.exit_code == 0, done.output
    looped = count("nets_to_count:Looped", "--shape", "6")
    assert "BPTT, its own loop" in done.output
    assert done.output.split("BPTT,")[1].splitlines()[3] == looped.output.split("BPTT,")[1].splitlines()[3]
    assert "note: the net runs each of its neurons 7 times in one call, so that 2 calls are 14 steps" in (
        count("nets_to_count:Hidden", "--shape", "6", "--num-steps", "2").output
    )


def test_what_misleads_is_said(count):
    done = count("nets_to_count:silent", "--shape", "1,8,8", "--num-steps", "10")
    assert done.exit_code == 0, done.output
    ours, theirs = done.output.split("BPTT, 10 steps")
    assert "note: layer 0, layer 1 send no spikes on these random inputs" in ours
    assert "note: the input is the same in every step, and 0 Conv2d is counted in each of the 10 steps" in theirs
    assert "Leaky send no spikes" in theirs
    assert "BPTT through the same steps" not in theirs  # it is itself
    assert "no spikes" not in count("nets_to_count:digits", "--shape", "1,8,8").output.split("BPTT")[0]
    assert "same in every step" not in count("nets_to_count:Looped", "--shape", "6").output


def test_what_is_refused(count):
    done = count("nets_to_count:digits")
    assert done.exit_code == 2
    assert "--shape 1,28,28" in done.output
    assert "no 'nothing'" in count("nets_to_count:nothing").output
    assert "batch_size is 0" in count("nets_to_count:digits", "--shape", "1,8,8", "--batch-size", "0").output


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("double", "the original does not run in torch.float64"),
        ("frozen", "inference"),
        ("one_output", "nudged phase"),
    ],
)
def test_nets_that_count_does_not_expect(count, net, said):
    done = count(f"nets_to_count:{net}", "--shape", "1,8,8", "--num-steps", "2")
    assert done.exit_code == (2 if net == "double" else 0), done.output
    assert said in done.output
    assert ("training step" in done.output) == (net == "one_output")
    assert "Traceback" not in done.output
