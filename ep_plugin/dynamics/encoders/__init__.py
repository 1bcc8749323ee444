"""What a neuron tells its neighbours.

The neighbours know of a neuron a trace u. An encoder decides, step by step, what is sent so that u
follows a signal: the neuron's state r in the free phase, its deviation in a nudged one. Every encoder
owns its state, and says by how much the trace has changed: that is all that travels.

- `Graded` sends the signal itself.
- `AdaptiveDelta` sends signed events that close the gap between signal and trace.
- `SigmaDelta`, `PredictiveSigmaDelta` and `Bernoulli` send binary spikes.
"""

from collections.abc import Callable
from typing import Literal

from ep_plugin.dynamics.encoders.adaptive_delta import AdaptiveDelta
from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.encoders.binary import Bernoulli, PredictiveSigmaDelta, SigmaDelta
from ep_plugin.dynamics.encoders.graded import Graded
from ep_plugin.validation import chosen

EncoderName = Literal["adaptive_delta", "graded", "sigma_delta", "predictive_sigma_delta", "bernoulli"]

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "adaptive_delta": AdaptiveDelta,
    "graded": Graded,
    "sigma_delta": SigmaDelta,
    "predictive_sigma_delta": PredictiveSigmaDelta,
    "bernoulli": Bernoulli,
}


def as_encoder(encoder: str | Encoder) -> Encoder:
    """An encoder from its name or itself."""
    if isinstance(encoder, str):
        if encoder == "predictive":
            raise ValueError("encoder 'predictive' is now called 'predictive_sigma_delta'")
        return chosen("encoder", encoder, ENCODERS)()
    if isinstance(encoder, type) or not hasattr(encoder, "encode"):
        raise TypeError(f"encoder is {encoder!r}; expected an encoder such as Graded(), or its name")
    return encoder
