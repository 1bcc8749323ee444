"""What every encoder is: a state that it owns, and the message that it sends in a step."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ep_plugin.tensors import rows


class Message(NamedTuple):
    """What a layer sends in a step: its trace changes by `sent * weight`. The next step overwrites all of it.

    Attributes:
        sent: `[B, ...]`.
        weight: None (1), or a number for each sample, `[B]`: so that spikes travel as small integers.
        events: whole numbers of `digits` ternary digits: each digit that is not 0 is a spike. None for graded neurons.
        digits: number of digits of an event.

    Example:
        >>> from ep_plugin.dynamics.encoders.base import Message
        >>> events = torch.tensor([[4.0, 2.0]])
        >>> [slot.tolist() for slot in Message(events, None, events, digits=2).slots()]
        [[[1.0, 1.0]], [[1.0, -1.0]]]
    """

    sent: Tensor
    weight: Tensor | None
    events: Tensor | None
    digits: int = 1

    def slots(self) -> list[Tensor]:
        """The spikes of the step one after the other.

        Returns:
            One tensor `[B, ...]` of -1, 0 or 1 per digit; an empty list for graded neurons.
        """
        if self.events is None:
            return []
        found, rest = [], self.events.detach()
        for _ in range(self.digits - 1):
            higher = torch.round(rest / 3)
            found.append(rest - 3 * higher)
            rest = higher
        return [rest, *reversed(found)]

    def spikes(self) -> Tensor:
        """Counts the spikes: the squares of the digits, which is the fastest way to add them up.

        Returns:
            How many spikes each sample has sent, `[B]`.
        """
        norms = [torch.linalg.vector_norm(rows(slot), dim=1) for slot in self.slots()]
        return torch.stack(norms).square_().round_().sum(0)


@dataclass
class EncoderState:
    """What an encoder keeps of one layer, all `[B, ...]`. A subclass adds its own fields.

    Attributes:
        trace: u, what the neighbours know.
        change: room for what the last step has sent.

    Example:
        >>> from ep_plugin.dynamics.encoders.base import EncoderState
        >>> state = EncoderState(trace=torch.zeros(8, 64), change=torch.zeros(8, 64))
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
        averages: whether its traces are noisy. Their means over the last half of a phase are then read.
        digits: how many ternary digits of a state a step can send (infinitely many: the state itself).

    Example:
        >>> encoder = ep.AdaptiveDelta()
        >>> state = encoder.start(torch.zeros(1, 4), layer=0)
        >>> message = encoder.encode(torch.rand(1, 4), state, time=1, maximum=1.0)
        >>> message.spikes().shape
        torch.Size([1])
    """

    spiking: bool
    signed: bool
    averages: bool

    @property
    def digits(self) -> float: ...

    def start(self, like: Tensor, layer: int) -> Any:
        """The state of a layer at rest.

        (Configurations accept a class for a protocol only if its methods return the very same types.)

        Args:
            like: a tensor of the shape, dtype and device of the layer's states.
            layer: number of the layer, from 0.

        Returns:
            An `EncoderState`.
        """

    def encode(self, signal: Tensor, state: Any, time: int, maximum: float) -> Message:
        """Takes one step: updates `state`, so that its trace follows `signal`.

        Args:
            signal: the layer's states, or deviations, `[B, ...]`.
            state: what `start` has returned; changed in place.
            time: number of the step, from 1. It goes on through the phases.
            maximum: what a binary spike stands for.

        Returns:
            What the layer sends.
        """

    def for_deviations(self) -> "Encoder":
        """The encoder of the nudged phase.

        Returns:
            The encoder that sends deviations.
        """
