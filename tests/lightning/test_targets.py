"""Targets of any kind: the loss is as it was given, and accuracy is there where it is one."""

import json
import math
import re
import warnings
from functools import partial

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_module import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep
from ep_plugin.lightning.losses import is_mean_of_targets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

N = 24
CLASSES = torch.randint(10, (N,), generator=torch.Generator().manual_seed(0))
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PIXELS = (X[:, 0] * 3).long()


def dense(outputs):
    neurons = snn.Leaky(beta=0.9, init_hidden=True)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), neurons, nn.Linear(30, outputs))


def pixelwise(classes):
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), ep.ConvergentLeaky(), nn.Conv2d(6, classes, 1))


def autoencoder():
    return nn.Sequential(pixelwise(1), nn.Sigmoid())


SMOOTH = F.one_hot(CLASSES, 10) * 0.9 + 0.01
CASES = {  # net, loss, targets, whether there is an accuracy
    "one number": (lambda: dense(1), F.mse_loss, X.mean((2, 3)), False),
    "one number, flat": (lambda: dense(1), "mse", X.mean((1, 2, 3)), False),
    "one whole number": (lambda: dense(1), "mse", CLASSES, False),
    "several numbers": (lambda: dense(3), F.mse_loss, X[:, 0, :3, 0], False),
    "soft labels": (lambda: dense(10), "cross_entropy", SMOOTH, False),
    "several labels": (lambda: dense(10), F.binary_cross_entropy_with_logits, (SMOOTH > 0.5).float(), False),
    "several labels, whole": (lambda: dense(10), "mse", F.one_hot(CLASSES, 10), False),
    "images": (lambda: dense(64), nn.L1Loss(), X.flatten(1), False),
    "autoencoder": (lambda: pixelwise(1), "mse", X, False),
    "segmentation": (lambda: pixelwise(3), nn.CrossEntropyLoss(), PIXELS, True),
    "segmentation, mse": (lambda: pixelwise(3), "mse", PIXELS, True),
    "classes": (lambda: dense(10), "cross_entropy", CLASSES, True),
    "classes, mse": (lambda: dense(10), "mse", CLASSES.int(), True),
    "one of two": (lambda: dense(1), F.binary_cross_entropy_with_logits, (CLASSES > 4).float()[:, None], False),
}


def batches(y, size=7):
    return DataLoader(TensorDataset(X, y), size)  # the last batch is smaller


@pytest.mark.parametrize("case", CASES)
def test_any_target_is_learned(case, tmp_path):
    make, loss, y, classified = CASES[case]
    torch.manual_seed(0)
    task = ep.EPLightningModule(ep.convert(make()), loss, lr=0.01)
    (before,) = trainer(tmp_path).validate(task, batches(y), verbose=False)
    run = trainer(tmp_path, max_epochs=8)
    run.fit(task, batches(y))
    (after,) = trainer(tmp_path).validate(task, batches(y), verbose=False)
    assert after["val/loss"] < 0.95 * before["val/loss"]
    assert ("val/accuracy" in after) == ("train/accuracy" in run.callback_metrics) == classified
    output = task.model.eval()(X)
    if callable(loss):
        assert after["val/loss"] == pytest.approx(loss(output, y).item(), rel=1e-4)
    if classified:
        assert after["val/accuracy"] == pytest.approx((output.argmax(1) == y).float().mean().item())


def test_mse_of_classes_is_that_of_one_hot_targets_and_other_shapes_are_refused():
    task = ep.EPLightningModule(ep.convert(dense(3)), "mse")
    output = torch.rand(2, 3, 4)
    y = torch.randint(3, (2, 4))
    torch.testing.assert_close(task.loss_of(output, y), F.mse_loss(output, F.one_hot(y, 3).permute(0, 2, 1).float()))
    assert task.loss_of(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 2.0])) == 0.5  # not of all pairs
    with pytest.raises(
        ValueError, match=r'"mse" was given .* \[2, 3\] and a target of shape \[2\].*the output\'s shape'
    ):
        task.loss_of(torch.rand(2, 3), torch.rand(2))
    assert task.loss_of(torch.rand(2, 3), torch.rand(2, 3)) > 0


LEAVES_255_OUT = [nn.CrossEntropyLoss(ignore_index=255), partial(F.cross_entropy, ignore_index=255)]


@pytest.mark.parametrize("loss", LEAVES_255_OUT, ids=["module", "partial"])
def test_targets_that_the_loss_leaves_out_do_not_count(loss, tmp_path):
    y = PIXELS.clone()
    y[:, :3] = 255
    y[:7] = 255  # all of a batch
    task = ep.EPLightningModule(ep.convert(pixelwise(3)), loss)
    (logged,) = trainer(tmp_path).validate(task, batches(y), verbose=False)
    assert math.isnan(logged["val/loss"])  # PyTorch's mean over nothing
    right = (task.model.eval()(X).argmax(1) == y)[y != 255]
    assert logged["val/accuracy"] == pytest.approx(right.float().mean().item())


POPULATIONS = {
    "of the loss": (SF.mse_count_loss(0.8, 0.2, population_code=True, num_classes=5), {}),
    "of both": (SF.ce_count_loss(population_code=True, num_classes=5), {"population": 5}),
    "of the module": ("cross_entropy", {"population": 5}),
}


@pytest.mark.parametrize("kind", ["ep", "bptt"])
@pytest.mark.parametrize("case", POPULATIONS)
def test_populations_have_the_accuracy_of_their_sums(case, kind, tmp_path):
    loss, options = POPULATIONS[case]
    torch.manual_seed(0)
    net = dense(40)
    task = (
        ep.EPLightningModule(ep.convert(net), loss, lr=0.01, **options)
        if kind == "ep"
        else ep.BPTTLightningModule(net, 4, loss, lr=0.01, **options)
    )
    y = CLASSES % 5
    trainer(tmp_path, max_epochs=15).fit(task, batches(y))
    (logged,) = trainer(tmp_path).validate(task, batches(y), verbose=False)
    sums = torch.stack([task.eval()(X)[:, 8 * c : 8 * (c + 1)].sum(1) for c in range(5)], 1)
    expected = (sums.argmax(1) == y).float().mean().item()
    assert logged["val/accuracy"] == pytest.approx(expected)
    assert expected == pytest.approx(SF.accuracy_rate(task(X)[None].detach(), y, population_code=True, num_classes=5))
    assert expected > 0.4
    if loss == "cross_entropy":
        assert logged["val/loss"] == pytest.approx(F.cross_entropy(sums, y).item(), rel=1e-4)


def test_populations_are_checked():
    model = ep.convert(dense(40))
    with pytest.raises(ValueError, match="population is 0"):
        ep.EPLightningModule(model, population=0)
    loss = SF.ce_count_loss(population_code=True, num_classes=5)
    with pytest.raises(
        ValueError, match="population is 8, and the loss sums populations of 5 classes; leave population"
    ):
        ep.EPLightningModule(model, loss, population=8)
    assert ep.EPLightningModule(model, loss).population == 5
    with pytest.raises(ValueError, match=r"output of shape \[24, 40\] has no populations of 7 classes.*multiple of 7"):
        ep.EPLightningModule(model, population=7).loss_of(model(X), CLASSES)


def test_callbacks_watch_the_loss_where_there_is_no_accuracy(tmp_path):
    y = X.mean((2, 3))
    record = ep.RecordErrors(tmp_path / "lines.jsonl", "numbers")
    kept = ModelCheckpoint(tmp_path, monitor="val/loss")
    run = trainer(tmp_path, callbacks=[record, kept, EarlyStopping("val/loss")], enable_checkpointing=True)
    run.fit(ep.EPLightningModule(ep.convert(dense(1)), "mse"), batches(y), batches(y))
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert lines[-1]["loss"] == pytest.approx(run.callback_metrics["val/loss"].item())
    assert "error" not in lines[-1]
    assert kept.best_model_score == min(line["loss"] for line in lines)
    for callback in (EarlyStopping("val/accuracy"), ModelCheckpoint(tmp_path, monitor="val/accuracy")):
        run = trainer(tmp_path, callbacks=[callback], enable_checkpointing=True)
        with pytest.raises(Exception, match=r"val/accuracy.*val/loss"):  # Lightning's own words name what there is
            run.fit(ep.EPLightningModule(ep.convert(dense(1)), "mse"), batches(y), batches(y))


def test_a_monitor_looks_at_any_target(tmp_path):
    make, loss, y, _ = CASES["several labels"]
    logger = CSVLogger(tmp_path)
    monitors = [ep.GradientMonitor(1), ep.SpikeMonitor(1), ep.EquilibriumMonitor(1)]
    run = trainer(tmp_path, callbacks=monitors, logger=logger, max_epochs=1)
    run.fit(ep.EPLightningModule(ep.convert(ep.initialize_(make())), loss), batches(y))
    logger.save()
    assert "cosine/stem.1.weight" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


def rounded_loss(output, y):
    return (output * 0).mean() + F.mse_loss(output.round().detach(), y)


def warned(task, tmp_path, y, epochs=3, words="gradient of exactly 0"):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=epochs).fit(task, batches(y))
    return [str(w.message) for w in found if words in str(w.message)]


def test_a_loss_whose_gradient_is_zero_everywhere_is_named_once(tmp_path):
    y = X.mean((2, 3))
    (words,) = warned(ep.EPLightningModule(ep.convert(dense(1)), rounded_loss), tmp_path, y)
    for part in ("the loss rounded_loss", "first 3 batches", "nothing before the readout learns", "differentiable"):
        assert part in words
    assert warned(ep.EPLightningModule(ep.convert(dense(1)), F.mse_loss), tmp_path, y) == []


def test_neither_a_minimum_nor_a_readout_that_starts_at_zero_is_taken_for_such_a_loss(tmp_path):
    def hinge(output, y):
        return F.relu(output - 1e6).mean()

    y = X.mean((2, 3))
    assert warned(ep.EPLightningModule(ep.convert(dense(1)), hinge), tmp_path, y) == []
    net = dense(1)
    nn.init.zeros_(net[-1].weight)  # it has a gradient itself, so that the second batch is no longer at zero
    assert warned(ep.EPLightningModule(ep.convert(net), F.mse_loss), tmp_path, y) == []


def of_one_step(output, y):
    return SF.mse_count_loss(0.8, 0.2)(output.unsqueeze(0), y)


def bare(output, y):
    return output.square().mean()


@pytest.mark.parametrize("kind", [ep.EPLightningModule, ep.BPTTLightningModule])
@pytest.mark.parametrize("loss", [of_one_step, bare])
def test_a_loss_that_does_not_look_at_its_targets_is_named_once(loss, kind, tmp_path):
    def task(loss):
        net = dense(10)
        return kind(ep.convert(net) if kind is ep.EPLightningModule else net, loss=loss)

    def told(loss, y):
        return warned(task(loss), tmp_path, y, words="does not depend on the targets")

    (message,) = told(loss, CLASSES)
    assert f"the loss {loss.__name__} does not depend on the targets: in the first 3 batches" in message
    way_out = "loss=SF.mse_count_loss(0.8, 0.2)"
    assert way_out in message
    assert told(eval(way_out.removeprefix("loss="), {"SF": SF}), CLASSES) == []
    assert told(loss, torch.zeros_like(CLASSES)) == []  # targets that are all alike are there for the loader's sake


@pytest.mark.parametrize("case", CASES)
def test_no_other_loss_is_said_to_do_so(case, tmp_path):
    make, loss, y, _ = CASES[case]
    for words in ("does not depend on the targets", "gradient of exactly 0"):
        assert warned(ep.EPLightningModule(ep.convert(make()), loss), tmp_path, y, epochs=1, words=words) == []


def best(output, y):
    return (output.argmax(1) == y).float().mean()


NO_LOSS = {  # loss, words of the refusal, way out
    "argmax": (best, "loss best has no gradient: nothing in it is differentiable", "cross_entropy"),
    "a sample each": (nn.CrossEntropyLoss(reduction="none"), "CrossEntropyLoss gave values of", nn.CrossEntropyLoss()),
    "a spike count each": (
        SF.ce_count_loss(reduction="none"), 'shape [7]; expected a single number: reduction="mean"', SF.ce_count_loss()
    ),
    "a number": (lambda output, y: 0.5, "gave a float; expected a single number", "cross_entropy"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_LOSS)
def test_losses_that_cannot_be_trained_are_refused(case, tmp_path):
    loss, words, way_out = NO_LOSS[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer(tmp_path).fit(ep.EPLightningModule(ep.convert(dense(10)), loss), batches(CLASSES))
    trainer(tmp_path).fit(ep.EPLightningModule(ep.convert(dense(10)), way_out), batches(CLASSES))


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, SF.ce_rate_loss])
def test_a_class_is_no_loss(kind):
    with pytest.raises(TypeError, match=rf"loss is the class {kind.__name__}; expected an instance of it: .*\(\)"):
        ep.EPLightningModule(ep.convert(dense(10)), kind)
    ep.EPLightningModule(ep.convert(dense(10)), kind())


def test_several_outputs_take_a_loss_of_several(tmp_path):
    layers, between = [ep.Layer(), ep.Layer()], [ep.Connection(nn.Linear(16, 10), 0, 1)]
    model = ep.ConvergentNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), layers, between, read=(0, 1))
    for name in ("mse", "cross_entropy"):
        with pytest.raises(ValueError, match=rf'"{name}" was given an output of the type tuple.*loss=lambda outputs'):
            trainer(tmp_path).fit(ep.EPLightningModule(model, name), batches(CLASSES))
    with pytest.raises(ValueError, match="an output of the type tuple has no populations of 5 classes"):
        trainer(tmp_path).fit(ep.EPLightningModule(model, population=5), batches(CLASSES))

    def both(outputs, y):
        return F.cross_entropy(outputs[1], y) + 0.1 * outputs[0].mean()

    (logged,) = trainer(tmp_path).validate(ep.EPLightningModule(model, both), batches(CLASSES), verbose=False)
    assert logged["val/loss"] == pytest.approx(both(model(X), CLASSES).item(), rel=1e-4)
    assert "val/accuracy" not in logged
    first, *_ = trainer(tmp_path).predict(ep.EPLightningModule(model), batches(CLASSES))
    assert [output.shape for output in first] == [(7, 16), (7, 10)]


def test_targets_in_a_row_that_the_loss_leaves_out_do_not_count(tmp_path):
    net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 4))
    task = ep.EPLightningModule(ep.convert(net), loss=nn.CrossEntropyLoss(ignore_index=-100))
    x = torch.rand(64, 16)
    y = task.model.eval()(x).argmax(1)
    y[0], y[1:16] = (y[0] + 1) % 4, -100
    y[16:32] = -100  # a batch that has none
    (found,) = trainer(tmp_path).test(task, DataLoader(TensorDataset(x, y), 16), verbose=False)
    assert found["test/accuracy"] == pytest.approx(32 / 33)


class Counting(nn.Module):
    """A loss that keeps what it has seen, and draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, y):
        self.seen += len(y)
        return F.cross_entropy(output + 0.01 * torch.randn_like(output), y)


def test_other_targets_are_tried_on_a_copy_of_the_loss(tmp_path, monkeypatch):
    def losses(looks):
        monkeypatch.setattr("ep_plugin.lightning.ignored_targets._BATCHES", looks)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 4))
        task = ep.EPLightningModule(ep.convert(net), loss=Counting())
        trainer(tmp_path, max_epochs=1).fit(
            task, DataLoader(TensorDataset(torch.rand(80, 16), torch.arange(80) % 4), 16)
        )
        return task.loss.seen.item(), [p.detach().clone() for p in task.model.parameters()]

    (seen, with_looks), (_, without) = losses(3), losses(0)
    assert seen == 80
    assert all(torch.equal(a, b) for a, b in zip(with_looks, without, strict=True))


def test_a_cosine_needs_an_end(tmp_path):
    net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 4))
    data = DataLoader(TensorDataset(torch.rand(16, 16), torch.arange(16) % 4), 8)
    task, endless = ep.EPLightningModule(ep.convert(net), schedule="cosine"), trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match=r'schedule="cosine" .* expected Trainer\(max_epochs=\.\.\.\)'):
        endless.fit(task, data)


def test_what_a_checkpoint_does_not_restore_is_told(tmp_path):
    def net():
        return ep.convert(nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 8)))

    task, path = ep.EPLightningModule(net(), population=4, lr=0.01), tmp_path / "own.ckpt"
    run = trainer(tmp_path, max_epochs=1)
    data = DataLoader(TensorDataset(torch.rand(16, 16), torch.arange(16) % 4), 8)
    run.fit(task, data)
    run.save_checkpoint(path)
    with pytest.warns(UserWarning, match=r"other settings: population was 4 and is None\. Give"):
        ep.EPLightningModule.load_from_checkpoint(path, model=net())
    changed = ep.EPLightningModule(net(), population=4, lr=0.02)
    with pytest.warns(UserWarning, match=r"lr was 0\.01 and is 0\.02\. .* keeps the checkpoint's"):
        trainer(tmp_path, max_epochs=2).fit(changed, data, ckpt_path=path)
    again = net()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the checkpoint's task had other settings")
        ep.EPLightningModule.load_from_checkpoint(path, model=again, population=4)


def test_other_means_are_weighted_by_their_samples():
    weight = torch.ones(3)
    of_targets = [F.cross_entropy, partial(F.cross_entropy, ignore_index=255), nn.CrossEntropyLoss()]
    others = [partial(F.cross_entropy, weight=weight), partial(F.cross_entropy, reduction="sum"), partial(F.mse_loss)]
    others += [partial(F.cross_entropy, size_average=False), nn.CrossEntropyLoss(weight), F.mse_loss]
    assert all(is_mean_of_targets(loss) for loss in of_targets)
    assert not any(is_mean_of_targets(loss) for loss in others)


class OwnStep(ep.EPLightningModule):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)


def test_a_training_step_of_ones_own_is_not_said_to_learn_nothing(tmp_path):
    net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 4))
    data = DataLoader(TensorDataset(torch.rand(64, 16), torch.arange(64) % 4), 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the loss .* gave a gradient of exactly 0")
        trainer(tmp_path, max_epochs=1).fit(OwnStep(ep.convert(net)), data)


class Looping(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times, self.first, self.last = times, nn.Linear(16, 12), nn.Linear(12, 4)
        self.lif = snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x):
        return sum(self.last(self.lif(self.first(x))) for _ in range(self.times)) / self.times


@pytest.mark.parametrize(("times", "num_steps", "told"), [(10, 10, True), (10, 1, False), (1, 10, False)])
def test_a_loop_within_the_loop_of_backpropagation_through_time_is_told(times, num_steps, told):
    task = ep.BPTTLightningModule(Looping(times), num_steps=num_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            task(torch.rand(4, 16))
    assert ["100 steps in all" in str(w.message) for w in caught if "num_steps" in str(w.message)] == [True] * told


def test_inputs_without_time_where_time_is_expected(tmp_path):
    """The loss would say that its batches differ."""
    task = ep.EPLightningModule(ep.convert(dense(10), time_varying=True))
    with pytest.raises(
        ValueError, match=r"24 targets, .* a batch of 1: it is read as \[T, B, \.\.\.\] \(time_varying=T"
    ):
        trainer(tmp_path).fit(task, DataLoader(TensorDataset(X, CLASSES), N))


CROSS_ENTROPIES = {
    "by name": "cross_entropy",
    "module": nn.CrossEntropyLoss(label_smoothing=0.1),
    "function": F.cross_entropy,
    "partial": partial(F.cross_entropy, reduction="mean", ignore_index=-100, label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_a_validation_s_loss_is_the_mean_over_targets_that_count(loss, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    y = CLASSES.clone()
    y[:7] = -100
    task = ep.BPTTLightningModule(nn.Sequential(net, snn.Leaky(beta=0.9, init_hidden=True)), num_steps=2, loss=loss)
    run = trainer(tmp_path)
    (found,) = run.validate(task, DataLoader(TensorDataset(X, y), 8), verbose=False)
    with torch.no_grad():
        expected = task.loss(task.eval()(X), y)
    assert found["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
