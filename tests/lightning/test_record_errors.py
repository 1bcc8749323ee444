"""The recorder: a line an epoch, appended, whatever stops the run."""

import json
import math
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

import ep_plugin as ep
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def fit(path, tmp_path, epochs=2, validation="test", task=None, callbacks=(), logger=False, **options):
    task = task or ep.EPLightningModule(ep.convert(small_convolutional()), schedule="cosine")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[ep.RecordErrors(path, "digits"), *callbacks],
        **options,
    )
    trainer.fit(task, datamodule=ep.DigitsDataModule(train_samples=96, validation=validation))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_epoch_is_a_line(tmp_path):
    path = tmp_path / "made" / "results.jsonl"
    lines = fit(path, tmp_path)
    assert [(line["name"], line["epoch"], line["epochs"]) for line in lines] == [("digits", 1, 2), ("digits", 2, 2)]
    assert all(0 <= line["error"] <= 100 for line in lines)
    assert lines[0]["watched"] == "test"
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]
    settings = ep.convert(small_convolutional()).settings.plain()
    assert {name: lines[0][name] for name in settings} == settings
    assert lines[0]["steps"] == [4, 3]
    assert lines[0]["torch"] == torch.__version__


def test_a_line_tells_spikes_parameters_and_how_right_the_gradient_was(tmp_path):
    monitor = ep.GradientMonitor(every_n_batches=1000)  # once an epoch
    logger = CSVLogger(tmp_path)
    lines = fit(tmp_path / "results.jsonl", tmp_path, callbacks=[monitor], logger=logger)
    logger.save()
    logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    cosines = logged.filter(like="cosine/").dropna().min(axis=1)
    assert [line["cosine"] for line in lines] == pytest.approx(list(cosines), abs=1e-4)
    assert [line["spikes"] for line in lines] == pytest.approx(list(logged["val/spikes"].dropna()), abs=0.1)
    assert lines[0]["parameters"] == sum(p.numel() for p in small_convolutional().parameters())


def test_the_smallest_cosine_leaves_out_a_weight_without_a_gradient(tmp_path):
    class Look(ep.GradientMonitor):
        def measure(self, module, x, y):
            return {"cosine/stem": math.nan, "cosine/between": 0.75, "cosine/readout": 0.9, "reference/residual": 0.1}

    monitor = Look(every_n_batches=1000)
    (line,) = fit(tmp_path / "results.jsonl", tmp_path, 1, callbacks=[monitor], logger=CSVLogger(tmp_path))
    assert line["cosine"] == 0.75


def test_a_second_run_is_appended_and_says_what_it_watched(tmp_path):
    path = tmp_path / "results.jsonl"
    fit(path, tmp_path, epochs=1)
    lines = fit(path, tmp_path, epochs=1, validation=0.25, task=ep.BPTTLightningModule(small_convolutional(), 3))
    assert [line["watched"] for line in lines] == ["test", "held out"]
    assert lines[1]["estimator"] == "BPTTLightningModule(3)"


def test_an_interrupted_run_keeps_its_epochs(tmp_path):
    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    path = tmp_path / "results.jsonl"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(path, tmp_path, epochs=3, callbacks=[Interrupt()])
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1]


def test_the_directory_is_checked():
    with pytest.raises(ValueError, match=r"cannot write /proc/nowhere: .*name another directory"):
        ep.RecordErrors("/proc/nowhere/results.jsonl", "digits")


def test_several_validations_in_an_epoch_are_one_line(tmp_path):
    lines = fit(tmp_path / "results.jsonl", tmp_path, val_check_interval=0.5)
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_training_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this training has none; expected validation data"):
        fit(tmp_path / "results.jsonl", tmp_path, limit_val_batches=0)


def test_a_module_that_logs_other_names(tmp_path):
    class Own(ep.EPLightningModule):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("quality", 1.0)

    with pytest.raises(ValueError, match=r'expects "val/accuracy" or "val/loss" among what the module logs, and there'):
        fit(tmp_path / "results.jsonl", tmp_path, task=Own(ep.convert(small_convolutional())))
