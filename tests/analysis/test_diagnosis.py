"""`ep-plugin check`: what it finds out, what it advises, what it refuses."""

import math
import sys

import pytest
import snntorch as snn
import torch
from torch import nn
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.analysis.diagnosis import Settling, activity, diagnose, settled
from ep_plugin.cli import app
from ep_plugin.models import small_convolutional

NETS = """
import snntorch as snn
from torch import nn
import ep_plugin as ep
from ep_plugin.models import small_convolutional

def digits():
    return ep.initialize_(small_convolutional())

def converted():
    return ep.convert(digits(), encoder="graded")

def data():
    return ep.DigitsDataModule(batch_size=16)

class Black(ep.DigitsDataModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return 0 * batch[0], batch[1]

silent = nn.Sequential(nn.Linear(20, 30), snn.Leaky(beta=0.5, threshold=1000.0), nn.Linear(30, 4))
normalized = nn.Sequential(
    nn.Linear(4, 4), snn.Leaky(beta=0.5), nn.LayerNorm(4), nn.Linear(4, 4), snn.Leaky(beta=0.5)
)
images = nn.Sequential(nn.Conv2d(1, 2, 3), snn.Leaky(beta=0.5))
number = 3
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(app, ["check", *arguments])


def test_a_good_net(check):
    done = check("nets_of_a_user:digits", "--shape", "1,8,8")
    assert done.exit_code == 0, done.output
    for word in ("converted: 2 Leaky", "4 (free phase)", "stem.0.weight", "norm ratio", "spikes per neuron", "Nothing"):
        assert word in done.output


def test_a_converted_net_keeps_its_settings(check):
    done = check("nets_of_a_user:converted", "--shape", "1,8,8", "--batch-size", "8")
    assert "spikes per neuron and inference" in done.output
    assert "converted:" not in done.output
    row = next(line for line in done.output.splitlines() if "144" in line)
    assert row.split("│")[-2].strip() == "-"  # graded neurons have no spikes to count


@pytest.mark.parametrize("data", ["digits", "nets_of_a_user:data"])
def test_data_of_ones_own_tell_the_shape(check, data):
    done = check("nets_of_a_user:digits", "--data", data)
    assert done.exit_code == 0, done.output
    assert "Nothing to mend" in done.output


def test_the_data_are_what_is_looked_at(check, monkeypatch):
    """Random inputs fire where black images do not."""
    done = check("nets_of_a_user:digits", "--data", "nets_of_a_user:Black")
    assert done.exit_code == 1, done.output
    assert "hardly fires" in done.output


def test_a_net_to_mend_tells_its_shape(check):
    done = check("nets_of_a_user:silent")
    assert done.exit_code == 1, done.output
    assert "- Layer 0 hardly fires" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nets_of_a_user:normalized"], 1, "it does not convert: module '2' (LayerNorm)"),
        (["nets_of_a_user:digits"], 2, "cannot be told from Conv2d, the first module; give it, without the batch"),
        (["nets_of_a_user:digits", "--shape", "1x8x8"], 2, "--shape is '1x8x8'"),
        (["nets_of_a_user:digits", "--shape", "1,0,8"], 2, "a size of the input's shape"),
        (["nets_of_a_user:digits", "--shape", "3,8,8"], 2, "expected [batch, 1, size, size]"),
        (["nets_of_a_user:digits", "--shape", "1,8,8", "--batch-size", "0"], 2, "batch_size is 0"),
        (["nets_of_a_user:images", "--shape", "1,8,8"], 2, "expected [batch, classes]"),
        (["nets_of_a_user:digits", "--data", "letters"], 2, "data is 'letters'; expected one of 'digits'"),
        (["nets_of_a_user:digits", "--data", "mnist", "--data-dir", "nowhere"], 2, "nowhere"),
        (["nets_of_a_user:digits", "--data", "nets_of_a_user:number"], 2, "expected a LightningDataModule"),
        (["nets_of_a_user:digits", "--data", "digits", "--shape", "1,8,8"], 2, "expected one of both"),
        (["nets_of_a_user"], 2, "expected path.to.module:net"),
        (["nets_of_a_user:nothing"], 2, "has no 'nothing'"),
        (["nets_of_a_user:number"], 2, "is of the type int"),
        (["nets_of_nobody:digits"], 2, "there is no module 'nets_of_nobody'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(check, arguments, code, message):
    done = check(*arguments)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def oscillating():
    """r = clip(d - 4 r) with full steps: 0, 1, 0, 1, ..."""
    inhibition = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        inhibition.weight.copy_(-2 * torch.eye(6))
    stem, readout = nn.Linear(20, 6), nn.Linear(6, 4)
    nn.init.constant_(stem.weight, 0.2)
    return ep.ConvergentNetwork(
        stem, [ep.Layer()], [ep.Connection(inhibition, 0, 0)], readout, relaxation=ep.Relaxation(20, 1.0)
    )


def model_of(gain=2.0, threshold=1.0, positive=False, hidden=1, **settings):
    between = [m for _ in range(hidden) for m in (nn.Linear(30, 30), ep.ConvergentLeaky())]
    net = nn.Sequential(nn.Linear(20, 30), ep.ConvergentLeaky(threshold=threshold), *between, nn.Linear(30, 4))
    ep.initialize_(net, gain)
    if positive:
        with torch.no_grad():
            net[0].weight.abs_()
    return ep.convert(net, **settings).eval()


ONE_NUDGED_STEP = ep.EquilibriumPropagation(steps=1)
BINARY = {"encoder": "predictive_sigma_delta", "relaxation": ep.Relaxation(15, 0.85)}
ADVISED = {
    "too short": (
        lambda: model_of(relaxation=ep.Relaxation(2, step_size=0.3), encoder="graded"),
        "Relaxation(steps=",
    ),
    "oscillates": (oscillating, "does not converge"),
    "silent": (lambda: model_of(threshold=1000.0), "Layer 0 hardly fires"),
    "saturated": (lambda: model_of(threshold=1e-3, positive=True), "Layer 0 is saturated"),
    "large beta": (
        lambda: model_of(estimator=ep.EquilibriumPropagation(100.0), encoder="graded"),
        "meets neurons at their bounds",
    ),
    # From above a nudge passes all layers in one step; in this order it passes one.
    "no nudge": (
        lambda: model_of(estimator=ONE_NUDGED_STEP, encoder="graded", relaxation=ep.Relaxation(order="simultaneous")),
        "with and without spikes",
    ),
    "few nudged steps": (
        lambda: model_of(estimator=ONE_NUDGED_STEP, encoder="graded", relaxation=ep.Relaxation(order="simultaneous")),
        "is too short (norm ratio below 0.25) in stem.0.weight",
    ),
    # Deviations have no noise for a weak nudge to drown in, full phases have: what is tried follows the estimator.
    "noise of full phases": (
        lambda: model_of(estimator=ep.FullPhaseEP(0.005), **BINARY),
        "spikes hide the gradient (cosine below 0.35, without spikes above) in stem.0.weight",
    ),
    "way out of full phases": (
        lambda: model_of(estimator=ep.FullPhaseEP(0.005), **BINARY),
        ", or EquilibriumPropagation(), or ",
    ),
    "few digits in many layers": (
        lambda: model_of(
            hidden=7, encoder=ep.AdaptiveDelta(digits=1), relaxation=ep.Relaxation(3), estimator=ONE_NUDGED_STEP
        ),
        "spikes hide the gradient (cosine below 0.35, without spikes above) in connections.0",
    ),
}


@pytest.mark.parametrize("case", ADVISED)
def test_advice(case):
    make, words = ADVISED[case]
    found = diagnose(make(), torch.rand(16, 20), torch.randint(4, (16,)))
    assert any(words in advice for advice in found.advice), found.advice


@pytest.mark.parametrize("settings", [{"estimator": ep.EquilibriumPropagation(0.001)}, {"hidden": 7}], ids=str)
def test_neither_a_weak_nudge_nor_many_layers_need_advice(settings):
    x, y = torch.rand(16, 20), torch.randint(4, (16,))
    assert diagnose(model_of(**settings), x, y).advice == []


def test_no_advice_where_all_is_well_and_what_is_measured():
    model = model_of(encoder="graded", estimator=ep.EquilibriumPropagation(0.05, 30), relaxation=ep.Relaxation(30))
    x, y = torch.rand(16, 20), torch.randint(4, (16,))
    found = diagnose(model, x, y)
    assert found.advice == []
    assert [s.steps for s in found.settling] == [1, 2, 4, 8, 16, 30, 60, 120]
    assert all(s.graded == s.own for s in found.settling)
    assert found.settling[5] == Settling(30, *[model.free_phase(x).residual.max().item()] * 2)
    assert min(a.cosine for a in found.agreement) > 0.99
    assert found.without_spikes == found.agreement
    assert found.activity[1].mean == pytest.approx(model.free_phase(x).states[1].mean().item())
    assert [a.spikes for a in found.activity] == [None, None]

    model.encoder = "adaptive_delta"
    spikes = model.free_phase(x).spikes
    for l, layer in enumerate(diagnose(model, x, y).activity):
        assert layer.neurons == 30
        assert layer.spikes == pytest.approx(spikes[l].mean().item() / 30)


def test_steps_that_the_package_chooses_are_those_that_are_shown():
    model = model_of()
    assert model.steps == (4, 3)
    found = diagnose(model, torch.rand(16, 20), torch.randint(4, (16,)))
    assert [s.steps for s in found.settling] == [1, 2, 4, 8, 16]


def test_fixed_events_are_only_looked_at_with_the_steps_that_they_were_found_with():
    model = model_of(encoder=ep.AdaptiveDelta("fixed")).train()
    x, y = torch.rand(16, 20), torch.randint(4, (16,))
    nn.functional.cross_entropy(model(x), y).backward()
    found = diagnose(model.eval(), x, y)
    assert [s.steps for s in found.settling if not math.isnan(s.own)] == [4]
    assert found.advice == []


def test_the_settled_network_shares_parameters_and_changes_nothing():
    model = ep.convert(small_convolutional(), feedback=0.1)
    before = model.settings
    reference = settled(model, ep.ImplicitDifferentiation())
    assert [p is q for p, q in zip(reference.parameters(), model.parameters(), strict=True)] == [True] * 6
    assert model.settings == before
    assert reference.feedback == 0.1
    assert reference.free_phase(torch.rand(5, 1, 8, 8)).converged.all()


def test_states_without_a_bound_have_a_mean():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 9), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(9, 3))
    model, x = ep.convert(net, activation=nn.ReLU()).eval(), torch.rand(16, 8)
    (found,) = activity(model, x)
    assert found.mean == pytest.approx(model.free_phase(x).states[0].mean().item())
    assert found.mean > 0
    assert found.saturated == 0
