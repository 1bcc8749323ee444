"""Graphs of layers: concatenations, pieces, functions and constants between neurons, and what has no weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from joined import LINEAR, SETTLED, Dense, Joined, NoWeights, Pieces, Stacked, UNet, WithTheInput, example, settled
from torch import nn

import ep_plugin as ep


@pytest.mark.parametrize("kind", LINEAR, ids=lambda k: k.__name__)
def test_it_settles_where_the_forward_and_its_feedback_say(kind, float64):
    net, x = example(kind)
    model = ep.convert(net, **SETTLED, feedback=net.feedback)
    equilibrium = model.free_phase(x)
    assert equilibrium.converged.all()
    expected = settled(net, model, x)
    for found, wanted in zip(equilibrium.states, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(x), net.drives(x, expected)[1], rtol=0, atol=1e-9)


def gradients(net, model, x):
    """Of every parameter of the original, by equilibrium propagation and by backpropagation."""
    parameters = dict(net.named_parameters())
    assert {id(p) for p in parameters.values()} == {id(p) for p in model.parameters()}
    nudged = model.variant(estimator=ep.EquilibriumPropagation(1e-6, 300))
    target = torch.rand_like(model(x).detach())
    found, expected = (
        torch.autograd.grad((m(x) - target).pow(2).mean(), list(parameters.values()))
        for m in (nudged, model.variant(estimator=ep.BackpropThroughTime()))
    )
    return zip(parameters, found, expected, strict=True)


@pytest.mark.parametrize("kind", LINEAR, ids=lambda k: k.__name__)
def test_every_gradient_is_that_of_backpropagation(kind, float64):
    """Through settled graded states, for every parameter of the original."""
    net, x = example(kind)
    for name, a, b in gradients(net, ep.convert(net, **SETTLED, feedback=net.feedback), x):
        assert b.norm() > 1e-7, name
        assert (a - b).norm() <= 1e-3 * b.norm(), name


@pytest.mark.parametrize("kind", [Joined, UNet, Dense, Stacked, Pieces, NoWeights], ids=lambda k: k.__name__)
def test_it_learns_with_spikes(kind):
    """The defaults, on what a net of the same kind has said."""
    torch.manual_seed(0)
    x = torch.rand(64, *kind.shape)
    with torch.no_grad():
        target = ep.convert(kind().eval(), encoder="graded")(x)
    model = ep.convert(kind())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.dim() > 0], 2e-2)  # thresholds stay
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_measuring_changes_nothing(float64):
    """Statistics and modes are those of the original, and samples of other sizes may follow."""
    net = UNet()
    net.norm = nn.BatchNorm2d(3)
    first = net.down
    net.down = nn.Sequential(first, net.norm)
    net.train()
    model = ep.convert(net, **SETTLED)
    x = torch.rand(4, 1, 8, 8)
    model(x)
    mean = first(x).detach().mean((0, 2, 3))
    torch.testing.assert_close(net.norm.running_mean, 0.1 * mean)  # of the batch, once
    assert net.norm.training
    assert int(net.norm.num_batches_tracked) == 1
    for shape in ((2, 1, 4, 6), (4, 1, 8, 8), (1, 1, 10, 8)):
        model.eval()
        assert model(torch.rand(shape)).shape == shape
    one, two = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 4, 4)
    before, between = model(one), model(two).detach()
    parameters = list(net.parameters())
    kept = torch.autograd.grad(before.sum(), parameters)  # after another shape has come by
    torch.testing.assert_close(kept, torch.autograd.grad(model(one).sum(), parameters))
    assert between.shape == two.shape


def test_concatenations_are_copied_and_saved(tmp_path):
    net, x = example(UNet)
    model = ep.convert(net, encoder="graded")
    fresh = copy.deepcopy(model)
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    for other in (fresh, copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(fresh.double()(x.double()).float(), fresh(x.double()).float())
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    assert not any("measurement" in name for name in model.state_dict())


def test_frames_may_be_given_to_a_concatenation(float64):
    net, x = example(WithTheInput)
    one = ep.convert(net, **SETTLED)
    frames = ep.convert(net, encoder="graded", activation="sigmoid", time_varying=True)
    torch.testing.assert_close(frames(x.expand(100, *x.shape)), one(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")
def test_concatenations_in_a_nir_graph():
    """Its matrices are the slices."""
    net = Joined()
    graph = ep.to_nir(ep.convert(net))
    weight = net.c.weight.detach()
    torch.testing.assert_close(torch.tensor(graph.nodes["layer_0_connection_1"].weight), weight[:, :6])
    torch.testing.assert_close(torch.tensor(graph.nodes["layer_1_connection_2"].weight), weight[:, 6:])
