"""Norse's neurons in a model that is converted.

The converted neuron settles where r = activation(gain * drive / threshold):

| neuron | gain | threshold |
|---|---|---|
| `LIFCell`, `LIF` | 1 / (dt tau_syn_inv), 5 by default | v_th - v_leak |
| `LIFRecurrentCell`, `LIFRecurrent` | the same | v_th - v_leak; recurrent weights V act as (V + V^T) / 2 |
| `LIFBoxCell`, `ConvergentLIFBoxCell` | 1 | v_th - v_leak |
| `IAFCell`, `IAF` | 1 | v_th - v_reset |

The gain is that of a steady input on its way to the membrane, whose steady state is v_leak + gain *
input. So r reaches 1 at the current with which the steady membrane reaches the threshold: below it
the original `LIFCell` and `LIFBoxCell` never fire. `IAFCell` fires every ceil(threshold / input)
steps, since its reset forgets what was above the threshold, so r is its rate but for that rounding.
Weights, thresholds and gains are shared; leak, reset and firing curve are not.

`LICell`, `LI`, `LIBoxCell` and `LILinearCell` never spike: they become their steady membrane,
v_leak + gain * input with the same gain (1 for the box).
"""

from typing import Any

import torch
from norse import torch as norse
from torch import Tensor, nn

from ep_plugin.conversion.neurons import LearnableLeak, Neuron
from ep_plugin.linear.modules import Scale, SteadyMembrane
from ep_plugin.neurons.norse import ConvergentLIFBoxCell

_SYNAPTIC = (norse.LIFCell, norse.LIF, norse.LIFRecurrentCell, norse.LIFRecurrent)
_BOX = (norse.LIFBoxCell, ConvergentLIFBoxCell)
_INTEGRATE_AND_FIRE = (norse.IAFCell, norse.IAF)
_RECURRENT = (norse.LIFRecurrentCell, norse.LIFRecurrent)
_OVER_TIME = (norse.LIF, norse.LIFRecurrent, norse.IAF)
_INTEGRATORS = (norse.LICell, norse.LI, norse.LIBoxCell, norse.LILinearCell)
_CONVERTED = (*_SYNAPTIC, *_BOX, *_INTEGRATE_AND_FIRE, *_INTEGRATORS)

_REFUSED = {
    "LSNN": "its threshold adapts to its own spikes",
    "LIFRefrac": "its refractory period makes it depend on its past",
    "LIFAdEx": "its adaptation depends on its past",
    "LIFEx": "its membrane is driven by an exponential of itself",
    "CobaLIF": "its inputs are conductances, which multiply its membrane",
    "Izhikevich": "its recovery variable depends on its past",
    "LIFMC": "it has several compartments",
    "LIFCorrelation": "its weights change with its spikes",
    "PoissonEncoder": "it turns the input into spikes over time, and the network takes the input itself",
    "SignedPoissonEncoder": "it turns the input into spikes over time, and the network takes the input itself",
    "ConstantCurrentLIFEncoder": "it turns the input into spikes over time, and the network takes the input itself",
    "SpikeLatencyLIFEncoder": "it turns the input into spikes over time, and the network takes the input itself",
    "SpikeLatencyEncoder": "it turns the input into spikes over time, and the network takes the input itself",
}
"""What a class's name begins with -> the reason."""

_CONTAINERS = ("SequentialState", "Lift", "RecurrentSequential")


def is_neuron(module: nn.Module) -> bool:
    kind = type(module)
    return isinstance(module, _CONVERTED) or (
        kind.__module__.startswith("norse.torch.module.") and kind.__name__ not in _CONTAINERS
    )


def check(place: str, module: nn.Module) -> None:
    if type(module) in _CONVERTED:
        return
    name = type(module).__name__
    reason = next(
        (why for start, why in _REFUSED.items() if name.startswith(start)), "it is not known to have an equilibrium"
    )
    known = ", ".join(kind.__name__ for kind in _CONVERTED)
    raise ValueError(f"{place} cannot be converted: {reason}. Use one of {known} in its place (LIFCell if in doubt)")


def outputs(module: nn.Module) -> int:
    return 2


def integrator(module: Any) -> list[nn.Module] | None:
    if not isinstance(module, _INTEGRATORS):
        return None
    before = [_linear(module.input_weights)] if isinstance(module, norse.LILinearCell) else []
    rest = torch.as_tensor(module.p.v_leak)
    if isinstance(module, norse.LIBoxCell):
        steady = SteadyMembrane(torch.ones_like, {"gain": torch.ones(())}, rest)
    else:
        tau_syn_inv = torch.as_tensor(module.p.tau_syn_inv)
        steady = SteadyMembrane(_gain, {"tau_syn_inv": tau_syn_inv, "dt": torch.as_tensor(module.dt)}, rest)
    if any(True for _ in steady.parameters()) or bool(rest.any()) or steady(torch.ones(())).numel() > 1:
        return [*before, steady]
    return [*before, Scale(steady(torch.ones(())).item())]


def steady_membrane(place: str, module: nn.Module) -> nn.Module:
    raise ValueError(
        f"{place} is read by its state, which has no steady value, since spikes reset its membrane; expected its "
        "spikes to be read, or an LICell"
    )


def described(place: str, module: Any, learnable_leak: LearnableLeak) -> Neuron:
    p, resting = module.p, "v_reset" if isinstance(module, _INTEGRATE_AND_FIRE) else "v_leak"
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
            raise ValueError(f"{place} has a learnable v_th and {resting} {rest.tolist()}; expected {resting}=0")
    else:
        threshold = threshold.detach() - rest
    if not bool((threshold > 0).all()):
        raise ValueError(f"{place} has v_th - {resting} {threshold.tolist()}; expected numbers above 0")
    gain: Tensor | float = 1.0
    if isinstance(module, _SYNAPTIC):
        gain = _gain(torch.as_tensor(p.tau_syn_inv).detach(), module.dt)
    recurrent = isinstance(module, _RECURRENT)
    return Neuron(
        threshold,
        gain,
        module.activation if isinstance(module, ConvergentLIFBoxCell) else None,
        input_weights=_linear(module.input_weights) if recurrent else None,
        lateral=_linear(module.recurrent_weights) if recurrent else None,
    )


def runs_over_time(module: nn.Module) -> bool:
    return isinstance(module, _OVER_TIME)


def differences(neurons: dict[str, Any]) -> list[str]:
    notes = []
    others = [n for n in neurons.values() if not isinstance(n, ConvergentLIFBoxCell)]
    if others:
        kinds = " and ".join(sorted({type(n).__name__ for n in others}))
        notes.append(
            f"{len(others)} {kinds} neuron layers keep their weights, thresholds and input gains; their leak and "
            "reset are replaced by a relaxation to rate = activation(gain * drive / threshold), which is 1 where the "
            "original's steady membrane reaches its threshold, so their rates differ from the original's (the gains: "
            "help(ep_plugin.conversion.norse))"
        )
    if recurrent := [name for name, n in neurons.items() if isinstance(n, _RECURRENT)]:
        notes.append(f"the recurrent weights V of {', '.join(recurrent)} act as their symmetric part, (V + V^T) / 2")
    for name, n in neurons.items():
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
