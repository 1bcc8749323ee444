"""snnTorch's neurons in a model that is converted.

The converted neuron settles where r = activation(gain * drive / threshold):

| neuron | gain | remarks |
|---|---|---|
| `Leaky`, `ConvergentLeaky` | 1 | the leak `beta` has no effect |
| `Lapicque` | R | drive R I is its steady membrane |
| `Synaptic` | 1 / (1 - alpha) | the steady state of its synapse; `beta` as in `Leaky` |
| `Alpha` | tau (1 / (1 - alpha) - 1 / (1 - beta)), tau = log alpha / (log beta - log alpha) + 1 | its steady membrane |
| `RLeaky` | 1 | its recurrent weights V act as (V + V^T) / 2 |
| `RSynaptic` | 1 / (1 - alpha) | both |

For `Leaky` and `Synaptic` with beta = 1 and the subtract reset (integrate and fire) r is the rate at which the original
fires under a steady input. For the others it is not: weights, thresholds and gains are shared, leak and reset are not.
V becomes symmetric because the energy's term of a layer with itself, <r, V r> / 2, has the derivative (V + V^T) r / 2:
no energy drives a neuron by V r alone unless V is symmetric. Autograd carries the contrast of that term back to V. If
gain * (V + V^T) / 2 has an eigenvalue above the threshold, the layer may have several equilibria.

If a traced forward reads only the membrane of a neuron that never resets (`reset_mechanism="none"`), the neuron is a
leaky integrator: its steady membrane is gain / (1 - beta) times the input (R and tau (...) times it for `Lapicque` and
`Alpha`), and its leak may be learnable. In a sequence the last neuron is read by its spikes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons import rleaky, rsynaptic
from torch import Tensor, nn

from ep_plugin.conversion.adapters import LearnableLeak, Neuron, States
from ep_plugin.linear.base import register_linear
from ep_plugin.linear.modules import Scale, SteadyMembrane
from ep_plugin.neurons.snntorch import ConvergentLeaky


def _one() -> Tensor:
    return torch.ones(())


def _resistance(resistance: Tensor) -> Tensor:
    return resistance


def _leaky(beta: Tensor) -> Tensor:
    return 1 / (1 - beta.clamp(0, 1))


def _synaptic(alpha: Tensor, beta: Tensor) -> Tensor:
    return _leaky(alpha) * _leaky(beta)


def _alpha(alpha: Tensor, beta: Tensor) -> Tensor:
    alpha, beta = alpha.clamp(0, 1), beta.clamp(0, 1)
    tau = alpha.log() / (beta.log() - alpha.log()) + 1
    return tau * (1 / (1 - alpha) - 1 / (1 - beta))


Formula = tuple[Callable[..., Tensor], tuple[str, ...]]
"""A function of the named attributes of a neuron."""


@dataclass(frozen=True)
class Row:
    """What is known of one neuron.

    Attributes:
        gain: what it makes of a steady input.
        membrane: its steady membrane over a steady input, if it never resets; None if there is none.
        outputs: how many values a call returns, if it returns its state.
        recurrent: whether its spikes come back to it by weights of its own.
        states: what it is handed, in the order of the arguments.
        free: those of them on which the gain does not depend.
    """

    gain: Formula
    membrane: Formula | None
    states: tuple[str, ...]
    free: tuple[str, ...] = ("mem",)
    outputs: int = 2
    recurrent: bool = False


_ONE: Formula = (_one, ())

NEURONS: dict[type[nn.Module], Row] = {
    snn.Leaky: Row(_ONE, (_leaky, ("beta",)), ("mem",)),
    ConvergentLeaky: Row(_ONE, None, ("mem",), ()),
    snn.RLeaky: Row(_ONE, None, ("spk", "mem"), recurrent=True),
    snn.Lapicque: Row((_resistance, ("R",)), (_resistance, ("R",)), ("mem",), ()),
    snn.Synaptic: Row((_leaky, ("alpha",)), (_synaptic, ("alpha", "beta")), ("syn", "mem"), outputs=3),
    snn.RSynaptic: Row((_leaky, ("alpha",)), None, ("spk", "syn", "mem"), outputs=3, recurrent=True),
    snn.Alpha: Row(
        (_alpha, ("alpha", "beta")), (_alpha, ("alpha", "beta")), ("syn_exc", "syn_inh", "mem"), (), outputs=4
    ),
}

_REFUSED = {
    "LeakyParallel": "it computes all time steps in one call, by a recurrent net with weights and a relu of its own",
    "StateLeaky": "it computes all time steps in one call and never resets",
    "LinearLeaky": "it computes all time steps in one call, holds weights of its own and never resets",
    "AssociativeLeaky": "its memory is gated by its inputs, and products of states have no energy of connections",
    "DeltaLeaky": "it fires when its membrane changes, and at an equilibrium nothing does",
    "SLSTM": "its gates multiply states with each other, which has no energy of connections",
    "SConv2dLSTM": "its gates multiply states with each other, which has no energy of connections",
}


# What RLeaky and RSynaptic keep elementwise weights V in.
_ONE_TO_ONE = (rleaky.RecurrentOneToOne, rsynaptic.RecurrentOneToOne)
for _kind in _ONE_TO_ONE:
    register_linear(_kind)


def is_neuron(module: nn.Module) -> bool:
    if isinstance(module, _ONE_TO_ONE):
        return False
    return isinstance(module, snn.SpikingNeuron) or any(
        base.__module__.startswith("snntorch._neurons.") for base in type(module).__mro__
    )


def check(place: str, module: nn.Module) -> None:
    if type(module) in NEURONS:
        return
    name = type(module).__name__
    known = ", ".join(sorted(kind.__name__ for kind in NEURONS))
    way_out = f"Use one of {known} in its place (snn.Leaky if in doubt)"
    if name not in _REFUSED:
        way_out += f", or say what it does by ep_plugin.register_neuron({name}, ...)"
    raise ValueError(
        f"{place} cannot be converted: {_REFUSED.get(name, 'it is not known to have an equilibrium')}. {way_out}"
    )


def outputs(module: Any) -> int:
    if module.init_hidden and not module.output:
        return 0
    return NEURONS[type(module)].outputs


def states(module: nn.Module) -> States:
    row = NEURONS[type(module)]
    return States(row.states, frozenset(row.free))


def integrator(module: nn.Module) -> None:
    """All of them spike."""


def steady_membrane(place: str, module: Any) -> nn.Module:
    if module.reset_mechanism != "none":
        raise ValueError(
            f"{place} is read by its membrane, which has no steady value, since a spike resets it "
            f"({module.reset_mechanism!r}); expected its spikes to be read, or reset_mechanism='none'"
        )
    if module.state_quant:
        raise ValueError(
            f"{place} is read by its membrane and uses state_quant, whose steps no steady value has; "
            "expected state_quant=False"
        )
    membrane = NEURONS[type(module)].membrane
    if membrane is None:
        raise ValueError(
            f"{place} is read by its membrane, while its spikes come back to it; expected its spikes to be read, or "
            "snn.Leaky with reset_mechanism='none'"
        )
    formula, names = membrane
    constants = {name: getattr(module, name) for name in names}
    gain = formula(*constants.values()).detach()
    if not bool(gain.isfinite().all()):
        raise ValueError(f"{place} never settles, since nothing leaks from it; expected a leak below 1")
    if not any(isinstance(t, nn.Parameter) for t in constants.values()) and gain.numel() == 1:
        return Scale(gain.item())
    return SteadyMembrane(formula, constants)


def described(place: str, module: Any, learnable_leak: LearnableLeak) -> Neuron:
    for leak in ("beta", "alpha"):
        if isinstance(getattr(module, leak, None), nn.Parameter) and learnable_leak == "refuse":
            raise ValueError(
                f"{place} has a learnable leak ({leak}), on which the equilibrium does not depend: its gradient would "
                f"be zero. Use learn_{leak}=False, or convert(..., learnable_leak='freeze') to leave it as it is"
            )
    if isinstance(module.graded_spikes_factor, nn.Parameter) or bool((module.graded_spikes_factor != 1).any()):
        raise ValueError(
            f"{place} scales its spikes by graded_spikes_factor; expected 1. Put the factor into the weights after it"
        )
    _require_plain_spikes(place, module)
    for option in ("inhibition", "state_quant"):
        if getattr(module, option):
            raise ValueError(f"{place} uses {option}, which has no energy; expected {option}=False")
    if not bool((module.threshold > 0).all()):
        raise ValueError(f"{place} has the threshold {module.threshold.tolist()}; expected numbers above 0")
    row = NEURONS[type(module)]
    formula, names = row.gain
    gain = formula(*(getattr(module, name) for name in names)).detach()
    if not bool((gain.isfinite() & (gain > 0)).all()):
        raise ValueError(
            f"{place} has a synapse without a steady state (gain {gain.tolist()}); expected {' and '.join(names)} "
            "between 0 and 1"
        )
    return Neuron(
        module.threshold,
        gain,
        module.activation if isinstance(module, ConvergentLeaky) else None,
        lateral=module.recurrent if row.recurrent else None,
    )


_AROUND = torch.tensor([[-2.0, -0.5, 0.5, 2.0]])
"""Membranes below and above the threshold, from which they are counted."""


def _require_plain_spikes(place: str, module: Any) -> None:
    """A spike is 1 above the threshold, and no other function of the membrane is the neuron's own."""
    try:
        with torch.no_grad():
            fired = module.spike_grad(_AROUND.clone())
    except (TypeError, RuntimeError):  # it takes something else, if anything
        fired = None
    if fired is not None and fired.tolist() != (_AROUND > 0).float().tolist():
        raise ValueError(
            f"{place} has a spike_grad that gives {fired.flatten().tolist()} for membranes of "
            f"{_AROUND.flatten().tolist()} above the threshold; expected a surrogate gradient, which gives 1 above it "
            "and 0 below. A neuron with other spikes can be an own class: ep_plugin.register_neuron"
        )
    for name in ("fire", "state_function"):
        own = vars(module).get(name)
        methods = [method for kind in type(module).__mro__ for method in vars(kind).values() if callable(method)]
        if own is not None and getattr(own, "__func__", None) not in methods:
            raise ValueError(
                f"{place} has a {name} of its own, which the converted neuron has not; remove it, or make it a class "
                "and say what it does by ep_plugin.register_neuron"
            )


def runs_over_time(module: nn.Module) -> bool:
    """None of them: a loop over the steps is the model's own."""
    return False


def differences(neurons: dict[str, Any]) -> list[str]:
    notes = []
    others = [n for n in neurons.values() if not isinstance(n, ConvergentLeaky) and not _integrates_and_fires(n)]
    if others:
        kinds = " and ".join(sorted({type(n).__name__ for n in others}))
        resets = " and ".join(sorted({repr(n.reset_mechanism) for n in others}))
        notes.append(
            f"{len(others)} {kinds} neuron layers keep their weights and thresholds; their leak, input gain and "
            f"reset ({resets}) are replaced by a relaxation to rate = activation(gain * drive / threshold), so their "
            "rates differ from the original's (the gains: help('ep_plugin.conversion.snntorch'))"
        )
    if recurrent := [name for name, n in neurons.items() if NEURONS[type(n)].recurrent]:
        notes.append(f"the recurrent weights V of {', '.join(recurrent)} act as their symmetric part, (V + V^T) / 2")
    for name, n in neurons.items():
        for leak in ("beta", "alpha"):
            if isinstance(getattr(n, leak, None), nn.Parameter):
                notes.append(f"the learnable {leak} of {name} stays as it is")
    return notes


def _integrates_and_fires(module: Any) -> bool:
    """Whether the original fires at the rate that its conversion settles at."""
    return (
        type(module) in (snn.Leaky, snn.Synaptic)
        and module.reset_mechanism == "subtract"
        and bool(torch.as_tensor(module.beta >= 1).all())
    )
