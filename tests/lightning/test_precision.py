"""Pure half and double precision, as `Trainer(precision="bf16-true")` has it."""

import warnings
from time import perf_counter

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from test_module import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep
from ep_plugin.lightning.emulated import SLOWER, bfloat16_slowdown

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

HALVES = [torch.bfloat16, torch.float16]
ESTIMATORS = [ep.EquilibriumPropagation(), ep.FullPhaseEP(), ep.BackpropThroughTime(), ep.ImplicitDifferentiation()]


def a_model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), ep.ConvergentLeaky(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)),
        *(ep.ConvergentLeaky(), nn.Flatten(), nn.Linear(16, 20), ep.ConvergentLeaky(), nn.Linear(20, 10)),
    )
    return ep.convert(ep.initialize_(net), **options).eval()


def outcome(model, x, y):
    model.zero_grad()
    output = model(x)
    F.cross_entropy(output, y).backward()
    return output, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_output_and_gradients_are_in_the_parameters_type(dtype, estimator):
    """Between stem and readout states stay float32, so that what is lost is the rounding of the weights."""
    model = a_model(encoder="graded", estimator=estimator)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(10, (16,))
    expected, gradients = outcome(model, x, y)
    output, found = outcome(model.to(dtype), x.to(dtype), y)
    assert output.dtype == dtype
    assert {g.dtype for g in found.values()} == {dtype}
    assert {s.dtype for s in model.free_phase(x.to(dtype)).states} == {torch.promote_types(dtype, torch.float32)}
    torch.testing.assert_close(output, expected.to(dtype), atol=0.02, rtol=0.02)
    for name, gradient in found.items():
        assert torch.cosine_similarity(gradient.flatten().float(), gradients[name].flatten(), 0) > 0.95, name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_nudged_phase_alone_and_fixed_events(dtype):
    model = a_model(encoder=ep.AdaptiveDelta("fixed")).to(dtype).train()
    x, y = torch.rand(16, 1, 8, 8, dtype=dtype), torch.randint(10, (16,))
    outcome(model, x, y)
    deviations = model.eval().nudged_phase(x, y, F.cross_entropy)
    assert all(d.isfinite().all() and d.any() for d in deviations.values)


def test_an_equilibrium_without_readout_stays_float32():
    model = ep.ConvergentNetwork(nn.Linear(4, 3), [ep.Layer()], []).bfloat16()
    assert model(torch.rand(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def learned(precision, tmp_path, **options):
    """Validation accuracy of a small net of digits after three epochs."""
    seed_everything(0, verbose=False)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), ep.ConvergentLeaky(), nn.Linear(100, 10))
    run = trainer(tmp_path, precision=precision, max_epochs=3)
    run.fit(ep.EPLightningModule(ep.convert(ep.initialize_(net)), **options), ep.DigitsDataModule(32))
    return run.callback_metrics["val/accuracy"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "32-true", "bf16-mixed"])
def test_digits_are_learned_in_any_precision(precision, tmp_path):
    assert learned(precision, tmp_path, lr=1e-2) > 0.9


@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)], ids=["Adam", "SGD"])
def test_digits_are_learned_in_float16(optimizer, tmp_path):
    assert learned("16-true", tmp_path, lr=1e-2, optimizer=optimizer) > 0.9


@pytest.mark.parametrize("times", [1.5, 30.0])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_processor_that_emulates_bfloat16_is_named(times, precision, tmp_path, monkeypatch):
    monkeypatch.setattr("ep_plugin.lightning.task.bfloat16_slowdown", lambda: times)
    task = ep.EPLightningModule(a_model())
    data = DataLoader(TensorDataset(torch.rand(4, 1, 8, 8), torch.randint(10, (4,))), batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, precision=precision, max_epochs=1).fit(task, data)
    told = [str(w.message) for w in caught if "emulates" in str(w.message)]
    assert len(told) == (times == 30 and precision == "bf16-mixed")
    assert all("30 times" in line and "--trainer.precision 32-true" in line for line in told)


def test_following_that_advice_helps():
    """What the measurement says of a convolution holds for a training step."""
    if (slower := bfloat16_slowdown()) <= SLOWER:
        pytest.skip(f"this processor has bfloat16: a convolution takes {slower:.1f} times as long as in float32")
    model, x, y = ep.convert(ep.models.convolutional_2c2fc()), torch.rand(4, 1, 28, 28), torch.arange(4)
    seconds = {False: [], True: []}
    for half in (False, True) * 4:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            start = perf_counter()
            F.cross_entropy(model(x), y).backward()
            seconds[half].append(perf_counter() - start)
    assert min(seconds[True]) > min(seconds[False])


def lif():
    return snn.Leaky(beta=0.9, init_hidden=True)


class Holding(nn.Module):
    """A net whose forward calls a function with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)
        self.one, self.two, self.weight = lif(), lif(), nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x):
        h = F.conv2d(self.one(self.first(x)), self.weight)
        return self.last(self.two(h).flatten(1))


def between(module):
    return nn.Sequential(nn.Conv2d(2, 4, 3), lif(), module, lif(), nn.Flatten(), nn.LazyLinear(3))


WITHOUT_A_MAP_OF_THEIR_OWN = {
    "transposed": lambda: between(nn.ConvTranspose2d(4, 4, 2)),
    "circular": lambda: between(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "same": lambda: between(nn.Conv2d(4, 4, 2, padding="same")),
    "in a forward": Holding,
    "transposed before the first neuron": lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 4, 2), lif(), nn.Flatten(), nn.LazyLinear(3)
    ),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", WITHOUT_A_MAP_OF_THEIR_OWN)
def test_weights_without_an_adjoint_of_their_own_may_be_half(kind, dtype):
    torch.manual_seed(0)
    net, x, y = WITHOUT_A_MAP_OF_THEIR_OWN[kind](), torch.rand(6, 2, 6, 6), torch.arange(6) % 3
    net(x)
    model = ep.convert(net, encoder="graded")
    expected, gradients = outcome(model, x, y)
    gradients = {name: g.clone() for name, g in gradients.items()}
    output, found = outcome(model.to(dtype), x.to(dtype), y)
    torch.testing.assert_close(output, expected.to(dtype), atol=0.03, rtol=0.03)
    for name, gradient in found.items():
        assert torch.cosine_similarity(gradient.flatten().float(), gradients[name].flatten(), 0) > 0.95, name


@pytest.mark.parametrize("estimator", [ESTIMATORS[k] for k in (0, 1, 3)], ids=lambda e: type(e).__name__)
def test_a_backward_pass_within_autocast_is_that_outside(estimator):
    model = a_model(encoder="graded", estimator=estimator)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(10, (16,))
    found = []
    for within in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
            if within:
                loss.backward()
        if not within:
            loss.backward()
        # Of what the estimator computes; autograd goes on from there, in what precision it is told.
        found.append([p.grad for p in model.connections.parameters()])
    for outside, inside in zip(*found, strict=True):
        assert torch.equal(outside, inside)
