"""What a neuron tells its neighbours.

The neighbours receive a trace u of the neuron's state r. Graded neurons send r itself. Spiking ones
send binary spikes q, which a decoder with step size lam_t filters: u <- (1 - lam) u + lam q. The
decoder is linear, so it makes no difference to a linear connection whether it stands before or
behind it; lam_t falls over time, so that the spikes' noise is averaged away.

The sigma-delta quantiser is an integrate-and-fire neuron with subtract reset: it fires when its
residue passes one half, and the spike is subtracted (O'Connor, Gavves, Welling, AISTATS 2019).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ep_plugin.checks import chosen, finite_number, fraction


class NeuronState(NamedTuple):
    """State of a layer of neurons, each tensor `[B, ...]`.

    `membrane` is r in units of the threshold, `trace` u what the neighbours see of it, and `residue`
    what the quantiser has not yet sent (zero for encoders without one).
    """

    membrane: Tensor
    trace: Tensor
    residue: Tensor


Encoded = tuple[NeuronState, Tensor | None]
"""The new state, and the spikes (0 or 1); graded neurons have none."""


class Encoder(Protocol):
    spiking: bool

    def encode(self, membrane: Tensor, before: NeuronState, time: int, maximum: float) -> Encoded:
        """The new state and the spikes (0 or 1) of a neuron whose membrane has moved.

        `time` counts the steps from 1, on through the phases; `maximum` is what a spike stands for.
        """


@dataclass(frozen=True)
class Graded:
    """The state itself: no spikes."""

    spiking = False

    def encode(self, membrane: Tensor, before: NeuronState, time: int, maximum: float) -> Encoded:
        return NeuronState(membrane, membrane, before.residue), None


@dataclass(frozen=True)
class _Decoded:
    """Spikes behind a decoder of step size lam_t = min(1, rate * t ** -exponent)."""

    rate: float = 0.5
    exponent: float = 0.3

    spiking = True

    def __post_init__(self) -> None:
        fraction("rate", self.rate)
        if finite_number("exponent", self.exponent) < 0:
            raise ValueError(f"exponent is {self.exponent!r}; expected 0 or more, so that lam does not grow")

    def step_size(self, time: int) -> float:
        return min(1.0, self.rate * time**-self.exponent)


class SigmaDelta(_Decoded):
    """Spikes whose sum follows the sum of the states: v = phi + r; q = 1[v > 1/2]; phi = v - q.

    Sigma-delta modulation, as O'Connor, Gavves, Welling (AISTATS 2019) have it.

    Args:
        rate, exponent: of the decoder's step size lam_t = min(1, rate * t ** -exponent), t counting the
            steps; `rate` in (0, 1], `exponent` 0 or more.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    def encode(self, membrane: Tensor, before: NeuronState, time: int, maximum: float) -> Encoded:
        return _quantise(membrane, membrane, before, self.step_size(time), maximum)


@dataclass(frozen=True)
class PredictiveSigmaDelta(_Decoded):
    """Spikes whose trace follows the state: the quantiser is fed (r_t - (1 - lam) r_(t-1)) / lam.

    That is the signal which the decoder turns back into r (O'Connor et al. 2019).

    Args:
        rate, exponent: of the decoder's step size lam_t = min(1, rate * t ** -exponent), t counting the
            steps; `rate` in (0, 1], `exponent` 0 or more.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    rate: float = 0.6

    def encode(self, membrane: Tensor, before: NeuronState, time: int, maximum: float) -> Encoded:
        lam = self.step_size(time)
        # r_(t-1) + (r_t - r_(t-1)) / lam, the same in one pass
        signal = torch.lerp(before.membrane, membrane, 1 / lam)
        return _quantise(signal, membrane, before, lam, maximum)


class Bernoulli(_Decoded):
    """Independent random spikes with probability r, from PyTorch's global generator.

    Args:
        rate, exponent: of the decoder's step size lam_t = min(1, rate * t ** -exponent), t counting the
            steps; `rate` in (0, 1], `exponent` 0 or more.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    def encode(self, membrane: Tensor, before: NeuronState, time: int, maximum: float) -> Encoded:
        probability = membrane / maximum
        spikes = _Spike.apply(probability, torch.rand_like(probability))
        trace = torch.lerp(before.trace, spikes * maximum, self.step_size(time))
        return NeuronState(membrane, trace, before.residue), spikes


def _quantise(
    signal: Tensor, membrane: Tensor, before: NeuronState, lam: float, maximum: float
) -> tuple[NeuronState, Tensor]:
    total = before.residue + signal
    spikes = _Spike.apply(total, 0.5) if maximum == 1 else _Spike.apply(total / maximum, 0.5)
    sent = spikes if maximum == 1 else spikes * maximum
    return NeuronState(membrane, torch.lerp(before.trace, sent, lam), total - sent), spikes


class _Spike(torch.autograd.Function):
    """1 where the input is above the threshold; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float | Tensor) -> Tensor:
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


ENCODERS: dict[str, type[Encoder]] = {
    "graded": Graded,
    "sigma_delta": SigmaDelta,
    "predictive": PredictiveSigmaDelta,
    "bernoulli": Bernoulli,
}


def as_encoder(encoder: str | Encoder) -> Encoder:
    """An encoder from its name or itself."""
    if isinstance(encoder, str):
        return chosen("encoder", encoder, ENCODERS)()
    if isinstance(encoder, type) or not hasattr(encoder, "encode"):
        raise TypeError(f"encoder is {encoder!r}; expected an encoder such as Graded(), or its name")
    return encoder
