"""Concatenation as a sum: [s1; s2] = P1 s1 + P2 s2, where each P places its signal among zeros."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, register_linear
from ep_plugin.linear.convolution import Convolution
from ep_plugin.linear.dense import Affine

Shape = tuple[int, ...]


class Concatenation:
    """Where each part of a concatenation lies, which follows from the shapes of all of them.

    Args:
        name: for errors.
        dim: along which the parts are joined, counting the batch.
        parts: how many there are.
    """

    def __init__(self, name: str, dim: int, parts: int) -> None:
        self.name, self.dim = name, dim
        self._margins: list[dict[Shape, tuple[int, int]]] = [{} for _ in range(parts)]

    def measured(self, shapes: Sequence[Shape]) -> None:
        """Notes where the parts lie that have these shapes, without the batch.

        Raises:
            ValueError: they do not fit together, or a part of the same shape has lain elsewhere.
        """
        axis = self.axis(shapes[0])
        rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if axis < 0 or len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise ValueError(
                f"{self.name} cannot be converted: it joins signals of the shapes {', '.join(map(str, shapes))} "
                f"(without the batch) along dimension {self.dim}; expected one that is not the batch's, and the same "
                "sizes along all others"
            )
        sizes = [shape[axis] for shape in shapes]
        for part, (shape, margins) in enumerate(zip(shapes, self._margins, strict=True)):
            place = (sum(sizes[:part]), sum(sizes[part + 1 :]))
            if margins.setdefault(shape, place) != place:
                raise ValueError(
                    f"{self.name} joins a part of the shape {shape} to others whose sizes have changed from one input "
                    "to the next; expected inputs of one shape, or a model that is converted for each"
                )

    def axis(self, shape: Sequence[int]) -> int:
        """The dimension without the batch; -1 for the batch's own."""
        return self.dim - 1 if self.dim >= 0 else len(shape) + self.dim

    def margins(self, part: int, shape: Shape) -> tuple[int, int]:
        """How many entries come before a part, and how many after it.

        Raises:
            ValueError: no input of such a shape has come by.
        """
        if shape not in self._margins[part]:
            raise ValueError(
                f"where a signal of the shape {shape} lies in {self.name} is not known before the network has seen an "
                "input; call it once"
            )
        return self._margins[part][shape]


class Placement(LinearMap, nn.Module):
    """One part of a concatenation among zeros, where the others are."""

    def __init__(self, concatenation: Concatenation, part: int) -> None:
        super().__init__()
        self.concatenation, self.part = concatenation, part

    def extra_repr(self) -> str:
        return f"part {self.part} of {self.concatenation.name}"

    def margins(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The dimension without the batch; how many entries come before, and after."""
        return self.concatenation.axis(shape), *self.concatenation.margins(self.part, tuple(shape))

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        axis, before, after = self.margins(x.shape[1:])
        return F.pad(x, (*[0, 0] * (x.dim() - 2 - axis), before, after))

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        axis, before, _ = self.margins(shape)
        return y.narrow(axis + 1, before, shape[axis])

    def absorb(self, following: LinearMap) -> LinearMap | None:
        dim = self.concatenation.dim
        if type(following) is Affine and dim in (1, -1):
            return PlacedWeight(self, following)
        if type(following) is Convolution and following.groups == 1 and dim in (1, -1 - len(following.stride)):
            return PlacedWeight(self, following)
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.affine((), x)


class PlacedWeight(LinearMap):
    """A linear module or a convolution behind a placement: the slice of its weight that meets the part."""

    def __init__(self, placement: Placement, weighted: Affine | Convolution) -> None:
        self.placement, self.weighted = placement, weighted

    def tensors(self) -> Tensors:
        return self.weighted.tensors()

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        own, at = self._own(tensors, shape)
        return self.weighted.prepared(own, at, dtype)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        own, at = self._own(tensors, x.shape[1:])
        return self.weighted.affine(own, x if at == x.shape[1:] else self.placement.affine((), x))

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        own, at = self._own(tensors, x.shape[1:])
        return self.weighted.linear(own, x if at == x.shape[1:] else self.placement.affine((), x))

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        own, at = self._own(tensors, shape)
        back = self.weighted.adjoint(own, y, at)
        return back if at == tuple(shape) else self.placement.adjoint((), back, shape)

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        own, at = self._own(tensors, x.shape[1:])
        x = x if at == x.shape[1:] else self.placement.affine((), x)
        weight, *rest = self.weighted.pullback(own, x, y, offset)
        assert weight is not None
        if weight.shape != tensors[0].shape:
            _, before, after = self.placement.margins(x.shape[1:])
            weight = F.pad(weight, (*[0, 0] * (weight.dim() - 2), before, after))
        return [weight, *rest]

    def absorb(self, following: LinearMap) -> LinearMap | None:
        joined = self.weighted.absorb(following)
        return PlacedWeight(self.placement, joined) if isinstance(joined, Convolution) else None

    def _own(self, tensors: Tensors, shape: Sequence[int]) -> tuple[Tensors, Shape]:
        """The tensors with the weight `[out, in, ...]` cut to the part (`prepared` may have done so), and the shape
        that they take: that of the part, or of the whole where the weight does not lie along the concatenation."""
        axis, before, after = self.placement.margins(shape)
        own, whole = tuple(shape), (*shape[:axis], before + shape[axis] + after, *shape[axis + 1 :])
        if type(self.weighted) is Affine and axis != len(shape) - 1:
            return tensors, whole
        expected = module.in_features if isinstance(module := self.weighted.module, nn.Linear) else module.in_channels
        if expected != whole[axis]:
            raise RuntimeError(f"{self.placement.concatenation.name} gives {whole[axis]} entries; expected {expected}")
        weight, *rest = tensors
        return (tensors if weight.shape[1] == shape[axis] else (weight.narrow(1, before, shape[axis]), *rest)), own


def _itself(module: Any) -> LinearMap:
    return module


register_linear(Placement, _itself)
