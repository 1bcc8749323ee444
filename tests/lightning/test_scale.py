"""The trainer at scale: two processes, half precision, seeds, saved and spawned models."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import two_processes
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from test_module import assert_same, loader, make_model, sgd, trainer

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WORKER = Path(two_processes.__file__)


def start(directory, *what, **environment):
    command = [sys.executable, str(WORKER), str(directory), *what]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(processes, seconds):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=seconds)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


def run_both(directory, *what):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    finish([start(directory, "ddp", *what, LOCAL_RANK=rank, **place) for rank in "01"], 90)


def assert_close(result, expected, tolerance):
    for own, other in zip(result, expected, strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            torch.testing.assert_close(value.double(), other[name].double(), rtol=tolerance, atol=tolerance, msg=name)


def test_two_processes_are_one_with_the_same_global_batch(tmp_path):
    """Weights and metrics of distributed data parallel training on two CPUs, over gloo.

    Between bfloat16 products the sums of half a batch and of a whole one are rounded differently.
    """
    run_both(tmp_path)
    for case, (_, precision) in two_processes.CASES.items():
        expected = two_processes.train(case, tmp_path, two_processes.GLOBAL_BATCH)
        for rank in "01":
            result = torch.load(tmp_path / f"{case}-{rank}.pt")
            assert_close(result, expected, 1e-12 if precision == "64-true" else 1e-2)


def test_two_processes_that_count_other_numbers_of_targets_are_one(tmp_path):
    """7 of the one's targets count, and 12 of the other's."""
    run_both(tmp_path, "targets")
    (expected,) = two_processes.validate(tmp_path, two_processes.GLOBAL_BATCH)
    assert {"val/loss", "val/accuracy", "val/residual"} <= expected.keys()
    for rank in "01":
        (found,) = torch.load(tmp_path / f"targets-{rank}.pt")
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_spawned_processes(tmp_path):
    """Spawning pickles the module and its network."""
    finish([start(tmp_path, "ddp_spawn")], 120)
    expected = two_processes.train("spiking", tmp_path, two_processes.GLOBAL_BATCH)
    # The weights come back to the module of the process that started the others, which is float32.
    assert_close(torch.load(tmp_path / "spiking-spawned.pt"), expected, 1e-6)


def test_a_trained_model_is_saved_and_pickled_whole(tmp_path):
    model, _ = make_model()
    task = ep.EPLightningModule(model, optimizer=sgd)
    trainer(tmp_path, max_epochs=1).fit(task, loader())
    x, y = next(iter(loader()))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(x), model(x))
    F.cross_entropy(again(x), y).backward()
    torch.optim.SGD(again.parameters(), 1.0).step()  # its connections use its own parameters, not copies of them
    assert not torch.equal(again(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(task)).model(x), model(x))


def test_the_original_has_learned(tmp_path):
    model, net = make_model()
    trainer(tmp_path, max_epochs=1).fit(ep.EPLightningModule(model, optimizer=sgd), loader())
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other, fresh = make_model()
    x, _ = next(iter(loader()))
    assert not torch.equal(other(x), model(x))
    fresh.load_state_dict(torch.load(tmp_path / "net.pt"))
    assert torch.equal(other(x), model(x))


def test_bf16_mixed_is_autocast_in_a_plain_loop(tmp_path):
    model, _ = make_model()
    trainer(tmp_path, precision="bf16-mixed").fit(ep.EPLightningModule(model, optimizer=sgd), loader())
    plain, _ = make_model()
    optimizer = sgd(plain.parameters())
    for _ in range(2):
        for x, y in loader():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(plain(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same(model, plain)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("encoder", "nudging"), [("adaptive_delta", "positive"), ("bernoulli", "random_sign")])
def test_the_same_seed_gives_the_same_weights(encoder, nudging, tmp_path):
    def trained(seed):
        model, _ = make_model()
        model.encoder, model.estimator = encoder, ep.EquilibriumPropagation(nudging=nudging)
        L.seed_everything(seed, verbose=False)
        data = ep.DigitsDataModule(32, train_samples=96, seed=seed)
        trainer(tmp_path, max_epochs=1, deterministic=True).fit(ep.EPLightningModule(model, optimizer=sgd), data)
        return list(model.parameters())

    try:
        first, again, other = trained(3), trained(3), trained(4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first, other, strict=True))


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
@pytest.mark.parametrize("callbacks", [[], [ep.GradientMonitor(1), ep.SpikeMonitor(1)]], ids=["alone", "watched"])
def test_float16_with_a_scaler_that_starts_too_high(callbacks, tmp_path):
    """What `precision="16-mixed"` does on a GPU, whose scaler Lightning does not make for a CPU."""
    model, _ = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    options = {"plugins": [mixed], "callbacks": callbacks, "logger": CSVLogger(tmp_path), "gradient_clip_val": 1.0}
    trainer(tmp_path, **options).fit(ep.EPLightningModule(model, optimizer=sgd), loader())
    assert scaler.get_scale() < 2.0**22  # steps were skipped
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
