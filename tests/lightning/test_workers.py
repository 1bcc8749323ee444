"""Processes that read the images, forked or spawned, change nothing of a training. (`pytest -m slow`: the spawned.)"""

import pytest
import torch
from test_module import trainer

import ep_plugin as ep
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning")


class Shifted(torch.nn.Module):
    """What it draws is part of the training: of images, and so of weights."""

    def forward(self, x):
        return x.roll(int(torch.randint(-1, 2, ())), -1)


class Read(ep.DigitsDataModule):
    """Read by processes that start in a given way; by none without one."""

    def __init__(self, context):
        super().__init__(32, train_samples=96, augmentation=Shifted(), num_workers=2 if context else 0)
        self.context = context

    def train_dataloader(self):
        loader = super().train_dataloader()
        if self.context:
            loader.multiprocessing_context = self.context
        return loader


def trained(context, tmp_path):
    torch.manual_seed(0)
    task = ep.EPLightningModule(ep.convert(small_convolutional()))
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(task, Read(context))
    return [p.detach().clone() for p in task.parameters()]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_forked_and_spawned_workers_give_the_same_training(context, tmp_path):
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {context}")
    alone, found = trained(None, tmp_path), trained(context, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
