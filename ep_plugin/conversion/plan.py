"""What a model computes in one step, as conversion reads it from a sequence or from a traced forward.

A signal is the input, a neuron's spikes, a module applied to a signal, or a sum of signals times
numbers. Two signals are equal where they say the same thing, whatever the step they were read in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn


@dataclass(frozen=True)
class Input:
    """The model's input, or what it is `at_a_step` if the model reads it step by step."""

    at_a_step: bool = False


@dataclass(frozen=True)
class Spikes:
    neuron: str


@dataclass(frozen=True)
class Applied:
    """`module` (called `name` in the model) applied to a signal."""

    name: str
    module: nn.Module
    signal: "Signal"


@dataclass(frozen=True)
class Combination:
    """A sum of signals, each times a number."""

    terms: tuple[tuple["Signal", float], ...]


Signal: TypeAlias = Input | Spikes | Applied | Combination


@dataclass
class Plan:
    """The neurons in the order of their first call, each with what it receives; the output; remarks for the user."""

    neurons: dict[str, nn.Module]
    received: dict[str, Signal]
    output: Signal
    notes: list[str] = field(default_factory=list)


def combine(terms: list[tuple[Signal, float]]) -> Signal:
    """The sum, with equal signals taken together."""
    total: dict[Signal, float] = {}
    for signal, factor in terms:
        parts = signal.terms if isinstance(signal, Combination) else ((signal, 1.0),)
        for part, own in parts:
            total[part] = total.get(part, 0.0) + own * factor
    if len(total) == 1 and next(iter(total.values())) == 1:
        return next(iter(total))
    return Combination(tuple(total.items()))


def sources(signal: Signal) -> Iterator[Input | Spikes]:
    """Where a signal comes from."""
    if isinstance(signal, Applied):
        yield from sources(signal.signal)
    elif isinstance(signal, Combination):
        for part, _ in signal.terms:
            yield from sources(part)
    else:
        yield signal


def behind(signal: Signal, done: Signal, prefix: str) -> Signal:
    """`done`, which says what becomes of an input, with `signal` as the input and the names prefixed."""
    if isinstance(done, Applied):
        return Applied(prefix + done.name, done.module, behind(signal, done.signal, prefix))
    if isinstance(done, Combination):
        return combine([(behind(signal, part, prefix), factor) for part, factor in done.terms])
    return signal


class Computation(nn.Module):
    """A signal that branches and joins, as a module of its source."""

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        self.signal = signal
        self.parts = nn.ModuleList(dict.fromkeys(_modules(signal)))

    def forward(self, x: Tensor) -> Tensor:
        known: dict[Signal, Tensor] = {}

        def value(signal: Signal) -> Tensor:
            if signal not in known:
                if isinstance(signal, Applied):
                    known[signal] = signal.module(value(signal.signal))
                elif isinstance(signal, Combination):
                    total, *others = (value(part) * factor for part, factor in signal.terms)
                    for other in others:
                        total = total + other
                    known[signal] = total
                else:
                    known[signal] = x
            return known[signal]

        return value(self.signal)


def _modules(signal: Signal) -> Iterator[nn.Module]:
    if isinstance(signal, Applied):
        yield from _modules(signal.signal)
        yield signal.module
    elif isinstance(signal, Combination):
        for part, _ in signal.terms:
            yield from _modules(part)
