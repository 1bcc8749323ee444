"""Signed events that close the gap between a signal and what the neighbours know of it.

Closed-loop delta modulation. With the error e = r - u of a layer's neurons, a number kappa for each
sample, layer and step, and m digits,

    kappa = 2 max|e| / 3^m;   n = round(e / kappa), clipped to +-(3^m - 1) / 2;   u <- u + kappa n

In balanced ternary n = q_1 3^(m-1) + ... + q_m with digits -1, 0 and 1. Each digit that is not 0 is an event, sent
in its slot of the step, which says its weight: 3^(m-1) kappa, ..., 3 kappa, kappa.

The neuron with the largest error always fires, and no error is left above 3^-m of the largest one, so s steps
carry m s ternary digits, whatever the size of the signal. A silent neuron sends nothing. That a neuron sends its
digits before its neighbours answer saves most of the steps: what keeps a network from its equilibrium is the coarse
first digits of its layers, and each step costs a product of every connection. (Least cosine of the gradient over
the layers, 2C2FC after 11 epochs of FashionMNIST: .993 with 7 free and 5 nudged steps of one digit, .993 with 3 and 2
of three. Eight hidden layers after 600 batches: .995 with 8 and 6, .997 with 3 and 2.)

In this encoder a spike is a graded event: its weight is a reduction over a layer, unless it is a
constant of layer and step (`event_weight="fixed"`), when an event carries its sign and its slot and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.tensors import into, per_sample, rows
from ep_plugin.validation import chosen, count, plain_numbers

EventWeight = Literal["sample", "power_of_two", "fixed"]

EVENT_WEIGHTS: dict[str, str] = {
    "sample": "a number a sample, layer and step",
    "power_of_two": "the same, rounded up to a power of two: a shift in hardware",
    "fixed": "a constant of layer and step, found by running means in training",
}

# Beyond it half precision no longer holds what a step sends.
_MOST_DIGITS = 5


@dataclass(frozen=True)
class AdaptiveDelta:
    """Signed events (-1, 0 or 1) whose trace follows the state in a closed loop.

    The default of the free phase and of deviations. This is not snnTorch's `spikegen.delta`, whose threshold is fixed.

    Args:
        event_weight: what an event stands for: "sample" (one number per sample, layer and step: graded events),
            "power_of_two" (the same, rounded up: a shared exponent), or "fixed" (one constant per layer and step,
            which a network in training mode finds by running means, as a batch normalization does).
        digits: how many events a neuron may send in a step, 1 to 5. Each has a third of the weight of the one before
            it. With fewer digits a network needs more steps, and fewer events in all.

    Raises:
        ValueError: `event_weight` is unknown, or `digits` is out of its range.
        TypeError: `digits` is not a whole number.

    Example:
        >>> model = ep.convert(net, encoder=ep.AdaptiveDelta(event_weight="power_of_two"))
    """

    event_weight: EventWeight = "sample"
    digits: int = 3

    spiking = True
    signed = True
    averages = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        chosen("event_weight", self.event_weight, EVENT_WEIGHTS)
        count("digits", self.digits)
        if self.digits > _MOST_DIGITS:
            raise ValueError(f"digits is {self.digits}; expected {_MOST_DIGITS} or fewer")

    def start(self, like: Tensor, layer: int) -> EncoderState:
        if self.event_weight == "fixed":
            raise ValueError(
                "fixed event weights are constants that a ConvergentNetwork finds and keeps; outside of one use "
                'AdaptiveDelta(event_weight="sample") or "power_of_two"'
            )
        return EncoderState(torch.zeros_like(like), torch.empty_like(like))

    def encode(self, signal: Tensor, state: EncoderState, time: int, maximum: float) -> Message:
        error = torch.sub(signal, state.trace, out=into(state.change))
        weight = event_weights(error.detach(), self.digits)
        if self.event_weight == "power_of_two":
            weight = weight.log2_().ceil_().exp2_()
        return send(error, weight, state, self.digits)

    def for_deviations(self) -> Encoder:
        return self


def event_weights(error: Tensor, digits: int) -> Tensor:
    """kappa of each sample, `[B]`; 0 where there is no error."""
    entries = rows(error)
    return torch.maximum(entries.amax(1), entries.amin(1).neg_()).mul_(2 / 3**digits)


def send(error: Tensor, weight: Tensor, state: EncoderState, digits: int) -> Message:
    """The events for an error, in its place, and the trace that they lead to.

    On a graph the quantizer passes the gradient of `error` straight through.
    """
    kappa, most = per_sample(weight, error), 3**digits // 2
    least = torch.finfo(weight.dtype).tiny
    numbers = torch.div(error.detach(), kappa.clamp_min(least), out=into(error)).round_().clamp_(-most, most)
    if not torch.is_grad_enabled():
        state.trace.addcmul_(numbers, kappa)
        return Message(numbers, weight, numbers, digits)
    change = error + (numbers * kappa - error).detach()
    state.trace = state.trace + change
    return Message(change, None, numbers, digits)
