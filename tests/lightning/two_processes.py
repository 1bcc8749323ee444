"""A training that test_scale.py does in one process and in two.

As a program: `two_processes.py DIRECTORY STRATEGY` trains every case in one of two processes (told
apart by LOCAL_RANK), or in two that Lightning spawns, and leaves the weights and metrics there; with
`targets` after it, only the metrics of a validation with targets that do not count.
"""

import os
import sys
import warnings
from pathlib import Path

import lightning as L
import snntorch as snn
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ep_plugin as ep

CASES = {
    "graded": ({"encoder": "graded"}, "64-true"),
    "spiking": ({"encoder": "adaptive_delta"}, "64-true"),
    "binary": ({"encoder": "predictive_sigma_delta", "estimator": ep.FullPhaseEP()}, "64-true"),
    "bfloat16": ({"encoder": "graded"}, "bf16-mixed"),
}
GLOBAL_BATCH = 4


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


class Images(L.LightningDataModule):
    """24 images in their order, every process taking its turn: Lightning's own sampler would shuffle."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(2)
        x = torch.rand(24, 1, 8, 8, generator=generator)
        self.images = TensorDataset(x, torch.randint(10, (24,), generator=generator))

    def train_dataloader(self):
        place = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(self.images, self.batch_size, sampler=DistributedSampler(self.images, *place, shuffle=False))

    val_dataloader = train_dataloader


def train(case, directory, batch_size, **options):
    """The trained weights and what was logged, of a training that is watched."""
    settings, precision = CASES[case]
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), snn.Leaky(beta=0.5, learn_threshold=True)),
        *(nn.Flatten(), nn.Linear(27, 6), snn.Leaky(beta=0.5), nn.Linear(6, 10)),
    )
    task = ep.EPLightningModule(ep.convert(net, **settings), optimizer=sgd)
    trainer = L.Trainer(
        default_root_dir=directory, max_epochs=2, accelerator="cpu", precision=precision,
        use_distributed_sampler=False, logger=CSVLogger(directory),
        callbacks=[ep.EquilibriumMonitor(2), ep.SpikeMonitor(2), ep.GradientMonitor(2)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(task, Images(batch_size))
    metrics = {k: v.clone() for k, v in trainer.callback_metrics.items()}
    return {k: v.detach().clone() for k, v in task.state_dict().items()}, metrics


def validate(directory, batch_size, **options):
    """What is logged where the processes have other numbers of targets that count."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), snn.Leaky(beta=0.5), nn.Linear(6, 10))
    images = Images(batch_size)
    images.images.tensors[1][0:20:4] = -100
    trainer = L.Trainer(
        default_root_dir=directory, accelerator="cpu", precision="64-true", use_distributed_sampler=False,
        logger=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    return trainer.validate(ep.EPLightningModule(ep.convert(net, encoder="graded")), images, verbose=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    directory, strategy, *what = Path(sys.argv[1]), *sys.argv[2:]
    if what == ["targets"]:
        logged = validate(directory, GLOBAL_BATCH // 2, strategy=strategy, devices=2)
        torch.save(logged, directory / f"targets-{os.environ['LOCAL_RANK']}.pt")
        sys.exit()
    cases = CASES if strategy == "ddp" else ["spiking"]
    for case in cases:
        result = train(case, directory, GLOBAL_BATCH // 2, strategy=strategy, devices=2)
        torch.save(result, directory / f"{case}-{os.environ.get('LOCAL_RANK', 'spawned')}.pt")
