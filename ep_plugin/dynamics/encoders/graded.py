"""Graded neurons: no spikes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.tensors import into


@dataclass(frozen=True)
class Graded:
    """No spikes: a neuron sends its state itself.

    Example:
        >>> model = ep.convert(net, encoder=ep.Graded())
        >>> model.free_phase(x).spikes is None
        True
    """

    spiking = False
    signed = True
    averages = False
    digits = math.inf

    def start(self, like: Tensor, layer: int) -> EncoderState:
        return EncoderState(torch.zeros_like(like), torch.empty_like(like))

    def encode(self, signal: Tensor, state: EncoderState, time: int, maximum: float) -> Message:
        state.change = torch.sub(signal, state.trace, out=into(state.change))
        state.trace = signal if torch.is_grad_enabled() else state.trace.copy_(signal)
        return Message(state.change, None, None)

    def for_deviations(self) -> Encoder:
        return self
