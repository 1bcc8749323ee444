"""Functions that are linear in one tensor, the others being constants: they may stand between neurons."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.conversion.computation import Computation
from ep_plugin.conversion.functions import Function, Slot
from ep_plugin.conversion.plan import Applied, Input, Joined, Signal, parts, sources
from ep_plugin.linear.base import Differentiated, Tensors, register_linear


def _everywhere(*names: str) -> set[Callable[..., Any]]:
    """The functions and the methods of these names."""
    homes = (torch, Tensor, F, operator)
    return {getattr(home, name) for home in homes for name in names if hasattr(home, name)}


# In the tensor that they take first.
_FIRST = _everywhere(
    *("getitem", "narrow", "select", "index_select", "gather", "take_along_dim", "masked_fill", "expand", "expand_as"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "fliplr", "roll", "rot90"),
    *("unsqueeze", "squeeze", "flatten", "unflatten", "repeat", "repeat_interleave", "tile", "broadcast_to"),
    *("reshape", "view", "contiguous", "clone", "sum", "mean", "cumsum", "diff", "tril", "triu", "diagonal"),
    *("div", "truediv", "itruediv", "div_", "true_divide", "unfold", "fold", "linear"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate"),
)
# In any of them.
_ANY = _everywhere(
    *("add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "multiply", "neg", "matmul", "mm"),
    *("einsum", "tensordot", "inner"),
)
_PIECES = _everywhere("chunk", "split", "tensor_split", "unbind", "unsafe_chunk", "split_with_sizes", "unsafe_split")


class Held(nn.Module):
    """A tensor that a forward reads by itself: a parameter is shared, and trained.

    Args:
        tensor: a parameter, a buffer or another tensor of the model.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if isinstance(tensor, nn.Parameter):
            self.tensor = tensor
        else:
            self.register_buffer("tensor", tensor, persistent=False)

    def forward(self) -> Tensor:
        return self.tensor


def constant(name: str, held: nn.Module) -> Signal:
    """A tensor of the model (`Held`) as a signal that is made of nothing."""
    return Joined(name, held, ())


def is_constant(signal: Signal) -> bool:
    """Whether a signal depends on no input and no neuron."""
    return not sources(signal)


class LinearFunction(nn.Module):
    """A function between neurons, with its constants: affine in one tensor.

    Args:
        place: where it stands, for errors.
        function: of the one tensor.
    """

    def __init__(self, place: str, function: nn.Module) -> None:
        super().__init__()
        self.place, self.function = place, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class FunctionMap(Differentiated):
    """A function between neurons. Whether it keeps the samples apart shows at the first state of a shape."""

    def __init__(self, module: LinearFunction) -> None:
        super().__init__(module)
        self.place, self.is_familiar = module.place, False  # functions may write into what they take
        self.checked: set[tuple[int, ...]] = set()

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        if x.shape[1:] not in self.checked:
            self._check(tensors, x)
            self.checked.add(x.shape[1:])
        return super().affine(tensors, x)

    @torch.no_grad()
    def _check(self, tensors: Tensors, like: Tensor) -> None:
        shape = (3, *like.shape[1:])
        probe = torch.arange(1.0, 1 + torch.Size(shape).numel(), device=like.device).cos().view(shape).to(like.dtype)
        try:
            values = [super(FunctionMap, self).affine(tensors, p) for p in (probe, probe[:1], probe[1:])]
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.place} does not fit what it is given, [batch, {', '.join(map(str, shape[1:]))}]: {error}"
            ) from error
        whole, one, others = values
        apart = [len(v) if v.dim() else 0 for v in values] == [3, 1, 2] and whole.shape[1:] == one.shape[1:]
        if not apart or not (whole.is_meta or torch.allclose(torch.cat([one, others]), whole, rtol=1e-4, atol=1e-5)):
            raise ValueError(
                f"{self.place} cannot be converted: it does not give each sample of the batch its own (a state has "
                f"the shape [batch, {', '.join(map(str, shape[1:]))}]); expected dimensions other than the batch's"
            )


def _map_of(module: LinearFunction) -> FunctionMap:
    return FunctionMap(module)


register_linear(LinearFunction, _map_of)


class _Piece(nn.Module):
    """One of the pieces into which a function cuts a tensor."""

    def __init__(self, pieces: Function, index: int) -> None:
        super().__init__()
        self.pieces, self.index = pieces, index

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x)[self.index]


def as_linear(signal: Signal, place: str) -> tuple[LinearFunction, Signal] | None:
    """A function as a linear one of one signal; None if it is none, or not known to be linear in it.

    Args:
        signal: a function of one signal, and of constants.
        place: where it stands, for errors.
    """
    if not isinstance(signal, (Applied, Joined)) or not isinstance(signal.module, Function):
        return None
    function, given = signal.module, parts(signal)
    varying = [k for k, part in enumerate(given) if not is_constant(part)]
    if len(varying) != 1:
        return None
    (slot,) = varying
    if (cut := _cut(signal)) is not None:
        pieces, inner = cut
        return LinearFunction(place, _Piece(pieces, function.args[1])), inner
    if not _is_linear(function, slot):
        return None
    if len(given) == 1:
        return LinearFunction(place, function), given[0]
    hole = Input()
    made = Joined(signal.name, function, tuple(hole if k == slot else part for k, part in enumerate(given)))
    return LinearFunction(place, Computation([made], [hole])), given[slot]


def _cut(signal: Signal) -> tuple[Function, Signal] | None:
    """What cuts a signal into pieces, one of which is taken, and the signal."""
    if not isinstance(signal, Applied) or not isinstance(signal.signal, Applied):
        return None
    taken, cut = signal.module, signal.signal.module
    if not isinstance(taken, Function) or not isinstance(cut, Function) or cut.function not in _PIECES:
        return None
    if taken.function is not operator.getitem or not isinstance(taken.args[1], int):
        return None
    return cut, signal.signal.signal


def _is_linear(function: Function, slot: int) -> bool:
    """Whether a function is linear in the tensor of a slot, which it must take once."""
    flat = list(_flat((*function.args, *function.options.values())))
    if sum(isinstance(a, Slot) and a.number == slot for a in flat) != 1:
        return False
    if function.options.get("rounding_mode") is not None:
        return False
    if function.function in _ANY:
        return True
    if function.function is torch.where:
        return len(function.args) == 3 and function.args[0] != Slot(slot)
    return function.function in _FIRST and bool(function.args) and function.args[0] == Slot(slot)


def _flat(arguments: Any) -> Any:
    for a in arguments:
        if isinstance(a, (tuple, list)):
            yield from _flat(a)
        else:
            yield a
