"""`nn.Linear`, reshaping, and what is differentiated because PyTorch has no adjoint of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, laid_out, register_all, register_linear


class Affine(LinearMap):
    """`nn.Linear`."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def tensors(self) -> Tensors:
        return weight_and_bias(self.module)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return F.linear(x, *tensors)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return F.linear(x, tensors[0])

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y @ tensors[0]

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        rows, columns = y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        return [rows.T @ columns, *([rows.sum(0) if offset else None] if len(tensors) > 1 else [])]


class FlattenedAffine(Affine):
    """`nn.Flatten` and the `nn.Linear` after it.

    With channels last, flattening is a copy at every step. `prepared` puts the weight into the
    layout of the states instead, `[out, *shape]`, once a phase.
    """

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        weight, *bias = super().prepared(tensors, shape, dtype)
        return (laid_out(weight.view(-1, *shape)), *bias)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        weight, *bias = tensors
        if weight.dim() == 4:
            x, weight = (t.permute(0, 2, 3, 1) for t in (x, weight))
        return F.linear(x.flatten(1), weight.flatten(1), *bias)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.affine(tensors[:1], x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        weight = tensors[0]
        if weight.dim() != 4:
            return (y @ weight.flatten(1)).view(len(y), *shape)
        channels, *place = shape
        back = y @ weight.permute(0, 2, 3, 1).flatten(1)
        return back.view(len(y), *place, channels).permute(0, 3, 1, 2)

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        return super().pullback(tensors, x.flatten(1), y, offset)


class FlattenedTo(nn.Flatten):
    """`view(-1, size)`, which is a sample for a sample only if a sample has so many numbers.

    Args:
        size: of a sample.
    """

    def __init__(self, size: int) -> None:
        super().__init__(1)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        flat = super().forward(x)
        if flat.shape[1] != self.size:
            raise ValueError(
                f"view(-1, {self.size}) was given samples of {flat.shape[1]} numbers, of which it would make other "
                "samples; expected the batch's size first, and so many numbers behind it"
            )
        return flat


class Reshape(LinearMap):
    """`nn.Flatten`, `nn.Unflatten`, `nn.Identity`: the adjoint puts the shape back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.module(x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y.reshape(len(y), *shape)

    def absorb(self, following: LinearMap) -> LinearMap | None:
        flattens = isinstance(self.module, nn.Flatten) and (self.module.start_dim, self.module.end_dim) == (1, -1)
        return FlattenedAffine(following.module) if flattens and type(following) is Affine else None


def weight_and_bias(module: nn.Linear | nn.modules.conv._ConvNd) -> Tensors:
    return (module.weight,) if module.bias is None else (module.weight, module.bias)


register_linear(nn.Linear, Affine)
register_all((nn.Flatten, FlattenedTo, nn.Unflatten, nn.Identity), Reshape)
register_all(
    (
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.AvgPool3d, nn.AdaptiveAvgPool3d),
        *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
        *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
        *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    )
)
