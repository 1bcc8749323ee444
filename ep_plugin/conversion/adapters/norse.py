"""Norse's neurons in a model that is converted.

The converted neuron settles where r = activation(gain * drive / threshold):

| neuron | gain | threshold |
|---|---|---|
| `LIFCell`, `LIF` | 1 / (dt tau_syn_inv), 5 by default | v_th - v_leak |
| `LIFRecurrentCell`, `LIFRecurrent` | the same | v_th - v_leak; recurrent weights V act as (V + V^T) / 2 |
| `LIFBoxCell`, `ConvergentLIFBoxCell` | 1 | v_th - v_leak |
| `IAFCell`, `IAF` | 1 | v_th - v_reset |

The gain is that of a steady input on its way to the membrane, whose steady state is v_leak + gain * input. So r reaches
1 at the current with which the steady membrane reaches the threshold: below it the original `LIFCell` and `LIFBoxCell`
never fire. `IAFCell` fires every ceil(threshold / input) steps, since its reset forgets what was above the threshold,
so r is its rate except for this rounding. Weights, thresholds and gains are shared; leak, reset and firing curve are
not.

`norse.Lift` of a neuron is that neuron over all steps.

`LICell`, `LI`, `LIBoxCell` and `LILinearCell` never spike: they become their steady membrane, v_leak + gain * input
with the same gain (1 for the box).
"""

from dataclasses import dataclass
from typing import Any

import torch
from norse import torch as norse
from torch import Tensor, nn

from ep_plugin.conversion.adapters import LearnableLeak, Neuron, States, lifted
from ep_plugin.linear.modules import Scale, SteadyMembrane
from ep_plugin.neurons.norse import ConvergentLIFBoxCell


@dataclass(frozen=True)
class Row:
    """What is known of one neuron.

    Attributes:
        synapse: whether a synapse sums up its input.
        resting: the constant from which the threshold is counted.
        recurrent: whether its spikes come back to it.
        over_time: whether a call takes all time steps.
        spikes: False for a leaky integrator.
        weights: whether its input passes weights of its own.
    """

    synapse: bool
    resting: str = "v_leak"
    recurrent: bool = False
    over_time: bool = False
    spikes: bool = True
    weights: bool = False


NEURONS: dict[type[nn.Module], Row] = {
    norse.LIFCell: Row(synapse=True),
    norse.LIF: Row(synapse=True, over_time=True),
    norse.LIFRecurrentCell: Row(synapse=True, recurrent=True, weights=True),
    norse.LIFRecurrent: Row(synapse=True, recurrent=True, weights=True, over_time=True),
    norse.LIFBoxCell: Row(synapse=False),
    ConvergentLIFBoxCell: Row(synapse=False),
    norse.IAFCell: Row(synapse=False, resting="v_reset"),
    norse.IAF: Row(synapse=False, resting="v_reset", over_time=True),
    norse.LICell: Row(synapse=True, spikes=False),
    norse.LI: Row(synapse=True, spikes=False, over_time=True),
    norse.LIBoxCell: Row(synapse=False, spikes=False),
    norse.LILinearCell: Row(synapse=True, spikes=False, weights=True),
}

_ANOTHER = f"Use one of {', '.join(kind.__name__ for kind in NEURONS)} in its place (LIFCell if in doubt)"
_ENCODER = "it turns the input into spikes over time, and the network takes the input itself"
_OUTSIDE = (
    "Take it out of the model: give the network the values that it encodes (they are the rates), or encode outside of "
    "the model and convert with time_varying=True"
)
_DECODED = (
    "it reads the times of single spikes, and an equilibrium has rates",
    "Take it out of the model, and read the rates or an LICell",
)

_REFUSED: dict[str, tuple[str, str]] = {
    "LSNN": ("its threshold adapts to its own spikes", _ANOTHER),
    "LIFRefrac": ("its refractory period makes it depend on its past", _ANOTHER),
    "LIFAdEx": ("its adaptation depends on its past", _ANOTHER),
    "LIFEx": ("its membrane is driven by an exponential of itself", _ANOTHER),
    "CobaLIF": ("its inputs are conductances, which multiply its membrane", _ANOTHER),
    "Izhikevich": ("its recovery variable depends on its past", _ANOTHER),
    "LIFMC": ("it has several compartments", _ANOTHER),
    "LIFCorrelation": ("its weights change with its spikes", _ANOTHER),
    "PoissonEncoder": (_ENCODER, _OUTSIDE),
    "SignedPoissonEncoder": (_ENCODER, _OUTSIDE),
    "ConstantCurrentLIFEncoder": (_ENCODER, _OUTSIDE),
    "SpikeLatencyLIFEncoder": (_ENCODER, _OUTSIDE),
    "SpikeLatencyEncoder": (_ENCODER, _OUTSIDE),
    "SpikesToTimesDecoder": _DECODED,
    "ExpFilter": (
        "it filters its input over time, and at an equilibrium nothing changes",
        "Take it out of the model (of a steady input it leaves but a factor), or use an LICell",
    ),
    "LConv2d": (
        "it convolves all time steps in one call",
        "Use an nn.Conv2d of the same sizes in its place, or norse.Lift(nn.Conv2d(...)) before neurons over time",
    ),
    "TemporalReceptiveField": (
        "it gives every channel several leaky integrators with time constants of their own, between which an "
        "equilibrium does not tell",
        "Take it out of the model: all its scales are the same at an equilibrium",
    ),
    "RegularizationCell": (
        "it adds up what it sees over the steps, beside the network, and an equilibrium has no steps",
        "Take it out of the model (it changes no spike), and add a penalty on what the converted model returns to the "
        "loss",
    ),
    "RecurrentSequential": (
        "its output comes back as its input one step later, and that way has no weights which an energy could share "
        "with a way back",
        "Put its modules into a norse.SequentialState, and for the way back use a recurrent neuron "
        "(norse.LIFRecurrentCell), or put the network together from ep_plugin.Layer, Connection and ConvergentNetwork",
    ),
}
"""What a class's name begins with -> the reason, and the way out."""

_PLAIN = (
    *("SequentialState", "Lift", "PopulationEncoder"),
    *("SpatialReceptiveField2d", "SampledSpatialReceptiveField2d", "ParameterizedSpatialReceptiveField2d"),
)
"""Modules of Norse's that are no neurons: containers, and functions of one step's input."""


def is_neuron(module: nn.Module) -> bool:
    kind = type(_cell(module))
    own = next((base.__name__ for base in kind.__mro__ if base.__module__.startswith("norse.torch.module.")), None)
    return kind in NEURONS or (own is not None and own not in _PLAIN)


def _cell(module: nn.Module) -> Any:
    return lifted(module) or module


def _row(module: nn.Module) -> Row:
    return NEURONS[type(_cell(module))]


def check(place: str, module: nn.Module) -> None:
    kind = type(_cell(module))
    if kind in NEURONS:
        return
    otherwise = (
        "it is not known to have an equilibrium",
        f"{_ANOTHER}, or say what it does by ep_plugin.register_neuron({kind.__name__}, ...)",
    )
    reason, way_out = next((row for start, row in _REFUSED.items() if kind.__name__.startswith(start)), otherwise)
    raise ValueError(f"{place} cannot be converted: {reason}. {way_out}")


def outputs(module: nn.Module) -> int:
    return 2


def states(module: nn.Module) -> States:
    row = _row(module)
    names = (*(("z",) if row.recurrent else ()), "v", *(("i",) if row.synapse else ()))
    return States(names, frozenset(["v"] if row.spikes else []), packed=True)


def integrator(module: nn.Module) -> list[nn.Module] | None:
    row, cell = _row(module), _cell(module)
    if row.spikes:
        return None
    before = [_linear(cell.input_weights)] if row.weights else []
    rest = torch.as_tensor(cell.p.v_leak)
    if row.synapse:
        tau_syn_inv = torch.as_tensor(cell.p.tau_syn_inv)
        steady = SteadyMembrane(_gain, {"tau_syn_inv": tau_syn_inv, "dt": torch.as_tensor(cell.dt)}, rest)
    else:
        steady = SteadyMembrane(torch.ones_like, {"gain": torch.ones(())}, rest)
    if any(True for _ in steady.parameters()) or bool(rest.any()) or steady(torch.ones(())).numel() > 1:
        return [*before, steady]
    return [*before, Scale(steady(torch.ones(())).item())]


def steady_membrane(place: str, module: nn.Module) -> nn.Module:
    raise ValueError(
        f"{place} is read by its state, which has no steady value, since spikes reset its membrane; expected its "
        "spikes to be read, or an LICell"
    )


def described(place: str, module: nn.Module, learnable_leak: LearnableLeak) -> Neuron:
    row, cell = _row(module), _cell(module)
    p, resting = cell.p, row.resting
    for name in p._fields:
        if isinstance(getattr(p, name), nn.Parameter) and name != "v_th" and learnable_leak == "refuse":
            raise ValueError(
                f"{place} has a learnable {name}, which is fixed in the converted neuron. Use a plain tensor, or "
                "convert(..., learnable_leak='freeze') to leave it as it is"
            )
    rest = torch.as_tensor(getattr(p, resting)).detach()
    threshold = torch.as_tensor(p.v_th)
    if isinstance(threshold, nn.Parameter):
        if bool(rest.any()):
            raise ValueError(
                f"{place} has a learnable v_th and {resting} {rest.tolist()}; expected {resting}=0, from which the "
                "learnable threshold counts"
            )
    else:
        threshold = threshold.detach() - rest
    if not bool((threshold > 0).all()):
        raise ValueError(f"{place} has v_th - {resting} {threshold.tolist()}; expected numbers above 0")
    gain: Tensor | float = 1.0
    if row.synapse:
        gain = _gain(torch.as_tensor(p.tau_syn_inv).detach(), cell.dt)
    return Neuron(
        threshold,
        gain,
        cell.activation if isinstance(cell, ConvergentLIFBoxCell) else None,
        input_weights=_linear(cell.input_weights) if row.weights else None,
        lateral=_linear(cell.recurrent_weights) if row.recurrent else None,
    )


def runs_over_time(module: nn.Module) -> bool:
    return lifted(module) is not None or _row(module).over_time


def differences(neurons: dict[str, nn.Module]) -> list[str]:
    notes, cells = [], {name: _cell(n) for name, n in neurons.items()}
    others = [n for n in cells.values() if not isinstance(n, ConvergentLIFBoxCell)]
    if others:
        kinds = " and ".join(sorted({type(n).__name__ for n in others}))
        notes.append(
            f"{len(others)} {kinds} neuron layers keep their weights, thresholds and input gains; their leak and "
            "reset are replaced by a relaxation to rate = activation(gain * drive / threshold), which is 1 where the "
            "original's steady membrane reaches its threshold, so their rates differ from the original's (the gains: "
            "help('ep_plugin.conversion.norse'))"
        )
    if recurrent := [name for name, n in cells.items() if _row(n).recurrent]:
        notes.append(f"the recurrent weights V of {', '.join(recurrent)} act as their symmetric part, (V + V^T) / 2")
    for name, n in cells.items():
        for constant in n.p._fields:
            if isinstance(getattr(n.p, constant), nn.Parameter) and constant != "v_th":
                notes.append(f"the learnable {constant} of {name} stays as it is")
    return notes


def _gain(tau_syn_inv: Tensor, dt: float | Tensor) -> Tensor:
    return 1 / (dt * tau_syn_inv)


def _linear(weight: Any) -> nn.Linear:
    """A linear module without bias that shares the weight, `[out, in]`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, weight.requires_grad)
    return linear
