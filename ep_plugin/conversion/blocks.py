"""Cuts a sequence of modules at its neurons."""

import itertools
from dataclasses import dataclass, field

from torch import nn

from ep_plugin.connections import DIFFERENTIATED, REGISTRY
from ep_plugin.conversion import snntorch

POOLING = {
    "error": "refuse max pooling between neurons",
    "average": "average pooling in its place",
    "keep": "keep it",
}

_MAX_POOLING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)

_REASONS: list[tuple[tuple[type[nn.Module], ...], str]] = [
    (
        (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm),
        "a normalisation between neurons is not a fixed linear map: fold it into the weights before it, or move it "
        "before the first neuron or after the last",
    ),
    (
        (nn.modules.dropout._DropoutNd,),
        "its mask would change from step to step: remove it, or move it before the first neuron or after the last",
    ),
    (
        (
            nn.ReLU,
            nn.Sigmoid,
            nn.Tanh,
            nn.LeakyReLU,
            nn.GELU,
            nn.SiLU,
            nn.ELU,
            nn.Softmax,
            nn.ReLU6,
            nn.Hardtanh,
        ),
        "the neuron is the nonlinearity, and what stands between neurons must be linear: remove it, or choose the "
        "neurons' own with convert(..., activation=...)",
    ),
]


@dataclass
class Blocks:
    """`before` the first neuron, `between` each two, `after` the last."""

    before: list[nn.Module]
    between: list[list[nn.Module]]
    after: list[nn.Module]
    neurons: list[snntorch.Neuron]
    notes: list[str] = field(default_factory=list)


def split(net: nn.Module, pooling: str) -> Blocks:
    """The blocks of a model, with every module in a place that it can stand in."""
    if type(net) is not nn.Sequential:
        raise TypeError(
            f"convert was given a {type(net).__name__}; expected an nn.Sequential. A model with a forward of its "
            "own can be put together from ep_plugin.Layer, Connection and ConvergentNetwork"
        )
    named = _leaves(net)
    places = [i for i, (_, m) in enumerate(named) if snntorch.is_neuron(m)]
    if not places:
        raise ValueError("the model has no neuron; expected at least one snn.Leaky, snn.Lapicque or ConvergentLeaky")
    for i in places:
        snntorch.check_neuron(*named[i])

    notes: list[str] = []
    cuts = [-1, *places, len(named)]
    pieces = [named[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    for (name, neuron), piece in zip((named[i] for i in places), pieces, strict=False):
        if not any(True for _, m in piece for _ in m.parameters()):
            raise ValueError(
                f"{_place(name, neuron)} has no weights before it; expected a convolution or a linear module "
                "between it and the input or the neuron before"
            )
    between = [[_between(n, m, pooling, notes) for n, m in piece] for piece in pieces[1:-1]]
    return Blocks(
        before=[m for _, m in pieces[0]],
        between=between,
        after=[m for _, m in pieces[-1]],
        neurons=[named[i][1] for i in places],
        notes=notes,
    )


def _leaves(net: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, child in net._modules.items():
        assert child is not None
        if type(child) is nn.Sequential:
            found += _leaves(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def _between(name: str, module: nn.Module, pooling: str, notes: list[str]) -> nn.Module:
    """The module as it may stand between two neurons."""
    place = _place(name, module)
    if isinstance(module, _MAX_POOLING):
        return _pooled(place, module, pooling, notes)
    if isinstance(module, nn.Flatten) and module.start_dim == 0:
        raise ValueError(f"{place} flattens the batch too; expected start_dim=1 or more")
    if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode not in (
        "zeros",
        "circular",
        "reflect",
        "replicate",
    ):
        raise ValueError(f"{place} pads by {module.padding_mode!r}, which is not known")
    if type(module) in REGISTRY or isinstance(module, (*REGISTRY, *DIFFERENTIATED)):
        return module
    for types, reason in _REASONS:
        if isinstance(module, types):
            raise ValueError(f"{place} cannot be converted: {reason}")
    raise ValueError(
        f"{place} cannot be converted: it stands between two neurons and is not known to be linear. If it is, put "
        "the network together from ep_plugin.Layer, Connection(module, source, target) and ConvergentNetwork"
    )


def _pooled(place: str, module: nn.Module, pooling: str, notes: list[str]) -> nn.Module:
    if pooling == "keep":
        notes.append(f"{place} is kept, though the gradient of max pooling does not match for spikes")
        return module
    if pooling == "error":
        raise ValueError(
            f"{place} cannot be converted: max pooling stands between two neurons, and its adjoint does not match "
            'for spikes. Use convert(..., pooling="average") for average pooling in its place, or pooling="keep" '
            "to keep it all the same"
        )
    if isinstance(module, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)):
        average: type[nn.Module] = (
            nn.AdaptiveAvgPool1d if isinstance(module, nn.AdaptiveMaxPool1d) else nn.AdaptiveAvgPool2d
        )
        notes.append(f"{place} became average pooling")
        return average(module.output_size)
    assert isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))
    if module.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise ValueError(f"{place} cannot become average pooling: it is dilated. Use an undilated pool")
    average = {nn.MaxPool1d: nn.AvgPool1d, nn.MaxPool2d: nn.AvgPool2d, nn.MaxPool3d: nn.AvgPool3d}[type(module)]
    notes.append(f"{place} became average pooling")
    return average(module.kernel_size, module.stride, module.padding, module.ceil_mode)


def _place(name: str, module: nn.Module) -> str:
    return f"module {name!r} ({type(module).__name__})"
