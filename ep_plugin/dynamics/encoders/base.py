"""What every encoder is: a state that it owns, and the message that it sends in a step."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ep_plugin.tensors import rows


class Message(NamedTuple):
    """What a layer sends in a step: its trace changes by `sent * weight`.

    `sent` is `[B, ...]`. `weight` is None (1), or a number for each sample, `[B]`: so that spikes
    travel as the small integers that they are. `events` are the spikes, -1, 0 or 1; None for graded
    neurons. All are overwritten in the next step.
    """

    sent: Tensor
    weight: Tensor | None
    events: Tensor | None


@dataclass
class EncoderState:
    """What an encoder keeps of one layer, all `[B, ...]`. A subclass adds fields of its own.

    Attributes:
        trace: u, what the neighbours know.
        change: room for what the last step has sent.
    """

    trace: Tensor
    change: Tensor

    def repeated(self, times: int) -> Self:
        """For a batch that is this one several times over; nothing is shared."""
        return type(self)(**{f.name: self._repeat(getattr(self, f.name), times) for f in fields(self)})

    @staticmethod
    def _repeat(value: Any, times: int) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) else value


class Encoder(Protocol):
    """What a neuron model's encoder has; `Graded` is the shortest example.

    Attributes:
        spiking: whether it sends spikes.
        signed: whether its signal may be negative.
        averages: whether its traces are noisy, so that what is read are their means over the last
            half of a phase.
    """

    spiking: bool
    signed: bool
    averages: bool

    def start(self, like: Tensor, layer: int, depth: int = 1) -> Any:
        """The state of a layer at rest, for states shaped as `like`: an `EncoderState`.

        (Configurations accept a class for a protocol only if its methods return the very same types.)
        """

    def encode(self, signal: Tensor, state: Any, time: int, maximum: float) -> Message:
        """One step: updates `state`, so that its trace follows `signal`.

        `time` counts the steps from 1, on through the phases; `maximum` is what a binary spike stands for.
        """

    def for_deviations(self) -> "Encoder":
        """What tells deviations in the nudged phase."""


def count_events(events: Tensor) -> Tensor:
    """How many spikes (-1, 0 or 1) each sample has sent, `[B]`: their squares, the fastest of reductions."""

    return torch.linalg.vector_norm(rows(events.detach()), dim=1).square_().round_()
