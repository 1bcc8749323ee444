"""Gradients of gradients: right through BPTT, refused by every other estimator, and never silently wrong."""

import pytest
import torch
import torch.nn.functional as F
from problems import by_hand
from torch.autograd import functional, grad

import ep_plugin as ep

FIRST_ALONE = [ep.EquilibriumPropagation(), ep.FullPhaseEP(), ep.ImplicitDifferentiation()]


def network(estimator, **settings):
    settings = {"estimator": estimator, "relaxation": ep.Relaxation(4), **settings}
    model, _ = by_hand([(0, 1), (1, 2), (0, 2)], (3, 3, 2), **settings)
    return model, torch.rand(2, 10), torch.tensor([0, 4])


def square(gradients):
    return sum((g * g).sum() for g in gradients)


def of_parameters(model, x, y):
    """A penalty on the gradient of all parameters."""
    parameters = list(model.parameters())
    penalty = square(grad(F.cross_entropy(model(x), y), parameters, create_graph=True))
    return grad(penalty, parameters)


def of_one_parameter(model, x, y):
    """Asked of the first parameter alone, through the gradient of one connection."""
    (found,) = grad(F.cross_entropy(model(x), y), [model.connections[1].module.weight], create_graph=True)
    return grad(square([found]), [next(model.parameters())])


def of_the_input(model, x, y):
    """A penalty on the input's gradient, as a critic has it, where the loss is linear in the output."""
    x.requires_grad_()
    penalty = square(grad(model(x).sum(), x, create_graph=True))
    return grad(penalty, list(model.parameters()), allow_unused=True)


def by_backward(model, x, y):
    parameters = list(model.parameters())
    square(grad(F.cross_entropy(model(x), y), parameters, create_graph=True)).backward()
    return [p.grad for p in parameters]


def accumulated(model, x, y):
    F.cross_entropy(model(x), y).backward(create_graph=True)
    parameters = list(model.parameters())
    return grad(square([p.grad for p in parameters]), parameters)


def hessian(model, x, y):
    return functional.hessian(lambda v: F.cross_entropy(model(v), y), x)


def hessian_vector_product(model, x, y):
    return functional.hvp(lambda v: F.cross_entropy(model(v), y), x, torch.ones_like(x))


WAYS = [of_parameters, of_one_parameter, of_the_input, by_backward, accumulated, hessian, hessian_vector_product]


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", FIRST_ALONE, ids=lambda e: type(e).__name__)
def test_the_others_refuse_and_the_advice_helps(estimator, way):
    model, x, y = network(estimator)
    with pytest.raises(RuntimeError, match=r"second derivatives .* model\.estimator = BackpropThroughTime\(\)"):
        way(model, x, y)
    model.zero_grad()
    model.estimator = ep.BackpropThroughTime()
    way(model, x, y)


@pytest.mark.parametrize("estimator", FIRST_ALONE, ids=lambda e: type(e).__name__)
def test_a_graph_changes_no_first_derivative(estimator):
    model, x, y = network(estimator)
    parameters = list(model.parameters())
    plain = grad(F.cross_entropy(model(x), y), parameters)
    followed = grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, followed, strict=True))
    assert not any(g.requires_grad for g in plain)


def test_gradients_of_the_readout_alone_pass():
    """They depend on the equilibrium itself, through which one derivative is enough."""
    model, x, y = network(ep.EquilibriumPropagation(1e-3, 20, "symmetric"), relaxation=ep.Relaxation(20))

    def second(estimator):
        own = model.variant(estimator=estimator)
        found = grad(F.cross_entropy(own(x), y), list(model.readout.parameters()), create_graph=True)
        return grad(square(found), list(model.parameters()))

    for a, b in zip(second(model.estimator), second(ep.BackpropThroughTime()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
def test_bptt_against_finite_differences(activation, float64):
    model, x, _ = network(ep.BackpropThroughTime(), activation=activation)
    names, values = zip(*model.named_parameters(), strict=True)

    def output(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = (x.requires_grad_(), *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradgradcheck(output, inputs, fast_mode=True)


def test_torch_func_is_refused_by_name():
    model, x, y = network(ep.EquilibriumPropagation())
    with pytest.raises(RuntimeError, match=r"torch\.func .* expected torch\.autograd: loss\.backward\(\)"):
        torch.func.grad(lambda v: F.cross_entropy(model(v), y))(x)
