"""Small helpers for tensors of a batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def into(buffer: Tensor | None) -> Tensor | None:
    """Where an operation writes: the buffer, or a new tensor if autograd follows.

    So every formula of the dynamics stands once and serves both.
    """
    return None if torch.is_grad_enabled() else buffer


def is_one(t: Tensor) -> bool:
    """Whether a tensor is the number 1, where that can be asked without waiting for a device."""
    return t.numel() == 1 and t.device.type == "cpu" and not t.requires_grad and t.item() == 1


def writings(t: Tensor) -> int:
    """How often something was written into it in place, as far as that is counted."""
    return 0 if t.is_inference() else t._version


def rows(t: Tensor) -> Tensor:
    """`[B, n]`: each sample's entries in the order of memory, without a copy."""
    if is_channels_last(t):
        return t.permute(0, 2, 3, 1).flatten(1)
    return t.flatten(1)


def is_channels_last(t: Tensor) -> bool:
    """Whether channels are the last in memory, and only they."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """A number a sample, `[B]`, shaped so that it multiplies `like`, `[B, ...]`."""
    return v.view(-1, *[1] * (like.dim() - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, `[B]`."""
    product = a * b
    return product.sum(tuple(range(1, product.dim())))


def largest(differences: Sequence[Tensor]) -> Tensor:
    """The largest absolute entry of each sample over several tensors `[B, ...]`, `[B]`."""
    return torch.stack([rows(d.detach()).abs().amax(1) for d in differences]).amax(0)


def outside_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Where operations keep their tensors' own dtype. (The meta device knows no autocast.)"""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def in_the_type_of(module: nn.Module, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors in the type of the module's weights: those of a network in pure half precision are no float32."""
    weights = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    weight = next(weights, None)
    return tensors if weight is None else [t.to(weight.dtype) for t in tensors]
