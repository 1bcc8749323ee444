"""Convolutions, and the average pooling and fixed normalization that fold into them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, as_tuple, register_all
from ep_plugin.linear.dense import weight_and_bias
from ep_plugin.linear.modules import FixedNormalization
from ep_plugin.linear.pooling import AveragePool


class Convolution(LinearMap):
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, padded with zeros, and a `FixedNormalization` behind it."""

    def __init__(self, module: nn.modules.conv._ConvNd, normalization: FixedNormalization | None = None) -> None:
        self.module, self.normalization = module, normalization
        self.stride, self.dilation, self.groups = module.stride, module.dilation, module.groups
        self.padding = symmetric_padding(module)

    def tensors(self) -> Tensors:
        own = weight_and_bias(self.module)
        return own if self.normalization is None else self.normalization.folded(own)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        bias = tensors[1] if len(tensors) > 1 else None
        return convolve(x, tensors[0], bias, self.stride, self.padding, self.dilation, self.groups)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.affine(tensors[:1], x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.stride) - 1]
        kernel = tensors[0].shape[2:]
        # Input positions behind the last stride, which the convolution never read.
        unread = [
            n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
            for n, m, s, p, d, k in zip(
                shape[1:], y.shape[2:], self.stride, self.padding, self.dilation, kernel, strict=True
            )
        ]
        return transposed(y, tensors[0], None, self.stride, self.padding, unread, self.groups, self.dilation)

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        weight, *bias = tensors
        wanted = [False, True, bool(bias) and offset]
        _, own, shift = torch.ops.aten.convolution_backward(
            *(y, x, weight, [len(b) for b in bias] or None, self.stride, self.padding, self.dilation),
            *(False, [0] * len(self.stride), self.groups, wanted),
        )
        return [own, *([shift if offset else None] if bias else [])]

    def absorb(self, following: LinearMap) -> LinearMap | None:
        if isinstance(following, FixedNormalization) and self.normalization is None:
            return Convolution(self.module, following)
        if (
            isinstance(following, AveragePool)
            and len(self.stride) < 3
            and set(self.dilation) == {1}
            and following.folds
        ):
            return PooledConvolution(self, following)
        return None


class PooledConvolution(Convolution):
    """A convolution and the average pooling after it, as one convolution.

    Pooling averages the kernel over its window, so avg_pool(conv(x, W)) = conv(x, K) with K the
    kernel W box-filtered and the strides multiplied: for 5x5 kernels and 2x2 windows 2.8 times
    fewer operations, and exact.
    """

    def __init__(self, convolution: Convolution, pool: AveragePool) -> None:
        super().__init__(convolution.module, convolution.normalization)
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

    def absorb(self, following: LinearMap) -> None:
        return None


def symmetric_padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    """The padding, one number a dimension.

    Raises:
        ValueError: it is not of zeros, or one side is padded more than the other.
    """
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r}")
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(n % 2 for n in total):
            raise ValueError("one side is padded more than the other")
        return tuple(n // 2 for n in total)
    return as_tuple(module.padding, len(module.kernel_size))


register_all((nn.Conv1d, nn.Conv2d, nn.Conv3d), Convolution)
