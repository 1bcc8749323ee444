"""One step of a convergent neuron outside of a network, for the libraries' neuron classes."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ep_plugin.dynamics.activations import Activation
from ep_plugin.dynamics.encoders import Encoder
from ep_plugin.dynamics.encoders.base import EncoderState


class ConvergentState(NamedTuple):
    """What a convergent neuron hands from one step to the next.

    `membrane` is in the threshold's units, `coded` the encoder's own state (its `trace` is what neighbours
    know of the neuron, as a rate), `time` the number of steps taken.
    """

    membrane: Tensor
    coded: EncoderState
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
        threshold: theta.
        activation: of the neuron.
        encoder: what the neuron sends.
        step_size: how far it moves.

    Returns:
        What the neuron sends, `[B, ...]` (binary spikes, or the trace for encoders without them), and the
        new state. The old one stays as it is.
    """
    if state is None:
        state = ConvergentState(torch.zeros_like(drive), encoder.start(drive.detach(), 0), 0)
    elif not isinstance(state, ConvergentState):
        raise TypeError(
            f"{name} is a {type(state).__name__}; expected what the last call returned, or None to start from rest"
        )
    elif state.membrane.shape != drive.shape:
        raise ValueError(
            f"the input has the shape {list(drive.shape)} and the state {list(state.membrane.shape)}; start "
            f"every batch with {name}=None"
        )
    coded = copy.copy(state.coded) if torch.is_grad_enabled() else state.coded.repeated(1)
    membrane = activation.step(state.membrane / threshold, drive / threshold, step_size)
    message = encoder.encode(membrane, coded, state.time + 1, activation.maximum)
    sent = message.events if encoder.averages and message.events is not None else coded.trace
    if sent is message.events and activation.maximum != 1:
        sent = sent * activation.maximum  # what a spike stands for
    if sent is coded.trace and not torch.is_grad_enabled():
        sent = sent.clone()
    return sent, ConvergentState(membrane * threshold, coded, state.time + 1)
