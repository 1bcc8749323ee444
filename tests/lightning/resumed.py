"""A training that test_resume.py interrupts and takes up again.

As a program: `resumed.py DIRECTORY [CHECKPOINT]` trains in one of two processes, told apart by LOCAL_RANK.
"""

import random
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import snntorch as snn
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import ep_plugin as ep

SPIKING = ("adaptive_delta", "sigma_delta", "predictive_sigma_delta", "bernoulli")


def make_net(dropout=0.0, **leaky):
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Flatten(-3), nn.Dropout(dropout), nn.Linear(64, 12), snn.Leaky(beta=0.5, **leaky)),
        *(nn.Linear(12, 8), snn.Leaky(beta=0.5, **leaky), nn.Linear(8, 10)),
    )


def make_task(dropout=0.0, schedule="constant", optimizer=None, **settings):
    return ep.EPLightningModule(
        ep.convert(make_net(dropout), **settings), lr=1e-2, schedule=schedule, optimizer=optimizer
    )


def make_bptt():
    return ep.BPTTLightningModule(make_net(0.2, init_hidden=True), num_steps=3, lr=1e-2)


def noisy(x):
    """An augmentation that draws from every generator."""
    return x + 0.1 * torch.rand_like(x) + 0.1 * random.random() + 0.1 * np.random.rand()


class RowsBefore(L.Callback):
    """Tells in every checkpoint how many rows had been logged when it was written."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["rows_before"] = len(rows(trainer.logger.log_dir))


def rows(log_dir):
    """What was logged, row by row, as it is written."""
    file = Path(log_dir) / "metrics.csv"
    if not file.exists():
        return []
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    return [{name: value for name, value in row.items() if value} for row in table.to_dict("records")]


def fit(directory, task, data=None, checkpoint=None, callbacks=(), data_settings=(), **options):
    """The weights, the optimizer's state and the rows of a training that writes a checkpoint wherever it can."""
    L.seed_everything(5 if checkpoint is None else 6, verbose=False)  # what is resumed is not to depend on it
    data = data or ep.DigitsDataModule(8, train_samples=36, **dict(data_settings))
    keep = {"dirpath": Path(directory) / "kept", "save_top_k": -1, "auto_insert_metric_name": False}
    defaults = {"max_epochs": 3, "limit_val_batches": 2}
    trainer = L.Trainer(
        default_root_dir=directory, accelerator="cpu", logger=CSVLogger(directory, flush_logs_every_n_steps=1),
        enable_progress_bar=False, enable_model_summary=False, **defaults | options,
        callbacks=[
            RowsBefore(), *callbacks,
            ModelCheckpoint(filename="batch-{epoch}-{step}", every_n_train_steps=1, **keep),
            ModelCheckpoint(filename="epoch-{epoch}-{step}", save_on_train_epoch_end=True, **keep),
            ModelCheckpoint(filename="val-{epoch}-{step}", save_on_train_epoch_end=False, monitor="val/loss", **keep),
        ],
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=checkpoint)
    return task.state_dict(), trainer.optimizers[0].state_dict(), rows(trainer.logger.log_dir)


class OwnDraws(L.Callback):
    """Every process draws otherwise, from the start on."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            torch.manual_seed(trainer.global_rank)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fit(
        sys.argv[1], make_task(0.2, encoder="bernoulli"), checkpoint=(*sys.argv[2:], None)[0], strategy="ddp",
        devices=2, max_epochs=4, data_settings={"augmentation": noisy, "num_workers": 1}, callbacks=[OwnDraws()],
    )  # fmt: skip
