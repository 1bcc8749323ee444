"""Feedback as ordinary modules: what carries K^T y of a connection down, with copies of its weights."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import nn

from ep_plugin.linear.base import LinearMap, Tensors
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.convolution import Convolution
from ep_plugin.linear.dense import Affine, FlattenedAffine, Reshape
from ep_plugin.linear.modules import Scale, SharedDropout
from ep_plugin.linear.pooling import AveragePool
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.linear.separate import Separate

Shape = Sequence[int]

_TRANSPOSED: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@torch.no_grad()
def transposed(connection: Connection, shape: Shape) -> nn.Sequential:
    """The connection's adjoint for a source of `shape`, in float32: a convolution becomes a transposed one.

    Raises:
        ValueError: a part of it has no such module.
    """
    bound = connection.bound(connection.tensors(), shape)
    shapes = [*(p.shape for p in bound.parts), bound.shape]
    modules: list[nn.Module] = []
    for k in reversed(range(len(bound.parts))):
        part = bound.parts[k]
        try:
            modules += _transposed(part.map, tuple(t.detach().float() for t in part.tensors), shapes[k], shapes[k + 1])
        except NotImplementedError:
            raise ValueError(
                f"the feedback of the connection {connection.source} -> {connection.target} has no module that carries "
                f"it down ({type(part.map).__name__}); use linear layers, convolutions and average pooling there, or "
                "leave feedback=True out"
            ) from None
    return nn.Sequential(*modules)


@singledispatch
def _transposed(linear: LinearMap, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    raise NotImplementedError


@_transposed.register
def _(linear: Affine, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    weight = tensors[0].flatten(1)
    outputs, inputs = weight.shape
    module = nn.Linear(outputs, inputs, bias=False)
    module.weight.copy_(weight.T)
    return [module, *([nn.Unflatten(1, tuple(shape))] if isinstance(linear, FlattenedAffine) else [])]


@_transposed.register
def _(linear: ReadNoise, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    return []  # a chip brings its own


@_transposed.register
def _(linear: Separate, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    return _transposed(linear.down, tensors[-1:], shape, result)


@_transposed.register
def _(linear: Convolution, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    weight = tensors[0]
    window = (linear.stride, linear.padding, linear.dilation)
    return [_convolution(weight, shape, result, *window, linear.groups)]


@_transposed.register
def _(linear: AveragePool, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    if linear.ceil_mode or not linear.count_include_pad:
        raise NotImplementedError
    size = torch.Size(linear.kernel).numel()
    weight = torch.full((shape[0], 1, *linear.kernel), 1 / (linear.divisor or size))
    return [_convolution(weight, shape, result, linear.stride, linear.padding, (1,) * len(linear.kernel), shape[0])]


@_transposed.register
def _(linear: Reshape, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    return [nn.Flatten(), nn.Unflatten(1, tuple(shape))]


@_transposed.register
def _(linear: Scale, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    return [linear]


@_transposed.register
def _(linear: SharedDropout, tensors: Tensors, shape: Shape, result: Shape) -> list[nn.Module]:
    return []


def _convolution(
    weight: torch.Tensor, shape: Shape, result: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> nn.Module:
    """The transposed convolution from `result` to `shape`, with what the convolution never read filled up by zeros."""
    kernel = tuple(weight.shape[2:])
    unread = tuple(
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, s, p, d, k in zip(shape[1:], result[1:], stride, padding, dilation, kernel, strict=True)
    )
    module = _TRANSPOSED[len(kernel) - 1](
        result[0], shape[0], kernel, tuple(stride), tuple(padding), unread, groups, False, tuple(dilation)
    )
    module.weight.copy_(weight)
    return module
