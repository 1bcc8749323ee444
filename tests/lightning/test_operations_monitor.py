"""The monitor logs what `count_operations` finds, and the training does not notice it."""

import copy

import pandas as pd
import pytest
import snntorch as snn
import torch
from lightning.pytorch.loggers import CSVLogger
from test_module import loader, make_model, sgd, trainer
from torch import nn

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def logged(tmp_path, task, **options):
    monitor = ep.OperationsMonitor(**options)
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[monitor], max_epochs=3)
    run.fit(task, loader())
    table = pd.read_csv(f"{run.logger.log_dir}/metrics.csv").set_index("step")
    return table[[c for c in table if c.startswith("operations/")]].dropna(how="all"), monitor


def test_what_is_logged_is_what_is_counted(tmp_path):
    model, _ = make_model()
    before = copy.deepcopy(model)
    table, monitor = logged(tmp_path, ep.EPLightningModule(model, optimizer=sgd))
    assert len(table) == 3  # an epoch each
    x, y = next(iter(loader()))
    counts = ep.count_operations(before, x, y)
    first = table.iloc[0]
    assert first["operations/inference synaptic_operations"] == pytest.approx(counts.inference.synaptic_operations)
    assert first["operations/training step spikes"] == pytest.approx(counts.training.spikes)
    assert first["operations/training step energy"] == pytest.approx(counts.energy()["training step"])
    assert monitor.counts.training.spikes == pytest.approx(table.iloc[-1]["operations/training step spikes"])


def test_training_does_not_notice(tmp_path):
    weights = []
    for callbacks in ([], [ep.OperationsMonitor()]):
        torch.manual_seed(0)
        model, _ = make_model()
        model.encoder = "bernoulli"
        run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=callbacks, max_epochs=2)
        run.fit(ep.EPLightningModule(model, optimizer=sgd), loader())
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_backpropagation_through_time_and_implicit_differentiation(tmp_path):
    x, y = next(iter(loader()))
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(x[0].numel(), 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 10)
    )
    counts = ep.count_operations(net, x, y, num_steps=5)
    task = ep.BPTTLightningModule(net, 5, optimizer=sgd)
    table, _ = logged(tmp_path, task, costs=ep.EnergyCosts(multiply_add=1.0), every_n_epochs=2)
    assert len(table) == 2
    assert table.iloc[0]["operations/training step multiply_adds"] == pytest.approx(counts.training.multiply_adds)
    assert table.iloc[0]["operations/training step energy"] == pytest.approx(counts.training.multiply_adds, rel=1e-6)
    model, _ = make_model()
    model.estimator = ep.ImplicitDifferentiation()
    table, _ = logged(tmp_path, ep.EPLightningModule(model, optimizer=sgd))
    assert (table["operations/training step spikes"] == table["operations/inference spikes"]).all()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        ep.OperationsMonitor(every_n_epochs=0)
    with pytest.raises(TypeError, match=r"costs is 3; expected EnergyCosts"):
        ep.OperationsMonitor(costs=3)
    model, _ = make_model()
    run = trainer(tmp_path, logger=False, callbacks=[ep.OperationsMonitor()], max_epochs=1)
    with pytest.raises(ValueError, match=r"OperationsMonitor has no logger .*logger=True"):
        run.fit(ep.EPLightningModule(model, optimizer=sgd), loader())
