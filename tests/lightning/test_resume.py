"""A training that goes on from a checkpoint is, bit by bit, the one that was never interrupted."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import resumed
import torch
import yaml
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.tuner import Tuner
from resumed import SPIKING, fit, make_bptt, make_task, noisy
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

NUDGINGS = ("positive", "negative", "random_sign", "symmetric")


def plateau(parameters):
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    down = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": down, "monitor": "val/loss"}}


def assert_same(found, expected, rows_before):
    """Weights and optimizer's state; and all rows that were logged after the checkpoint, and no others."""
    for own, other in zip(tree_leaves(found[:2]), tree_leaves(expected[:2]), strict=True):
        assert torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other
    assert found[2] == expected[2][rows_before:]


def check(tmp_path, make, kept=("batch-1-*", "epoch-1-*", "val-1-*"), **options):
    """Resumes from all checkpoints of the second epoch."""
    expected = fit(tmp_path / "whole", make(), **options)
    found = sorted(path for pattern in kept for path in (tmp_path / "whole" / "kept").glob(f"{pattern}.ckpt"))
    assert len(found) >= len(kept)
    for path in found:
        print(path.stem)  # in the report of a failure
        before = torch.load(path, weights_only=True)["rows_before"]
        assert_same(fit(tmp_path / path.stem, make(), checkpoint=path, **options), expected, before)


FEW = ("batch-1-7", "batch-1-10", "epoch-1-*", "val-1-*")  # within an epoch, at its last batch, at its end, ...


@pytest.mark.parametrize("nudging", NUDGINGS)
@pytest.mark.parametrize("encoder", ["graded", *SPIKING])
def test_encoders_and_nudgings(encoder, nudging, tmp_path):
    estimator = ep.EquilibriumPropagation(nudging=nudging)
    check(tmp_path, lambda: make_task(encoder=encoder, estimator=estimator), kept=FEW)


@pytest.mark.parametrize("estimator", [ep.FullPhaseEP(), ep.BackpropThroughTime(), ep.ImplicitDifferentiation()])
def test_estimators(estimator, tmp_path):
    check(tmp_path, lambda: make_task(encoder="graded", estimator=estimator), kept=FEW)


CASES = {
    "fixed events": ({"encoder": ep.AdaptiveDelta(event_weight="fixed")}, {}),
    "dropout": ({"dropout": 0.3}, {}),
    "augmentation": ({}, {"data_settings": {"augmentation": noisy}}),
    "rate coding": ({"time_varying": True}, {"data_settings": {"rate_coded": 3}}),
    "accumulation": ({"encoder": "bernoulli"}, {"accumulate_grad_batches": 2}),
    "cosine": ({"schedule": "cosine"}, {}),
    "plateau": ({"optimizer": plateau}, {}),
    "bfloat16": ({"encoder": "bernoulli"}, {"precision": "bf16-mixed"}),
    "length in steps": ({"encoder": "bernoulli"}, {"max_steps": 13, "max_epochs": -1}),
    "part of an epoch": ({"encoder": "bernoulli"}, {"limit_train_batches": 3}),
    "several validations": ({"encoder": "bernoulli"}, {"val_check_interval": 2}),
    "rare validations": ({"encoder": "bernoulli"}, {"check_val_every_n_epoch": 3}),
    "steps first": ({}, {"callbacks": [ep.FewStepsFirst(2, free=2, nudged=1)]}),
    "monitors": ({"encoder": "bernoulli"}, {"callbacks": [ep.EquilibriumMonitor(2), ep.GradientMonitor(2)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_settings(case, tmp_path):
    settings, options = CASES[case]
    kept = ("batch-1-*",) if case in ("rare validations",) else ("batch-1-*", "epoch-1-*", "val-1-*")
    check(tmp_path, lambda: make_task(**settings), kept=kept, **options)


def test_backpropagation_through_time(tmp_path):
    check(tmp_path, make_bptt, kept=FEW)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes(workers, tmp_path):
    """They read ahead of the training, and what they augment does not depend on how many they are."""
    settings = {"data_settings": {"augmentation": noisy, "num_workers": workers}}
    check(tmp_path, make_task, kept=("batch-1-7", "epoch-1-*"), **settings)
    alone = fit(tmp_path / "alone", make_task(), data_settings={"augmentation": noisy})
    assert_same(alone, fit(tmp_path / "again", make_task(), **settings), 0)


class AtEveryBatch(L.Callback):
    """Checkpoints also while gradients are accumulated."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/kept/any-{trainer.current_epoch}-{batch_idx}.ckpt")


def test_gradients_that_are_being_accumulated(tmp_path):
    options = {"accumulate_grad_batches": 3, "callbacks": [AtEveryBatch()]}
    check(tmp_path, lambda: make_task(encoder="bernoulli"), kept=("any-1-*",), **options)


def test_accumulation_that_is_scheduled_goes_on_within_an_epoch(tmp_path):
    def accumulating():  # a callback of its own for every trainer
        return {"callbacks": [AtEveryBatch(), GradientAccumulationScheduler({0: 3})]}

    expected = fit(tmp_path / "whole", make_task(), **accumulating())
    kept = tmp_path / "whole" / "kept" / "any-1-1.ckpt"
    before = torch.load(kept, weights_only=True)["rows_before"]
    assert_same(fit(tmp_path / "again", make_task(), checkpoint=kept, **accumulating()), expected, before)


def test_a_search_for_the_rate_leaves_the_seed_alone(tmp_path):
    def trained(seed):
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
        task, data = make_task(dropout=0.3), ep.DigitsDataModule(8, train_samples=36)
        Tuner(trainer).lr_find(task, datamodule=data, num_training=5, update_attr=False)
        L.seed_everything(seed, verbose=False)
        trainer.fit(task, data)
        return torch.cat([p.detach().flatten() for p in task.parameters()])

    assert not torch.equal(trained(5), trained(6))


class Killed(Exception):
    pass


class Kill(L.Callback):
    """What a killed process leaves: nothing but its files."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise Killed


@pytest.mark.parametrize("batch", [6, 9, 12])
def test_lines_of_a_killed_run(batch, tmp_path):
    """From a checkpoint of the first epoch's end. Its epochs after that are not written twice; seconds go on."""
    lines, whole = tmp_path / "lines.jsonl", tmp_path / "whole.jsonl"
    fit(tmp_path, make_task(), callbacks=[ep.RecordErrors(whole, "net")])
    with pytest.raises(Killed):
        fit(tmp_path / "killed", make_task(), callbacks=[ep.RecordErrors(lines, "net"), Kill(batch)])
    (kept,) = (tmp_path / "killed" / "kept").glob("epoch-0-*")
    time.sleep(1.1)  # a start of its own would be another
    fit(tmp_path / "resumed", make_task(), checkpoint=kept, callbacks=[ep.RecordErrors(lines, "net")])
    assert_same_lines(lines, whole)


def assert_same_lines(lines, expected):
    """But for the time that it took."""
    found, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in (lines, expected))
    assert len({line["started"] for line in found}) == 1
    assert all(0 < found[0]["seconds"] < line["seconds"] for line in found[1:])
    for line in [*found, *other]:
        del line["started"], line["seconds"]
    assert found == other


def test_a_loader_of_ones_own_at_an_epochs_end(tmp_path):
    """The random states suffice where the loader draws from them."""
    torch.manual_seed(3)
    images = TensorDataset(torch.rand(40, 1, 8, 8), torch.randint(10, (40,)))
    options = {"limit_val_batches": 0, "data": DataLoader(images, 8, shuffle=True)}
    check(tmp_path, lambda: make_task(encoder="bernoulli"), kept=("epoch-1-*",), **options)


@pytest.mark.parametrize("other", [{"batch_size": 4}, {"seed": 1}])
def test_other_batches_within_an_epoch(other, tmp_path):
    """Are refused: a place within the epoch means other images then. At its end they are as good as any."""
    fit(tmp_path, make_task(), max_epochs=1)
    data = ep.DigitsDataModule(**{"batch_size": 8, "train_samples": 36} | other)
    kept = tmp_path / "kept"
    with pytest.raises(
        ValueError, match=r"after 3 batches with batch_size=8, seed=0, .* from a checkpoint of an epoch"
    ):
        fit(tmp_path / "within", make_task(), data, checkpoint=kept / "batch-0-3.ckpt")
    fit(tmp_path / "after", make_task(), data, checkpoint=next(kept.glob("epoch-0-*")))


def test_checkpoints_are_written_beside_their_name(tmp_path, monkeypatch):
    """Lightning's own are written elsewhere first, and copied where that is another disk."""
    written = []
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setattr(
        torch, "save", lambda what, file, save=torch.save: (written.append(Path(file.name)), save(what, file))
    )
    fit(tmp_path, make_task(), max_epochs=1)
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) == len(written) > 2
    assert {file.parent for file in written} == {tmp_path / "kept"}
    assert all(file.suffix == ".ckpt" for file in kept)
    assert all(file.suffix == ".part" for file in written)


def newest(directory, pattern="*.ckpt"):
    return max(directory.glob(pattern), key=lambda path: path.stat().st_mtime_ns, default=None)


def assert_same_checkpoint(found, expected):
    """In all that a training depends on."""
    own, other = (torch.load(path, weights_only=True) for path in (found, expected))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "ep_plugin_resuming"):
        for a, b in zip(tree_leaves(own[part]), tree_leaves(other[part]), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def draw():
    seed = int(os.environ.get("EP_PLUGIN_SEED", time.time_ns() % 1_000_000))
    print(f"EP_PLUGIN_SEED={seed}")
    return random.Random(seed)


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=os.environ | environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def kill(directory, processes, seconds):
    """A while after they have written something new, unless they are done before."""
    before, since = newest(directory), time.monotonic()
    while newest(directory) == before and all(p.poll() is None for p in processes) and time.monotonic() < since + 300:
        time.sleep(0.01)
    time.sleep(seconds)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


CONFIG = {
    "seed_everything": 3,
    "model": {
        "class_path": "ep_plugin.EPLightningModule",
        "init_args": {
            "model": {
                "class_path": "ep_plugin.convert",
                "init_args": {"net": "ep_plugin.models.small_convolutional", "encoder": "bernoulli"},
            },
            "schedule": "cosine",
        },
    },
    "data": {"class_path": "ep_plugin.DigitsDataModule", "init_args": {"batch_size": 16, "train_samples": 160}},
}


def configure(directory, epochs):
    keep = {"dirpath": str(directory / "kept"), "save_top_k": -1}
    callbacks = [
        {"class_path": "ep_plugin.RecordErrors", "init_args": {"path": str(directory / "lines.jsonl"), "name": "net"}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"every_n_train_steps": 5, **keep}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
    ]
    trainer = {"max_epochs": epochs, "accelerator": "cpu", "default_root_dir": str(directory), "callbacks": callbacks}
    trainer["logger"] = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(directory)}}
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"trainer": trainer}))
    return "-m", "ep_plugin.cli", "fit", "--config", directory / "config.yaml"


def logged(directory):
    """The rows of all its processes, those that several have written once."""
    logs = sorted((directory / "lightning_logs").iterdir())
    return sorted({tuple(sorted(row.items())) for log in logs for row in resumed.rows(log)})


@pytest.mark.slow
def test_twenty_kills_of_the_command_line(tmp_path, draw):
    epochs = 25
    finish(start(*configure(tmp_path / "whole", epochs)))
    command = configure(tmp_path / "killed", epochs)
    for _ in range(20):
        kept = newest(tmp_path / "killed" / "kept")
        process = start(*command, *(["--ckpt_path", kept] if kept else []))
        kill(tmp_path / "killed" / "kept", [process], draw.uniform(0, 2))
    finish(start(*command, "--ckpt_path", newest(tmp_path / "killed" / "kept")))
    last = f"epoch={epochs - 1}-*"
    assert_same_checkpoint(*(newest(tmp_path / run / "kept", last) for run in ("killed", "whole")))
    assert_same_lines(*(tmp_path / run / "lines.jsonl" for run in ("killed", "whole")))
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_are_killed(tmp_path, draw):
    """Distributed data parallel, each with random numbers of its own."""

    def both(directory, *checkpoint):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "NODE_RANK": "0"}
        return [start(resumed.__file__, directory, *checkpoint, LOCAL_RANK=rank, **place) for rank in "01"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*both(whole))
    for _ in range(3):
        kept = newest(killed / "kept")
        kill(killed / "kept", both(killed, *([kept] if kept else [])), draw.uniform(0, 0.5))
    finish(*both(killed, newest(killed / "kept")))
    states = torch.load(newest(whole / "kept"), weights_only=True)["ep_plugin_resuming"]["processes"]
    assert not torch.equal(*(state["generators"]["torch"] for state in states))
    for name in ("batch-3-11.ckpt", "batch-3-12.ckpt", "epoch-3-12.ckpt"):
        assert_same_checkpoint(killed / "kept" / name, whole / "kept" / name)
