"""The profile times every part, names every phase and layer, and changes nothing."""

import itertools
import threading
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin import profiling
from ep_plugin.cli import app
from ep_plugin.models import small_convolutional

ESTIMATORS = {
    "ep": ep.EquilibriumPropagation(steps=3),
    "full": ep.FullPhaseEP(steps=3),
    "bptt": ep.BackpropThroughTime(),
    "implicit": ep.ImplicitDifferentiation(),
}
PHASES = {
    "ep": ["stem", "free phase", "readout and loss", "nudged phases", "contrast", "other"],
    "full": ["stem", "free phase", "readout and loss", "nudged phases", "contrast", "other"],
    "bptt": ["stem", "free phase", "readout and loss", "other"],
    "implicit": ["stem", "free phase", "readout and loss", "adjoint", "other"],
}
EVERYTHING = ["layer 0 neurons", "layer 1 neurons", "0 -> 1 up", "0 -> 1 down"]
FREE = dict.fromkeys(EVERYTHING, 4)
NUDGED = {  # of three steps
    # In its last step, from above, the lower layer is the last to move: nobody listens to it any more.
    "ep": FREE | {"layer 0 neurons": 3, "layer 1 neurons": 3, "0 -> 1 up": 2, "0 -> 1 down": 3},
    "full": dict.fromkeys(EVERYTHING, 3),
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for one second every time that it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    return ticks


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_call_of_every_part_is_timed(name, clock):
    """A part that holds no other takes one second of that clock each time it runs, whatever the estimator."""
    model = ep.convert(small_convolutional(), relaxation=ep.Relaxation(4), estimator=ESTIMATORS[name])
    result = ep.profile(model, torch.rand(5, 1, 8, 8), torch.randint(10, (5,)), repeats=2)
    assert list(dict.fromkeys(part.phase for part in result.parts)) == PHASES[name]
    parts = {(part.phase, part.name): part for part in result.parts}
    for phase, calls in (("free phase", FREE), ("nudged phases", NUDGED.get(name, {}))):
        for own in calls:
            assert (parts[phase, own].calls, parts[phase, own].seconds) == (calls[own], calls[own])
    for phase in set(PHASES[name]) & {"stem", "contrast"}:
        assert (parts[phase, "all"].calls, parts[phase, "all"].seconds) == (1, 1)
    # Every part reads the clock at its start and at its end; what encloses it takes the seconds between.
    sections = sum(part.calls for part in result.parts if part.phase != "other")
    assert result.profiled == 2 * sections + 1
    assert result.seconds == 1  # nothing but the step itself reads the clock, where no profile is taken
    assert profiling.recorder() is None


def test_a_profile_changes_no_gradient_and_survives_an_error():
    model, x, y = ep.convert(small_convolutional()), torch.rand(5, 1, 8, 8), torch.randint(10, (5,))
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    ep.profile(model, x, y, repeats=1)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="shape"):
        ep.profile(model, torch.rand(5, 3, 8, 8), y, repeats=1)
    with pytest.raises(ValueError, match="repeats is 0"):
        ep.profile(model, x, y, repeats=0)
    assert profiling.recorder() is None


def test_a_profile_leaves_running_statistics_as_they_are():
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 3))
    net.insert(0, nn.BatchNorm1d(8))
    model = ep.convert(net)
    before = {name: b.clone() for name, b in model.named_buffers()}
    ep.profile(model, torch.rand(5, 8), torch.arange(5) % 3, repeats=1)
    assert model.training
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_another_thread_s_training_is_no_part_of_a_profile():
    """And neither changes a gradient of the other: each is what it is alone."""
    torch.manual_seed(0)
    profiled, trained = ep.convert(small_convolutional()), ep.convert(small_convolutional())
    x, y = torch.rand(5, 1, 8, 8), torch.randint(10, (5,))

    def gradients(model):
        return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    alone = ep.profile(profiled, x, y, repeats=3).parts
    expected = [p.grad.clone() for p in profiled.parameters()], gradients(trained)
    running, done, meanwhile = threading.Event(), threading.Event(), []

    def train():
        while not done.is_set():
            meanwhile[:] = gradients(trained)
            running.set()

    other = threading.Thread(target=train)
    other.start()
    try:
        running.wait(60)
        parts = ep.profile(profiled, x, y, repeats=3).parts
    finally:
        done.set()
        other.join()
    assert [(p.phase, p.name, p.calls) for p in parts] == [(p.phase, p.name, p.calls) for p in alone]
    for found, wanted in zip(([p.grad for p in profiled.parameters()], meanwhile), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_backward_pass_in_a_thread_of_its_own_is_part_of_the_profile_of_its_forward_pass():
    """As autograd's are, of a GPU."""
    model, x, y = ep.convert(small_convolutional()), torch.rand(5, 1, 8, 8), torch.randint(10, (5,))

    def loss(output, target):
        value = F.cross_entropy(output, target)
        apart = threading.Thread(target=lambda: value.backward(retain_graph=True))
        apart.start()
        apart.join()
        return value.detach().requires_grad_()

    parts = ep.profile(model, x, y, loss, repeats=2).parts
    assert {"nudged phases", "contrast"} <= {part.name for part in parts}  # within the loss


@pytest.mark.parametrize("name", ESTIMATORS)
def test_command(name):
    options = ["--model", "digits", "--batch-size", "1", "--repeats", "1", "--bfloat16", "--estimator", name]
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 0, done.output
    for word in (*PHASES[name], "0 -> 1 down", "layer 1 neurons", "bfloat16", type(ESTIMATORS[name]).__name__):
        assert word in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg"], "'2c2fc', 'perceptron', 'digits'"),
        (["--encoder", "rate"], "'adaptive_delta'"),
        (["--estimator", "backprop"], "'ep', 'full', 'bptt', 'implicit'"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--repeats", "0"], "repeats is 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(options, message):
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
