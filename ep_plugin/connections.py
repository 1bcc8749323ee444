"""Linear maps between neurons, and their adjoints.

A connection is a composition of linear modules (convolution, average pooling, flatten, linear, ...)
with an optional bias, A(s) = K s + b. Signals go up through A and down through the adjoint K^T.
The modules of `REGISTRY` have both written with PyTorch's own kernels, which also run under
`torch.inference_mode`; any other module is differentiated by `torch.func.vjp`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ep_plugin.maps import (
    AdaptiveAveragePool,
    Affine,
    AveragePool,
    Channelwise,
    Convolution,
    Differentiated,
    FlattenedAffine,
    LinearMap,
    Masking,
    PooledConvolution,
    Reshape,
    Scaling,
    Tensors,
    laid_out,
    symmetric_padding,
)
from ep_plugin.modules import FixedNormalisation, Scale, SharedDropout

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
    Scale: Scaling,
    FixedNormalisation: Channelwise,
    SharedDropout: Masking,
}
"""Module type -> its map and adjoint. What is not here goes through `torch.func.vjp`."""

DIFFERENTIATED = (
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.AvgPool3d, nn.AdaptiveAvgPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
"""Modules that are linear and have no entry in the registry."""

_NOT_LINEAR: dict[type[nn.Module], type[nn.Module]] = {
    nn.modules.batchnorm._BatchNorm: FixedNormalisation,
    nn.modules.dropout._DropoutNd: SharedDropout,
}


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
            self._sizes = [len(m.tensors()) for m in self._maps]
        # The adjoint needs the inputs of the maps up to the last that is differentiated.
        self._inputs_needed = max((k for k, m in enumerate(self._maps) if isinstance(m, Differentiated)), default=0)
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.target}"

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        """The effective weights as many calls want them: in `dtype`, laid out for a source of `shape`."""
        ready: list[Tensor] = []
        for (linear, own), at in zip(self._parts(tensors), self.shapes(shape)[:-1], strict=True):
            if isinstance(linear, Differentiated):
                ready.extend(own)
                continue
            own = tuple(t.to(dtype) for t in own)
            ready.extend(linear.prepared(own, at) if isinstance(linear, FlattenedAffine) else own)
        return tuple(ready)

    def tensors(self, shape: Sequence[int] | None = None) -> Tensors:
        """Effective weights: what the parameters have become after folding, tying or normalising.

        With the `shape` of the source, dropout's masks are drawn among them; without, nothing is dropped.
        """
        if shape is None or not any(isinstance(m, Masking) for m in self._maps):
            return tuple(t for m in self._maps for t in m.tensors())
        found: list[Tensor] = []
        for linear, at in zip(self._maps, self.shapes(shape)[:-1], strict=True):
            found.extend(linear.drawn(at, self._like()) if isinstance(linear, Masking) else linear.tensors())
        return tuple(found)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes without the batch, from the given input through every map to the output.

        They follow from the input's shape alone, so they are worked out once for each.
        """
        shape = tuple(shape)
        if shape not in self._shapes:
            values = [self._like().new_zeros(1, *shape)]
            with torch.no_grad():
                for linear, own in self._parts(self.tensors()):
                    values.append(linear.apply(own, values[-1]))
            self._shapes[shape] = [tuple(v.shape[1:]) for v in values]
        return self._shapes[shape]

    def apply(self, tensors: Tensors, x: Tensor) -> Tensor:  # type: ignore[override]
        """A(x), `[B, ...]` of the target's shape."""
        for linear, own in self._parts(tensors):
            x = linear.apply(own, x)
        return x

    def adjoint(self, tensors: Tensors, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, `[B, ...]` of the source's shape. `x` is the source's state.

        Only its shape matters, unless a module is not linear (max pooling kept between neurons):
        then its adjoint is that of its derivative where the signal from `x` reaches it.
        """
        parts, shapes = self._parts(tensors), self.shapes(x.shape[1:])
        inputs = [x]
        for linear, own in parts[: self._inputs_needed]:
            inputs.append(linear.apply(own, inputs[-1]))
        for k in reversed(range(len(parts))):
            linear, own = parts[k]
            if isinstance(linear, Differentiated):
                y = linear.pullback(own, y, inputs[k])
            else:
                y = linear.adjoint(own, y, shapes[k])
        return y

    def _like(self) -> Tensor:
        """Something of the parameters' type and place."""
        return next(self.module.parameters(), torch.empty(0)).detach()

    def _parts(self, tensors: Tensors) -> list[tuple[LinearMap | Differentiated, Tensors]]:
        """Every map with its own of the tensors."""
        ends = list(accumulate(self._sizes))
        return [(m, tensors[end - n : end]) for m, n, end in zip(self._maps, self._sizes, ends, strict=True)]


def evaluate(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, with the pooling behind a convolution folded into it where the registry can."""
    modules = _flat(module)
    if module._forward_hooks or module._forward_pre_hooks or not all(map(_is_registered, modules)):
        return module(x)
    for linear in _composition(modules):
        assert not isinstance(linear, Differentiated)
        x = linear.apply(tuple(laid_out(t) for t in linear.tensors()), x)
    return x


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) is nn.Sequential:
        return [leaf for child in module for leaf in _flat(child)]
    return [module]


def _composition(modules: list[nn.Module]) -> list[LinearMap | Differentiated]:
    """The modules' maps, folded where that is exact."""
    maps: list[LinearMap | Differentiated] = []
    for module in modules:
        for unfit, fit in _NOT_LINEAR.items():
            if isinstance(module, unfit):
                raise ValueError(
                    f"a {type(module).__name__} changes from step to step, so it cannot connect neurons; expected "
                    f"ep_plugin.modules.{fit.__name__}(module) in its place, or ep_plugin.convert"
                )
        if not _is_registered(module):
            maps.append(Differentiated(module))
            continue
        linear = REGISTRY[type_before_parametrizations(module)](module)
        last = maps[-1] if maps else None
        if isinstance(last, Convolution) and _folds(last, linear):
            maps[-1] = PooledConvolution(last, linear)  # type: ignore[arg-type]
        elif type(last) is Convolution and last.normalisation is None and isinstance(linear, Channelwise):
            last.normalisation = linear
        elif isinstance(last, Reshape) and _flattens(last) and type(linear) is Affine:
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
            symmetric_padding(module)
        except ValueError:
            return False
    return type_before_parametrizations(module) in REGISTRY


def _folds(first: Convolution, second: LinearMap) -> bool:
    return (
        type(first) is Convolution
        and isinstance(second, AveragePool)
        and len(first.stride) < 3
        and set(first.dilation) == {1}
        and set(second.padding) == {0}
        and not second.ceil_mode
    )


def _flattens(linear: Reshape) -> bool:
    """Whether it flattens all but the batch."""
    module = linear.module
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
