"""The reference nets' own modules, and that their gradients are those of the exact reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.models import CenteredWeight, convolutional_2c2fc


def test_normalized_images_have_zero_mean_and_unit_deviation():
    x = torch.rand(5, 1, 28, 28)
    normalize = convolutional_2c2fc(normalize=(x.mean().item(), x.std().item()))[0]
    y = normalize(x)
    assert y.mean().abs() < 1e-5
    assert abs(y.std() - 1) < 1e-5


@pytest.mark.parametrize("std", [0, -1.0])
def test_normalize_refuses_no_deviation(std):
    with pytest.raises(ValueError, match=r"std.*above 0"):
        convolutional_2c2fc(normalize=(0.1, std))


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (4, 7)])
def test_centered_weights_sum_to_zero_and_so_do_their_gradients(shape):
    weight = torch.randn(shape, requires_grad=True)
    centered = CenteredWeight()(weight)
    (centered * torch.randn(shape)).sum().backward()
    for sums in centered.flatten(1).sum(1), weight.grad.flatten(1).sum(1):
        assert sums.abs().max() < 1e-5


@pytest.mark.usefixtures("float64")
def test_gradients_of_a_normalized_and_centered_net_against_the_exact_reference():
    net = convolutional_2c2fc((3, 4), 12, gain=2.0, normalize=(0.3, 0.4), centered=True)
    model = ep.convert(
        net,
        encoder="graded",
        activation="sigmoid",
        feedback=0.15,
        relaxation=ep.Relaxation(200),
        estimator=ep.EquilibriumPropagation(beta=1e-3, steps=200, nudging="symmetric"),
    )
    x, y = torch.rand(3, 1, 28, 28), torch.randint(10, (3,))
    found = ep.gradient_agreement(model, x, y, F.cross_entropy, reference=ep.ImplicitDifferentiation())
    assert len(found) == 8
    assert all(row.relative_error < 1e-5 for row in found)


def test_in_training_mode_both_drop_the_same_and_count_no_batch():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(16, 32), nn.BatchNorm1d(32), ep.ConvergentLeaky(), nn.Dropout(0.5), nn.Linear(32, 32)),
        *(ep.ConvergentLeaky(), nn.Linear(32, 4)),
    )
    model, x, y = ep.convert(net).train(), torch.rand(32, 16), torch.arange(32) % 4
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ep.gradient_agreement(model, x, y, F.cross_entropy, model)
    assert all(own.cosine == pytest.approx(1) and own.relative_error == 0 for own in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
