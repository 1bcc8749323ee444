"""The health monitor: what it tells of trainings that come to nothing, by which names, and that it is silent else.

`test_trainings.py` has the whole table.
"""

import re
import warnings

import pytest
import torch
from test_module import loader, make_model, trainer
from torch import nn
from trainings import BAD, DIVERGE, FAIL, GOOD, LEARN, Training, leaky, sgd

import ep_plugin as ep
from ep_plugin.conversion.origin import parameter_names
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning", "ignore::FutureWarning")


SOUND = (
    *("convolution, seed 0", "max pooling, seed 1", "initialize_, seed 0", "eight layers, seed 0", "threshold 0.3"),
    *("one layer, Adam 0.03", "neurons at the end, mse", "fixed events", "beta 1.0", "predictive sigma-delta"),
)


@pytest.mark.parametrize("name", SOUND)
def test_a_training_that_learns_hears_nothing(name):
    told, accuracy, *_ = LEARN[name].run()
    assert told == []
    assert accuracy >= GOOD["digits"]


SIGNS = {
    "convolution, Adam 1": [
        "layer 1, driven by 4.weight, is stuck",
        "loss stays far above that of chance, log(10) = 2.3",
    ],
    "convolution, Adam 1e+10": ["weights grow without bound: 4.weight", "layer 0, driven by 0.weight"],
    "neurons at the end, mse, Adam 1": ["weights grow without bound: 3.weight"],
    "SGD 1e+06": ["weights grow without bound: 6.weight"],
    "mse, Adam 10": ["weights grow without bound: 4.weight", "loss stays far above the first batch's, 0.128"],
    "weights times 10000": ["loss stays far above that of chance"],
    "silent convolution": ["layer 0, driven by 0.weight, is silent: 0% of its neurons"],
    "silent second layer": ["layer 1, driven by 3.weight, is silent", "Start with larger weights and biases of 0"],
    "saturated first layer": ["layer 0, driven by 1.weight, is saturated", "Start with smaller weights"],
    "strong feedback, large weights": ["the states do not settle: after 4 steps", "Use a smaller feedback"],
}


@pytest.mark.parametrize("name", SIGNS)
def test_a_training_that_comes_to_nothing_is_told_why(name):
    told, accuracy, *_ = (DIVERGE | FAIL)[name].run()
    for words in SIGNS[name]:
        assert sum(words in line for line in told) == 1, told  # once
    assert accuracy < BAD["digits"]


def advised(told):
    """The learning rate that a warning advises."""
    found = [re.search(r"Lower the learning rate, lr=\S+, to ([^, ]+)", line) for line in told]
    return next((float(match[1].rstrip(".")) for match in found if match), None)


@pytest.mark.parametrize("name", ["max pooling, Adam 10", "five layers, Adam 1", "neurons at the end, mse, Adam 1000"])
def test_the_learning_rate_that_is_advised_learns(name):
    told, accuracy, *_ = DIVERGE[name].run()
    assert accuracy < BAD["digits"]
    lower = Training(DIVERGE[name].net, {**DIVERGE[name].task, "lr": advised(told)}, epochs=12)
    told, accuracy, *_ = lower.run()
    assert told == []
    assert accuracy >= GOOD["digits"]


class Named(nn.Module):
    """A model of a user's, with names of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(64, 30), "second": nn.Linear(30, 20)})
        self.lif1, self.lif2, self.head = leaky(), leaky(), nn.Linear(20, 10)

    def forward(self, x):
        x = self.lif1(self.body["first"](x.flatten(1)))
        return self.head(self.lif2(self.body["second"](x)))


def test_parameters_have_the_names_of_the_users_own_model():
    net = Named()
    model = ep.convert(net)
    names = {name for name, p in net.named_parameters() if id(p) in {id(q) for q in model.parameters()}}
    assert names >= {"body.first.weight", "body.second.bias", "head.weight"}
    assert {parameter_names(model)[id(p)] for p in model.parameters()} >= names
    assert parameter_names(model.variant(encoder="graded")) == parameter_names(model)
    told = Training(Named, {"lr": 100.0}).run().told
    assert any("weights grow without bound: body.first.weight is" in line for line in told), told


def test_weights_that_are_no_longer_finite_are_named():
    told, *_, stopped = Training(Named, {"optimizer": sgd(1e38)}, epochs=1).run()
    assert any("weights are no longer finite: body.first.weight, body.first.bias" in line for line in told), told
    assert isinstance(stopped, FloatingPointError)


def broken(name):
    """A task of a user's own model, in which one weight is NaN, and a loader."""
    net = Named()
    with torch.no_grad():
        net.get_parameter(name)[0, 0] = torch.nan
    return ep.EPLightningModule(ep.convert(net)), loader()


def heard(run, task, batches):
    """What the monitor says, and what stops the run."""
    stopped = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(task, batches)
        except FloatingPointError as error:
            stopped = error
    return [str(w.message) for w in caught if "not finite" in str(w.message) or "loss is" in str(w.message)], stopped


def test_weights_that_are_not_finite_before_the_training_are_named_without_the_learning_rate(tmp_path):
    for name in "body.first.weight", "head.weight":  # before and behind the neurons
        for sets in (), (loader(),):  # without and with the sanity check
            told, stopped = heard(lambda *a, sets=sets: trainer(tmp_path).fit(*a, *sets), *broken(name))
            assert len(told) == 1, told
            assert f"weights are not finite before the first step: {name}. Load them" in told[0]
            assert isinstance(stopped, FloatingPointError)


def test_a_test_with_weights_that_are_not_finite_says_so(tmp_path):
    for run in trainer(tmp_path).test, trainer(tmp_path).validate:
        told, stopped = heard(run, *broken("body.second.weight"))
        assert told == []
        assert "became NaN or infinite in" in str(stopped)
    for run, words in (trainer(tmp_path).test, "test"), (trainer(tmp_path).validate, "validation"):
        told, stopped = heard(run, *broken("head.weight"))
        assert stopped is None
        assert len(told) == 1, told
        assert f"the {words} loss is nan" in told[0]
        assert "weights are not finite: head.weight. Load them" in told[0]


def test_a_loss_that_is_not_finite_in_every_validation_is_told_once(tmp_path):
    def loss(output, y):
        return output.mean() + (0 if model.training else torch.inf)

    model = ep.convert(Named())
    task = ep.EPLightningModule(model, loss=loss)
    told, _ = heard(lambda *a: trainer(tmp_path).fit(*a, loader()), task, loader())
    assert len(told) == 1
    assert "the validation loss is inf, so that the accuracy beside it means nothing: look at the targets" in told[0]


def test_a_plain_loop_hears_the_users_own_names():
    model = ep.convert(net := Named())
    with torch.no_grad():
        net.body["second"].bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite in body\.second\.bias\. Try"):
        model(torch.rand(2, 1, 8, 8))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_training_does_not_notice(tmp_path):
    """Random spikes, signs and dropout; accumulated gradients."""

    def trained(health):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), leaky(), nn.Linear(12, 8), leaky(), nn.Dropout())
        net.append(nn.Linear(8, 10))
        model = ep.convert(net, encoder="bernoulli", estimator=ep.EquilibriumPropagation(nudging="random_sign"))
        torch.manual_seed(2)
        task = ep.EPLightningModule(model, lr=0.01, health=health)
        monitor = [ep.HealthMonitor(1)] if health else []
        run = trainer(tmp_path, callbacks=monitor, accumulate_grad_batches=2)
        run.fit(task, loader())
        assert sum(isinstance(c, ep.HealthMonitor) for c in run.callbacks) == health
        assert not model._forward_hooks
        return model.state_dict()

    watched, alone = trained(True), trained(False)
    assert all(torch.equal(v, alone[k]) for k, v in watched.items())


def test_it_comes_with_the_module_and_one_of_the_trainers_takes_its_place(tmp_path):
    for given, expected in ([], 50), ([ep.HealthMonitor(7)], 7):
        run = trainer(tmp_path, max_epochs=1, callbacks=list(given))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(ep.EPLightningModule(make_model()[0]), loader())
        assert [c.every_n_batches for c in run.callbacks if isinstance(c, ep.HealthMonitor)] == [expected]


def test_a_training_that_stops_leaves_no_hook(tmp_path):
    model, _ = make_model()

    def loss(output, y):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path).fit(ep.EPLightningModule(model, loss=loss), loader())
    assert not model._forward_hooks


def test_each_batch_of_an_accumulated_step_counts_whole():
    """Lightning divides its loss; the mean is that of a batch all the same."""
    options = {"trainer": {"accumulate_grad_batches": 4}, "data": {"batch_size": 8}, "epochs": 1}
    told = Training(small_convolutional, {"lr": 10.0}, **options).run().told
    assert any("loss stays far above that of chance" in line for line in told), told


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="every_n_batches is 0"):
        ep.HealthMonitor(0)
    _, net = make_model()
    with pytest.raises(TypeError, match="HealthMonitor was given a BPTTLightningModule; expected an EPLightningModule"):
        trainer(tmp_path, callbacks=[ep.HealthMonitor()]).fit(ep.BPTTLightningModule(net), loader())
