"""Feedback through separate weights, for hardware where a weight cannot be read from both of its ends.

Signals go up through A(x) = K x + b. They go down through B^T y, where B has K's shape, instead of K^T y. Both learn by
the same local contrast of the two neurons that they connect, dE/dB = dE/dK, so that their difference changes by weight
decay alone and fades with it (Kolen and Pollack 1994; for deep nets Akrout et al. 2019). Until then the dynamics follow
no energy, and the gradient is off by the angle between the two.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ep_plugin.linear.base import LinearMap, Tensors, is_hooked, register_linear
from ep_plugin.linear.convolution import Convolution
from ep_plugin.linear.dense import Affine

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules that may have feedback of their own."""


class SeparateFeedback(nn.Module):
    """A linear module or convolution whose feedback uses separate weights.

    The feedback weights start as the forward ones in random order (PyTorch's global generator), with the same
    parametrizations (standardized, quantized).

    Args:
        module: an `nn.Linear` or convolution. Its weights and bias are shared, not copied.

    Attributes:
        feedback: a module like it, without a bias; what goes down is its adjoint.

    Raises:
        TypeError: the module has another type.
        ValueError: its weight is made by a hook, as pruning does.

    Example:
        >>> connection = ep.Connection(ep.chips.SeparateFeedback(nn.Linear(32, 16)), source=0, target=1)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, WEIGHTED):
            raise TypeError(
                f"SeparateFeedback was given a {type(module).__name__}; expected a linear layer or convolution"
            )
        if isinstance(vars(module).get("weight"), Tensor):
            raise ValueError(
                f"SeparateFeedback was given a {type(module).__name__} whose weight a hook makes, which its feedback "
                "would not follow; expected one without (torch.nn.utils.prune.remove(module, 'weight') after pruning, "
                "or torch.nn.utils.parametrizations in place of the old weight_norm and spectral_norm)"
            )
        self.module = module
        self.feedback = copy.deepcopy(module)
        self.feedback.bias = None
        with torch.no_grad():
            for weight in _raw(self.feedback):
                weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def angle(self) -> float:
        """Degrees between the weights up and down: 0 where they agree, about 90 at the start."""
        up, down = (m.weight.detach().double().flatten() for m in (self.module, self.feedback))
        cosine = torch.nn.functional.cosine_similarity(up, down, dim=0).clamp(-1, 1)
        return torch.rad2deg(torch.arccos(cosine)).item()


class Separate(LinearMap):
    """Two maps of one shape: up through the first, down through the second."""

    def __init__(self, up: LinearMap, down: LinearMap) -> None:
        self.up, self.down = up, down

    def tensors(self) -> Tensors:
        own = self.up.tensors()
        return (*own, self.down.tensors()[0])

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        *own, back = tensors
        return (*self.up.prepared(tuple(own), shape, dtype), *self.down.prepared((back,), shape, dtype))

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.up.affine(tensors[:-1], x)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.up.linear(tensors[:-1], x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return self.down.adjoint(tensors[-1:], y, shape)

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        weight, *bias = self.up.pullback(tensors[:-1], x, y, offset)
        return [weight, *bias, None if weight is None else weight.clone()]

    def absorb(self, following: LinearMap) -> LinearMap | None:
        if any(t is not None and t.requires_grad for t in following.tensors()):
            return None  # both ways would pass a gradient to what is one tensor
        up, down = self.up.absorb(following), self.down.absorb(following)
        return None if up is None or down is None else Separate(up, down)


def separated(module: nn.Module) -> nn.Module:
    """`module`, of a connection, with feedback of its own for all that is weighted in it.

    Raises:
        ValueError: something has weights that cannot be separated.
    """
    if type(module) is nn.Sequential and is_hooked(module):
        raise ValueError(
            'feedback_weights="separate": a Sequential between neurons has a hook or a forward of its own; remove it, '
            'or use feedback_weights="tied"'
        )
    if type(module) is nn.Sequential:
        return nn.Sequential(*(separated(child) for child in module))
    if isinstance(module, WEIGHTED):
        return SeparateFeedback(module)
    if any(p.requires_grad for p in module.parameters()) or isinstance(module, nn.modules.conv._ConvNd):
        raise ValueError(
            f'feedback_weights="separate": a {type(module).__name__} has weights that feed back; expected linear '
            'layers and convolutions alone, or feedback_weights="tied"'
        )
    return module


def feedback_angles(model: nn.Module) -> dict[str, float]:
    """Degrees between the weights up and down, for every module with separate feedback weights.

    Args:
        model: a converted network with `feedback_weights="separate"`.

    Returns:
        The module's name in the model -> its angle: about 90 at the start, 0 where they agree.

    Example:
        >>> model = ep.convert(net, feedback_weights="separate")
        >>> [round(angle, -1) for angle in ep.chips.feedback_angles(model).values()]
        [90.0]
    """
    return {name: m.angle() for name, m in model.named_modules() if isinstance(m, SeparateFeedback)}


def _raw(module: nn.Module) -> list[Tensor]:
    """What the weight is made of: itself, or its originals under parametrizations."""
    if not parametrize.is_parametrized(module, "weight"):
        return [module.weight]  # type: ignore[list-item]
    found: Any = module.parametrizations["weight"]  # type: ignore[index]
    return [p for name, p in found.named_parameters(recurse=False) if name.startswith("original")]


def _map(module: SeparateFeedback) -> Separate:
    kind = Affine if isinstance(module.module, nn.Linear) else Convolution
    return Separate(kind(module.module), kind(module.feedback))  # type: ignore[arg-type]


register_linear(SeparateFeedback, _map)
