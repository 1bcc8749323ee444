"""What every encoder is: a state that it owns, and the message that it sends in a step."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ep_plugin.tensors import rows


class Message(NamedTuple):
    """What a layer sends in a step: its trace changes by `sent * weight`.

    `sent` is `[B, ...]`. `weight` is None (1), or a number for each sample, `[B]`: so that spikes
    travel as the small integers that they are. `events` are whole numbers, of so many ternary `digits`: each digit
    that is not 0 is a spike. None for graded neurons. All are overwritten in the next step.
    """

    sent: Tensor
    weight: Tensor | None
    events: Tensor | None
    digits: int = 1

    def slots(self) -> list[Tensor]:
        """The spikes of the step one after the other, each -1, 0 or 1, `[B, ...]`; none of graded neurons."""
        if self.events is None:
            return []
        found, rest = [], self.events.detach()
        for _ in range(self.digits - 1):
            higher = torch.round(rest / 3)
            found.append(rest - 3 * higher)
            rest = higher
        return [rest, *reversed(found)]

    def spikes(self) -> Tensor:
        """How many spikes each sample has sent, `[B]`: the squares of the digits, the fastest of reductions."""
        norms = [torch.linalg.vector_norm(rows(slot), dim=1) for slot in self.slots()]
        return torch.stack(norms).square_().round_().sum(0)


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
        digits: how many ternary digits a step can tell of a state (infinitely many: the state itself).
    """

    spiking: bool
    signed: bool
    averages: bool

    @property
    def digits(self) -> float: ...

    def start(self, like: Tensor, layer: int) -> Any:
        """The state of a layer at rest, for states shaped as `like`: an `EncoderState`.

        (Configurations accept a class for a protocol only if its methods return the very same types.)
        """

    def encode(self, signal: Tensor, state: Any, time: int, maximum: float) -> Message:
        """One step: updates `state`, so that its trace follows `signal`.

        `time` counts the steps from 1, on through the phases; `maximum` is what a binary spike stands for.
        """

    def for_deviations(self) -> "Encoder":
        """What tells deviations in the nudged phase."""
