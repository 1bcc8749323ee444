"""Functions that a traced forward calls, as the modules that do the same."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from ep_plugin.conversion.plan import Applied, Combination, Joined, Signal, parts
from ep_plugin.conversion.sizes import EXAMPLE, Size
from ep_plugin.linear.dense import FlattenedTo

_SAME_ARGUMENTS: dict[Callable[..., Any], type[nn.Module]] = {
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    F.adaptive_max_pool3d: nn.AdaptiveMaxPool3d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    torch.max_pool1d: nn.MaxPool1d,
    torch.max_pool2d: nn.MaxPool2d,
    torch.max_pool3d: nn.MaxPool3d,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), nn.ReLU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), nn.Tanh),
    F.leaky_relu: nn.LeakyReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.elu: nn.ELU,
    F.softplus: nn.Softplus,
    F.pixel_shuffle: nn.PixelShuffle,
    F.pixel_unshuffle: nn.PixelUnshuffle,
}

_DROPOUTS: dict[Callable[..., Any], type[nn.modules.dropout._DropoutNd]] = {
    F.dropout: nn.Dropout,
    torch.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}

_PADDINGS = {
    "constant": (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}

RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape)

_SECOND = {
    **dict.fromkeys(("view", "reshape"), ("shape", "size")),
    **dict.fromkeys(("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"), ("other",)),
}

_WHERE = (("condition",), ("input",), ("other",))

UNCHANGED = ("contiguous", "to", "float", "double", "clone", "cpu", "cuda", "type_as", "requires_grad_")
"""Methods that give the same values."""

_OF_OTHER_TYPES = frozenset(
    (
        *("gt", "lt", "ge", "le", "eq", "ne", "isnan", "isinf", "isfinite", "isclose", "greater", "less", "not_equal"),
        *("greater_equal", "less_equal", "logical_not", "logical_and", "logical_or", "logical_xor", "signbit"),
        *("and", "or", "xor", "invert", "and_", "or_", "bool", "int", "long", "short", "char", "byte", "to", "argmax"),
        *("argmin", "argsort", "bucketize", "searchsorted", "floor_divide", "any", "all", "type", "bitwise_and"),
        *("bitwise_or", "bitwise_xor", "bitwise_not", "count_nonzero", "one_hot", "heaviside"),
    )
)
"""Functions of floating point numbers whose values may be of another type."""


def may_be_of_another_type(signal: Signal) -> bool:
    """Whether a value may be something else than floating point numbers, so that their type cannot be left out."""
    if isinstance(signal, Combination):
        return any(may_be_of_another_type(part) for part, _ in signal.terms)
    if not isinstance(signal, (Applied, Joined)) or not isinstance(signal.module, Function):
        return False
    name = getattr(signal.module.function, "__name__", "").removeprefix("__").removesuffix("__")
    if name in _OF_OTHER_TYPES:
        return True
    return name not in ("float", "double", "half", "bfloat16") and any(map(may_be_of_another_type, parts(signal)))


_POINTWISE_MODULES = (
    *(
        nn.Identity,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.Hardtanh,
        nn.Sigmoid,
        nn.Tanh,
        nn.GELU,
        nn.SiLU,
        nn.ELU,
        nn.CELU,
    ),
    *(nn.SELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardswish, nn.Dropout),
)
_POINTWISE_FUNCTIONS = frozenset(
    [
        "relu",
        "sigmoid",
        "tanh",
        "abs",
        "neg",
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "rsqrt",
        "square",
        "sin",
        "cos",
        "sign",
        "clamp",
        "clip",
        "clamp_min",
        "clamp_max",
        "pow",
        "pow_",
        "reciprocal",
        "round",
        "floor",
        "ceil",
        "erf",
        "threshold",
        "nan_to_num",
        "gt",
        "lt",
        "ge",
        "le",
        "eq",
        "ne",
        "mul",
        "add",
        "sub",
        "truediv",
        "div",
        "float_power",
        "maximum",
        "minimum",
        "where",
        "detach",
        "logical_not",
        "heaviside",
        "relu_",
        "sigmoid_",
        "tanh_",
        "abs_",
        "neg_",
        "exp_",
        "sqrt_",
        "clamp_",
        "mul_",
        "add_",
        "sub_",
        "div_",
        "gelu",
        "silu",
        "elu",
        "softplus",
        "leaky_relu",
        "relu6",
        "hardtanh",
        "float",
        "double",
        "to",
    ]
)


def is_pointwise(module: nn.Module) -> bool:
    """Whether every entry of the output is made of the same entry of the input (or inputs), each in the same way."""
    if isinstance(module, Function):
        tensors = any(isinstance(a, Tensor) for a in (*module.args, *module.options.values()))
        return getattr(module.function, "__name__", "") in _POINTWISE_FUNCTIONS and not tensors
    return isinstance(module, _POINTWISE_MODULES) and not isinstance(module, AlwaysDropout)


class AlwaysDropout(nn.Dropout):
    """Dropout that is called with `training=True`: it drops in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, True)


@dataclass(frozen=True)
class Slot:
    """Where a tensor stands among a function's arguments."""

    number: int


class Function(nn.Module):
    """A function of one or several tensors, with its other arguments fixed.

    Args:
        function: what is called.
        args, options: its arguments, tensors by their slots.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.options = function, args, options

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))

    def forward(self, *tensors: Tensor) -> Tensor:
        given: Any = map_aggregate((self.args, self.options), lambda a: tensors[a.number] if isinstance(a, Slot) else a)
        args, options = given
        if args and isinstance(self.function, MethodDescriptorType):  # of tensors: it takes no stand-in of a trace
            return getattr(args[0], self.function.__name__)(*args[1:], **options)
        return self.function(*args, **options)


def follows_mode(function: Any) -> bool:
    """Whether a function may be told to follow the mode that the network is in when it is called."""
    return function in _DROPOUTS


def modules_of(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], place: int = 0
) -> list[nn.Module]:
    """The modules, one after the other, that do what `function` does to one tensor.

    Args:
        function: what is called, or the method of `torch.Tensor`.
        args, options: its other arguments.
        place: which of the positional arguments the tensor is.
    """
    if place == 0:
        if function in (torch.flatten, Tensor.flatten):
            return [_flattened(*args, **options)]
        if function in RESHAPES and not options:
            return _reshaped(args)
        if function in _SAME_ARGUMENTS:
            return [_out_of_place(_SAME_ARGUMENTS[function](*args, **options))]
        if function in _DROPOUTS:
            p = args[0] if args else options.get("p", 0.5)
            return _dropped(_DROPOUTS[function], p, args[1] if len(args) > 1 else options.get("training", True))
        if function in (torch.clamp, Tensor.clamp):
            return [_clamped(*args, **options)]
        if function is F.pad and (padding := _padding(*args, **options)) is not None:
            return [padding]
        if function is F.interpolate:
            known = {k: v for k, v in options.items() if k not in ("recompute_scale_factor", "antialias") or v}
            if "antialias" not in known:
                return [nn.Upsample(*args, **known)]
    return [Function(function, (*args[:place], Slot(0), *args[place:]), options)]


def _out_of_place(module: nn.Module) -> nn.Module:
    """A module of the trace's own that leaves its input to the others who take it."""
    if hasattr(module, "inplace"):
        module.inplace = False  # type: ignore[assignment]
    return module


def _dropped(kind: type[nn.Module], p: float, training: Any) -> list[nn.Module]:
    """Dropout in the model's mode, if that is what `training` is."""
    if isinstance(training, bool):
        if kind is not nn.Dropout:
            raise ValueError("it drops channels whatever the mode is; expected training=self.training")
        return [AlwaysDropout(p)] if training else [nn.Identity()]
    return [kind(p).train(int(training) != 0)]


def _flattened(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _reshaped(args: tuple[Any, ...]) -> list[nn.Module]:
    """`view` or `reshape`, whose first size is the batch's; a shape without it belongs to one sample."""
    shape = tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list, torch.Size)) else args
    _, *rest = shape
    if any(isinstance(n, Size) for n in rest):
        rest = [-1 if isinstance(n, Size) else n for n in rest]
        if rest.count(-1) > 1:
            raise ValueError(
                f"it depends on more than one size of the input; write all but the batch's as numbers, or {EXAMPLE}"
            )
    if not rest:
        raise ValueError("it makes one axis of all samples; expected the batch's size first, as in view(x.size(0), -1)")
    if len(rest) == 1:
        return [nn.Flatten(1) if rest[0] == -1 else FlattenedTo(int(rest[0]))]
    return [nn.Flatten(1), nn.Unflatten(1, tuple(rest))]


def _clamped(min: float | None = None, max: float | None = None) -> nn.Module:
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    if not low < high:
        raise ValueError(f"the range from {low} to {high} is empty; expected a minimum below the maximum")
    return nn.Hardtanh(low, high)


def _padding(pad: tuple[int, ...], mode: str = "constant", value: float | None = None) -> nn.Module | None:
    if mode not in _PADDINGS or len(pad) not in (2, 4, 6):
        return None
    kind = _PADDINGS[mode][len(pad) // 2 - 1]
    return kind(tuple(pad), value or 0.0) if mode == "constant" else kind(tuple(pad))


def in_order(name: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function with the tensors and sizes in their places, where they are given by keyword."""
    named = _WHERE if name == "where" else (("input", "tensors"), _SECOND.get(name, ()))
    for place, keywords in enumerate(named):
        if len(args) == place and (keyword := next((k for k in keywords if k in options), None)) is not None:
            args, options = (*args, options[keyword]), {k: v for k, v in options.items() if k != keyword}
    return args, options


def as_sum(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> list[tuple[Any, float]] | None:
    """The terms (argument, factor) of a function that is linear in tensors and numbers; None for others."""
    if function in _ADDITIONS and len(args) == 2:
        factor = _ADDITIONS[function] * float(options.get("alpha", 1))
        return [(args[0], 1.0), (args[1], factor)]
    if function in _PRODUCTS and len(args) == 2:
        for number, other in (args, args[::-1]):
            if isinstance(number, (int, float)):
                return [(other, float(number))]
    if function in _QUOTIENTS and len(args) == 2 and isinstance(args[1], (int, float)) and not options:
        return [(args[0], 1 / args[1])]
    if function in (operator.neg, torch.neg, Tensor.neg):
        return [(args[0], -1.0)]
    return None


_ADDITIONS: dict[Callable[..., Any], float] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_), 1.0),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, Tensor.sub, Tensor.sub_), -1.0),
}
_PRODUCTS = (operator.mul, operator.imul, torch.mul, Tensor.mul, Tensor.mul_)
_QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, Tensor.div, Tensor.div_)
