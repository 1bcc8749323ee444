"""Every row of the table of models: converts, or is refused with the reason; converges; has the gradient; learns."""

import pytest
import torch
from forwards import FORWARDS
from graphs import GRAPHS
from models import MODELS
from sklearn.datasets import load_digits

import ep_plugin as ep

STEPS, BATCH = 50, 64
ROWS = MODELS | FORWARDS | GRAPHS
CONVERTING = [name for name, row in ROWS.items() if row.converts]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.refusal])
def test_refusal(name):
    with pytest.raises(ValueError, match=ROWS[name].refusal):
        ep.convert(ROWS[name].make())


@pytest.mark.parametrize("name", CONVERTING)
def test_converges_to_the_gradient_of_backpropagation(name, digits):
    """Graded, in float64: every parameter's gradient has a cosine >= 0.99 with BPTT's on the same dynamics."""
    row = ROWS[name]
    x, y = row.input(digits[0][:16]).double(), digits[1][:16]
    model = ep.convert(
        row.make(),
        **row.options,
        encoder="graded",
        relaxation=ep.Relaxation(200, step_size=1.0, tolerance=1e-10),
        estimator=ep.EquilibriumPropagation(beta=1e-5, steps=100),
    ).double()
    equilibrium = model.free_phase(x)
    assert equilibrium.residual.max() <= 0.1 if row.turns else equilibrium.converged.all()
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(row.loss(model(x), y), list(parameters.values()))
    model.estimator = ep.BackpropThroughTime()
    reference = torch.autograd.grad(row.loss(model(x), y), list(parameters.values()))
    largest = max(g.norm() for g in reference)
    worst = 1.0
    for parameter, a, b in zip(parameters, found, reference, strict=True):
        if b.norm() < 1e-9 * largest:  # a bias before a batch normalization in the stem
            assert a.norm() < 1e-6 * largest, parameter
            continue
        cosine = ((a * b).sum() / (a.norm() * b.norm())).item()
        worst = min(worst, cosine)
        assert cosine >= 0.99, (parameter, cosine)
    print(f"\n{name}: least cosine {worst:.6f}", end="")


@pytest.mark.parametrize("name", CONVERTING)
def test_loss_falls_by_half_in_50_steps(name, digits):
    """Spiking, with Adam."""
    row, (x, y) = ROWS[name], digits
    model = ep.convert(row.make(), **row.options)
    optimizer = torch.optim.Adam(model.parameters(), row.lr)
    losses = []
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,))
        loss = row.loss(model(row.input(x[batch])), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    last = sum(losses[-5:]) / 5
    print(f"\n{name}: loss {losses[0]:.3f} -> {last:.3f}", end="")
    assert last <= losses[0] / 2
