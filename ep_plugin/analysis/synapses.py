"""How many synapses an event reaches: the connections with every weight replaced by whether it is there.

K of a connection becomes a matrix of ones (a weight that is not zero) and zeros. Applied to the number of events
of each neuron it counts the synapses that they reach, exactly at borders, with strides, groups and dilation;
its adjoint counts those that feedback events reach. Pooling that is folded into a convolution is counted as the
one kernel that it is. Several maps in a row are passed one after the other, so that a pair of neurons counts once
for every way between them. Where only winners pass (max pooling), only winners count.
"""

import copy
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from ep_plugin.linear.base import LinearMap, Tensors
from ep_plugin.linear.concatenation import PlacedWeight, Placement
from ep_plugin.linear.connection import BoundConnection
from ep_plugin.linear.convolution import Convolution
from ep_plugin.linear.dense import Affine, Reshape
from ep_plugin.linear.modules import FixedNormalization, Scale, SharedDropout
from ep_plugin.linear.pooling import AveragePool, MaxPool, PiecewiseLinear
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.linear.separate import Separate


@dataclass(frozen=True)
class Synapses:
    """The synapses of one connection between neurons, affine everywhere or pinned at a state.

    Args:
        bound: the connection with its weights.
        zeros: count weights that are zero too, as a dense evaluation does.
    """

    bound: BoundConnection
    zeros: bool = False

    def __post_init__(self) -> None:
        parts = []
        for part in self.bound.parts:
            found, tensors = _there(part.map, part.tensors, tuple(part.shape), self.zeros)
            parts.append(replace(part, map=found, tensors=tensors))
        object.__setattr__(self, "bound", replace(self.bound, parts=tuple(parts), dtype=torch.float64))

    def up(self, events: Tensor) -> Tensor:
        """How many synapses events of the source reach, `[B]`, for their number in each neuron, `[B, ...]`."""
        return self.bound.linear(events).flatten(1).sum(1)

    def down(self, events: Tensor) -> Tensor:
        """How many synapses events of the target reach on their way down, `[B]`."""
        return self.bound.adjoint(events).flatten(1).sum(1)

    def fan_out(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """How many synapses one event of each source neuron, of `shape`, and of each target neuron reaches."""
        ones = next((t for p in self.bound.parts for t in p.tensors), torch.ones(())).new_ones
        target = ones((1, *self.bound.shape), dtype=torch.float64)
        return self.bound.adjoint(target)[0], self.bound.linear(ones((1, *shape), dtype=torch.float64))[0]


@singledispatch
def _there(linear: Any, tensors: Tensors, shape: tuple[int, ...], zeros: bool) -> tuple[LinearMap, Tensors]:
    """The map that counts, with its tensors; of a map that nothing more is known of by its matrix."""
    inputs = torch.Size(shape).numel()
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    units = torch.eye(inputs, dtype=like.dtype, device=like.device).view(inputs, *shape)
    columns = linear.linear(tensors, units)
    return _Matrix(), ((columns.flatten(1).T != 0).double(), columns.new_zeros(columns.shape[1:]))


class _Matrix(LinearMap):
    """A map as the matrix `[out, in]` that it is, and a tensor of its output's shape."""

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return (x.flatten(1) @ tensors[0].T).view(len(x), *tensors[1].shape)

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Any) -> Tensor:
        return (y.flatten(1) @ tensors[0]).view(len(y), *shape)


@_there.register(Affine)
@_there.register(Convolution)
@_there.register(PlacedWeight)
@_there.register(Separate)
@_there.register(FixedNormalization)
@_there.register(SharedDropout)
@_there.register(PiecewiseLinear)
def _by_weights(linear: Any, tensors: Tensors, shape: tuple[int, ...], zeros: bool) -> tuple[LinearMap, Tensors]:
    return linear, tuple(torch.ones_like(t, dtype=torch.float64) if zeros else (t != 0).double() for t in tensors)


@_there.register(Reshape)
@_there.register(Placement)
@_there.register(MaxPool)
def _itself(linear: Any, tensors: Tensors, shape: tuple[int, ...], zeros: bool) -> tuple[LinearMap, Tensors]:
    return linear, tensors


@_there.register(AveragePool)
def _sum_pool(linear: Any, tensors: Tensors, shape: tuple[int, ...], zeros: bool) -> tuple[LinearMap, Tensors]:
    summed = copy.copy(linear)
    summed.divisor = 1
    return summed, tensors


@_there.register(Scale)
@_there.register(ReadNoise)
def _unscaled(linear: Any, tensors: Tensors, shape: tuple[int, ...], zeros: bool) -> tuple[LinearMap, Tensors]:
    return Scale(1.0), tensors
