"""Linear maps between neurons, and their adjoints.

A connection is a composition of linear modules (convolution, average pooling, flatten, linear, ...)
with an optional bias, A(s) = K s + b. Signals go up through A and down through the adjoint K^T.
The modules of `REGISTRY` have both written with PyTorch's own kernels, which also run under
`torch.inference_mode`; any other module is differentiated by `torch.func.vjp`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn.utils.parametrize import type_before_parametrizations

Tensors = tuple[Tensor, ...]


class LinearMap(Protocol):
    """One linear module with its tensors made explicit. Shapes are batch first."""

    def tensors(self) -> Tensors:
        """The effective weights, on the autograd graph of the parameters that they are made of."""

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        """A(x) = K x + b."""

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        """K^T y, for an input of `shape` (without the batch)."""


class Affine:
    """`nn.Linear`."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return _weight_and_bias(self.module)

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return F.linear(x, *tensors)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y @ tensors[0]


class FlattenedAffine(Affine):
    """`nn.Flatten` and the `nn.Linear` after it.

    With channels last, flattening is a copy at every step. `prepared` puts the weight into the
    layout of the states instead, `[out, *shape]`, once a phase.
    """

    def prepared(self, tensors: Tensors, shape: Sequence[int]) -> Tensors:
        return (laid_out(tensors[0].view(-1, *shape)), *tensors[1:])

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        weight, *bias = tensors
        if weight.dim() == 4:
            x, weight = (t.permute(0, 2, 3, 1) for t in (x, weight))
        return F.linear(x.flatten(1), weight.flatten(1), *bias)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        weight = tensors[0]
        if weight.dim() != 4:
            return (y @ weight.flatten(1)).view(len(y), *shape)
        channels, *place = shape
        back = y @ weight.permute(0, 2, 3, 1).flatten(1)
        return back.view(len(y), *place, channels).permute(0, 3, 1, 2)


class Convolution:
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, padded with zeros."""

    def __init__(self, module: nn.modules.conv._ConvNd) -> None:
        self.module = module
        self.stride, self.dilation, self.groups = module.stride, module.dilation, module.groups
        self.padding = _symmetric_padding(module)

    @property
    def _dim(self) -> int:
        return len(self.stride)

    def tensors(self) -> Tensors:
        return _weight_and_bias(self.module)

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self._dim - 1]
        bias = tensors[1] if len(tensors) > 1 else None
        return convolve(x, tensors[0], bias, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self._dim - 1]
        kernel = tensors[0].shape[2:]
        # Input positions behind the last stride, which the convolution never read.
        unread = [
            n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
            for n, m, s, p, d, k in zip(
                shape[1:], y.shape[2:], self.stride, self.padding, self.dilation, kernel, strict=True
            )
        ]
        return transposed(y, tensors[0], None, self.stride, self.padding, unread, self.groups, self.dilation)


class PooledConvolution(Convolution):
    """A convolution and the average pooling after it, as one convolution.

    Pooling averages the kernel over its window, so avg_pool(conv(x, W)) = conv(x, K) with K the
    kernel W box-filtered and the strides multiplied: for 5x5 kernels and 2x2 windows 2.8 times
    fewer operations, and exact.
    """

    def __init__(self, convolution: Convolution, pool: "AveragePool") -> None:
        super().__init__(convolution.module)
        self.window, self.between = pool.kernel, convolution.stride
        self.share = 1 / (pool.divisor or math.prod(pool.kernel))
        self.stride = tuple(s * m for s, m in zip(convolution.stride, pool.stride, strict=True))

    def tensors(self) -> Tensors:
        weight, *bias = super().tensors()
        # One shifted copy a pooled output, as far apart as the convolution's stride.
        kernel = weight * self.share
        for last, (window, stride) in enumerate(zip(self.window[::-1], self.between[::-1], strict=True)):
            before = [n * stride for n in range(window)]
            # F.pad takes its pairs from the last dimension on.
            shifted = [F.pad(kernel, (*[0, 0] * last, n, before[-1] - n)) for n in before]
            kernel = torch.stack(shifted).sum(0)
        return (kernel, *(b * self.share * math.prod(self.window) for b in bias))


class AveragePool:
    """`nn.AvgPool1d` and `nn.AvgPool2d`."""

    def __init__(self, module: nn.AvgPool1d | nn.AvgPool2d) -> None:
        dim = 1 if isinstance(module, nn.AvgPool1d) else 2
        self.kernel, self.stride, self.padding = (
            _tuple(v, dim) for v in (module.kernel_size, module.stride, module.padding)
        )
        self.ceil_mode, self.count_include_pad = module.ceil_mode, module.count_include_pad
        self.divisor: int | None = getattr(module, "divisor_override", None)

    def _in_two_dimensions(self) -> Any:
        one = len(self.kernel) == 1
        kernel, stride, padding = (
            ((first, *v) if one else v) for v, first in ((self.kernel, 1), (self.stride, 1), (self.padding, 0))
        )
        return kernel, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor

    def tensors(self) -> Tensors:
        return ()

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        if len(self.kernel) == 1:
            return F.avg_pool2d(x.unsqueeze(-2), *self._in_two_dimensions()).squeeze(-2)
        return F.avg_pool2d(x, *self._in_two_dimensions())

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        x = y.new_empty(len(y), *shape)  # read for its shape only
        if len(self.kernel) == 1:
            x, y = x.unsqueeze(-2), y.unsqueeze(-2)
        back = torch.ops.aten.avg_pool2d_backward(y, x, *self._in_two_dimensions())
        return back.squeeze(-2) if len(self.kernel) == 1 else back


class AdaptiveAveragePool:
    """`nn.AdaptiveAvgPool1d` and `nn.AdaptiveAvgPool2d`."""

    def __init__(self, module: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module
        self.one_dimension = isinstance(module, nn.AdaptiveAvgPool1d)

    def tensors(self) -> Tensors:
        return ()

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        x = y.new_empty(len(y), *shape)  # read for its shape only
        if self.one_dimension:
            x, y = x.unsqueeze(-2), y.unsqueeze(-2)
        back = torch.ops.aten._adaptive_avg_pool2d_backward(y, x)
        return back.squeeze(-2) if self.one_dimension else back


class Reshape:
    """`nn.Flatten`, `nn.Unflatten`, `nn.Identity`: the adjoint puts the shape back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return ()

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y.reshape(len(y), *shape)


REGISTRY: dict[type[nn.Module], Callable[..., LinearMap]] = {
    nn.Linear: Affine,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.AvgPool1d: AveragePool,
    nn.AvgPool2d: AveragePool,
    nn.AdaptiveAvgPool1d: AdaptiveAveragePool,
    nn.AdaptiveAvgPool2d: AdaptiveAveragePool,
    nn.Flatten: Reshape,
    nn.Unflatten: Reshape,
    nn.Identity: Reshape,
}
"""Module type -> its map and adjoint. What is not here goes through `torch.func.vjp`."""

DIFFERENTIATED = (
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.AvgPool3d, nn.AdaptiveAvgPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
"""Modules that are linear and have no entry in the registry."""


class Connection(nn.Module):
    """The weights between two layers of neurons.

    Args:
        module: linear in its input, `[B, ...] -> [B, ...]`. Its parameters are shared, not copied.
        source: index of the layer whose neurons send.
        target: index of the layer whose neurons receive. It may equal `source` (a recurrent layer,
            which then acts through K + K^T).
    """

    def __init__(self, module: nn.Module, source: int, target: int) -> None:
        super().__init__()
        self.module = module
        self.source, self.target = source, target
        self._maps = _composition(_flat(module))
        with torch.no_grad():
            self._sizes = [len(m.tensors()) for m in self._maps or ()]
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.target}"

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        """The effective weights as many calls want them: in `dtype`, laid out for a source of `shape`."""
        if self._maps is None:
            return tensors
        ready: list[Tensor] = []
        for (linear, own), at in zip(self._parts(tensors), self.shapes(shape)[:-1], strict=True):
            own = tuple(t.to(dtype) for t in own)
            ready.extend(linear.prepared(own, at) if isinstance(linear, FlattenedAffine) else own)
        return tuple(ready)

    def tensors(self) -> Tensors:
        """Effective weights: what the parameters have become after folding, tying or normalising."""
        if self._maps is None:
            return tuple(self.module.parameters())
        return tuple(t for m in self._maps for t in m.tensors())

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes without the batch, from the given input through every map to the output.

        They follow from the input's shape alone, so they are worked out once for each.
        """
        shape = tuple(shape)
        if shape not in self._shapes:
            tensors = self.tensors()
            like = next(iter(self.module.parameters()), torch.empty(0))
            x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
            with torch.no_grad():
                if self._maps is None:
                    values = [x, self.apply(tensors, x)]
                else:
                    values = [x]
                    for linear, own in self._parts(tensors):
                        values.append(linear.apply(own, values[-1]))
            self._shapes[shape] = [tuple(v.shape[1:]) for v in values]
        return self._shapes[shape]

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:  # type: ignore[override]
        """A(x), `[B, ...]` of the target's shape."""
        if self._maps is None:
            names = [name for name, _ in self.module.named_parameters()]
            return functional_call(self.module, dict(zip(names, tensors, strict=True)), (at_least_float32(x),))
        for linear, own in self._parts(tensors):
            x = linear.apply(own, x)
        return x

    def adjoint(self, tensors: Tensors, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, `[B, ...]` of the source's shape. `x` is the source's state.

        Only its shape matters, unless the module is not linear (max pooling kept between neurons):
        then the adjoint is that of its derivative at `x`.
        """
        if self._maps is None:
            return vjp(lambda x: self.apply(tensors, x), at_least_float32(x))[1](at_least_float32(y))[0]
        shapes = self.shapes(x.shape[1:])
        for (linear, own), shape in zip(self._parts(tensors)[::-1], shapes[-2::-1], strict=True):
            y = linear.adjoint(own, y, shape)
        return y

    def _parts(self, tensors: Tensors) -> list[tuple[LinearMap, Tensors]]:
        """Every map with its own of the tensors."""
        assert self._maps is not None
        ends = list(accumulate(self._sizes))
        return [(m, tensors[end - n : end]) for m, n, end in zip(self._maps, self._sizes, ends, strict=True)]


def evaluate(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, with the pooling behind a convolution folded into it where the registry can."""
    if module._forward_hooks or module._forward_pre_hooks or (maps := _composition(_flat(module))) is None:
        return module(x)
    for linear in maps:
        x = linear.apply(tuple(laid_out(t) for t in linear.tensors()), x)
    return x


def at_least_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def laid_out(t: Tensor) -> Tensor:
    """Channels last, where that pays: on a CPU convolutions are faster so, and their adjoints up to
    nine times (5x5 kernels, pooled, batch 64). Elsewhere PyTorch's own choice is kept."""
    if t.dim() == 4 and t.device.type == "cpu":
        return t.contiguous(memory_format=torch.channels_last)
    return t


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) is nn.Sequential:
        return [leaf for child in module for leaf in _flat(child)]
    return [module]


def _composition(modules: list[nn.Module]) -> list[LinearMap] | None:
    """The modules' maps, folded where that is exact; None if one of them needs `torch.func.vjp`."""
    if not all(map(_is_registered, modules)):
        return None
    maps: list[LinearMap] = []
    for module in modules:
        linear = REGISTRY[type_before_parametrizations(module)](module)
        if maps and _folds(maps[-1], linear):
            maps[-1] = PooledConvolution(maps[-1], linear)  # type: ignore[arg-type]
        elif maps and _flattens(maps[-1]) and type(linear) is Affine:
            maps[-1] = FlattenedAffine(linear.module)
        else:
            maps.append(linear)
    return maps


def _is_registered(module: nn.Module) -> bool:
    # A hook may change what the module does (weight_norm and pruning write the weight in one).
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.modules.conv._ConvNd):
        try:
            _symmetric_padding(module)
        except ValueError:
            return False
    return type_before_parametrizations(module) in REGISTRY


def _folds(first: LinearMap, second: LinearMap) -> bool:
    return (
        type(first) is Convolution
        and isinstance(second, AveragePool)
        and len(first.stride) < 3
        and set(first.dilation) == {1}
        and set(second.padding) == {0}
        and not second.ceil_mode
    )


def _flattens(linear: LinearMap) -> bool:
    """Whether it flattens all but the batch."""
    module = linear.module if isinstance(linear, Reshape) else None
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)


def _symmetric_padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r}")
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(n % 2 for n in total):
            raise ValueError("one side is padded more than the other")
        return tuple(n // 2 for n in total)
    return _tuple(module.padding, len(module.kernel_size))


def _weight_and_bias(module: nn.Linear | nn.modules.conv._ConvNd) -> Tensors:
    return (module.weight,) if module.bias is None else (module.weight, module.bias)


def _tuple(value: object, length: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * length
    value = tuple(value)  # type: ignore[arg-type]
    return value * length if len(value) < length else value
