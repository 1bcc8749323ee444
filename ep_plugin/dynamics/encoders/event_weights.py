"""Events of fixed weight: constants of phase, layer and step, found by running means in training."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.encoders.adaptive_delta import AdaptiveDelta, event_weights, send
from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.tensors import into

FREE, NUDGED = 0, 1


def is_fixed(encoder: Encoder) -> bool:
    """Whether the encoder's events have the fixed weights of their network."""
    return isinstance(encoder, AdaptiveDelta) and encoder.event_weight == "fixed"


class EventWeights(nn.Module):
    """What an event of `AdaptiveDelta(event_weight="fixed")` stands for, in the `state_dict` of its network.

    In training mode a batch's mean of kappa moves the running mean, which is then used, also for that
    batch; in evaluation the constants are fixed. They hold for the settings that they were found
    with.

    Args:
        layers: number of layers.
        steps: steps of the free and of the nudged phase.
        settings: what they are found with: names and values, for the error when something has changed.
    """

    values: Tensor
    batches: Tensor

    def __init__(self, layers: int, steps: tuple[int, int], settings: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(2, layers, max(steps)))
        self.register_buffer("batches", torch.zeros(2, dtype=torch.long))
        self.settings = settings

    def extra_repr(self) -> str:
        return f"batches={self.batches.tolist()}"

    def get_extra_state(self) -> dict[str, Any]:
        return self.settings

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.settings = state

    def require(self, settings: dict[str, Any]) -> None:
        """Refuses settings that the constants were not found with.

        Raises:
            ValueError: with what has changed, and the way out.
        """
        found = {k: self.settings.get(k) for k in settings}
        changed = [f"{k} was {found[k]} and is {v}" for k, v in settings.items() if found[k] != v]
        if changed:
            raise ValueError(
                f"the fixed event weights were found with other settings: {'; '.join(changed)}. Set these back, or "
                "find them anew: model.reset_event_weights(), and some training steps in training mode"
            )

    def begin(self, phase: int) -> None:
        """A batch enters a phase.

        Raises:
            ValueError: the constants are fixed, but have not been found.
        """
        if self.training:
            self.batches[phase] += 1
        elif not self.batches.is_meta and not self.batches[phase]:
            raise ValueError(
                f"the fixed event weights of the {('free', 'nudged')[phase]} phase have not been found: run some "
                "training steps (forward and backward, in training mode) first, or load a checkpoint that holds them"
            )


@dataclass(frozen=True)
class FixedEvents:
    """`AdaptiveDelta` with the constants of a network, in one of its phases."""

    weights: EventWeights
    digits: int
    phase: int = FREE

    spiking = True
    signed = True
    averages = False

    # A new batch's weight in the running mean, once there have been enough of them.
    momentum = 0.1

    def start(self, like: Tensor, layer: int) -> "FixedState":
        if layer == 0:
            self.weights.begin(self.phase)
        return FixedState(torch.zeros_like(like), torch.empty_like(like), layer)

    def encode(self, signal: Tensor, state: "FixedState", time: int, maximum: float) -> Message:
        error = torch.sub(signal, state.trace, out=into(state.change))
        weight = self.weights.values[self.phase, state.layer, time - 1].to(error.dtype)
        if self.weights.training:
            measured = event_weights(error.detach(), self.digits)
            # (A sample that is no number has no say in it: a gradient scaler meets such ones by design.)
            valid = measured.isfinite()
            mean = torch.where(valid, measured, 0).sum() / valid.sum()
            share = self.weights.batches[self.phase].to(error.dtype).reciprocal().clamp_min(self.momentum)
            weight = torch.where(valid.any(), torch.lerp(weight, mean, share), weight)
            self.weights.values[self.phase, state.layer, time - 1] = weight
        # Where there was never anything to tell, an event would stand for nothing: none is sent.
        weight = torch.where(weight > 0, weight, torch.finfo(weight.dtype).max)
        return send(error, weight.expand(len(error)), state, self.digits)

    def for_deviations(self) -> Encoder:
        return FixedEvents(self.weights, self.digits, NUDGED)


@dataclass
class FixedState(EncoderState):
    """The state of a layer that knows which one it is."""

    layer: int
