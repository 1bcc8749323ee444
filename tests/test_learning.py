"""Learning on real data, and how well spikes follow the graded gradient. Slow: `pytest -m slow -s`."""

import copy

import pytest
import torch
import torch.nn.functional as F

import ep_plugin as ep
from ep_plugin.models import convolutional_2c2fc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mnist(data_dir):
    data = ep.MNISTDataModule(data_dir)
    (x, y), test = data.load()
    return x, y, test


@pytest.fixture(scope="module")
def trained(mnist):
    """A spiking 2C2FC net after 200 batches of 64 MNIST images, at default settings."""
    x, y, _ = mnist
    torch.manual_seed(0)
    model = ep.convert(ep.initialize_(convolutional_2c2fc()))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for batch in torch.randperm(len(x)).split(64)[:200]:
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_200_batches(trained, mnist):
    _, _, (x, y) = mnist
    with torch.no_grad():
        right = sum((trained(a).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500), strict=True))
    print(f"\ntest accuracy after 200 batches: {right / 100:.2f} %")
    assert right / len(x) >= 0.95


@pytest.mark.parametrize(
    ("nudging", "least"), [("symmetric", 0.95), ("positive", 0.9), ("negative", 0.9), ("random_sign", 0.9)]
)
def test_spikes_follow_the_graded_gradient(nudging, least, trained, mnist):
    """Default settings (20/10 steps) against converged graded EP at the same beta and nudging."""
    x, y, _ = mnist
    spiking, graded = copy.copy(trained), copy.copy(trained)
    beta = spiking.gradient.beta
    spiking.gradient = ep.EquilibriumPropagation(beta, 10, nudging)
    graded.encoder, graded.relaxation = "graded", ep.Relaxation(200, step_size=1.0)
    graded.gradient = ep.EquilibriumPropagation(beta, 100, nudging)

    def gradients(model):
        torch.manual_seed(5)  # the same random signs for both
        return torch.autograd.grad(F.cross_entropy(model(x[-256:]), y[-256:]), list(model.parameters()))

    names = [n for n, _ in trained.named_parameters()]
    print()
    for name, a, b in zip(names, gradients(spiking), gradients(graded), strict=True):
        if name.endswith("weight"):
            cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
            print(f"{nudging:12} {name:32} cosine {cosine:.3f}, norm ratio {(a.norm() / b.norm()).item():.2f}")
            assert cosine >= least
