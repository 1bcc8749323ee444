"""Monitors log what they say, and the training does not notice them."""

import copy

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from test_module import loader, make_model, sgd, trainer
from torch import nn

import ep_plugin as ep
from ep_plugin.analysis.diagnosis import settled

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MONITORS = [ep.EquilibriumMonitor, ep.SpikeMonitor, ep.GradientMonitor]


def logged(tmp_path, callbacks, model, **options):
    """What the callbacks wrote in an epoch of six batches, a row a look."""
    options = {"logger": CSVLogger(tmp_path), "callbacks": callbacks, "max_epochs": 1} | options
    run = trainer(tmp_path, **options)
    run.fit(ep.EPLightningModule(model, optimizer=sgd), loader())
    table = pd.read_csv(f"{run.logger.log_dir}/metrics.csv").set_index("step")
    return table[[c for c in table if not c.startswith("train/") and c != "epoch"]].dropna(how="all")


def test_what_is_logged_is_what_the_network_does(tmp_path):
    model, _ = make_model()
    model.relaxation = ep.Relaxation(15, tolerance=0.05)
    before = copy.deepcopy(model)
    table = logged(tmp_path, [monitor(3) for monitor in MONITORS], model)
    assert sorted(set(table.index)) == [0, 3]
    first = table.loc[0].max()  # every monitor writes a row of its own
    x, y = next(iter(loader()))
    equilibrium = before.free_phase(x)
    assert first["equilibrium/residual"] == pytest.approx(equilibrium.residual.max().item())
    assert first["equilibrium/steps"] == 15
    assert first["equilibrium/converged"] == pytest.approx(equilibrium.converged.float().mean().item())
    for l, state in enumerate(equilibrium.states):
        assert first[f"state/layer {l}"] == pytest.approx(state.mean().item())
        assert first[f"spikes/layer {l}"] == pytest.approx(equilibrium.spikes[l].mean().item() / state[0].numel())
    reference = settled(before, ep.ImplicitDifferentiation())
    assert reference.feedback == before.feedback
    residual = reference.free_phase(x).residual.max().item()
    assert first["reference/residual"] == pytest.approx(residual)
    assert residual < 1e-6
    for own in ep.gradient_agreement(before, x, y, nn.functional.cross_entropy, reference):
        assert first[f"cosine/{own.name}"] == pytest.approx(own.cosine, abs=1e-5)
        assert first[f"norm ratio/{own.name}"] == pytest.approx(own.norm_ratio, rel=1e-4)


def test_graded_neurons_have_no_spikes_to_log(tmp_path):
    model, _ = make_model()
    model.encoder = "graded"
    table = logged(tmp_path, [ep.SpikeMonitor(), ep.EquilibriumMonitor()], model)
    assert set(table) == {"state/layer 0", "state/layer 1", "equilibrium/residual", "equilibrium/steps"}


def test_the_training_does_not_notice(tmp_path):
    """Random spikes, signs and dropout, and running means of a batch norm in the stem."""

    def trained(callbacks):
        torch.manual_seed(1)
        net = nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), ep.ConvergentLeaky(), nn.Flatten(), nn.Linear(108, 6)),
            *(ep.ConvergentLeaky(), nn.Dropout(), nn.Linear(6, 10)),
        )
        net[1].eval()  # what is frozen stays so
        model = ep.convert(net, encoder="bernoulli", estimator=ep.EquilibriumPropagation(nudging="random_sign"))
        torch.manual_seed(2)
        logged(tmp_path, callbacks, model, accumulate_grad_batches=2)
        return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]

    (watched, modes), (alone, expected) = trained([m(1) for m in MONITORS]), trained([])
    assert all(torch.equal(v, alone[k]) for k, v in watched.items())
    assert modes == expected


def test_fixed_events_are_looked_at_once_they_have_a_weight(tmp_path):
    """Looking does not find their constants, nor move them; neither does the trainer's sanity check."""

    def trained(callbacks, **options):
        model, _ = make_model()
        model.encoder = ep.AdaptiveDelta("fixed")
        run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=callbacks, max_epochs=1, **options)
        run.fit(ep.EPLightningModule(model, optimizer=sgd), loader(), loader())
        return model, pd.read_csv(f"{run.logger.log_dir}/metrics.csv")

    model, table = trained([monitor(3) for monitor in MONITORS])
    assert set(table.step[table["equilibrium/residual"].notna()]) == {3}
    assert table["val/loss"].notna().any()
    alone, _ = trained([], num_sanity_val_steps=0)
    assert torch.equal(model.event_weights.values, alone.event_weights.values)
    assert model.event_weights.batches.tolist() == [6, 6]


def test_an_input_that_changes_over_time_has_no_reference(tmp_path):
    model, _ = make_model()
    model.time_varying = True
    with pytest.raises(ValueError, match=r"no state to settle in.*time_varying=False"):
        settled(model, ep.ImplicitDifferentiation())


@pytest.mark.parametrize("monitor", MONITORS)
def test_refusals(monitor, tmp_path):
    with pytest.raises(ValueError, match="every_n_batches is 0"):
        monitor(0)
    model, net = make_model()
    with pytest.raises(ValueError, match="no logger"):
        trainer(tmp_path, callbacks=[monitor()]).fit(ep.EPLightningModule(model), loader())
    with pytest.raises(TypeError, match="expected an EPLightningModule"):
        trainer(tmp_path, callbacks=[monitor()], logger=CSVLogger(tmp_path)).fit(ep.BPTTLightningModule(net), loader())


def test_a_monitor_computes_as_a_training_step_does(tmp_path):
    """In bfloat16 where the step is; what it compares with stays exact."""
    told = []

    class Told(ep.GradientMonitor):
        def measure(self, module, x, y):
            told.append(torch.is_autocast_enabled("cpu"))
            return super().measure(module, x, y)

    found = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        torch.manual_seed(0)
        model, _ = make_model()
        found[precision] = logged(tmp_path, [Told(100)], model, precision=precision).iloc[0]
    assert told == [False, True, False]
    cosines = {name for name in found["32-true"].index if name.startswith("cosine/")}
    for name in cosines:
        assert found["bf16-mixed"][name] == pytest.approx(found["32-true"][name], abs=0.02)
    assert any(found["bf16-mixed"][name] != found["32-true"][name] for name in cosines)
    assert found["bf16-mixed"]["reference/residual"] < 1e-5
