"""Connections between layers of neurons: compositions of affine maps, with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ep_plugin.linear import concatenation, convolution, dense, modules, pooling  # noqa: F401  (they fill the registry)
from ep_plugin.linear.base import (
    REGISTRY,
    Differentiated,
    LinearMap,
    Tensors,
    at_least_float32,
    follow,
    is_hooked,
    is_hooked_backward,
    laid_out,
    same_objects,
    settings_of,
)
from ep_plugin.linear.convolution import symmetric_padding
from ep_plugin.linear.modules import FixedNormalization, SharedDropout
from ep_plugin.linear.pooling import MaxPool
from ep_plugin.linear.separate import SeparateFeedback
from ep_plugin.spelling import refuse_misspelled
from ep_plugin.validation import count

_CHANGE: dict[type[nn.Module], type[nn.Module]] = {
    nn.modules.batchnorm._BatchNorm: FixedNormalization,
    nn.modules.dropout._DropoutNd: SharedDropout,
}
"""What changes from step to step -> what may stand in its place."""

_WRAPPERS = (FixedNormalization, SharedDropout, SeparateFeedback)
"""What stands in the place of a module, and does not call it."""

_OWN_ENERGY = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)


class Connection(nn.Module):
    """The weights between two layers of neurons.

    Args:
        module: affine in its input, `[B, ...] -> [B, ...]`: a module of PyTorch that is known to be affine, one of a
            type given to `register_linear`, or an `nn.Sequential` of these. It may contain max pooling, ReLU,
            LeakyReLU, ReLU6 and Hardtanh, which are piecewise affine. Its parameters are shared, not copied.
        source: index of the layer whose neurons send.
        target: index of the layer whose neurons receive. It may equal `source` (a recurrent layer, which then acts
            through K + K^T).

    Raises:
        ValueError: a module is not known to be affine, or an index is below 0.
        TypeError: an index is not a whole number, or the module is not an `nn.Module`.

    Example:
        >>> layers = [ep.Layer()]
        >>> recurrent = ep.Connection(nn.Linear(32, 32, bias=False), source=0, target=0)
        >>> model = ep.ConvergentNetwork(nn.Linear(64, 32), layers, [recurrent], nn.Linear(32, 10))
    """

    def __init__(self, module: nn.Module, source: int, target: int) -> None:
        super().__init__()
        self.module = module
        self.source, self.target = source, target
        self._made_of: list[Any] = []
        self._compose()

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_misspelled(self, "a connection has no attribute", name, ("module", "source", "target"))
        if name in ("source", "target"):
            value = count(f"the {name} of a connection", value, least=0)
        elif name == "module" and not isinstance(value, nn.Module):
            raise TypeError(f"the module of a connection is {value!r}; expected an nn.Module")
        super().__setattr__(name, value)

    def _compose(self) -> None:
        """The maps of the modules as they are now: one may have been replaced, parametrized, hooked or set since."""
        leaves = _flat(self.module)
        made_of = [part for leaf in leaves for part in _made_of(leaf)]
        if self._made_of and same_objects(made_of, self._made_of):
            return
        for leaf in leaves:
            follow(leaf)
        self._maps = _composition(leaves)
        with torch.no_grad():
            self._sizes = [len(m.tensors()) for m in self._maps]
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        self._made_of = made_of

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.target}"

    @property
    def is_linear(self) -> bool:
        """Whether it is affine everywhere, and not only near a state."""
        return all(m.is_linear for m in self._maps)

    @property
    def pools_maxima(self) -> bool:
        """Whether max pooling stands in it."""
        return any(isinstance(m, MaxPool) for m in self._maps)

    def tensors(self, shape: Sequence[int] | None = None, like: Tensor | None = None) -> Tensors:
        """Effective weights: what the parameters have become after folding, tying or normalizing.

        With the `shape` of the source, dropout's masks are drawn among them (of the parameters' type and place,
        or those of `like` where there are none); without, nothing is dropped.

        Raises:
            ValueError: a module has been replaced by one that is not known to be affine.
        """
        if shape is None:
            self._compose()
            return tuple(t for m in self._maps for t in m.tensors())
        shapes, like = self.shapes(shape), _like(self.module, like)
        return tuple(t for m, at in zip(self._maps, shapes[:-1], strict=True) for t in m.drawn(at, like))

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes without the batch, from the given input through every map to the output.

        They follow from the input's shape alone, so they are worked out once for each.

        Raises:
            ValueError: a module has been replaced by one that is not known to be affine.
        """
        self._compose()
        shape = tuple(shape)
        if shape not in self._shapes:
            values = [_like(self.module).new_zeros(1, *shape)]
            with torch.no_grad():
                for linear, own in zip(self._maps, self._split(self.tensors()), strict=True):
                    values.append(linear.affine(own, values[-1]))
                    if isinstance(linear, MaxPool) and not values[-1].is_meta and values[-1].isneginf().any():
                        raise RuntimeError(f"{linear.pool} has windows without an entry; give less padding or dilation")
            self._shapes[shape] = [tuple(v.shape[1:]) for v in values]
        return self._shapes[shape]

    def bound(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype | None = None) -> "BoundConnection":
        """The connection with its weights, for a source of `shape`: prepared for many calls in `dtype`, if given."""
        shapes = self._shapes.get(tuple(shape)) or self.shapes(shape)
        parts = []
        for linear, own, at in zip(self._maps, self._split(tensors), shapes[:-1], strict=True):
            parts.append(_Part(linear, own if dtype is None else linear.prepared(own, at, dtype), at))
        return BoundConnection(self.source, self.target, tuple(parts), shapes[-1], dtype)

    def _split(self, tensors: Tensors) -> list[Tensors]:
        """Every map's own of the tensors."""
        ends = list(accumulate(self._sizes))
        return [tensors[end - n : end] for n, end in zip(self._sizes, ends, strict=True)]


@dataclass(frozen=True)
class _Part:
    map: LinearMap
    tensors: Tensors
    shape: Sequence[int]  # of its input, without the batch


@dataclass(frozen=True)
class BoundConnection:
    """A connection with its weights: A(x) = K x + b from `source` to `target`, the formulas of `LinearMap`."""

    source: int
    target: int
    parts: tuple[_Part, ...]
    shape: Sequence[int]  # of its output, without the batch
    dtype: torch.dtype | None

    @property
    def is_linear(self) -> bool:
        """Whether it is affine everywhere, and not only near a state."""
        return all(p.map.is_linear for p in self.parts)

    def affine(self, x: Tensor) -> Tensor:
        """A(x), `[B, ...]` of the target's shape."""
        x = self._cast(x)
        for part in self.parts:
            x = part.map.affine(part.tensors, x)
        return x

    def linear(self, x: Tensor) -> Tensor:
        """K x."""
        x = self._cast(x)
        for part in self.parts:
            x = part.map.linear(part.tensors, x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """K^T y, `[B, ...]` of the source's shape."""
        y = self._cast(y)
        for part in reversed(self.parts):
            y = part.map.adjoint(part.tensors, y, part.shape)
        return y

    def at(self, x: Tensor) -> tuple["BoundConnection", Tensor]:
        """The affine connection that this one is near the state `x` of its source, and A(x)."""
        x, parts = self._cast(x), []
        for part in self.parts:
            tensors = part.tensors if part.map.is_linear else part.map.at((), x)
            parts.append(replace(part, tensors=tensors))
            x = part.map.affine(tensors, x)
        return replace(self, parts=tuple(parts)), x

    def pinned(self, other: "BoundConnection") -> "BoundConnection":
        """This one with the winners of another, that `at` has returned for the same connection."""
        return replace(
            self,
            parts=tuple(p if p.map.is_linear else o for p, o in zip(self.parts, other.parts, strict=True)),
        )

    def repeated(self, times: int) -> "BoundConnection":
        """For a batch that is the original one several times over."""
        return replace(
            self,
            parts=tuple(
                p if p.map.is_linear else replace(p, tensors=tuple(torch.cat([t] * times) for t in p.tensors))
                for p in self.parts
            ),
        )

    def pullback(self, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        """The gradient of <y, A(x)> (of <y, K x> if not `offset`) with respect to every tensor of the connection.

        Winners are held fixed. A tensor that has none gets None.
        """
        learned = [k for k, p in enumerate(self.parts) if p.map.is_linear and p.tensors]
        if not learned:
            return []
        inputs = [x]
        for part in self.parts[: learned[-1]]:
            step = part.map.affine if offset else part.map.linear
            inputs.append(step(part.tensors, inputs[-1]))
        found: list[Tensor | None] = []
        for k in range(len(self.parts) - 1, learned[0] - 1, -1):
            part = self.parts[k]
            if k in learned:
                found = [*part.map.pullback(part.tensors, inputs[k], y, offset), *found]
            if k > learned[0]:
                y = part.map.adjoint(part.tensors, y, part.shape)
        return found

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)


def evaluate(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, with the pooling behind a convolution folded into it where that is exact."""
    found = _flat(module)
    if not all(map(_has_map, found)) or any(map(is_hooked_backward, module.modules())):
        return module(x)
    for linear in _composition(found):
        x = linear.affine(tuple(laid_out(t) for t in linear.tensors()), x)
    return x


def is_known(module: nn.Module) -> bool:
    """Whether the module may stand between neurons: affine, or piecewise so."""
    return type_before_parametrizations(module) in REGISTRY


def _like(module: nn.Module, otherwise: Tensor | None = None) -> Tensor:
    """Something of the type and place of the module's tensors."""
    for own in chain(module.parameters(), module.buffers()):
        if own.is_floating_point():
            return own.detach()
    return torch.empty(0) if otherwise is None else at_least_float32(otherwise.detach())


def _flat(module: nn.Module, hooked: bool = False) -> list[nn.Module]:
    """What stands in sequences, those that are hooked themselves included if so asked."""
    if type(module) is nn.Sequential and (hooked or not is_hooked(module)):
        return [leaf for child in module for leaf in _flat(child, hooked)]
    return [module]


def _made_of(leaf: nn.Module) -> list[Any]:
    """All that the leaf's map depends on, but for the values of its tensors."""
    involved = (*leaf.modules(), *vars(leaf).get("copied_from", ()))
    return [part for m in involved for part in (m, is_hooked(m), is_hooked_backward(m), *settings_of(m))]


def _composition(found: list[nn.Module]) -> list[LinearMap]:
    """The modules' maps, folded where that is exact."""
    maps: list[LinearMap] = []
    for module in found:
        following = _map_of(module)
        joined = maps[-1].absorb(following) if maps else None
        if joined is None:
            maps.append(following)
        else:
            maps[-1] = joined
    return maps


def _map_of(module: nn.Module) -> LinearMap:
    leaves = _flat(module, hooked=True)
    for leaf in leaves:
        if not is_known(leaf):
            raise ValueError(_reason(leaf))
    _require_hooks_that_count(module, leaves)
    return REGISTRY[type_before_parametrizations(module)](module) if _has_map(module) else Differentiated(module)


def _require_hooks_that_count(module: nn.Module, leaves: list[nn.Module]) -> None:
    """Refuses hooks that would not be called, or that would be called where the module is more than a linear map."""
    name = type(module).__name__
    if any(map(is_hooked_backward, module.modules())):
        raise ValueError(
            f"a {name} between neurons has a backward hook, and no gradient passes back through it; remove it, or "
            "register it on the parameters (parameter.register_hook)"
        )
    for leaf in leaves:
        own, kind = type(leaf).__name__, REGISTRY[type_before_parametrizations(leaf)]
        if isinstance(leaf, _WRAPPERS) and any(is_hooked(m) for m in leaf.modules() if m is not leaf):
            inner = next(type(m).__name__ for m in leaf.modules() if m is not leaf and is_hooked(m))
            raise ValueError(
                f"a {inner} between neurons has a hook or a forward of its own, and a {own} stands in its place, which "
                "does not call it; remove it"
            )
        is_steady = getattr(kind, "is_linear", True) and not isinstance(leaf, SharedDropout)
        if not is_steady and (is_hooked(leaf) or is_hooked(module)):
            raise ValueError(
                f"a {name} between neurons has a hook or a forward of its own, so that it has to be linear, and a "
                f"{own} is not, or differs from call to call; remove it, or put it on a linear module beside"
            )


def _has_map(module: nn.Module) -> bool:
    """Whether the registered map is what the module does."""
    if not is_known(module) or is_hooked(module):
        return False
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        try:
            symmetric_padding(module)
        except ValueError:
            return False
    return True


def _reason(module: nn.Module) -> str:
    """Why a module cannot stand between neurons, and the way out."""
    name = type(module).__name__
    for unfit, fit in _CHANGE.items():
        if isinstance(module, unfit):
            return (
                f"a {name} changes from step to step, so it cannot connect neurons; expected "
                f"ep_plugin.linear.modules.{fit.__name__}(module) in its place, or ep_plugin.convert"
            )
    if isinstance(module, _OWN_ENERGY):
        return (
            f"a {name} between neurons is smooth and not linear: its statistics are those of the neurons' states, so "
            "that what it feeds back needs its second derivative, which is not written; use a batch normalization "
            "(ep_plugin.linear.modules.FixedNormalization), or move it before the first neuron or after the last"
        )
    return (
        f"a {name} is not known to be linear, so that its feedback might be wrong; if its forward is affine in its "
        f"input, say so by ep_plugin.register_linear({name}), otherwise use a module that is affine or piecewise so"
    )
