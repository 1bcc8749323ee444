"""Signed events that close the gap between a signal and what the neighbours know of it.

Closed-loop delta modulation. With the error e = r - u of a layer's neurons and one number kappa for each
sample, layer and step,

    q = round(e / kappa), clipped to {-1, 0, 1};   u <- u + kappa q
    kappa = 2/3 max|e|                              in networks of up to three levels: balanced ternary
    kappa = max( sum(e^2) / sum|e|, max|e| / 2 )    in deeper ones

sum(e^2) / sum|e| is the best level of a ternary quantizer (Lloyd-Max) for errors that are uniform, Gaussian
or Laplace distributed alike; in deep networks a few neurons dwarf the others, which the largest error alone
would let wait. (Least cosine of the gradient over the layers: 2C2FC after 8 epochs of FashionMNIST, 6 free and
4 nudged steps: .990 with the first, .958 with the second. Eight hidden layers after 60 batches, 8 and 6 steps:
.941 and .998.)

The neuron with the largest error always fires, and no error is left above half of the largest one, so n
events carry about n ternary digits, whatever the size of the signal. A silent neuron sends nothing.

In this encoder a spike is a graded event: its weight is a reduction over a layer, unless it is a
constant of layer and step (`event_weight="fixed"`), when an event carries its sign and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.tensors import into, per_sample, rows
from ep_plugin.validation import chosen

EventWeight = Literal["sample", "power_of_two", "fixed"]

EVENT_WEIGHTS: dict[str, str] = {
    "sample": "a number a sample, layer and step",
    "power_of_two": "the same, rounded to a power of two: a shift in hardware",
    "fixed": "a constant of layer and step, found by running means in training",
}

# The deepest network of balanced ternary.
_LEVELS = 3


@dataclass
class DeltaState(EncoderState):
    """`depth` is the network's number of levels."""

    depth: int


@dataclass(frozen=True)
class AdaptiveDelta:
    """Signed events (-1, 0 or 1) whose trace follows the state in a closed loop.

    The default of the free phase and of deviations. Not snnTorch's `spikegen.delta`, whose threshold is
    fixed.

    Args:
        event_weight: what an event stands for: "sample" (a number a sample, layer and step: graded events),
            "power_of_two" (the same, rounded: a shared exponent), or "fixed" (constants of layer and step,
            which a network in training mode finds by running means, as a batch normalization does).

    Raises:
        ValueError: an unknown `event_weight`.

    Example:
        >>> model = convert(net, encoder=AdaptiveDelta(event_weight="power_of_two"))
    """

    event_weight: EventWeight = "sample"

    spiking = True
    signed = True
    averages = False

    def __post_init__(self) -> None:
        chosen("event_weight", self.event_weight, EVENT_WEIGHTS)

    def start(self, like: Tensor, layer: int, depth: int = 1) -> DeltaState:
        if self.event_weight == "fixed":
            raise ValueError(
                "fixed event weights are constants that a ConvergentNetwork finds and keeps; outside of one use "
                'AdaptiveDelta(event_weight="sample") or "power_of_two"'
            )
        return DeltaState(torch.zeros_like(like), torch.empty_like(like), depth)

    def encode(self, signal: Tensor, state: DeltaState, time: int, maximum: float) -> Message:
        error = torch.sub(signal, state.trace, out=into(state.change))
        weight = event_weights(error.detach(), state.depth)
        if self.event_weight == "power_of_two":
            weight = weight.log2_().round_().exp2_()
        return send(error, weight, state)

    def for_deviations(self) -> Encoder:
        return self


def event_weights(error: Tensor, depth: int) -> Tensor:
    """kappa of each sample, `[B]`; 0 where there is no error."""
    entries = rows(error)
    if depth <= _LEVELS:
        return torch.maximum(entries.amax(1), entries.amin(1).neg_()).mul_(2 / 3)
    size = entries.abs()
    most = size.amax(1)
    # Between half of the largest and the largest it is, whatever squares under- or overflow.
    mean = torch.linalg.vector_norm(size, dim=1).square_().div_(size.sum(1).clamp_min_(torch.finfo(most.dtype).tiny))
    return mean.clamp_(most / 2, most)


def send(error: Tensor, weight: Tensor, state: DeltaState) -> Message:
    """The events for an error, in its place, and the trace that they lead to.

    On a graph the quantizer passes the gradient of `error` straight through.
    """
    kappa = per_sample(weight, error)
    least = torch.finfo(weight.dtype).tiny
    events = torch.div(error.detach(), kappa.clamp_min(least), out=into(error)).round_().clamp_(-1, 1)
    if not torch.is_grad_enabled():
        state.trace.addcmul_(events, kappa)
        return Message(events, weight, events)
    change = error + (events * kappa - error).detach()
    state.trace = state.trace + change
    return Message(change, None, events)
