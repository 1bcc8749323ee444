"""Averages of a network's weights, as PyTorch and Lightning make them."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def normalized():
    """Batch normalizations before the first neuron and between neurons, as a trained net has them."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), ep.ConvergentLeaky(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        *(ep.ConvergentLeaky(), nn.Flatten(), nn.Linear(64, 4)),
    )
    for norm in (net[1], net[4]):
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(0.04)
    return net


def averaged():
    model = ep.convert(normalized())
    average = AveragedModel(model)
    average.update_parameters(model)
    return average


def test_statistics_between_neurons_that_were_set_back_are_missed():
    average, x = averaged(), torch.rand(8, 1, 8, 8)
    before = average(x)
    with pytest.raises(ValueError, match=r"set back to 0 and 1.*update_bn\(batches, model\.stem\)"):
        update_bn([x], average)
    average = averaged()
    update_bn([x], average.module.stem)
    stem, inner = (m for m in average.modules() if isinstance(m, nn.BatchNorm2d))
    assert bool((inner.running_mean == 0.3).all())
    assert not bool((stem.running_mean == 0.3).any())
    assert not torch.equal(average.eval()(x), before)


def test_statistics_that_are_loaded_or_new_count():
    model, x = ep.convert(normalized()), torch.rand(8, 1, 8, 8)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    new = {n: torch.zeros_like(v) if "running_mean" in n else torch.ones_like(v) for n, v in kept.items()}
    model.load_state_dict({n: new[n] if "running" in n else v for n, v in kept.items()})
    model(x)
    model.load_state_dict(kept)
    model(x)
    with torch.no_grad():
        model.connections[0].module[1].norm.reset_running_stats()
    with pytest.raises(ValueError, match="Load them again"):
        model(x)
    model.load_state_dict(kept)
    model(x)


def fitted(callback):
    trainer = L.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback]
    )
    task = ep.EPLightningModule(ep.convert(normalized()))
    trainer.fit(task, DataLoader(TensorDataset(torch.rand(8, 1, 8, 8), torch.arange(8) % 4), 4))
    return task.model.connections[0].module[1].norm


def test_lightning_averages_with_the_callback_that_leaves_statistics_alone():
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging sets.* expected Lightning's WeightAveraging"):
        fitted(StochasticWeightAveraging(1e-2, swa_epoch_start=1))
    assert bool((fitted(WeightAveraging()).running_mean == 0.3).all())


class Positive(nn.Module):
    def forward(self, t):
        return nn.functional.softplus(t)


def test_parametrized_thresholds_are_copied():
    layer = ep.Layer(nn.Parameter(torch.full((5,), 0.5)))
    register_parametrization(layer, "threshold", Positive())
    model, x = ep.ConvergentNetwork(nn.Linear(6, 5), [layer], [], nn.Linear(5, 3)), torch.rand(4, 6)
    model(x).sum().backward()
    assert layer.parametrizations.threshold.original.grad.abs().max() > 0
    assert torch.equal(AveragedModel(model)(x), model(x))
