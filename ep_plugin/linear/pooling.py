"""Average pooling, and max pooling and other piecewise linear modules, which are affine near a state."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, as_tuple, register_all
from ep_plugin.tensors import is_channels_last


class AveragePool(LinearMap):
    """`nn.AvgPool1d` and `nn.AvgPool2d`."""

    def __init__(self, module: nn.AvgPool1d | nn.AvgPool2d) -> None:
        dim = 1 if isinstance(module, nn.AvgPool1d) else 2
        self.kernel, self.stride, self.padding = (
            as_tuple(v, dim) for v in (module.kernel_size, module.stride, module.padding)
        )
        self.ceil_mode, self.count_include_pad = module.ceil_mode, module.count_include_pad
        self.divisor: int | None = getattr(module, "divisor_override", None)

    @property
    def folds(self) -> bool:
        """Whether it is a box filter, which a convolution before it can take over."""
        return set(self.padding) == {0} and not self.ceil_mode

    def _in_two_dimensions(self) -> Any:
        one = len(self.kernel) == 1
        kernel, stride, padding = (
            ((first, *v) if one else v) for v, first in ((self.kernel, 1), (self.stride, 1), (self.padding, 0))
        )
        return kernel, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        if len(self.kernel) == 1:
            return F.avg_pool2d(x.unsqueeze(-2), *self._in_two_dimensions()).squeeze(-2)
        return F.avg_pool2d(x, *self._in_two_dimensions())

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        x = _empty_for(y, shape)  # read for its shape and layout only
        if len(self.kernel) == 1:
            x, y = x.unsqueeze(-2), y.unsqueeze(-2)
        back = torch.ops.aten.avg_pool2d_backward(y, x, *self._in_two_dimensions())
        return back.squeeze(-2) if len(self.kernel) == 1 else back


class AdaptiveAveragePool(LinearMap):
    """`nn.AdaptiveAvgPool1d` and `nn.AdaptiveAvgPool2d`."""

    def __init__(self, module: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module
        self.one_dimension = isinstance(module, nn.AdaptiveAvgPool1d)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x)

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        x = _empty_for(y, shape)  # read for its shape and layout only
        if self.one_dimension:
            x, y = x.unsqueeze(-2), y.unsqueeze(-2)
        back = torch.ops.aten._adaptive_avg_pool2d_backward(y, x)
        return back.squeeze(-2) if self.one_dimension else back


class MaxPool(LinearMap):
    """Max pooling. Near a state it picks one input, the winner, for every output."""

    is_linear = False

    def __init__(self, module: nn.Module) -> None:
        self.pool: Any = module
        self.axes = int(type(module).__name__[-2])  # a vector may be pooled as well as an image: [B, n]

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        if not tensors:
            return self.pool(x)
        (winners,) = tensors
        spatial = self.axes
        return x.flatten(-spatial).gather(-1, winners.flatten(-spatial)).view(winners.shape)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.affine(tensors, x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        (winners,) = tensors
        back = _empty_for(y, shape, winners)
        if type(self.pool) is nn.MaxPool2d:
            p = self.pool
            return torch.ops.aten.max_pool2d_with_indices_backward(
                *(y, back, as_tuple(p.kernel_size, 2), as_tuple(p.stride, 2), as_tuple(p.padding, 2)),
                *(as_tuple(p.dilation, 2), p.ceil_mode, winners),
            )
        spatial = self.axes
        flat = back.zero_().flatten(-spatial)
        return flat.scatter_add(-1, winners.flatten(-spatial), y.flatten(-spatial)).view(back.shape)

    def at(self, tensors: Tensors, x: Tensor) -> Tensors:
        name = type(self.pool).__name__
        if name.startswith("Adaptive"):
            return (getattr(F, f"adaptive_max_pool{self.axes}d")(x, self.pool.output_size, return_indices=True)[1],)
        p = self.pool
        pool = getattr(F, f"max_pool{self.axes}d")
        return (pool(x, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode, return_indices=True)[1],)


def _empty_for(y: Tensor, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
    """Room for an input of `shape`, laid out as `y` (or `like`) is."""
    layout = torch.channels_last if is_channels_last(y if like is None else like) else torch.contiguous_format
    return torch.empty(len(y), *shape, dtype=y.dtype, device=y.device, memory_format=layout)


class PiecewiseLinear(LinearMap):
    """An elementwise module that is piecewise linear: a slope and an offset for each entry near a state."""

    is_linear = False

    def __init__(self, module: Any) -> None:
        self.module = module
        if module.inplace:  # states are not to be written into
            self.module = copy.copy(module)
            self.module.inplace = False

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x) if not tensors else torch.addcmul(tensors[1], tensors[0], x)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return tensors[0] * x

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return tensors[0] * y

    def at(self, tensors: Tensors, x: Tensor) -> Tensors:
        x = x.detach()
        # A difference within a piece, not autograd, which does not run under inference mode.
        value = self.module(x)
        slope = self._slope(x, value)
        return slope, value - slope * x

    def _slope(self, x: Tensor, value: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.LeakyReLU):
            return torch.where(x > 0, torch.ones_like(x), module.negative_slope)
        low, high = {nn.ReLU: (0.0, torch.inf), nn.ReLU6: (0.0, 6.0)}.get(type(module)) or (
            module.min_val,
            module.max_val,
        )
        return ((x > low) & (x < high)).to(x.dtype)


register_all((nn.AvgPool1d, nn.AvgPool2d), AveragePool)
register_all((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), AdaptiveAveragePool)
register_all(
    (
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    ),
    MaxPool,
)
register_all((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh), PiecewiseLinear)
