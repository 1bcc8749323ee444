"""How well two estimators' gradients agree, parameter by parameter."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation
from ep_plugin.linear.separate import SeparateFeedback
from ep_plugin.network import ConvergentNetwork
from ep_plugin.tensors import outside_autocast
from ep_plugin.unnoticed import buffers_as_before, random_numbers_as_before


@dataclass(frozen=True)
class Agreement:
    """How well one parameter's gradient agrees with a reference's.

    Attributes:
        name: of the parameter.
        cosine: of the two gradients.
        norm_ratio: the model's norm over the reference's.
        relative_error: norm of their difference over the reference's norm.

    Example:
        >>> exact = model.variant(
        ...     encoder="graded", relaxation=ep.Relaxation(100), estimator=ep.ImplicitDifferentiation()
        ... )
        >>> found = ep.gradient_agreement(model, x, y, nn.functional.cross_entropy, exact)
        >>> min(agreement.cosine for agreement in found) > 0.9
        True
    """

    name: str
    cosine: float
    norm_ratio: float
    relative_error: float


def gradient_agreement(
    model: ConvergentNetwork,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    reference: GradientEstimator | ConvergentNetwork | None = None,
) -> list[Agreement]:
    """Compares the model's gradient with a reference's, for every parameter that has one.

    In training mode dropout drops the same neurons for both, and the running statistics of a batch normalization stay.

    Args:
        model: with the estimator in question as its `estimator`. Its `.grad`s are not touched.
        x: a batch.
        y: its targets.
        loss: (output, y) -> scalar.
        reference: an estimator, for the same model with the same encoder and the same steps (the exact estimators need
            graded neurons and enough steps to converge: set them on the model); or another network over the same
            parameters. By default `ImplicitDifferentiation()`.

    Returns:
        One `Agreement` per parameter that both outputs depend on, in the model's order; NaN if both gradients are
        zero. Separate feedback weights are left out: they follow the forward weights, and no gradient.

    Example:
        >>> settled = model.variant(encoder="graded", relaxation=ep.Relaxation(steps=100))
        >>> for found in ep.gradient_agreement(settled, x, y, nn.functional.cross_entropy):
        ...     print(found.name, found.cosine)
    """
    if not isinstance(reference, ConvergentNetwork):
        reference = model.variant(estimator=ImplicitDifferentiation() if reference is None else reference)
    separate = [m.feedback for m in model.modules() if isinstance(m, SeparateFeedback)]
    follow = {p for feedback in separate for p in feedback.parameters()}
    names = [n for n, p in model.named_parameters() if p.requires_grad and p not in follow]
    found = []
    for network in (model, reference):
        parameters = dict(network.named_parameters())
        wanted = [parameters[n] for n in names]
        exact = nullcontext() if network is model else outside_autocast(x)
        # So that both networks drop the same neurons.
        with buffers_as_before(model), random_numbers_as_before(x.device), exact:
            found.append(torch.autograd.grad(loss(network(x), y), wanted, allow_unused=True))
    pairs = zip(names, *found, strict=True)
    return [_compare(n, a, b) for n, a, b in pairs if a is not None and b is not None]


def _compare(name: str, a: Tensor, b: Tensor) -> Agreement:
    one_is_zero = bool(a.any()) != bool(b.any())  # which has no direction
    return Agreement(
        name,
        cosine=0.0 if one_is_zero else ((a * b).sum() / (a.norm() * b.norm())).item(),
        norm_ratio=(a.norm() / b.norm()).item(),
        relative_error=((a - b).norm() / b.norm()).item(),
    )
