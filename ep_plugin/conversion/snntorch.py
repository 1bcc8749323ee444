"""snnTorch's neurons in a model that is converted."""

from collections.abc import Sequence
from typing import TypeAlias

import snntorch as snn
from torch import nn

from ep_plugin.neurons.activations import Activation, Elementwise, as_activation
from ep_plugin.neurons.snntorch import ConvergentLeaky

Neuron: TypeAlias = snn.Leaky | snn.Lapicque | ConvergentLeaky

_CONVERTED = (snn.Leaky, snn.Lapicque, ConvergentLeaky)


def is_neuron(module: nn.Module) -> bool:
    """Any neuron of snnTorch, also one that cannot be converted."""
    return isinstance(module, snn.SpikingNeuron) or type(module).__module__.startswith("snntorch.")


def check_neuron(name: str, module: nn.Module) -> None:
    """Refuses what has no convergent counterpart."""
    place = f"module {name!r} ({type(module).__name__})"
    if type(module) not in _CONVERTED:
        raise ValueError(
            f"{place} cannot be converted: only snn.Leaky, snn.Lapicque and ConvergentLeaky have a convergent "
            "counterpart so far. Use snn.Leaky in its place"
        )
    assert isinstance(module, _CONVERTED)
    if isinstance(module.beta, nn.Parameter):
        raise ValueError(
            f"{place} has a learnable leak, on which the equilibrium does not depend: its gradient would be zero. "
            "Use learn_beta=False"
        )
    if isinstance(module.graded_spikes_factor, nn.Parameter) or bool((module.graded_spikes_factor != 1).any()):
        raise ValueError(
            f"{place} scales its spikes by graded_spikes_factor; expected 1. Put the factor into the weights after it"
        )
    for option in ("inhibition", "state_quant"):
        if getattr(module, option):
            raise ValueError(f"{place} uses {option}, which has no energy; expected {option}=False")
    if not bool((module.threshold > 0).all()):
        raise ValueError(f"{place} has the threshold {module.threshold.tolist()}; expected numbers above 0")


def activation_of(neuron: Neuron, default: str | Activation | Elementwise) -> Activation:
    return neuron.activation if isinstance(neuron, ConvergentLeaky) else as_activation(default)


def differences(neurons: Sequence[Neuron], has_readout: bool) -> list[str]:
    """In words: what the converted neurons do not share with the originals."""
    notes = []
    others = [n for n in neurons if not isinstance(n, ConvergentLeaky)]
    if others:
        kinds = " and ".join(sorted({type(n).__name__ for n in others}))
        resets = " and ".join(sorted({repr(n.reset_mechanism) for n in others}))
        notes.append(
            f"{len(others)} {kinds} neuron layers keep their weights and thresholds; their leak, input gain and "
            f"reset ({resets}) are replaced by a relaxation to rate = activation(drive / threshold), so their "
            "rates differ from the original's"
        )
    if not has_readout:
        notes.append("the output is the last neuron's equilibrium, one tensor [batch, ...], and not spikes over time")
    return notes
