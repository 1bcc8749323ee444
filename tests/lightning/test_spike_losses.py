"""Losses of snnTorch: each one means what it does there on a record that stays, or is refused."""

import inspect

import lightning as L
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from snntorch.functional import loss as snntorch_losses
from test_module import loader, make_model, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WEIGHT = torch.linspace(0.5, 2, 10)
# Loss -> the steps of the record that it is given. Losses of means and membranes have one value for all lengths.
MEANINGFUL = {
    "ce_rate_loss": (SF.ce_rate_loss(), 1),
    "ce_rate_loss, weighted": (SF.ce_rate_loss(weight=WEIGHT), 1),
    "ce_count_loss": (SF.ce_count_loss(), 100),
    "ce_count_loss, weighted": (SF.ce_count_loss(weight=WEIGHT), 100),
    "ce_count_loss, populations": (SF.ce_count_loss(population_code=True, num_classes=5), 100),
    "ce_max_membrane_loss": (SF.ce_max_membrane_loss(), 1),
    "mse_count_loss": (SF.mse_count_loss(0.8, 0.2), 100),
    "mse_count_loss, sum": (SF.mse_count_loss(0.8, 0.2, reduction="sum"), 100),
    "mse_count_loss, populations": (SF.mse_count_loss(0.8, 0.2, population_code=True, num_classes=5), 100),
    "mse_membrane_loss": (SF.mse_membrane_loss(on_target=2.0, off_target=-1.0), 1),
}
REGULARIZED = "lambda output, y: nn.functional.cross_entropy(output, y) + SF.l1_rate_sparsity()(output)"
REFUSED = {  # loss, place, reason, way out in the message, and what that is
    "mse_temporal_loss": (SF.mse_temporal_loss(), "times of spikes", "SF.ce_rate_loss()", SF.ce_rate_loss()),
    "ce_temporal_loss": (
        SF.ce_temporal_loss(), "a state that stays", "SF.mse_count_loss(0.8, 0.2)", SF.mse_count_loss(0.8, 0.2),
    ),
    "mse_membrane_loss": (
        SF.mse_membrane_loss(time_var_targets=True), "a target for every step", "mse_membrane_loss()",
        SF.mse_membrane_loss(),
    ),
    "mse_count_loss": (
        SF.mse_count_loss(weight=WEIGHT), "along the wrong axis", "ce_count_loss(weight=...)",
        SF.ce_count_loss(weight=WEIGHT),
    ),
    "ce_rate_loss": (
        SF.ce_rate_loss(population_code=True, num_classes=5), "does not sum populations",
        "ce_count_loss(population_code=True, num_classes=...)", SF.ce_count_loss(population_code=True, num_classes=5),
    ),
    "ce_count_loss": (
        SF.ce_count_loss(population_code=True), "of how many classes", "num_classes=...",
        SF.ce_count_loss(population_code=True, num_classes=5),
    ),
    "l1_rate_sparsity": (
        SF.l1_rate_sparsity(), "sees no targets", REGULARIZED, eval(REGULARIZED, {"nn": nn, "SF": SF}),
    ),
    "accuracy_rate": (SF.accuracy_rate, "is no loss", "SF.ce_rate_loss()", SF.ce_rate_loss()),
}  # fmt: skip


def test_all_of_snntorch_s_losses_are_decided():
    written = {
        name for name, kind in vars(snntorch_losses).items()
        if inspect.isclass(kind) and kind.__module__ == snntorch_losses.__name__ and name.endswith("_loss")
    }  # fmt: skip
    decided = {name.split(",")[0] for name in MEANINGFUL} | {name for name in REFUSED if name.endswith("_loss")}
    assert written == decided


@pytest.mark.parametrize("name", MEANINGFUL)
def test_the_value_is_snntorch_s_on_a_record_that_stays(name):
    loss, steps = MEANINGFUL[name]
    model, _ = make_model()
    x, _ = next(iter(loader()))
    y = torch.tensor([0, 4, 2, 1])
    task = ep.EPLightningModule(model, loss)
    seen, output, _ = task.outcome(x)
    found = task.loss_of(seen, y)
    own = output.detach().requires_grad_()
    expected = loss(own.expand(steps, *own.shape), y)
    torch.testing.assert_close(found.reshape(()), expected.reshape(()))
    expected.sum().backward()
    (gradient,) = torch.autograd.grad(found, output)
    torch.testing.assert_close(gradient, own.grad)
    assert gradient.abs().amax(1).min() > 0  # of every sample
    if steps == 1:
        torch.testing.assert_close(loss(own.expand(7, *own.shape), y), expected)


@pytest.mark.parametrize("correct", [0.8, 0.75, 0.29, 0.05])
def test_a_rate_is_a_target_to_one_percent(correct):
    task = ep.EPLightningModule(make_model()[0], SF.mse_count_loss(correct, 0.0))
    y = torch.tensor([0])
    rates = torch.linspace(0, 1, 1001)
    losses = torch.stack([task.loss_of(torch.tensor([[rate, 0.0, 0.0]]), y) for rate in rates])
    assert abs(rates[losses.argmin()] - correct) <= 0.01


@pytest.mark.parametrize("last", [True, False], ids=["neuron", "linear"])
def test_mse_count_loss_learns_its_rates(last, tmp_path):
    L.seed_everything(0, verbose=False)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 100), snn.Leaky(beta=0.9), nn.Linear(100, 10)),
        *([snn.Leaky(beta=0.9)] if last else []),
    )
    model = ep.convert(ep.initialize_(net), estimator=ep.EquilibriumPropagation(0.3))
    run = trainer(tmp_path, max_epochs=8)
    # In the order of seed 0 one of ten output neurons falls silent for good: below 0 its clip has no slope.
    data = ep.DigitsDataModule(32, seed=int(last))
    run.fit(ep.EPLightningModule(model, SF.mse_count_loss(0.8, 0.2), lr=5e-3), data)
    assert run.callback_metrics["val/accuracy"] > 0.9
    x, y = next(iter(run.datamodule.val_dataloader()))
    rates = model.eval()(x).detach()
    right = F.one_hot(y, 10).bool()
    assert rates[right].mean() == pytest.approx(0.8, abs=0.1)
    assert rates[~right].mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_and_their_ways_out(name, tmp_path):
    loss, reason, way_out, other = REFUSED[name]
    with pytest.raises(ValueError, match=name) as refused:
        ep.EPLightningModule(make_model()[0], loss)
    for words in (reason, way_out):
        assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    task = ep.EPLightningModule(make_model()[0], other, lr=0.01)
    y = torch.randint(5, (22,))
    few = DataLoader(TensorDataset(torch.rand(22, 1, 8, 8), y), 11)
    (before,) = trainer(tmp_path).validate(task, few, verbose=False)
    trainer(tmp_path, max_epochs=5).fit(task, few)
    (after,) = trainer(tmp_path).validate(task, few, verbose=False)
    assert after["val/loss"] < before["val/loss"]


def test_times_of_spikes_are_there_for_a_net_that_runs_in_time(tmp_path):
    _, net = make_model()
    (logged,) = trainer(tmp_path).validate(
        ep.BPTTLightningModule(net, 3, SF.ce_temporal_loss()), loader(), verbose=False
    )
    assert logged["val/loss"] > 0


def test_an_image_of_classes_is_refused_whose_last_axis_would_be_taken_for_them():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), ep.ConvergentLeaky(), nn.Conv2d(3, 5, 1))
    x, y = torch.rand(2, 1, 6, 6), torch.randint(5, (2, 4, 4))
    task = ep.EPLightningModule(ep.convert(net), SF.ce_rate_loss())
    with pytest.raises(
        ValueError, match=r"ce_rate_loss was given an output of the shape \[2, 5, 4, 4\].*cross_entropy"
    ):
        task.loss_of(task.outcome(x)[0], y)
    assert ep.EPLightningModule(ep.convert(net), "cross_entropy").loss_of(task.outcome(x)[0], y) > 0


def test_one_s_own_of_snntorch_s_losses_sees_the_record_too():
    class Own(SF.ce_count_loss):
        pass

    task = ep.EPLightningModule(make_model()[0], Own())
    output, y = torch.rand(4, 10), torch.randint(10, (4,))
    assert torch.equal(task.loss_of(output, y), SF.ce_count_loss()(output.expand(100, 4, 10), y))
