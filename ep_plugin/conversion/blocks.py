"""From a plan to the parts of a convergent network: stem, layers, connections, readout."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ep_plugin.connections import DIFFERENTIATED, REGISTRY, Connection
from ep_plugin.conversion import tracing
from ep_plugin.conversion.neurons import NO_TIME, Neuron, place_of
from ep_plugin.conversion.plan import Applied, Combination, Computation, Input, Plan, Signal, Spikes, behind, sources
from ep_plugin.modules import FixedNormalisation, Scale, SharedDropout

POOLING = {
    "error": "refuse max pooling between neurons",
    "average": "average pooling in its place",
    "keep": "keep it",
}

_MAX_POOLING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

_REASONS: list[tuple[tuple[type[nn.Module], ...], str]] = [
    (
        (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm),
        "its statistics are those of the neurons' states at every step, so it is not a fixed linear map and its "
        "adjoint changes with the states: use a batch normalisation, or move it before the first neuron or after the "
        "last",
    ),
    (
        (nn.AlphaDropout, nn.FeatureAlphaDropout),
        "it is made for other activations: use nn.Dropout",
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

Path = tuple[str, list[nn.Module]]
"""The neuron that a signal comes from, and the modules on its way."""


@dataclass
class Blocks:
    """The parts. `order` names the layers' neurons, from the input to the output."""

    stem: nn.Sequential
    connections: list[Connection]
    readout: nn.Sequential | None
    order: list[str]
    notes: list[str] = field(default_factory=list)


def used(plan: Plan) -> list[str]:
    """The neurons that the output depends on, in the order of their first call.

    Raises:
        ValueError: it depends on none.
    """
    found: set[str] = set()
    pending = [plan.output]
    while pending:
        for source in sources(pending.pop()):
            if isinstance(source, Spikes) and source.neuron not in found:
                found.add(source.neuron)
                pending.append(plan.received[source.neuron])
    if not found:
        raise ValueError("the output depends on no neuron's spikes; expected it to depend on the last neuron's")
    return [name for name in plan.neurons if name in found]


def blocks(plan: Plan, order: Sequence[str], neurons: dict[str, Neuron], pooling: str) -> Blocks:
    """The parts, with every module in a place that it can stand in.

    Raises:
        ValueError: a module or a way between neurons has no counterpart, with the place and the reason.
    """
    index = {name: l for l, name in enumerate(order)}
    places = {name: place_of(name, plan.neurons[name]) for name in order}
    notes = list(plan.notes)
    ways = _Ways(pooling, notes)

    first, *others = order
    found = sorted({type(s).__name__ for s in sources(plan.received[first])})
    assert found == ["Input"], found
    stem = nn.Sequential(*_modules(plan.received[first]), *_input_weights(neurons[first]))
    _require_weights(places[first], [stem])
    connections = []
    for name in others:
        if any(isinstance(s, Input) for s in sources(plan.received[name])):
            raise ValueError(
                f"{places[name]} receives the input too; expected only {places[first]} to: what drives the network "
                "from outside drives its first layer"
            )
        paths = [
            (source, [*modules, *_input_weights(neurons[name])]) for source, modules in ways.to(plan.received[name])
        ]
        _require_weights(places[name], [m for _, modules in paths for m in modules])
        connections += [Connection(nn.Sequential(*modules), index[source], index[name]) for source, modules in paths]
    for name in order:
        if (lateral := neurons[name].lateral) is not None:
            # <r, A r> with half the weights has the derivative (V + V^T) r / 2 + bias.
            connections.append(Connection(nn.Sequential(Scale(0.5), lateral), index[name], index[name]))

    read = {s.neuron for s in sources(plan.output) if isinstance(s, Spikes)}
    if len(read) > 1 or any(isinstance(s, Input) for s in sources(plan.output)):
        what = " and ".join(places[name] for name in order if name in read)
        raise ValueError(
            f"the output reads {what}{' and the input' if len(read) == 1 else ''}; expected one neuron's spikes, since "
            "the cost acts on one layer: add what the output needs of the others to what that neuron receives"
        )
    if any(isinstance(s, Input) and s.at_a_step for signal in plan.received.values() for s in sources(signal)):
        notes.append(NO_TIME)
    after = _modules(plan.output)
    return Blocks(stem, connections, nn.Sequential(*after) if after else None, list(order), notes)


class _Ways:
    """The ways of signals between neurons. Every module is looked at once, whatever the number of its ways."""

    def __init__(self, pooling: str, notes: list[str]) -> None:
        self.pooling, self.notes = pooling, notes
        self.placed: dict[nn.Module, nn.Module] = {}

    def to(self, signal: Signal) -> list[Path]:
        """All ways that lead into a signal. Of those through one module all but the first leave out its offset."""
        if isinstance(signal, Spikes):
            return [(signal.neuron, [])]
        if isinstance(signal, Combination):
            return [
                (source, [*modules, *([Scale(factor)] if factor != 1 else [])])
                for part, factor in signal.terms
                for source, modules in self.to(part)
            ]
        assert isinstance(signal, Applied)
        if (inside := _inside(signal)) is not None:
            return self.to(inside)
        before = self.to(signal.signal)
        if signal.module not in self.placed:
            self.placed[signal.module] = between(signal.name, signal.module, self.pooling, self.notes)
        module = self.placed[signal.module]
        (source, modules), *others = before
        return [
            (source, [*modules, module]),
            *((s, [*ms, without_offset(place_of(signal.name, signal.module), module)]) for s, ms in others),
        ]


def _inside(signal: Applied) -> Signal | None:
    """What a module that is not PyTorch's own does to its signal; None where only the module can tell."""
    kind = type(signal.module)
    if kind.__module__.startswith(("torch.", "ep_plugin.")):
        return None
    try:
        done = tracing.read(signal.module).output
    except ValueError:
        return None
    return behind(signal.signal, done, f"{signal.name}.")


def between(name: str, module: nn.Module, pooling: str, notes: list[str]) -> nn.Module:
    """The module as it may stand between two neurons."""
    place = place_of(name, module)
    if isinstance(module, _MAX_POOLING):
        return _pooled(place, module, pooling, notes)
    if isinstance(module, nn.Flatten) and module.start_dim == 0:
        raise ValueError(f"{place} flattens the batch too; expected start_dim=1 or more")
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        notes.append(f"{place} uses its running statistics, also in training, so they stay as they are")
        try:
            return FixedNormalisation(module)
        except ValueError as error:
            raise ValueError(f"{place} cannot be converted: {error}") from None
    if isinstance(module, _DROPOUT):
        notes.append(f"{place} draws one mask a batch, the same for all samples, steps and phases")
        return SharedDropout(module)
    if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode not in (
        "zeros",
        "circular",
        "reflect",
        "replicate",
    ):
        raise ValueError(f"{place} pads by {module.padding_mode!r}, which is not known")
    if isinstance(module, (*REGISTRY, *DIFFERENTIATED)):
        return module
    for types, reason in _REASONS:
        if isinstance(module, types):
            raise ValueError(f"{place} cannot be converted: {reason}")
    raise ValueError(
        f"{place} cannot be converted: it stands between two neurons and is not known to be linear. If it is, put "
        "the network together from ep_plugin.Layer, Connection(module, source, target) and ConvergentNetwork"
    )


def without_offset(place: str, module: nn.Module) -> nn.Module:
    """The linear part of a module, with the same weights."""
    if isinstance(module, FixedNormalisation):
        return FixedNormalisation(module.norm, offset=False)
    if isinstance(module, (*_MAX_POOLING, SharedDropout)):
        raise ValueError(
            f"{place} cannot be converted: it follows a sum of several neurons' signals, and is not the same on each "
            "of them; put it before the sum"
        )
    linear: Any = copy.copy(module)
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        linear.value = 0.0
    elif getattr(module, "bias", None) is not None:
        linear._parameters = {**module._parameters, "bias": None}
    else:
        return module
    return linear


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


def _modules(signal: Signal) -> list[nn.Module]:
    """The modules from a signal's only source to it."""
    if isinstance(signal, Applied):
        return [*_modules(signal.signal), signal.module]
    if not isinstance(signal, Combination):
        return []
    if len(signal.terms) == 1:
        ((part, factor),) = signal.terms
        return [*_modules(part), Scale(factor)]
    return [Computation(signal)]


def _input_weights(neuron: Neuron) -> list[nn.Module]:
    return [] if neuron.input_weights is None else [neuron.input_weights]


def _require_weights(place: str, modules: Sequence[nn.Module]) -> None:
    if not any(True for m in modules for _ in m.parameters()):
        raise ValueError(
            f"{place} has no weights before it; expected a convolution or a linear module between it and the input "
            "or the neuron before"
        )
