"""Binary spikes behind a linear decoder.

A decoder with step size lam_t filters the spikes q: u <- u + lam (q - u). It is linear, so it makes no
difference to a linear connection whether it stands before or behind it; lam_t falls over time, so
that the spikes' noise is averaged away.

The sigma-delta quantizer is an integrate-and-fire neuron with subtract reset: it fires when its
residue passes one half, and the spike is subtracted (O'Connor, Gavves, Welling, AISTATS 2019).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.adaptive_delta import AdaptiveDelta
from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.tensors import into
from ep_plugin.validation import finite_number, fraction, plain_numbers


@dataclass
class QuantizerState(EncoderState):
    """`residue` is what the quantizer has not yet sent, `before` the signal a step ago, `spikes` room for them."""

    residue: Tensor
    before: Tensor
    spikes: Tensor


@dataclass(frozen=True)
class _Decoded:
    """Binary spikes behind a decoder of step size lam_t = min(1, rate * t ** -exponent)."""

    rate: float = 0.5
    exponent: float = 0.3

    spiking = True
    signed = False
    averages = True
    digits = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        fraction("rate", self.rate)
        if finite_number("exponent", self.exponent) < 0:
            raise ValueError(f"exponent is {self.exponent!r}; expected 0 or more, so that lam does not grow")

    def step_size(self, time: int) -> float:
        return min(1.0, self.rate * time**-self.exponent)

    def start(self, like: Tensor, layer: int) -> QuantizerState:
        zeros = (torch.zeros_like(like) for _ in range(5))
        return QuantizerState(*zeros)

    def for_deviations(self) -> Encoder:
        # A deviation has both signs and no bound: binary spikes cannot tell it.
        return AdaptiveDelta()

    def _quantized(self, signal: Tensor, state: QuantizerState, time: int, maximum: float) -> Message:
        total = torch.add(state.residue, signal, out=into(state.residue))
        spikes = _fire(total, maximum / 2, into(state.spikes))
        state.residue = torch.sub(total, spikes, alpha=maximum, out=into(total))
        return self._decoded(spikes, state, time, maximum)

    def _decoded(self, spikes: Tensor, state: QuantizerState, time: int, maximum: float) -> Message:
        sent = spikes if maximum == 1 else spikes * maximum
        change = torch.sub(sent, state.trace, out=into(state.change))
        state.change = torch.mul(change, self.step_size(time), out=into(change))
        state.trace = torch.add(state.trace, state.change, out=into(state.trace))
        state.spikes = spikes
        return Message(state.change, None, spikes)


class SigmaDelta(_Decoded):
    """Binary spikes whose sum follows the sum of the states: v = phi + r; q = 1[v > 1/2]; phi = v - q.

    Sigma-delta modulation, as in O'Connor, Gavves, Welling (AISTATS 2019).

    Args:
        rate: of the decoder's step size lam_t = min(1, rate * t ** -exponent), where t counts the steps; in (0, 1].
        exponent: 0 or more.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model = ep.convert(net, encoder=ep.SigmaDelta(rate=0.5))
    """

    def encode(self, signal: Tensor, state: QuantizerState, time: int, maximum: float) -> Message:
        return self._quantized(signal, state, time, maximum)


@dataclass(frozen=True)
class PredictiveSigmaDelta(_Decoded):
    """Binary spikes whose trace follows the state: the quantizer is fed (r_t - (1 - lam) r_(t-1)) / lam.

    The decoder turns this signal back into r (O'Connor et al. 2019).

    Args:
        rate: of the decoder's step size lam_t = min(1, rate * t ** -exponent), where t counts the steps; in (0, 1].
        exponent: 0 or more.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model = ep.convert(net, encoder=ep.PredictiveSigmaDelta(rate=0.6))
    """

    rate: float = 0.6

    def encode(self, signal: Tensor, state: QuantizerState, time: int, maximum: float) -> Message:
        lam = self.step_size(time)
        # r_(t-1) + (r_t - r_(t-1)) / lam, the same in one pass
        predicted = torch.lerp(state.before, signal, 1 / lam, out=into(state.change))
        state.before = signal if torch.is_grad_enabled() else state.before.copy_(signal)
        return self._quantized(predicted, state, time, maximum)


class Bernoulli(_Decoded):
    """Independent random spikes with probability r, from PyTorch's global generator.

    Args:
        rate: of the decoder's step size lam_t = min(1, rate * t ** -exponent), where t counts the steps; in (0, 1].
        exponent: 0 or more.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is not a number.

    Example:
        >>> model = ep.convert(net, encoder=ep.Bernoulli())
    """

    def encode(self, signal: Tensor, state: QuantizerState, time: int, maximum: float) -> Message:
        probability = signal / maximum
        spikes = _fire(probability, torch.rand_like(probability), into(state.spikes))
        return self._decoded(spikes, state, time, maximum)


def _fire(x: Tensor, threshold: float | Tensor, out: Tensor | None) -> Tensor:
    """1 where `x` is above the threshold, else 0."""
    if torch.is_grad_enabled():
        return _Spike.apply(x, threshold)
    # Comparing into a float tensor is ten times faster than making booleans and converting them.
    return torch.gt(x, threshold, out=out)


class _Spike(torch.autograd.Function):
    """1 where the input is above the threshold; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float | Tensor) -> Tensor:
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
