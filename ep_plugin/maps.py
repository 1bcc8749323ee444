"""Linear modules with their tensors made explicit, and their adjoints.

Signals go up through A(x) = K x + b and down through K^T. All but `Differentiated` have both written
with PyTorch's own kernels, which also run under `torch.inference_mode`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp

from ep_plugin.modules import FixedNormalisation, Scale, SharedDropout, channelwise

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
        self.padding = symmetric_padding(module)
        self.normalisation: Channelwise | None = None  # the one behind it, once it is folded

    @property
    def _dim(self) -> int:
        return len(self.stride)

    def tensors(self) -> Tensors:
        own = _weight_and_bias(self.module)
        return own if self.normalisation is None else self.normalisation.folded(own)

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
        self.normalisation = convolution.normalisation
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


class Scaling:
    """`Scale`."""

    def __init__(self, module: Scale) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return ()

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return x * self.module.factor

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * self.module.factor


class Channelwise:
    """`FixedNormalisation`: a factor and an offset a channel."""

    def __init__(self, module: FixedNormalisation) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return self.module.effective()

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return channelwise(tensors, x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * tensors[0].view(-1, *[1] * (y.dim() - 2))

    def folded(self, weight_and_bias: Tensors) -> Tensors:
        """Weight and bias of a convolution with this behind it."""
        weight, *bias = weight_and_bias
        factor, *offset = self.tensors()
        terms = [b * factor for b in bias] + offset
        shift = [torch.stack(terms).sum(0)] if terms else []
        return (weight * factor.view(-1, *[1] * (weight.dim() - 1)), *shift)


class Masking:
    """`SharedDropout`: its mask is a weight that is drawn, and kept until the next forward pass."""

    def __init__(self, module: SharedDropout) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return (torch.ones(()),)

    def drawn(self, shape: Sequence[int], like: Tensor) -> Tensors:
        """The mask for states of `shape` (without the batch): ones in evaluation."""
        return (self.module.mask(shape, like),)

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return x * tensors[0]

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * tensors[0]


class Differentiated:
    """Any other module, differentiated by `torch.func.vjp`: in float32 at least, also under autocast."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]

    def tensors(self) -> Tensors:
        return tuple(self.module.parameters())

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self._call(tensors, at_least_float32(x)).to(x.dtype)

    def pullback(self, tensors: Tensors, y: Tensor, x: Tensor) -> Tensor:
        """The adjoint of the derivative at `x`: K^T y, wherever x is, if the module is linear."""
        back = vjp(lambda x: self._call(tensors, x), at_least_float32(x))[1]
        return back(at_least_float32(y))[0].to(y.dtype)

    def _call(self, tensors: Tensors, x: Tensor) -> Tensor:
        return functional_call(self.module, dict(zip(self.names, tensors, strict=True)), (x,))


def at_least_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def laid_out(t: Tensor) -> Tensor:
    """Channels last, where that pays: on a CPU convolutions are faster so, and their adjoints up to
    nine times (5x5 kernels, pooled, batch 64). Elsewhere PyTorch's own choice is kept."""
    if t.dim() == 4 and t.device.type == "cpu":
        return t.contiguous(memory_format=torch.channels_last)
    return t


def symmetric_padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
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
