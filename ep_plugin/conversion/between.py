"""Modules as they may stand between two neurons: affine, or piecewise so."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ep_plugin.conversion.adapters import place_of
from ep_plugin.conversion.functions import Function
from ep_plugin.conversion.linear_functions import LinearFunction
from ep_plugin.linear.base import linear_copy, register_linear
from ep_plugin.linear.connection import Connection, is_known
from ep_plugin.linear.modules import FixedNormalization, SharedDropout

_MAX_POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_AVERAGES: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: nn.AvgPool1d,
    nn.MaxPool2d: nn.AvgPool2d,
    nn.MaxPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool2d: nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool3d: nn.AdaptiveAvgPool3d,
}
_BATCH_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUTS_BY_MODE = tuple(kind.forward for kind in _DROPOUT)
_PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
_SMOOTH = (
    *(nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.LogSigmoid, nn.Tanhshrink, nn.Hardswish, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin),
)

_REASONS: list[tuple[tuple[type[Any], ...], str]] = [
    (
        (nn.modules.lazy.LazyModuleMixin,),
        "its weights have no size before the first call: call the model once with an example, or give the sizes",
    ),
    (
        (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm),
        "its statistics are those of the neurons' states, so that it is smooth and not linear, and what it feeds back "
        "needs its second derivative, which is not written: use a batch normalization, or move it before the first "
        "neuron or after the last",
    ),
    (
        (nn.AlphaDropout, nn.FeatureAlphaDropout),
        "it is made for other activations: use nn.Dropout",
    ),
    (
        _SMOOTH,
        "it is smooth and not linear, so that what it feeds back needs its second derivative, which is not written. "
        "The neuron is a nonlinearity already: remove it, use a piecewise linear one (ReLU, ReLU6, LeakyReLU, "
        "Hardtanh), or choose the neurons' own with convert(..., activation=...)",
    ),
]


_OTHERWISE = (
    "otherwise use a linear or piecewise linear module (ReLU, max pooling), or move it before the first neuron or "
    "after the last"
)
OF_ONES_OWN = (
    "it is not known to be linear. If it is affine in its input, let a module of your own call it and say so by "
    f"ep_plugin.register_linear(that module's type); {_OTHERWISE}"
)

BACKWARD_HOOK = (
    "has a backward hook, and a converted model sends no gradient back through it; remove it, or register it on the "
    "parameters (parameter.register_hook)"
)


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module does what one of PyTorch's kinds does, and nothing of its own."""
    return "forward" not in vars(module) and type(module).forward in [kind.forward for kind in kinds]


def hooked_backward(modules: Iterable[nn.Module]) -> bool:
    """Whether something is to be done to the gradient that passes through one of the modules."""
    return any(m._backward_hooks or m._backward_pre_hooks for m in modules)


def as_connection_module(name: str, module: nn.Module, max_pooling: str, notes: list[str]) -> nn.Module:
    """The module as it may stand between two neurons.

    Args:
        name: what the model calls it.
        module: of the model.
        max_pooling: as in `convert`.
        notes: remarks for the user are added to these.

    Raises:
        ValueError: it has no counterpart, with the place and the reason.
    """
    place = place_of(name, module)
    if hooked_backward(module.modules()):
        raise ValueError(f"{place} {BACKWARD_HOOK}")
    if isinstance(module, _MAX_POOLING) and _is_plain(module, _MAX_POOLING):
        return _average(place, module, notes) if max_pooling == "average" else module
    if isinstance(module, nn.Flatten) and module.start_dim == 0:
        raise ValueError(f"{place} flattens the batch too; expected start_dim=1 or more (2 for all steps at once)")
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not is_known(module):
        if not _is_plain(module, _BATCH_NORMS):
            raise ValueError(
                f"{place} cannot be converted: it is a batch normalization with a forward of its own, which is not "
                "known; use nn.BatchNorm1d, 2d or 3d, and put what it does beside that into a module of its own"
            )
        notes.append(f"{place} uses its running statistics, also in training, so they stay as they are")
        try:
            return FixedNormalization(module)
        except ValueError as error:
            raise ValueError(f"{place} cannot be converted: {error}") from None
    if isinstance(module, _DROPOUT):
        if type(module).forward not in _DROPOUTS_BY_MODE:
            raise ValueError(
                f"{place} cannot be converted: it does not follow the model's mode, as dropout between neurons does; "
                "expected nn.Dropout, or F.dropout(x, p, training=self.training)"
            )
        notes.append(f"{place} draws one mask a batch, the same for all samples, steps and phases")
        return SharedDropout(module)
    if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode not in _PADDING_MODES:
        raise ValueError(
            f"{place} pads by {module.padding_mode!r}, which is not known; expected one of "
            f"{', '.join(map(repr, _PADDING_MODES))}"
        )
    if is_known(module):
        return module
    for types, reason in _REASONS:
        if isinstance(module, types):
            raise ValueError(f"{place} cannot be converted: {reason}")
    if isinstance(module, Function):
        if name == "detach":
            raise ValueError(
                "detach() between two neurons cannot be converted: it stops the gradient, and at an equilibrium each "
                "acts on the other; leave it out, and freeze what should not be trained (requires_grad_(False))"
            )
        raise ValueError(f"the function {name}() between two neurons cannot be converted: {OF_ONES_OWN}")
    raise ValueError(
        f"{place} cannot be converted: it stands between two neurons and is not known to be linear. If it is affine in "
        f"its input, say so by ep_plugin.register_linear({type(module).__name__}); {_OTHERWISE}"
    )


def without_offset(place: str, module: nn.Module) -> nn.Module:
    """The linear part of a module that stands between neurons, with the same weights.

    Raises:
        ValueError: it is not the same on each signal of a sum.
    """
    if isinstance(module, SharedDropout) or not Connection(module, 0, 0).is_linear:
        reason = "it is linear only piece by piece"
        if isinstance(module, SharedDropout):
            reason = "each would get a mask of its own"
        raise ValueError(
            f"{place} cannot be converted: it follows a sum of several signals, and what it does to the sum is not "
            f"the sum of what it does to each, since {reason}; put it before the sum"
            + (', or use max_pooling="average"' if isinstance(module, _MAX_POOLING) else "")
        )
    if isinstance(module, FixedNormalization):
        return FixedNormalization(module.norm, offset=False)
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        return linear_copy(module)
    if isinstance(module, LinearFunction):
        return LinearPart(module)
    known = type_before_parametrizations(module).__module__.startswith(("torch.", "ep_plugin."))
    if known and "bias" in module._parameters:
        return linear_copy(module)
    if known and getattr(module, "bias", None) is None:
        return module
    return LinearPart(module)


class LinearPart(nn.Module):
    """An affine module without its offset, where no more is known of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) - self.module(torch.zeros_like(x[:1]))


register_linear(LinearPart)


def _average(place: str, module: Any, notes: list[str]) -> nn.Module:
    """Average pooling in the place of max pooling."""
    average = next(to for kind, to in _AVERAGES.items() if isinstance(module, kind))
    if hasattr(module, "output_size"):
        pool = average(module.output_size)
    elif module.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise ValueError(
            f'{place} cannot become average pooling: it is dilated; expected dilation=1, or max_pooling="keep"'
        )
    else:
        pool = average(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    notes.append(f"{place} became average pooling")
    return pool
