"""One step of a convergent neuron outside of a network, for the libraries' neuron classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ep_plugin.encoders import Encoder, NeuronState
from ep_plugin.neurons.activations import Activation


class ConvergentState(NamedTuple):
    """What a convergent neuron hands from one step to the next.

    `membrane` is in the threshold's units, `trace` what neighbours see of it as a rate, `residue`
    what the quantiser has not yet sent, `time` the number of steps taken.
    """

    membrane: Tensor
    trace: Tensor
    residue: Tensor
    time: int


def step(
    name: str,
    drive: Tensor,
    state: ConvergentState | None,
    threshold: Tensor,
    activation: Activation,
    encoder: Encoder,
    step_size: float,
) -> tuple[Tensor, ConvergentState]:
    """Moves the membrane towards threshold * activation(drive / threshold).

    Args:
        name: what the caller calls its state.
        drive: `[B, ...]`.
        state: what the last step returned; None starts from rest.

    Returns:
        What the neuron sends, `[B, ...]`, and the new state.
    """
    if state is None:
        state = ConvergentState(*(torch.zeros_like(drive),) * 3, time=0)
    elif not isinstance(state, ConvergentState):
        raise TypeError(
            f"{name} is a {type(state).__name__}; expected what the last call returned, or None to start from rest"
        )
    elif state.membrane.shape != drive.shape:
        raise ValueError(
            f"the input has the shape {list(drive.shape)} and the state {list(state.membrane.shape)}; start "
            f"every batch with {name}=None"
        )
    before = NeuronState(state.membrane / threshold, state.trace, state.residue)
    moved = activation.step(before.membrane, drive / threshold, step_size)
    after, spikes = encoder.encode(moved, before, state.time + 1, activation.maximum)
    sent = after.trace if spikes is None else spikes
    return sent, ConvergentState(after.membrane * threshold, after.trace, after.residue, state.time + 1)
