"""A network on the meta device runs forward and backward: nothing looks at a value, or makes a tensor elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ep_plugin as ep
from ep_plugin.dynamics.encoders import ENCODERS
from ep_plugin.linear.modules import FixedNormalization, SharedDropout

ENCODERS = {name: name for name in ENCODERS} | {
    "powers of two": ep.AdaptiveDelta("power_of_two"),
    "fixed": ep.AdaptiveDelta("fixed"),
}
ESTIMATORS = {
    "EP": ep.EquilibriumPropagation(steps=2),
    "full phases": ep.FullPhaseEP(steps=2),
    "BPTT": ep.BackpropThroughTime(),
    "implicit": ep.ImplicitDifferentiation(),
}


class Elsewhere(TorchDispatchMode):
    """Finds tensors of a size that are made on another device."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and not t.is_meta and t.numel() > 1:
                self.found.add(str(func))
        return result


def step(model, x):
    model.system(x)  # the layers' shapes are worked out once, on any device
    with Elsewhere() as made:
        output, equilibrium = model(x, return_equilibrium=True)
        F.cross_entropy(output, torch.zeros(len(output), dtype=torch.long, device="meta")).backward()
    assert not made.found
    assert output.is_meta
    assert all(t.is_meta for t in (*equilibrium.states, *equilibrium.traces, equilibrium.residual))
    for p in model.parameters():
        assert p.grad.is_meta
        assert p.grad.shape == p.shape
        p.grad = None


def convolutional(**settings):
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), ep.ConvergentLeaky(learn_threshold=True)),
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), ep.ConvergentLeaky()),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(100, 8), ep.ConvergentLeaky(), nn.Linear(8, 5)),
    )
    return ep.convert(net, **settings).to("meta"), torch.rand(2, 1, 14, 14, device="meta")


@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_and_estimator(encoder, estimator):
    if encoder == "fixed" and estimator.startswith("full"):
        pytest.skip("refused together")
    model, x = convolutional(encoder=ENCODERS[encoder], estimator=ESTIMATORS[estimator], relaxation=ep.Relaxation(2))
    for training in (True, False):
        step(model.train(training), x)


@pytest.mark.parametrize("kind", [ep.EquilibriumPropagation, ep.FullPhaseEP])
@pytest.mark.parametrize("nudging", ["negative", "symmetric", "random_sign"])
def test_every_nudging(kind, nudging):
    model, x = PROBLEMS["perceptron"]()
    model = model.variant(estimator=kind(steps=2, nudging=nudging), relaxation=ep.Relaxation(2), observe="membrane")
    step(model.to("meta"), x.to("meta"))


@pytest.mark.filterwarnings("ignore:max pooling before:UserWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p not in ("convolutional", "strided", "deep")])
def test_every_graph(problem, estimator):
    model, x = PROBLEMS[problem]()
    model = model.variant(estimator=ESTIMATORS[estimator], encoder="adaptive_delta", relaxation=ep.Relaxation(2))
    step(model.to("meta"), x.to("meta"))


def test_the_phases_alone():
    model, x = convolutional()
    y = torch.zeros(2, dtype=torch.long, device="meta")
    assert model.free_phase(x).states[0].is_meta
    assert model.nudged_phase(x, y, F.cross_entropy).values[0].is_meta
    for tolerance in (None, 1e-3):
        model.encoder, model.relaxation = "graded", ep.Relaxation(20, tolerance=tolerance)
        assert model.free_phase(x).residual.is_meta


def test_frames():
    model, x = convolutional(time_varying=True)
    step(model, x.expand(3, *x.shape))


@pytest.mark.parametrize("module", [SharedDropout(nn.Dropout()), FixedNormalization(nn.BatchNorm1d(6, affine=False))])
def test_a_connection_without_parameters_is_where_its_layers_are(module):
    layers, connections = [ep.Layer(), ep.Layer()], [ep.Connection(module, 0, 1)]
    model = ep.ConvergentNetwork(nn.Linear(4, 6), layers, connections, nn.Linear(6, 5)).to("meta")
    step(model.train(), torch.rand(2, 4, device="meta"))
