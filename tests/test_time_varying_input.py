"""Inputs `[T, B, ...]` that change over time."""

import lightning as L
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from problems import perceptron
from snntorch import spikegen
from torch import nn

import ep_plugin as ep
from ep_plugin.models import small_convolutional

ENCODERS = ["graded", "predictive", "sigma_delta"]
ESTIMATORS = [ep.EquilibriumPropagation(0.5, 4), ep.BackpropThroughTime(), ep.ImplicitDifferentiation(1e-6)]


def outcome(model, x):
    x = x.clone().requires_grad_()
    output = model(x)
    y = torch.arange(len(output)) % output.shape[1]
    return output, torch.autograd.grad(F.cross_entropy(output, y), [x, *model.parameters()])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("frames", [3, 6])
def test_equal_frames_are_a_constant_input(encoder, gradient, frames, float64):
    model, x = perceptron()
    model.encoder, model.gradient, model.relaxation = encoder, gradient, ep.Relaxation(6)
    output, (to_x, *constant) = outcome(model, x)
    model.time_first = True
    over_time, (to_frames, *found) = outcome(model, x.repeat(frames, 1, 1))
    torch.testing.assert_close(over_time, output)
    torch.testing.assert_close(to_frames.sum(0), to_x)
    for a, b in zip(found, constant, strict=True):
        torch.testing.assert_close(a, b)


def test_frames_are_shown_in_turn_and_nudged_phases_see_the_last(monkeypatch):
    model = ep.ConvergentNetwork(nn.Flatten(), [ep.Layer()], [], nn.Linear(1, 2), time_first=True)
    model.relaxation, model.gradient = ep.Relaxation(6), ep.EquilibriumPropagation(steps=5)
    seen = []
    drive = type(model.dynamics()).drive

    def watch(self, layer, traces, values, force=None, out=None):
        seen.append(values.drive[:, 0].tolist())
        return drive(self, layer, traces, values, force, out)

    monkeypatch.setattr("ep_plugin.dynamics.Dynamics.drive", watch)
    frames = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1).requires_grad_()
    F.cross_entropy(model(frames), torch.tensor([1])).backward()
    assert seen[:6] == [[0.25], [0.25], [0.5], [0.5], [0.75], [0.75]]
    assert seen[6:] == [[f, f] for f in (0.25, 0.5, 0.5, 0.75, 0.75)]


def test_the_gradient_is_that_of_the_mean_drive_where_states_follow_it(float64):
    """Linear neurons (a drive inside their range): averages over time are those of a constant input."""
    torch.manual_seed(3)
    stem, readout = nn.Linear(4, 3), nn.Linear(3, 2)
    with torch.no_grad():
        stem.weight.mul_(0.1), stem.bias.fill_(0.5)
    linear = ep.Activation(lambda h: h, potential=lambda r: r * r / 2, projection=(-100.0, 100.0))
    model = ep.ConvergentNetwork(
        stem, [ep.Layer(activation=linear)], [], readout, encoder="predictive",
        gradient=ep.EquilibriumPropagation(1e-3, 12),
    )  # fmt: skip
    model.encoder = "graded"
    frames = torch.rand(12, 5, 4)
    model.relaxation = ep.Relaxation(12, step_size=1.0)
    model.time_first = True
    y = torch.arange(5) % 2
    (found,) = torch.autograd.grad(F.cross_entropy(model(frames), y), [stem.weight])
    # A graded network is read at its last step; the force is that of the last frame's output, and
    # the contrast goes to the mean frame.
    last = stem(frames[-1]).detach().requires_grad_()
    (error,) = torch.autograd.grad(F.cross_entropy(readout(last), y), [last])
    torch.testing.assert_close(found, error.T @ frames.mean(0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 3, 12), {"relaxation": ep.Relaxation(6)}, r"6 steps for 4 frames.*Relaxation\(4\)"),
        ((3, 2, 12), {"relaxation": ep.Relaxation(6, tolerance=1e-3)}, "seen to its end"),
        ((3, 12), {}, r"shape \[3, 12\]; expected \[time, batch, 12\]"),
        ((3, 2, 11), {}, r"expected \[time, batch, 12\]"),
        ((0, 2, 12), {}, "an empty batch"),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    model, _ = perceptron()
    model.time_first, model.relaxation = True, options.get("relaxation", ep.Relaxation(6))
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))


def latencies(x):
    """Pixels that come on, the earlier the brighter, and stay, `[T, B, 1, H, W]`; black ones never do."""
    return spikegen.latency(x, num_steps=12, normalize=True, linear=True, clip=True, threshold=0.05).cumsum(0)


def events(x):
    """A camera's, `[T, B, 2, H, W]`: what becomes brighter and what darker as the image moves along."""
    moving = torch.stack([x.roll(t, -1) for t in range(13)])
    change = moving.diff(dim=0)
    return torch.cat([change > 0.3, change < -0.3], dim=2).float()


@pytest.mark.parametrize(("code", "channels"), [(latencies, 1), (events, 2)])
def test_other_spike_trains_are_followed_and_learned(code, channels):
    """The loss falls by half in 100 steps; what no theory promises is only tried."""
    data = ep.DigitsDataModule()
    (x, y), _ = data.load()
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 3), snn.Leaky(beta=0.9, init_hidden=True), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(108, 64), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(64, 10),
    )  # fmt: skip
    model = ep.convert(ep.initialize_(net, 4.0), time_first=True, relaxation=ep.Relaxation(24))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for batch in torch.randperm(len(x)).repeat(6).split(64)[:100]:
        frames = code(x[batch])
        assert frames.shape == (12, len(batch), channels, 8, 8)
        loss = F.cross_entropy(model(frames), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"\n{code.__name__}: loss {losses[0]:.2f} -> {sum(losses[-5:]) / 5:.2f}", end="")
    assert sum(losses[-5:]) / 5 <= losses[0] / 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_rate_coded_digits_are_learned(tmp_path):
    """snnTorch's own spike trains, through Lightning."""
    net = ep.initialize_(small_convolutional())
    model = ep.convert(net, time_first=True, relaxation=ep.Relaxation(24), feedback=0.1)
    task = ep.EPLightningModule(model, lr=1e-2, schedule="cosine")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=4, enable_model_summary=False, default_root_dir=tmp_path, **options)
    data = ep.DigitsDataModule(batch_size=32, rate_coded=24)
    trainer.fit(task, datamodule=data)
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    assert metrics["test/accuracy"] > 0.9
