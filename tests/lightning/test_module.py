"""Lightning's automatic optimization against plain PyTorch loops with SGD."""

import copy
import math
import re
import warnings

import lightning as L
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def make_model():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), snn.Leaky(beta=0.5, init_hidden=True), nn.Flatten(), nn.Linear(108, 6),
        snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(6, 10),
    )  # fmt: skip
    return ep.convert(net), net


def make_data():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(22, 1, 8, 8, generator=generator)
    return TensorDataset(x, torch.randint(10, (22,), generator=generator))  # the last batch has 2 samples


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.5, momentum=0.9)


def trainer(tmp_path, **options):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
    }
    return L.Trainer(default_root_dir=tmp_path, **quiet | {"enable_checkpointing": False, "max_epochs": 2} | options)


def loader():
    return DataLoader(make_data(), 4)


def plain_loop(epochs=2, accumulate=1, clip=None, schedule=False):
    model, _ = make_model()
    optimizer = sgd(model.parameters())
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(epochs):
        batches = list(loader())
        for i, (x, y) in enumerate(batches):
            (F.cross_entropy(model(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(batches):
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        if schedule:
            decay.step()
    return model


def assert_same(a, b):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def scheduled(parameters):
    optimizer = sgd(parameters)
    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


CASES = {
    "plain": ({}, {}, sgd),
    "accumulation": ({"accumulate_grad_batches": 3}, {"accumulate": 3}, sgd),
    "clipping": ({"gradient_clip_val": 0.05}, {"clip": 0.05}, sgd),
    "schedule": ({}, {"schedule": True}, scheduled),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_loop(case, tmp_path):
    options, loop, optimizer = CASES[case]
    model, net = make_model()
    trainer(tmp_path, **options).fit(ep.EPLightningModule(model, optimizer=optimizer), loader())
    assert_same(model, plain_loop(**loop))
    assert torch.equal(net[0].weight, model.stem[0].weight)  # the original has learned


def test_checkpoint_resume_and_load(tmp_path):
    model, _ = make_model()
    first = trainer(tmp_path, enable_checkpointing=True, max_epochs=1)
    first.fit(ep.EPLightningModule(model, optimizer=sgd), loader())
    path = tmp_path / "one.ckpt"
    first.save_checkpoint(path)

    resumed, _ = make_model()
    trainer(tmp_path).fit(ep.EPLightningModule(resumed, optimizer=sgd), loader(), ckpt_path=path)
    assert_same(resumed, plain_loop(epochs=2))

    fresh, _ = make_model()
    loaded = ep.EPLightningModule.load_from_checkpoint(path, model=fresh)
    assert_same(loaded.model, model)


def saved(model, tmp_path, settings=None):
    """A checkpoint of the model, whose kept settings are replaced if others are given."""
    path = tmp_path / "one.ckpt"
    of_training = trainer(tmp_path)
    of_training.strategy.connect(ep.EPLightningModule(model))
    of_training.save_checkpoint(path)
    if settings is not None:
        torch.save(torch.load(path, weights_only=True) | {"ep_plugin": settings}, path)
    return path


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("feedback", 0.9, r"feedback was 0\.02 and is 0\.9"),
        ("encoder", "graded", r"encoder was Adapt.* and is Graded"),
        ("observe", "membrane", "observe was trace and is membrane"),
        ("relaxation", ep.Relaxation(2), r"steps of the free phase were 4 and are 2"),
    ],
)
def test_a_checkpoint_loaded_into_other_settings_warns(tmp_path, setting, value, told):
    model, _ = make_model()
    path = saved(model, tmp_path)
    other, _ = make_model()
    setattr(other, setting, value)
    with pytest.warns(UserWarning, match=told):
        ep.EPLightningModule.load_from_checkpoint(path, model=other)


@pytest.mark.parametrize(
    "other", [{"relaxation": ep.Relaxation(8)}, {"estimator": ep.BackpropThroughTime()}, {"feedback": [0.02]}]
)
def test_a_checkpoint_loaded_into_what_infers_alike_is_silent(other, tmp_path):
    model, _ = make_model()
    path = saved(model, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the checkpoint's network")
        ep.EPLightningModule.load_from_checkpoint(path, model=model.variant(**other))


# What a checkpoint held before estimators, traces and steps by depth.
OLDER = {
    "encoder": "PredictiveSigmaDelta(rate=0.6, exponent=0.3)",
    "observe": "membrane",
    "feedback": [0.05],
    "steps": 15,
}


def test_a_checkpoint_of_an_earlier_version_loads(tmp_path):
    model, _ = make_model()
    path = saved(model, tmp_path, OLDER)
    other = make_model()[0]
    with pytest.warns(UserWarning, match="the checkpoint's network") as told:
        loaded = ep.EPLightningModule.load_from_checkpoint(path, model=other)
    assert_same(loaded.model, model)
    (words,) = [str(w.message) for w in told if str(w.message).startswith("the checkpoint's network")]
    assert "\n" not in words
    for difference in (
        "encoder was PredictiveSigmaDelta(rate=0.6, exponent=0.3) and is AdaptiveDelta(event_weight='sample', digits=3",
        "observe was membrane and is trace",
        "feedback was 0.05 and is 0.02",
        "steps of the free phase were 15 and are 4",
    ):
        assert difference in words
    as_it_was = other.variant(
        encoder="predictive_sigma_delta", observe="membrane", feedback=0.05, relaxation=ep.Relaxation(15)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the checkpoint's network")
        ep.EPLightningModule.load_from_checkpoint(path, model=as_it_was)


def spikes_of(model, x):
    """Of every sample, in the free phase of 114 neurons."""
    return model.free_phase(x).spikes.sum(0)


def spikes_over_time(net, x, steps):
    """Of every sample, counted in a loop over steps and modules."""
    for m in net.modules():
        if isinstance(m, snn.Leaky):
            m.mem = torch.zeros(0)
    total = torch.zeros(len(x))
    for _ in range(steps):
        signal = x
        for m in net:
            signal = m(signal)
            if isinstance(m, snn.Leaky):
                total += signal.flatten(1).sum(1)
    return total


def test_validate_and_test_under_inference_mode(tmp_path):
    model, net = make_model()
    model.relaxation = ep.Relaxation(3)  # events of a fourth step tell rounding, which need not be the same
    with torch.no_grad():
        by_ep = torch.cat([spikes_of(model, x) for x, _ in loader()]).mean().item()
        by_bptt = torch.cat([spikes_over_time(net, x, 5) for x, _ in loader()]).mean().item()
    assert by_ep > 0
    assert by_bptt > 0
    neurons = 3 * 6 * 6 + 6
    for task, spikes in ((ep.EPLightningModule(model), by_ep), (ep.BPTTLightningModule(net, 5), by_bptt)):
        for stage, run in (("val", trainer(tmp_path).validate), ("test", trainer(tmp_path).test)):
            (logged,) = run(task, loader(), verbose=False)
            assert {f"{stage}/loss", f"{stage}/accuracy"} <= logged.keys()
            assert logged[f"{stage}/spikes"] == pytest.approx(spikes)
            assert logged[f"{stage}/spikes_per_neuron"] == pytest.approx(spikes / neurons)
    assert "test/residual" in trainer(tmp_path).test(ep.EPLightningModule(model), loader(), verbose=False)[0]


def test_bptt_equals_a_plain_loop(tmp_path):
    _, net = make_model()
    trainer(tmp_path).fit(ep.BPTTLightningModule(net, 4, optimizer=sgd), loader())
    _, other = make_model()
    optimizer = sgd(other.parameters())
    for _ in range(2):
        for x, y in loader():
            for m in other.modules():
                if isinstance(m, snn.Leaky):
                    m.mem = torch.zeros(0)
            loss = F.cross_entropy(torch.stack([other(x) for _ in range(4)]).mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same(net, other)


@pytest.mark.parametrize("steps", [3, 6])
def test_bptt_of_frames_equals_a_plain_loop_over_them(steps):
    """Each is shown for as many steps as there are for it."""
    net = nn.Sequential(nn.Linear(8, 6), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(6, 3))
    frames, y = 3 * torch.randn(3, 4, 8), torch.arange(4) % 3
    task = ep.BPTTLightningModule(net, steps, time_varying=True)
    found = torch.autograd.grad(F.cross_entropy(task(frames), y), list(net.parameters()))
    for m in net.modules():
        if isinstance(m, snn.Leaky):
            m.mem = torch.zeros(0)
    outputs = [net(frame) for frame in frames.repeat_interleave(steps // 3, 0)]
    wanted = torch.autograd.grad(F.cross_entropy(torch.stack(outputs).mean(0), y), list(net.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert any(bool(g.any()) for g in wanted)
    backwards = task(frames.flip(0))
    assert not torch.equal(backwards, task(frames))
    with pytest.raises(ValueError, match=rf"num_steps is {steps}.*\[4, 3.*expected one or more steps for each frame"):
        task(frames.transpose(0, 1))


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "mse", SF.ce_rate_loss(), SF.mse_count_loss(0.9, 0.1), nn.CrossEntropyLoss()]
)
def test_losses_fall(loss, tmp_path):
    model, net = make_model()
    for task in (ep.EPLightningModule(model, loss), ep.BPTTLightningModule(copy.deepcopy(net), 3, loss)):
        (before,) = trainer(tmp_path).validate(task, loader(), verbose=False)
        trainer(tmp_path, max_epochs=5).fit(task, loader())
        (after,) = trainer(tmp_path).validate(task, loader(), verbose=False)
        assert after["val/loss"] < before["val/loss"]


def test_refusals():
    model, net = make_model()
    with pytest.raises(ValueError, match="'cross_entropy', 'mse'"):
        ep.EPLightningModule(model, "hinge")
    with pytest.raises(ValueError, match="lr is -1"):
        ep.EPLightningModule(model, lr=-1.0)
    with pytest.raises(TypeError, match=r"ep\.convert"):
        ep.EPLightningModule(net)
    with pytest.raises(ValueError, match="num_steps is 0"):
        ep.BPTTLightningModule(net, 0)
    with pytest.raises(ValueError, match="init_hidden=True"):
        ep.BPTTLightningModule(nn.Sequential(nn.Linear(2, 2), snn.Leaky(beta=0.5)), 5)


NO_FUNCTIONS = {
    "SGD": (
        lambda p: torch.optim.SGD(p, 0.1),
        r"an instance of SGD; .*: lambda parameters: torch\.optim\.SGD\(.*0\.1\)",
    ),
    "of the package": (ep.MuonAdamW, r"an instance of MuonAdamW; .*: MuonAdamW\(parameters, lr="),
    "a name": (lambda _: "adam", r"'adam'; .*: torch\.optim\.SGD\("),
}


@pytest.mark.parametrize("case", NO_FUNCTIONS)
def test_an_optimizer_that_is_no_function_is_refused(case):
    make, message = NO_FUNCTIONS[case]
    model, net = make_model()
    optimizer = make(net.parameters())
    for kind, of in ((ep.EPLightningModule, model), (ep.BPTTLightningModule, net)):
        with pytest.raises(TypeError, match=r"optimizer is .*expected a function of the parameters") as refused:
            kind(of, optimizer=optimizer)
        assert re.search(message, str(refused.value))


def test_a_cosine_takes_an_optimizer_alone(tmp_path):
    """One with a schedule of its own has no place for it."""
    task = ep.EPLightningModule(make_model()[0], optimizer=scheduled, schedule="cosine")
    with pytest.raises(TypeError, match=r'"cosine": optimizer returned a tuple; expected an optimizer alone, or sched'):
        trainer(tmp_path).fit(task, loader())


def test_final_output_neuron():
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True, output=True))
    assert ep.BPTTLightningModule(net, 5)(torch.rand(2, 4)).shape == (2, 3)


def test_empty_loader_does_nothing(tmp_path):
    model, _ = make_model()
    empty = DataLoader(TensorDataset(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)), 4)
    trainer(tmp_path).fit(ep.EPLightningModule(model), empty)


@pytest.mark.parametrize("optimizer", [None, sgd])
def test_cosine_schedule_ends_at_zero(optimizer, tmp_path):
    task = ep.EPLightningModule(make_model()[0], lr=0.5, optimizer=optimizer, schedule="cosine")
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(tmp_path, callbacks=[Watch()]).fit(task, loader())
    steps = 2 * len(loader())
    expected = [0.25 * (1 + math.cos(math.pi * n / steps)) for n in range(steps)]
    assert rates == pytest.approx(expected)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule is 'linear'; expected one of 'constant', 'cosine'"):
        ep.EPLightningModule(make_model()[0], schedule="linear")
